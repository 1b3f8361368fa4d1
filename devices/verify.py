"""Program-and-verify: write, read, write again, until a cell is where it should be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from devices.base import Cells, Device
from devices.checks import check_number, check_target


@dataclass(frozen=True)
class ProgramVerify:
    """Closed-loop programming of single cells.

    tolerance   largest |read - target| that is accepted, over the window; 1e-6 to 1
    max_rounds  reads, and writes after them, before a cell is given up; 1 to 1e5
    reads       reads averaged per verification, 1 to 1e4
    max_pulses  pulses a cell may take in all, 1 to 1e9; None: ten times those across the window

    A device with pulses is moved by as many as should bridge what is missing at its nominal step, at least one; half as
    many each time that a cell overshot, twice as many (up to all) where it did not, since the step of a cell may be
    several nominal ones. A one-sided cell is reset first where it is too high. A device without pulses is programmed
    again. A cell is left alone once it has read right; that read included its noise, so that the next may differ.
    """

    tolerance: float
    max_rounds: int = 100
    reads: int = 1
    max_pulses: int | None = None

    def __post_init__(self) -> None:
        check_number(
            "ProgramVerify.tolerance", self.tolerance, 1e-6, 1, "It is over the window: 0.01 is 1 %."
        )
        for name, most in (("max_rounds", 10**5), ("reads", 10**4), ("max_pulses", 10**9)):
            if name != "max_pulses" or self.max_pulses is not None:
                check_number(f"ProgramVerify.{name}", getattr(self, name), 1, most, "It counts.", whole=True)

    def program(
        self, device: Device, cells: Cells, g_target: Tensor, rng: torch.Generator, t_seconds: float = 0.0
    ) -> Tensor:
        """Bring cells to `g_target` (rows, cols) S, in place; where it is NaN a cell is left untouched.

        Returns which cells (rows, cols), bool, never came within the tolerance. ValueError as in Device.program.
        """
        g_target = check_target(g_target, cells.conductance, device.g_min_siemens, device.g_max_siemens)
        span, step = device.window.span, device.step_siemens
        across = 1 if step is None else max(round(span / step), 1)
        budget = self.max_pulses
        if budget is None:  # a write without pulses counts as one: the rounds bound them
            budget = self.max_rounds if step is None else 10 * across
        before, nowhere = cells.pulses.clone(), torch.full_like(g_target, torch.nan)
        failed, last, share = ~g_target.isnan(), torch.zeros_like(g_target), torch.ones_like(g_target)
        for _ in range(self.max_rounds):
            missing = (g_target - self._measured(device, cells, rng, t_seconds)).nan_to_num_(0.0)
            failed &= missing.abs() > self.tolerance * span
            left = budget - (cells.pulses - before)
            todo = failed & (left > 0)
            if not todo.any():
                return failed
            if step is None:
                device.program(cells, torch.where(todo, g_target, nowhere), rng, t_seconds)
                continue
            if device.one_sided:
                lowest = torch.full_like(g_target, device.g_min_siemens)
                device.program(cells, torch.where(todo & (missing < 0), lowest, nowhere), rng, t_seconds)
                todo &= missing > 0
            share = torch.where(missing.sign() * last.sign() < 0, share / 2, (2 * share).clamp_(max=1))
            last = missing
            counts = (share * missing.abs() / step).round().to(torch.int64).clamp_(min=1)
            counts = torch.minimum(counts, left.clamp(max=across))
            counts *= torch.where(missing > 0, 1, -1)
            device.pulse(cells, torch.where(todo, counts, 0), rng, t_seconds)
        missing = (g_target - self._measured(device, cells, rng, t_seconds)).nan_to_num_(0.0)
        return failed & (missing.abs() > self.tolerance * span)

    def _measured(self, device: Device, cells: Cells, rng: torch.Generator, t_seconds: float) -> Tensor:
        return sum(device.read(cells, rng, t_seconds) for _ in range(self.reads)) / self.reads
