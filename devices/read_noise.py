"""Read noise: what differs from one measurement to the next while the cell stays as it is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from devices.base import Cells
from devices.checks import check_choice, check_number
from devices.draws import normal_like
from devices.window import Window


class ReadNoise(ABC):
    """Gaussian noise of a measurement; a subclass gives its standard deviation and how long it stays the same."""

    @abstractmethod
    def sigma(self, g: Tensor, g_written: Tensor, since: Tensor, window: Window) -> Tensor | float:
        """Standard deviation in siemens; all tensors (rows, cols).

        g          conductance now, after drift, S
        g_written  conductance right after the last write, S
        since      seconds since the last write, 0 or more
        """

    @property
    def correlation_seconds(self) -> tuple[float, ...]:
        """Correlation times of the processes that the noise is the sum of, of equal power; (): white."""
        return ()

    def apply(
        self, cells: Cells, g: Tensor, since: Tensor, window: Window, t_seconds: float, rng: torch.Generator
    ) -> Tensor:
        """One measurement `g + sigma xi`, (rows, cols) S. White noise is drawn afresh at each call; other noise goes
        on from where the last read left it in `cells.memory`. ValueError: `t_seconds` before that read."""
        xi = self._correlated(cells, t_seconds, rng) if self.correlation_seconds else normal_like(g, rng)
        return xi.mul_(self.sigma(g, cells.conductance, since, window)).add_(g)

    def _correlated(self, cells: Cells, t_seconds: float, rng: torch.Generator) -> Tensor:
        """Standard normal numbers (rows, cols), from stationary Ornstein-Uhlenbeck processes: over dt each keeps
        exp(-dt / tau) of itself, exactly, however long dt is."""
        times, memory = self.correlation_seconds, cells.memory
        if "noise" not in memory:
            like = cells.conductance.expand(len(times), *cells.shape)
            memory["noise"] = normal_like(like, rng)
        else:
            elapsed = t_seconds - memory["noise_at"].item()
            if elapsed < 0:
                raise ValueError(
                    f"t_seconds = {t_seconds:g} s lies before the last read at {memory['noise_at'].item():g} s: the "
                    "noise has a memory and time only runs forward, give a time at or after the last read."
                )
            for noise, tau in zip(memory["noise"], times, strict=True) if elapsed else ():
                noise.mul_(math.exp(-elapsed / tau))
                noise.add_(normal_like(noise, rng), alpha=math.sqrt(-math.expm1(-2 * elapsed / tau)))
        memory["noise_at"] = torch.tensor(t_seconds, dtype=torch.float64)
        return memory["noise"].sum(0).div_(math.sqrt(len(times)))


@dataclass(frozen=True)
class RelativeReadNoise(ReadNoise):
    """Noise of constant relative strength.

    sigma_relative  0 to 1; 0.02 is 2 %
    relative_to     "window": of the span g_max - g_min, the same for all cells (read-out electronics);
                    "conductance": of the cell's present conductance (current fluctuations)
    """

    sigma_relative: float
    relative_to: Literal["window", "conductance"] = "window"

    def __post_init__(self) -> None:
        owner = type(self).__name__
        way_out = "It is relative: 0.02 is 2 %."
        check_number(f"{owner}.sigma_relative", self.sigma_relative, 0, 1, way_out)
        check_choice(f"{owner}.relative_to", self.relative_to, ("window", "conductance"))

    def sigma(self, g: Tensor, g_written: Tensor, since: Tensor, window: Window) -> Tensor | float:
        """sigma_relative times the span or the conductance, S."""
        return self.sigma_relative * (window.span if self.relative_to == "window" else g)


@dataclass(frozen=True)
class WhiteReadNoise(RelativeReadNoise):
    """White noise: every read draws it afresh, however soon after the last (settings: see RelativeReadNoise)."""


@dataclass(frozen=True)
class FlickerReadNoise(RelativeReadNoise):
    """1/f noise: two reads close in time share it (other settings: see RelativeReadNoise).

    A sum of Ornstein-Uhlenbeck processes of equal power, one per decade of correlation time from `shortest_seconds` to
    `longest_seconds`, has a spectrum of 1/f between the inverses of the two, flat below and 1/f^2 above (van der Ziel,
    Physica 16:359, 1950). sigma_relative is the total. The same for both times: a single process, of Lorentzian
    spectrum (random telegraph noise of many traps).

    shortest_seconds, longest_seconds  1e-12 <= shortest <= longest <= 1e12 s
    """

    shortest_seconds: float = 1e-3
    longest_seconds: float = 1e3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("shortest_seconds", "longest_seconds"):
            check_number(f"FlickerReadNoise.{name}", getattr(self, name), 1e-12, 1e12, "It is in seconds.")
        if self.shortest_seconds > self.longest_seconds:
            raise ValueError(
                f"FlickerReadNoise.shortest_seconds = {self.shortest_seconds!r} is not allowed: it must not exceed "
                f"longest_seconds = {self.longest_seconds!r}. Swap them."
            )

    @property
    def correlation_seconds(self) -> tuple[float, ...]:
        """One per decade, both ends included."""
        decades = math.log10(self.longest_seconds / self.shortest_seconds)
        steps = math.ceil(decades - 1e-9)
        return tuple(self.shortest_seconds * 10 ** (decades * k / max(steps, 1)) for k in range(steps + 1))


@dataclass(frozen=True)
class PCMReadNoise(ReadNoise):
    """1/f noise of phase-change memory, accumulated up to the time of reading.

        sigma = g Q sqrt(ln((t + t_read) / (2 t_read))),   Q = min(0.0088 / (g_written / g_max)^0.65, 0.2)

    with t = seconds since the last write + t0. Source: Nandakumar et al., ICECS 2019.

    t0_seconds      first measurement of the fit, 20 s in the source; at least t_read_seconds
    t_read_seconds  duration of a read, 250 ns in the source; 1e-12 to 1 s
    """

    t0_seconds: float = 20.0
    t_read_seconds: float = 250e-9

    def __post_init__(self) -> None:
        cls = type(self)
        way_out = f"The source has {cls.t_read_seconds:g} s."
        check_number(f"{cls.__name__}.t_read_seconds", self.t_read_seconds, 1e-12, 1.0, way_out)
        way_out = f"The source has {cls.t0_seconds:g} s."
        check_number(f"{cls.__name__}.t0_seconds", self.t0_seconds, self.t_read_seconds, 1e9, way_out)

    def strength(self, g: Tensor) -> Tensor:
        """Q at g over g_max, 0 or more."""
        return (0.0088 * g.pow(-0.65)).clamp_(max=0.2)

    def sigma(self, g: Tensor, g_written: Tensor, since: Tensor, window: Window) -> Tensor:
        """The formula above, (rows, cols) S; 0 for a cell at 0 S."""
        q = self.strength(g_written / window.g_max_siemens)
        t = since.to(g.dtype) + self.t0_seconds
        spectrum = ((t + self.t_read_seconds) / (2 * self.t_read_seconds)).log_().clamp_(min=0).sqrt_()
        return g * q * spectrum
