"""Programming noise published in microsiemens, valid in a range of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from devices.checks import check_number
from devices.polynomial import polynomial
from devices.programming import ProgrammingNoise
from devices.window import Window


@dataclass(frozen=True)
class MicrosiemensProgrammingNoise(ProgrammingNoise):
    """Error as a polynomial of the target itself: `sigma = c0 + c1 G + c2 G^2 + ...`, sigma and G in microsiemens.

    coefficients  (c0, c1, ...); sigma must not be negative from `lowest` to `highest`
    lowest, highest  conductances the fit is for, uS, 0 <= lowest < highest <= 1e6: the window must lie between them
    """

    coefficients: tuple[float, ...]
    lowest: float
    highest: float

    def __post_init__(self) -> None:
        owner = type(self).__name__
        micro = "It is in microsiemens."
        check_number(f"{owner}.lowest", self.lowest, 0, 1e6, micro)
        check_number(f"{owner}.highest", self.highest, 0, 1e6, micro)
        if self.lowest >= self.highest:
            raise ValueError(
                f"{owner}.lowest = {self.lowest!r} is not allowed: it must lie below highest = {self.highest!r}. "
                "Swap them."
            )
        if not isinstance(self.coefficients, tuple) or not self.coefficients:
            raise ValueError(
                f"{owner}.coefficients = {self.coefficients!r} is not allowed: give a tuple of one or more numbers, "
                "the constant first."
            )
        for c in self.coefficients:
            check_number(f"{owner}.coefficients", c, -1e6, 1e6, "Sigma and G are in microsiemens.")
        for k in range(101):
            g = self.lowest + (self.highest - self.lowest) * k / 100
            if polynomial(self.coefficients, g) < 0:
                raise ValueError(
                    f"{owner}.coefficients = {self.coefficients!r} is not allowed: sigma is negative at {g:g} uS; it "
                    f"must be 0 or more from {self.lowest:g} to {self.highest:g} uS. Check the signs and the order."
                )

    def check(self, window: Window) -> None:
        """ValueError for a window that leaves the range of the fit."""
        slack = 1e-9 * self.highest
        if window.g_min_siemens < 1e-6 * (self.lowest - slack) or window.g_max_siemens > 1e-6 * (
            self.highest + slack
        ):
            raise ValueError(
                f"The window {window.g_min_siemens:g} to {window.g_max_siemens:g} S is not allowed: this programming "
                f"noise was fitted from {self.lowest * 1e-6:g} to {self.highest * 1e-6:g} S. Narrow the window, or "
                "give the cell another noise."
            )

    def sigma(self, g_target: Tensor, window: Window) -> Tensor:
        """The polynomial, (n,) S."""
        return 1e-6 * polynomial(self.coefficients, 1e6 * g_target)
