"""The conductance window of a cell, and the finite levels in it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from devices.checks import check_number


@dataclass(frozen=True)
class Window:
    """Conductances a cell is used at.

    g_min_siemens, g_max_siemens  0 <= g_min < g_max <= 1 S
    levels                        None: analog; otherwise 2 to 65536 equidistant conductances, ends included
    """

    g_min_siemens: float
    g_max_siemens: float
    levels: int | None = None

    def __post_init__(self) -> None:
        micro = "Conductances are in siemens: 25 microsiemens is 25e-6."
        check_number("g_min_siemens", self.g_min_siemens, 0.0, 1.0, micro)
        check_number("g_max_siemens", self.g_max_siemens, 0.0, 1.0, micro)
        if self.g_min_siemens >= self.g_max_siemens:
            raise ValueError(
                f"g_min_siemens = {self.g_min_siemens!r} is not allowed: it must lie below "
                f"g_max_siemens = {self.g_max_siemens!r}. Swap or widen the window."
            )
        if self.levels is not None:
            check_number(
                "levels", self.levels, 2, 2**16, "Use 2**bits levels, or None for an analog cell.", whole=True
            )

    @property
    def span(self) -> float:
        """g_max - g_min in siemens."""
        return self.g_max_siemens - self.g_min_siemens

    @property
    def middle(self) -> float:
        """The mid-window conductance in siemens."""
        return 0.5 * (self.g_min_siemens + self.g_max_siemens)

    @property
    def level_spacing(self) -> float:
        """Siemens between neighbouring levels; only for a window with levels."""
        return self.span / (self.levels - 1)

    def level_of(self, g: Tensor) -> Tensor:
        """Number of the nearest level, 0 to levels - 1, as whole floats of g's dtype and shape."""
        return ((g - self.g_min_siemens) / self.level_spacing).round_().clamp_(0, self.levels - 1)

    def at_level(self, k: Tensor) -> Tensor:
        """Conductance in siemens of the levels numbered `k`."""
        return (self.g_min_siemens + k * self.level_spacing).clamp_(self.g_min_siemens, self.g_max_siemens)
