"""Steps that depend exponentially on the state: measured ReRAM and phase-change memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from devices.checks import check_number
from devices.step_pulses import StepPulses


@dataclass(frozen=True)
class ExponentialPulses(StepPulses):
    """Step with an exponential part (other settings: see StepPulses). With u from -1 at g_lo to 1 at g_hi:

        z = slope u + offset
        up    g += step_up   max(1 - a_up   exp( gamma_up   z), 0)
        down  g -= step_down max(1 - a_down exp(-gamma_down z), 0)

    and noise of standard deviation sigma_c2c (|move| + c2c_add + c2c_slope |x|) for c2c_of = "move", where c2c_add
    and c2c_slope are shares of the cell's own range and x is 0 at its lower and 1 at its upper bound.

    a_up, a_down          any finite number; negative where steps grow as z does
    gamma_up, gamma_down  -100 to 100
    slope, offset         -100 to 100
    Source: fits to Gong et al., Nat. Commun. 9:2102 (2018), and Nandakumar et al., Front. Neurosci. 14:406 (2020), as
    published with aihwkit (ExpStepDevice).
    """

    a_up: float = 0.0
    a_down: float = 0.0
    gamma_up: float = 0.0
    gamma_down: float = 0.0
    slope: float = 1.0
    offset: float = 0.0
    c2c_add: float = 0.0
    c2c_slope: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = {"a_up": 1e6, "a_down": 1e6} | dict.fromkeys(
            ("gamma_up", "gamma_down", "slope", "offset"), 100
        )
        for name, most in limits.items():
            way_out = "A fit of the step against the state gives it."
            check_number(f"ExponentialPulses.{name}", getattr(self, name), -most, most, way_out)
        for name in ("c2c_add", "c2c_slope"):
            way_out = "It is a share of the range: 0.01 is 1 %."
            check_number(f"ExponentialPulses.{name}", getattr(self, name), 0, 10, way_out)
        places, ways = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[True], [False]])
        for way, moves in zip(("up", "down"), self.profile(places, ways).tolist(), strict=True):
            if way == "down" and self.one_sided:
                continue
            if not (all(map(math.isfinite, moves)) and moves[1] > 0):
                raise ValueError(
                    f"ExponentialPulses with a_up = {self.a_up}, a_down = {self.a_down}, gamma_up = {self.gamma_up}, "
                    f"gamma_down = {self.gamma_down} has moves {way} of {moves[0]:g}, {moves[1]:g} and {moves[2]:g} "
                    "steps at the lower bound, mid-range and the upper bound: all must be finite and the second "
                    "positive. Check the signs (a is negative where steps grow with z) and the scale of gamma."
                )

    def profile(self, x: Tensor, up: Tensor) -> Tensor:
        """The formula above."""
        z = self.slope * (2 * x - 1) + self.offset
        rising = 1 - self.a_up * torch.exp(self.gamma_up * z)
        falling = 1 - self.a_down * torch.exp(-self.gamma_down * z)
        return torch.where(up, rising, falling).clamp_(min=0)

    def spread(self, move: Tensor, step: Tensor, x: Tensor) -> Tensor:
        """The formula above, (n,)."""
        spread = super().spread(move, step, x).abs()
        if self.c2c_add or self.c2c_slope:
            spread = spread + self.sigma_c2c * (self.c2c_add + self.c2c_slope * x)
        return spread
