"""Steps that fall as a power of the distance left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from devices.checks import check_number
from devices.step_pulses import StepPulses


@dataclass(frozen=True)
class PowerPulses(StepPulses):
    """Step proportional to a power of the distance to the bound ahead (other settings: see StepPulses).

        up    g += step_up   (2 (g_hi - g) / (g_hi - g_lo))^gamma_up
        down  g -= step_down (2 (g - g_lo) / (g_hi - g_lo))^gamma_down

    gamma_up, gamma_down  0 to 20: 0 is a constant step, 1 soft bounds
    The factor 2 makes `step` the move at mid-range. Source: as aihwkit's power step, e.g. Rasch et al., AICAS 2021.
    """

    gamma_up: float = 1.0
    gamma_down: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma_up", "gamma_down"):
            way_out = "0 is a constant step, 1 soft bounds."
            check_number(f"PowerPulses.{name}", getattr(self, name), 0, 20, way_out)

    def profile(self, x: Tensor, up: Tensor) -> Tensor:
        """1 at mid-range, 0 on arrival where gamma > 0."""
        x = x.clamp(0, 1)  # a cell may have drifted out of its bounds, where a power has no value
        rising, falling = (2 * (1 - x)) ** self.gamma_up, (2 * x) ** self.gamma_down
        return torch.where(up, rising, falling)
