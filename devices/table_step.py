"""Steps from a table: measured data as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from devices.checks import check_number
from devices.step_pulses import StepPulses


@dataclass(frozen=True)
class TablePulses(StepPulses):
    """Step looked up by the state, with linear interpolation (other settings: see StepPulses).

    up, down  moves over the step at equal distances from the lower to the upper bound, >= 0, at least two each; their
              means at mid-range should be about 1, for `steps` to mean what it says
    sigma     cycle-to-cycle spread over the step at the same places, >= 0; () takes sigma_c2c
    """

    up: tuple[float, ...] = ()
    down: tuple[float, ...] = ()
    sigma: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("up", "down", "sigma"):
            table = getattr(self, name)
            least = 0 if name == "sigma" else 2
            if not isinstance(table, tuple) or len(table) < least or len(table) == 1:
                raise ValueError(
                    f"TablePulses.{name} = {table!r} is not allowed: give a tuple of two or more moves from the lower "
                    "to the upper bound, over the step."
                )
            for value in table:
                check_number(f"TablePulses.{name}", value, 0, 1e6, "Moves are magnitudes over the step.")
        if self.sigma and self.sigma_c2c:
            raise ValueError(
                f"TablePulses.sigma_c2c = {self.sigma_c2c} beside a table sigma: give one of them."
            )
        middle = torch.full((2,), 0.5)
        up, down = self.profile(middle, torch.tensor([True, False])).tolist()
        if not (up > 0 and (self.one_sided or down > 0)):
            raise ValueError(
                f"TablePulses has moves {up:g} up and {down:g} down at mid-range: both must be positive, or a "
                "controller does not know the step. Check the tables."
            )

    @property
    def is_noisy(self) -> bool:
        """As of the table sigma, where there is one."""
        return bool(self.sigma) or super().is_noisy

    def profile(self, x: Tensor, up: Tensor) -> Tensor:
        """The tables at x."""
        return torch.where(up, _at(self.up, x), _at(self.down, x))

    def spread(self, move: Tensor, step: Tensor, x: Tensor) -> Tensor:
        """The table sigma at x times the step."""
        return step * _at(self.sigma, x) if self.sigma else super().spread(move, step, x)


def _at(table: tuple[float, ...], x: Tensor) -> Tensor:
    values = torch.as_tensor(table, dtype=x.dtype, device=x.device)
    place = x.clamp(0, 1) * (len(table) - 1)  # a cell may have drifted out of its bounds
    left = place.long().clamp_(0, len(table) - 2)
    return torch.lerp(values[left], values[left + 1], place - left)
