"""What every memory technology offers (`Device`) and the state of one array of its cells (`Cells`)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from devices.checks import check_dtype
from devices.operation import Operation
from devices.window import Window


@dataclass(eq=False)
class Cells:
    """Explicit state of one array of memory cells. Devices change it in place; nothing is hidden elsewhere.

    conductance  (rows, cols) S, conductance right after the last write: before drift and read noise
    written_at   (rows, cols) s, time stamp of the last write; always float64, so that late stamps stay exact
    pulses       (rows, cols) int64, pulses received so far, up and down together; of a cell without pulses, direct
                 writes
    params       per-cell parameters, each (rows, cols): drawn at fabrication (bounds `g_lo`, `g_hi`, steps
                 `step_up`, `step_down`, all S; `stuck`; `endurance`), at programming (`nu_drift`) or by each write
                 (`hidden`, S)
    memory       running state of any shape: what read noise with a correlation time was at the last read
    """

    conductance: Tensor
    written_at: Tensor
    pulses: Tensor
    params: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = tuple(self.conductance.shape)
        for name, x in {"written_at": self.written_at, "pulses": self.pulses, **self.params}.items():
            if tuple(x.shape) != shape:
                raise ValueError(
                    f"Cells: {name} has shape {tuple(x.shape)}, conductance {shape}: all tensors of one "
                    "array share its shape (rows, cols)."
                )
        # so that neither checking the time nor writing all the time at one takes a pass over the array
        self._first, self._latest = map(float, self.written_at.aminmax())

    @classmethod
    def new(cls, conductance: Tensor, params: dict[str, Tensor] | None = None) -> Cells:
        """Fresh cells at `conductance` (rows, cols) S: written at t = 0 s, never pulsed."""
        return cls(
            conductance=conductance,
            written_at=torch.zeros_like(conductance, dtype=torch.float64),
            pulses=torch.zeros_like(conductance, dtype=torch.int64),
            params=params or {},
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return tuple(self.conductance.shape)

    def write(self, index: Tensor, g: Tensor, t_seconds: float) -> None:
        """Set the conductance (n,) S of the cells with flat (row-major) numbers `index` (n,) and stamp them."""
        if len(index) == 0:  # nothing written: an earlier time is still allowed
            return
        self.conductance.view(-1).index_copy_(0, index, g)
        if not self._first == t_seconds == self._latest:
            self.written_at.view(-1).index_fill_(0, index, t_seconds)
            self._latest = max(self._latest, t_seconds)

    def check_time(self, t_seconds: float) -> None:
        """ValueError if `t_seconds` is not finite or lies before the last write."""
        if not math.isfinite(t_seconds):
            raise ValueError(f"t_seconds = {t_seconds!r} is not allowed: give a finite time in seconds.")
        if t_seconds < self._latest:
            raise ValueError(
                f"t_seconds = {t_seconds:g} s lies before the last write at {self._latest:g} s: time only runs "
                "forward, give a time at or after the last write."
            )

    def since(self, t_seconds: float) -> Tensor:
        """Seconds (rows, cols), float64, from each last write to `t_seconds`; errors as `check_time`."""
        self.check_time(t_seconds)
        return t_seconds - self.written_at

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Cells:
        """A copy on `device`; `dtype` applies to conductances and floating parameters, not to time stamps."""
        if dtype is not None:
            check_dtype(dtype)

        def move(x: Tensor) -> Tensor:
            return x.to(device=device, dtype=dtype if x.is_floating_point() else None, copy=True)

        return Cells(
            conductance=move(self.conductance),
            written_at=self.written_at.to(device=device, copy=True),
            pulses=move(self.pulses),
            params={name: move(x) for name, x in self.params.items()},
            memory={name: x if x.ndim == 0 else move(x) for name, x in self.memory.items()},
        )

    def clone(self) -> Cells:
        """A copy that shares no memory with this one."""
        return self.to()

    def state_dict(self) -> dict:
        """A snapshot as a plain nested dict of tensors (copies: later writes do not change it)."""
        copy = self.clone()
        return {
            "conductance": copy.conductance,
            "written_at": copy.written_at,
            "pulses": copy.pulses,
            "params": copy.params,
            "memory": copy.memory,
        }

    @classmethod
    def from_state_dict(cls, d: dict) -> Cells:
        """Cells from a `state_dict()`; the dict stays untouched. ValueError names wrong keys."""
        wanted = {"conductance", "written_at", "pulses", "params", "memory"}
        if set(d) != wanted:
            raise ValueError(
                f"Cells state has missing keys {sorted(wanted - set(d))} and unknown keys "
                f"{sorted(set(d) - wanted)}: pass what Cells.state_dict() returned."
            )
        return cls(**{**d, "params": dict(d["params"]), "memory": dict(d["memory"])}).clone()


@dataclass(frozen=True)
class Device(ABC):
    """A memory-cell technology: frozen settings and four verbs. State lives in `Cells`, randomness in `rng`.

    g_min_siemens, g_max_siemens  window of conductances that may be programmed, 0 <= g_min < g_max <= 1 S
    source                        where the settings come from, shown to users
    operation                     voltages and times of pulses and reads, for energy; None: not known

    A technology of one's own: subclass, make it a frozen dataclass, write the four verbs and `step_siemens`.
    """

    g_min_siemens: float
    g_max_siemens: float
    source: str = field(default="", kw_only=True)
    operation: Operation | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        Window(self.g_min_siemens, self.g_max_siemens)
        if not isinstance(self.source, str):
            raise ValueError(
                f"source = {self.source!r} is not allowed: it must be a string, e.g. a citation."
            )
        if not isinstance(self.operation, Operation | None):
            raise ValueError(
                f"operation = {self.operation!r} is not allowed: it must be an Operation, or None where not known."
            )

    @cached_property
    def window(self) -> Window:
        """The conductance window."""
        return Window(self.g_min_siemens, self.g_max_siemens)

    @property
    def one_sided(self) -> bool:
        """True where pulses only potentiate: a lower conductance takes `program`, which resets the cell."""
        return False

    @property
    def write_error_siemens(self) -> float:
        """Standard deviation of a direct write by `program`, mid-window, S; 0 for an exact one."""
        return 0.0

    @property
    @abstractmethod
    def step_siemens(self) -> float | None:
        """Nominal conductance change per pulse at mid-window, S: what a controller can know.

        None: this technology is written by `program` only, and `pulse` raises.
        """

    @abstractmethod
    def fabricate(
        self,
        shape: tuple[int, int],
        rng: torch.Generator,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Cells:
        """Make one array (rows, cols) at t = 0 s, drawing its device-to-device spread from `rng`."""

    @abstractmethod
    def program(self, cells: Cells, g_target: Tensor, rng: torch.Generator, t_seconds: float = 0.0) -> None:
        """Bring cells to `g_target` (rows, cols) S, in place; where it is NaN a cell is left untouched.

        ValueError: a target outside [g_min, g_max] beyond rounding, or `t_seconds` before the last write.
        """

    @abstractmethod
    def pulse(self, cells: Cells, counts: Tensor, rng: torch.Generator, t_seconds: float = 0.0) -> None:
        """Apply `counts` (rows, cols) pulses, integer: + potentiates, - depresses, 0 leaves alone; in place.

        ValueError: no pulses in this technology, or none down; a dtype that is not integer; `t_seconds` before the
        last write.
        """

    def pulse_at(
        self,
        index: Tensor,
        arrays: Sequence[tuple[Cells, Tensor]],
        rng: torch.Generator,
        t_seconds: float = 0.0,
    ) -> None:
        """`pulse` on several arrays of this device at the same places: the cells with flat (row-major) numbers `index`
        (n,) of each of `arrays`, which are (cells, counts (n,))."""
        for cells, counts in arrays:
            dense = counts.new_zeros(cells.conductance.numel()).index_copy_(0, index, counts)
            self.pulse(cells, dense.view(cells.shape), rng, t_seconds)

    @abstractmethod
    def read(self, cells: Cells, rng: torch.Generator, t_seconds: float = 0.0) -> Tensor:
        """Conductances (rows, cols) S as measured at `t_seconds`: drifted, with read noise drawn afresh.

        ValueError: `t_seconds` before the last write.
        """
