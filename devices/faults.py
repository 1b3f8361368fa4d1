"""Faulty cells: stuck where they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from devices.checks import check_number


@dataclass(frozen=True)
class StuckCells:
    """Cells that no write moves and that do not drift; each cell is stuck independently of the others.

    fraction_at_min  probability of a cell stuck at g_min (stuck open), 0 to 1
    fraction_at_max  probability of a cell stuck at g_max (stuck short), 0 to 1; together at most 1
    """

    fraction_at_min: float = 0.0
    fraction_at_max: float = 0.0

    def __post_init__(self) -> None:
        way_out = "It is a probability: 0.05 is 5 % of the cells."
        check_number("StuckCells.fraction_at_min", self.fraction_at_min, 0, 1, way_out)
        check_number("StuckCells.fraction_at_max", self.fraction_at_max, 0, 1, way_out)
        total = self.fraction_at_min + self.fraction_at_max
        check_number("StuckCells.fraction_at_min + fraction_at_max", total, 0, 1, "Lower one of them.")

    def draw(self, blank: Tensor, rng: torch.Generator) -> Tensor:
        """int8, shaped like `blank` (rows, cols): -1 stuck at g_min, +1 stuck at g_max, 0 sound."""
        u = torch.rand(blank.shape, generator=rng, dtype=torch.float64, device=blank.device)
        at_min = (u < self.fraction_at_min).to(torch.int8)
        at_max = (u >= 1 - self.fraction_at_max).to(torch.int8)
        return at_max - at_min
