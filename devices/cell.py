"""A memory cell put together from small parts: devices compose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from devices.base import Cells, Device
from devices.checks import check_counts, check_dtype, check_shape, check_target
from devices.drift import Drift
from devices.faults import DEAD, Endurance, StuckCells
from devices.indices import nonzero
from devices.programming import ProgrammingNoise
from devices.pulses import PulseModel
from devices.read_noise import ReadNoise
from devices.window import Window
from devices.write_noise import HiddenStateNoise


@dataclass(frozen=True)
class MemoryCell(Device):
    """A cell with any of these parts; None leaves one out, `dataclasses.replace` swaps one.

    g_min_siemens, g_max_siemens  the window of programmable conductances, 0 <= g_min < g_max <= 1 S
    levels       finite levels: `program` rounds to the nearest of 2 to 65536 equidistant conductances
    pulses       how a pulse moves the cell (SoftBoundsPulses, LinearPulses, TablePulses, ...)
    programming  error of a write by `program` (WindowProgrammingNoise, PolynomialProgrammingNoise, ...)
    write_noise  fluctuation of every write around a hidden state (HiddenStateNoise); needs pulses
    read_noise   error of a measurement (WhiteReadNoise, FlickerReadNoise, PCMReadNoise)
    drift        relaxation after a write (PowerLawDrift, PCMDrift, Leak, ...)
    faults       cells that do not move, and dead lines (StuckCells)
    endurance    pulses until a cell is stuck where it is (Endurance); needs pulses
    source       where the numbers come from, shown to users

    Physical limits, not argument checks: a write ends inside the bounds of the cell itself, which the pulse
    model draws (they are the saturation of the material); a cell without a pulse model is bounded by 0 S
    only, so that programming noise at g_max is not cut in half. A read is never below 0 S: a cell is passive.
    """

    levels: int | None = None
    pulses: PulseModel | None = None
    programming: ProgrammingNoise | None = None
    read_noise: ReadNoise | None = None
    drift: Drift | None = None
    faults: StuckCells | None = None
    write_noise: HiddenStateNoise | None = None
    endurance: Endurance | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = {
            "pulses": PulseModel,
            "programming": ProgrammingNoise,
            "read_noise": ReadNoise,
            "drift": Drift,
            "faults": StuckCells,
            "write_noise": HiddenStateNoise,
            "endurance": Endurance,
        }
        for name, kind in kinds.items():
            part = getattr(self, name)
            if part is not None and not isinstance(part, kind):
                raise ValueError(
                    f"MemoryCell.{name} = {part!r} is not allowed: it must be a {kind.__name__}, or None to "
                    "leave it out."
                )
        for name in ("write_noise", "endurance"):
            if getattr(self, name) is not None and self.pulses is None:
                raise ValueError(
                    f"MemoryCell.{name} = {getattr(self, name)!r} is not allowed without pulses: it is about them. "
                    "Leave it out, or give the cell a pulse model."
                )
        window = self.window  # checks the levels
        for part in (self.pulses, self.programming):
            if part is not None:
                part.check(window)
        if self.pulses is not None and self.drift is not None:
            self.drift.check_pulses()

    @cached_property
    def window(self) -> Window:
        """The conductance window with its levels."""
        return Window(self.g_min_siemens, self.g_max_siemens, self.levels)

    @property
    def step_siemens(self) -> float | None:
        """Nominal change per pulse at mid-window, S; None without a pulse model."""
        return None if self.pulses is None else self.pulses.step_siemens(self.window)

    @property
    def write_error_siemens(self) -> float:
        """Of the programming noise, mid-window, S."""
        if self.programming is None:
            return 0.0
        middle = torch.tensor([self.window.middle], dtype=torch.float64)
        return float(self.programming.sigma(middle, self.window))

    @property
    def one_sided(self) -> bool:
        """As of the pulse model."""
        return self.pulses is not None and self.pulses.one_sided

    def fabricate(
        self,
        shape: tuple[int, int],
        rng: torch.Generator,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Cells:
        """One array (rows, cols) at its lowest conductance (pristine), stuck cells where they are stuck."""
        check_dtype(dtype)
        g = torch.full(check_shape(shape), self.g_min_siemens, dtype=dtype, device=device)
        params: dict[str, Tensor] = {}
        if self.pulses is not None:
            params |= self.pulses.fabricate(g, self.window, rng)
            g = params["g_lo"].clone()
        if self.faults is not None:
            params["stuck"], at = self.faults.draw(g, self.window, rng)
            g = torch.where(params["stuck"] == 0, g, at)
        if self.endurance is not None:
            params["endurance"] = self.endurance.draw(g, rng)
        if self.write_noise is not None:
            params["hidden"] = g.clone()
        if self.drift is not None:
            params |= self.drift.draw(g, self.window, rng)
        return Cells.new(g, params)

    def program(self, cells: Cells, g_target: Tensor, rng: torch.Generator, t_seconds: float = 0.0) -> None:
        """Write `g_target` (rows, cols) S in place: nearest level, programming noise, bounds of the cell.

        Cells with a NaN target and stuck cells stay as they are. Drift parameters are drawn anew for cells
        that are programmed. ValueError as in Device.program.
        """
        g_target = check_target(g_target, cells.conductance, self.g_min_siemens, self.g_max_siemens)
        cells.check_time(t_seconds)
        index = self._sound(cells, nonzero(g_target.isnan().logical_not_()))
        g, window = g_target.view(-1)[index], self.window
        if self.levels is not None:
            g = window.at_level(window.level_of(g))
        if self.programming is not None:
            g = self.programming.apply(g, window, rng)
        if self.pulses is not None:
            g_lo, g_hi = (cells.params[name].view(-1)[index] for name in ("g_lo", "g_hi"))
            g = g.clamp(g_lo, g_hi)
        else:
            g = g.clamp(min=0)
        if self.drift is not None:
            for name, x in self.drift.draw(g, window, rng).items():
                cells.params[name].view(-1)[index] = x
        if self.pulses is None:
            cells.pulses.view(-1)[index] += 1
        self._write(cells, index, g, rng, t_seconds)

    def pulse(self, cells: Cells, counts: Tensor, rng: torch.Generator, t_seconds: float = 0.0) -> None:
        """Apply `counts` (rows, cols) integer pulses in place; only cells with a count cost anything.

        A pulse acts on what the cell is at `t_seconds`: earlier drift becomes permanent, and its drift starts
        again from there with the same parameters. Stuck cells count pulses and do not move.
        ValueError as in Device.pulse.
        """
        counts = check_counts(counts, cells.conductance).reshape(-1)
        index = nonzero(counts)
        self.pulse_at(index, [(cells, counts.index_select(0, index))], rng, t_seconds)

    def pulse_at(
        self,
        index: Tensor,
        arrays: Sequence[tuple[Cells, Tensor]],
        rng: torch.Generator,
        t_seconds: float = 0.0,
    ) -> None:
        """All in one go. ValueError as in Device.pulse."""
        if self.pulses is None:
            raise ValueError(
                "This MemoryCell has no pulse model (pulses = None): write it with program(), or give it "
                "one, e.g. dataclasses.replace(device, pulses=SoftBoundsPulses(steps=63))."
            )
        parts = [self._todo(cells, index, counts, t_seconds) for cells, counts in arrays]
        indices = [moved for moved, _ in parts]

        def gather(of: Callable[[Cells], Tensor]) -> Tensor:
            return _gather([of(cells) for cells, _ in arrays], indices)

        params = {name: gather(lambda cells, name=name: cells.params[name]) for name in arrays[0][0].params}
        g = gather(lambda cells: cells.conductance) if self.write_noise is None else params["hidden"]
        if self.drift is not None:
            g = self.drift.after(t_seconds - gather(lambda cells: cells.written_at), g, params)
        g = self.pulses.apply(g, torch.cat([todo for _, todo in parts]), params, self.window, rng)
        moved = g.split([len(index) for index in indices])
        for (cells, _), index, part in zip(arrays, indices, moved, strict=True):
            self._write(cells, index, part, rng, t_seconds)

    def _todo(self, cells: Cells, index: Tensor, counts: Tensor, t_seconds: float) -> tuple[Tensor, Tensor]:
        """Count these pulses (n,) on the cells with flat numbers `index` (n,); the numbers (m,) of those that they
        move, and by how many (m,)."""
        cells.check_time(t_seconds)
        if self.one_sided and bool((counts < 0).any()):
            raise ValueError(
                f"counts ask {int((counts < 0).sum())} cell(s) to go down, but pulses of this device only potentiate: "
                "reset such cells with program(), or use a mapping for one-sided cells (OneSidedPair)."
            )
        before = cells.pulses.view(-1).index_select(0, index)
        cells.pulses.view(-1).index_copy_(0, index, before + counts.abs())
        if self.endurance is not None:  # the last pulses of a cell still move it
            # in float64: what is left of a long life does not fit in int32
            left = (cells.params["endurance"].view(-1)[index] - before).clamp_(min=0)
            counts = counts.sign() * torch.minimum(counts.abs().to(left), left).to(counts.dtype)
        if self.faults is not None:
            counts = counts * (cells.params["stuck"].view(-1)[index] == 0)
        able = nonzero(counts)
        return (index, counts) if len(able) == len(index) else (index[able], counts[able])

    def read(self, cells: Cells, rng: torch.Generator, t_seconds: float = 0.0) -> Tensor:
        """Measure all cells at `t_seconds`: (rows, cols) S, a new tensor, 0 or more. Errors: Device.read."""
        cells.check_time(t_seconds)
        g = cells.conductance
        if self.drift is not None:
            g = self.drift.after(cells.since(t_seconds), g, cells.params)
            if self.faults is not None:
                g = torch.where(cells.params["stuck"] == 0, g, cells.conductance)
        if self.read_noise is not None:
            g = self.read_noise.apply(cells, g, cells.since(t_seconds), self.window, t_seconds, rng)
            if self.faults is not None and self.faults.has_dead_lines:
                g.masked_fill_(cells.params["stuck"] == DEAD, 0.0)
        return g.clamp(min=0)

    def _write(self, cells: Cells, index: Tensor, g: Tensor, rng: torch.Generator, t_seconds: float) -> None:
        """Leave the cells with flat numbers `index` (n,) in the states `g` (n,) S."""
        if self.write_noise is not None:
            cells.params["hidden"].view(-1)[index] = g
            g = self.write_noise.apply(g, self.step_siemens, rng)
        cells.write(index, g, t_seconds)

    def _sound(self, cells: Cells, index: Tensor) -> Tensor:
        """Those of the flat cell numbers `index` (n,) that are neither stuck nor worn out."""
        if self.faults is not None:
            index = index[cells.params["stuck"].view(-1)[index] == 0]
        if self.endurance is not None:
            index = index[cells.params["endurance"].view(-1)[index] > cells.pulses.view(-1)[index]]
        return index


def _gather(arrays: Sequence[Tensor], indices: Sequence[Tensor]) -> Tensor:
    """The entries (n,) of arrays (rows, cols) at their flat numbers `indices`, one array after another."""
    sizes = [len(index) for index in indices]
    found = arrays[0].new_empty(sum(sizes))
    for x, index, part in zip(arrays, indices, found.split(sizes), strict=True):
        torch.index_select(x.view(-1), 0, index, out=part)
    return found
