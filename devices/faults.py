"""Faulty cells: stuck where they are, or on a line that carries no current."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from devices.checks import check_number
from devices.window import Window

AT_MIN, AT_MAX, AT_RANDOM, DEAD = -1, 1, 2, 3
_FOR_EVER = 2.0**62  # pulses; more do not fit in the counters of the cells


@dataclass(frozen=True)
class StuckCells:
    """Cells that no write moves and that do not drift; each cell, row and column fails independently of the others.

    fraction_at_min     probability of a cell stuck at g_min (stuck open), 0 to 1
    fraction_at_max     probability of a cell stuck at g_max (stuck short), 0 to 1
    fraction_at_random  probability of a cell stuck anywhere in the window, 0 to 1; the three together at most 1
    dead_rows           probability of a row whose line is broken: its cells read 0 S, without noise; 0 to 1
    dead_columns        the same of a column
    """

    fraction_at_min: float = 0.0
    fraction_at_max: float = 0.0
    fraction_at_random: float = 0.0
    dead_rows: float = 0.0
    dead_columns: float = 0.0

    def __post_init__(self) -> None:
        way_out = "It is a probability: 0.05 is 5 % of the cells."
        cells = ("fraction_at_min", "fraction_at_max", "fraction_at_random")
        for name in (*cells, "dead_rows", "dead_columns"):
            check_number(f"StuckCells.{name}", getattr(self, name), 0, 1, way_out)
        total = sum(getattr(self, name) for name in cells)
        check_number(f"StuckCells.{' + '.join(cells)}", total, 0, 1, "Lower one of them.")

    @property
    def has_dead_lines(self) -> bool:
        """Whether a line can be broken."""
        return self.dead_rows > 0 or self.dead_columns > 0

    def draw(self, blank: Tensor, window: Window, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """What is wrong with each cell, int8 shaped like `blank` (rows, cols): 0 sound, else AT_MIN, AT_MAX, AT_RANDOM
        or DEAD; and where it is stuck, S, meaningless where it is sound."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=rng, dtype=torch.float64, device=blank.device)

        rows, columns = blank.shape
        u = uniform(rows, columns)
        stuck = torch.zeros_like(blank, dtype=torch.int8)
        stuck[u < self.fraction_at_min] = AT_MIN
        stuck[u >= 1 - self.fraction_at_max] = AT_MAX
        stuck[(u - self.fraction_at_min >= 0) & (u - self.fraction_at_min < self.fraction_at_random)] = (
            AT_RANDOM
        )
        g = torch.full_like(blank, window.g_min_siemens)
        g[stuck == AT_MAX] = window.g_max_siemens
        if self.fraction_at_random:
            anywhere = (window.g_min_siemens + window.span * uniform(rows, columns)).to(g.dtype)
            g = torch.where(stuck == AT_RANDOM, anywhere, g)
        if self.has_dead_lines:
            dead = (uniform(rows, 1) < self.dead_rows) | (uniform(1, columns) < self.dead_columns)
            stuck[dead], g[dead] = DEAD, 0.0
        return stuck, g


@dataclass(frozen=True)
class Endurance:
    """Pulses a cell takes before it is stuck where it is, log-normal from cell to cell.

    median_pulses  half of the cells last longer, 1 to 1e15
    sigma_decades  spread in decades, 0 to 5
    """

    median_pulses: float
    sigma_decades: float = 0.0

    def __post_init__(self) -> None:
        way_out = "It counts pulses, up and down together."
        check_number("Endurance.median_pulses", self.median_pulses, 1, 1e15, way_out)
        check_number("Endurance.sigma_decades", self.sigma_decades, 0, 5, "It is in decades: 0.5.")

    def draw(self, blank: Tensor, rng: torch.Generator) -> Tensor:
        """Whole pulses that each cell lasts, float64, shaped like `blank` (rows, cols)."""
        xi = torch.randn(blank.shape, generator=rng, dtype=torch.float64, device=blank.device)
        lasts = self.median_pulses * 10 ** (self.sigma_decades * xi)
        return lasts.floor_().clamp_(max=_FOR_EVER)
