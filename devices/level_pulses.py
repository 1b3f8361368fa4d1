"""Exact pulses between the levels of a digital-like cell."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from devices.pulses import PulseModel
from devices.window import Window


@dataclass(frozen=True)
class LevelPulses(PulseModel):
    """One pulse moves a cell by exactly one of its window's levels; the end levels are hard bounds.

    The cell lands on the level itself, whatever programming noise it had before. Needs a window with levels.
    """

    def check(self, window: Window) -> None:
        """ValueError if the window has no levels."""
        if window.levels is None:
            raise ValueError(
                "LevelPulses move a cell from level to level, but levels = None: set levels (2 to 65536) on "
                "the memory cell, or use an analog pulse model such as SoftBoundsPulses."
            )

    def step_siemens(self, window: Window) -> float:
        """The distance between levels, S."""
        return window.level_spacing

    def with_steps(self, steps: int) -> LevelPulses:
        """Itself: the steps are the window's levels."""
        return self

    def fabricate(self, blank: Tensor, window: Window, rng: torch.Generator) -> dict[str, Tensor]:
        """All cells have the window's bounds; nothing is drawn."""
        low, high = window.g_min_siemens, window.g_max_siemens
        return {"g_lo": torch.full_like(blank, low), "g_hi": torch.full_like(blank, high)}

    def apply(
        self, g: Tensor, counts: Tensor, params: dict[str, Tensor], window: Window, rng: torch.Generator
    ) -> Tensor:
        """Level + counts, kept between the first and the last level."""
        return window.at_level((window.level_of(g) + counts).clamp_(0, window.levels - 1))
