"""Noise that grows with the conductance and saturates: charge-trap cells."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from devices.checks import check_number
from devices.programming import ProgrammingNoise
from devices.read_noise import ReadNoise
from devices.window import Window


@dataclass(frozen=True)
class _Saturating:
    """`sigma = a (1 - exp(-g / b))`.

    a_siemens  spread at high conductance, S, 0 to 1
    b_siemens  conductance where 63 % of it is reached, S, 1e-15 to 1
    """

    a_siemens: float
    b_siemens: float

    def __post_init__(self) -> None:
        way_out = "It is in siemens: 0.1 microsiemens is 0.1e-6."
        check_number(f"{type(self).__name__}.a_siemens", self.a_siemens, 0, 1, way_out)
        check_number(f"{type(self).__name__}.b_siemens", self.b_siemens, 1e-15, 1, way_out)

    def _sigma(self, g: Tensor) -> Tensor:
        return -self.a_siemens * torch.expm1(-g / self.b_siemens)


@dataclass(frozen=True)
class SaturatingProgrammingNoise(_Saturating, ProgrammingNoise):
    """Error of a write, `sigma = a_siemens (1 - exp(-g_target / b_siemens))`: SONOS, Agrawal et al., IEDM 2022."""

    def sigma(self, g_target: Tensor, window: Window) -> Tensor:
        """The formula above, (n,) S."""
        return self._sigma(g_target)


@dataclass(frozen=True)
class SaturatingReadNoise(_Saturating, ReadNoise):
    """White noise of a read, `sigma = a_siemens (1 - exp(-g / b_siemens))`: SONOS, Agrawal et al., IEDM 2022."""

    def sigma(self, g: Tensor, g_written: Tensor, since: Tensor, window: Window) -> Tensor:
        """The formula above at the conductance now, (rows, cols) S."""
        return self._sigma(g.clamp(min=0))
