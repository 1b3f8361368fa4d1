"""Programming noise: how far a programmed conductance lands from its target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from devices.checks import check_number
from devices.draws import normal_like
from devices.polynomial import polynomial
from devices.window import Window


class ProgrammingNoise(ABC):
    """Gaussian error of a write; a subclass gives its standard deviation. The cell then applies bounds."""

    def check(self, window: Window) -> None:
        """Raise ValueError where the error is not known all over `window`."""

    @abstractmethod
    def sigma(self, g_target: Tensor, window: Window) -> Tensor | float:
        """Standard deviation in siemens at targets (n,) S."""

    def apply(self, g_target: Tensor, window: Window, rng: torch.Generator) -> Tensor:
        """`g_target + sigma xi` (n,) S, before the bounds of the cell."""
        return g_target + self.sigma(g_target, window) * normal_like(g_target, rng)


@dataclass(frozen=True)
class WindowProgrammingNoise(ProgrammingNoise):
    """The same error everywhere: `sigma_relative` (0 to 1) times the window's span; 0.01 is 1 % of it."""

    sigma_relative: float

    def __post_init__(self) -> None:
        name = "WindowProgrammingNoise.sigma_relative"
        check_number(name, self.sigma_relative, 0, 1, "It is relative to g_max - g_min: 0.01 is 1 %.")

    def sigma(self, g_target: Tensor, window: Window) -> float:
        """sigma_relative (g_max - g_min), S."""
        return self.sigma_relative * window.span


@dataclass(frozen=True)
class PolynomialProgrammingNoise(ProgrammingNoise):
    """Error as a polynomial of the relative target: `sigma = c0 + c1 g + c2 g^2 + ...`, g = g_target / g_max.

    coefficients_siemens  (c0, c1, ...) in siemens; sigma must not be negative for g from 0 to 1.
    Nandakumar et al., ICECS 2019, PCM with g_max = 25e-6: (0.26348e-6, 1.9650e-6, -1.1731e-6).
    """

    coefficients_siemens: tuple[float, ...]

    def __post_init__(self) -> None:
        name = "PolynomialProgrammingNoise.coefficients_siemens"
        way_out = "Coefficients are in siemens: 0.26 microsiemens is 0.26e-6."
        if not isinstance(self.coefficients_siemens, tuple) or not self.coefficients_siemens:
            value = self.coefficients_siemens
            raise ValueError(
                f"{name} = {value!r} is not allowed: give a tuple of one or more numbers. {way_out}"
            )
        for c in self.coefficients_siemens:
            check_number(name, c, -1.0, 1.0, way_out)
        for g in (k / 100 for k in range(101)):
            if polynomial(self.coefficients_siemens, g) < 0:
                raise ValueError(
                    f"{name} = {self.coefficients_siemens!r} is not allowed: sigma is negative at g/g_max = "
                    f"{g:g}; it must be 0 or more from 0 to 1. Check the signs and the order (c0 first)."
                )

    def sigma(self, g_target: Tensor, window: Window) -> Tensor:
        """The polynomial at g_target / g_max, (n,) S."""
        return polynomial(self.coefficients_siemens, g_target / window.g_max_siemens)
