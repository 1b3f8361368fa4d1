"""Drift and read noise of the phase-change cells of the Hermes chip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from devices.drift import PCMDrift
from devices.polynomial import polynomial
from devices.read_noise import PCMReadNoise


def _pieces(g: Tensor, split: float, log_fit: tuple[float, ...], coefficients: tuple[float, ...]) -> Tensor:
    """`clip(slope ln g + offset, low, high)` below g = split, c0 + c1 g + ... from there on."""
    slope, offset, low, high = log_fit
    below = (slope * g.log() + offset).clamp(low, high)
    return torch.where(g < split, below, polynomial(coefficients, g))


@dataclass(frozen=True)
class HermesDrift(PCMDrift):
    """Power-law drift with the exponents of the Hermes chip; g = conductance just programmed / g_max:

        mean    clip(-0.0387 ln g - 0.0182, 0.072, 0.13)    below g = 0.0945, then 0.0736 - 0.0126 g - 0.0436 g^2
        spread  clip(-0.0120 ln g - 0.0023, 0.0124, 0.04)   below g = 0.3039, then 0.0104 + 0.0116 g - 0.0165 g^2

    Source: Le Gallo et al., Nat. Electron. 6:680 (2023), one device per weight, as published with aihwkit, t0 = 200 s.

    t0_seconds  first measurement of the fit; 1e-9 to 1e9 s
    """

    t0_seconds: float = 200.0

    def exponent(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The formulas above."""
        mean = _pieces(g, 0.0945, (-0.0387, -0.0182, 0.072, 0.13), (0.0736, -0.0126, -0.0436))
        return mean, _pieces(g, 0.3039, (-0.0120, -0.0023, 0.0124, 0.04), (0.0104, 0.0116, -0.0165))


@dataclass(frozen=True)
class HermesReadNoise(PCMReadNoise):
    """1/f noise as PCMReadNoise with the strength of the Hermes chip; g = conductance as written / g_max:

        Q = clip(-0.0078 ln g + 0.0038, 0.0179, 0.04) below g = 0.1591, then 0.0088 + 0.0768 g - 0.1352 g^2 + 0.0664 g^3

    Source: as HermesDrift. t0_seconds, t_read_seconds: see PCMReadNoise; 200 s and 512 ns in the source.
    """

    t0_seconds: float = 200.0
    t_read_seconds: float = 512e-9

    def strength(self, g: Tensor) -> Tensor:
        """The formula above."""
        return _pieces(g, 0.1591, (-0.0078, 0.0038, 0.0179, 0.04), (0.0088, 0.0768, -0.1352, 0.0664))
