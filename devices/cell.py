"""A memory cell put together from small parts: devices compose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from devices.base import Cells, Device
from devices.checks import check_counts, check_dtype, check_shape, check_target, seconds_since
from devices.drift import Drift
from devices.faults import StuckCells
from devices.programming import ProgrammingNoise
from devices.pulses import PulseModel
from devices.read_noise import ReadNoise
from devices.window import Window


@dataclass(frozen=True)
class MemoryCell(Device):
    """A cell with any of these parts; None leaves one out, `dataclasses.replace` swaps one.

    g_min_siemens, g_max_siemens  the window of programmable conductances, 0 <= g_min < g_max <= 1 S
    levels       finite levels: `program` rounds to the nearest of 2 to 65536 equidistant conductances
    pulses       how a pulse moves the cell (SoftBoundsPulses, ConstantStepPulses, LevelPulses)
    programming  error of a write (WindowProgrammingNoise, PolynomialProgrammingNoise)
    read_noise   error of a measurement (WhiteReadNoise, PCMReadNoise)
    drift        relaxation after a write (PowerLawDrift, PCMDrift)
    faults       cells that do not move (StuckCells)
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

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = {
            "pulses": PulseModel,
            "programming": ProgrammingNoise,
            "read_noise": ReadNoise,
            "drift": Drift,
            "faults": StuckCells,
        }
        for name, kind in kinds.items():
            part = getattr(self, name)
            if part is not None and not isinstance(part, kind):
                raise ValueError(
                    f"MemoryCell.{name} = {part!r} is not allowed: it must be a {kind.__name__}, or None to "
                    "leave it out."
                )
        window = self.window  # checks the levels
        if self.pulses is not None:
            self.pulses.check(window)

    @property
    def window(self) -> Window:
        """The conductance window with its levels."""
        return Window(self.g_min_siemens, self.g_max_siemens, self.levels)

    @property
    def step_siemens(self) -> float | None:
        """Nominal change per pulse at mid-window, S; None without a pulse model."""
        return None if self.pulses is None else self.pulses.step_siemens(self.window)

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
            params["stuck"] = self.faults.draw(g, rng)
            g[params["stuck"] < 0] = self.g_min_siemens
            g[params["stuck"] > 0] = self.g_max_siemens
        if self.drift is not None:
            params |= self.drift.draw(g, self.window, rng)
        return Cells.new(g, params)

    def program(self, cells: Cells, g_target: Tensor, rng: torch.Generator, t_seconds: float = 0.0) -> None:
        """Write `g_target` (rows, cols) S in place: nearest level, programming noise, bounds of the cell.

        Cells with a NaN target and stuck cells stay as they are. Drift parameters are drawn anew for cells
        that are programmed. ValueError as in Device.program.
        """
        g_target = check_target(g_target, cells.conductance, self.g_min_siemens, self.g_max_siemens)
        seconds_since(cells.written_at, t_seconds)
        index = self._sound(cells, g_target.isnan().logical_not_().view(-1).nonzero().squeeze(1))
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
        cells.write(index, g, t_seconds)

    def pulse(self, cells: Cells, counts: Tensor, rng: torch.Generator, t_seconds: float = 0.0) -> None:
        """Apply `counts` (rows, cols) integer pulses in place; only cells with a count cost anything.

        A pulse acts on what the cell is at `t_seconds`: earlier drift becomes permanent, and its drift starts
        again from there with the same parameters. Stuck cells count pulses and do not move.
        ValueError as in Device.pulse.
        """
        if self.pulses is None:
            raise ValueError(
                "This MemoryCell has no pulse model (pulses = None): write it with program(), or give it "
                "one, e.g. dataclasses.replace(device, pulses=SoftBoundsPulses(steps=63))."
            )
        counts = check_counts(counts, cells.conductance).reshape(-1)
        since = seconds_since(cells.written_at, t_seconds).view(-1)
        pulsed = counts.nonzero().squeeze(1)
        cells.pulses.view(-1)[pulsed] += counts[pulsed].abs()
        index = self._sound(cells, pulsed)
        params = cells.at(index)
        g = cells.conductance.view(-1)[index]
        if self.drift is not None:
            g = self.drift.after(since[index], g, params)
        cells.write(index, self.pulses.apply(g, counts[index], params, self.window, rng), t_seconds)

    def read(self, cells: Cells, rng: torch.Generator, t_seconds: float = 0.0) -> Tensor:
        """Measure all cells at `t_seconds`: (rows, cols) S, a new tensor, 0 or more. Errors: Device.read."""
        since = seconds_since(cells.written_at, t_seconds)
        g = cells.conductance
        if self.drift is not None:
            g = self.drift.after(since, g, cells.params)
            if self.faults is not None:
                g = torch.where(cells.params["stuck"] == 0, g, cells.conductance)
        if self.read_noise is not None:
            g = self.read_noise.apply(g, cells.conductance, since, self.window, rng)
        return g.clamp(min=0)

    def _sound(self, cells: Cells, index: Tensor) -> Tensor:
        """Those of the flat cell numbers `index` (n,) that are not stuck."""
        return index if self.faults is None else index[cells.params["stuck"].view(-1)[index] == 0]
