"""Steps that change linearly with the state, from constant steps to soft bounds and beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from devices.checks import check_number
from devices.step_pulses import StepPulses


@dataclass(frozen=True)
class LinearPulses(StepPulses):
    """Step linear in the state (other settings: see StepPulses). With u from -1 at g_lo to 1 at g_hi:

        up    g += step_up   (1 - gamma_up u) (1 + sigma_c2c xi)
        down  g -= step_down (1 + gamma_down u) (1 + sigma_c2c xi)

    gamma_up, gamma_down  loss of step from mid-range to the bound ahead, -1 to 1: 0 is a constant step, 1 soft
                          bounds, and below 0 steps grow on the way
    Source: linear step device of Rasch et al., AICAS 2021; and, see `nonlinear`, the exponential pulse curves of
    NeuroSim (Chen et al., IEEE TCAD 37:3067, 2018), whose steps are linear in the conductance.
    """

    gamma_up: float = 0.0
    gamma_down: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma_up", "gamma_down"):
            way_out = "0 is a constant step, 1 soft bounds."
            check_number(f"LinearPulses.{name}", getattr(self, name), -1, 1, way_out)

    def profile(self, x: Tensor, up: Tensor) -> Tensor:
        """1 at mid-range, 1 - gamma on arrival."""
        u = 2 * x - 1
        return torch.where(up, 1 - self.gamma_up * u, 1 + self.gamma_down * u)

    @classmethod
    def in_weights(
        cls,
        dw_min: float,
        w_min: float,
        w_max: float,
        gamma_up: float,
        gamma_down: float,
        bias: float = 0.0,
        **spreads: object,
    ) -> LinearPulses:
        """From a fit in normalised weights, up `dw_min (1 + bias) (1 - gamma_up w / w_max)`, down `dw_min
        (1 - bias) (1 - gamma_down w / w_min)`, with w_min < 0 < w_max at the ends of the window.

        At mid-range, w = m = (w_min + w_max) / 2, these are up = dw_min (1 + bias) (1 - gamma_up m / w_max) and
        down alike; their mean is the step, their difference the asymmetry, and the slopes over h = (w_max -
        w_min) / 2 relative to them the gammas here. ValueError: no such range or step, |bias| >= 1, or a fit whose step
        is negative somewhere in the range.
        """
        if not (w_min < 0 < w_max and dw_min > 0 and -1 < bias < 1):
            raise ValueError(
                f"LinearPulses.in_weights with dw_min = {dw_min}, w_min = {w_min}, w_max = {w_max}, bias = {bias} is "
                "not allowed: it takes w_min < 0 < w_max, dw_min > 0 and -1 < bias < 1, all in weights."
            )
        middle, half = 0.5 * (w_min + w_max), 0.5 * (w_max - w_min)
        up = (1 + bias) * (1 - gamma_up * middle / w_max)
        down = (1 - bias) * (1 - gamma_down * middle / w_min)
        return cls(
            steps=2 * half / (dw_min * 0.5 * (up + down)),
            asymmetry=(up - down) / (up + down),
            gamma_up=_unrounded((1 + bias) * gamma_up * half / w_max / up),
            gamma_down=_unrounded(-(1 - bias) * gamma_down * half / w_min / down),
            **spreads,
        )

    @classmethod
    def nonlinear(
        cls, pulses: int, a_up: float, a_down: float, pulses_down: int | None = None, **spreads: object
    ) -> LinearPulses:
        """From pulse curves `G = B (1 - exp(-P / A)) + G_min`, with B such that `pulses` lead to G_max (NeuroSim).

        a_up, a_down  A over the number of pulses, of potentiation and depression; negative where steps grow on the
                      way, infinite for a straight line
        pulses_down   of depression, where it takes another number of them

        dG/dP = (G_min + B - G) / A: with b = B / (G_max - G_min) = 1 / (1 - exp(-1 / a)) a single pulse covers
        (b - x) (1 - exp(-1 / (a pulses))) of the range, which is (b - 1/2) (1 - u / (2 b - 1)) times that. ValueError:
        fewer than 1 pulse, |a| below 0.01 or nan.
        """
        check_number("pulses", pulses, 1, 10**7, "It counts the pulses from G_min to G_max.", whole=True)
        for name, a in (("a_up", a_up), ("a_down", a_down)):
            if not abs(a) >= 0.01:
                raise ValueError(
                    f"{name} = {a} is not allowed: its magnitude must be at least 0.01 of the pulses (0.01: all of the "
                    "range in the first twentieth of them; infinite: a straight line)."
                )

        def one(a: float, pulses: int) -> tuple[float, float]:
            if math.isinf(a):
                return 1 / pulses, 0.0
            b = -1 / math.expm1(-1 / a)
            return -(b - 0.5) * math.expm1(-1 / (a * pulses)), 1 / (2 * b - 1)

        (up, gamma_up), (down, gamma_down) = one(a_up, pulses), one(a_down, pulses_down or pulses)
        return cls(
            steps=2 / (up + down),
            asymmetry=(up - down) / (up + down),
            gamma_up=gamma_up,
            gamma_down=gamma_down,
            **spreads,
        )


def _unrounded(gamma: float) -> float:
    """`gamma` without the rounding that takes soft bounds beyond 1."""
    return math.copysign(1.0, gamma) if 1 < abs(gamma) < 1 + 1e-12 else gamma
