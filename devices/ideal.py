"""The ideal cell: what other cells are compared with, and the shortest complete Device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from devices.base import Cells, Device
from devices.checks import check_dtype, check_shape, check_target


@dataclass(frozen=True)
class Ideal(Device):
    """Programs and reads exactly, for ever; has no pulses (`step_siemens` is None)."""

    g_min_siemens: float = 1e-6
    g_max_siemens: float = 100e-6

    @property
    def step_siemens(self) -> None:
        """None: written by `program` only."""
        return None

    def fabricate(
        self,
        shape: tuple[int, int],
        rng: torch.Generator,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Cells:
        """Cells at g_min; nothing is drawn."""
        check_dtype(dtype)
        return Cells.new(torch.full(check_shape(shape), self.g_min_siemens, dtype=dtype, device=device))

    def program(self, cells: Cells, g_target: Tensor, rng: torch.Generator, t_seconds: float = 0.0) -> None:
        """Set the cells to `g_target` (rows, cols) S; NaN leaves a cell untouched."""
        g = check_target(g_target, cells.conductance, self.g_min_siemens, self.g_max_siemens)
        cells.check_time(t_seconds)
        index = g.isnan().logical_not_().view(-1).nonzero().squeeze(1)
        cells.pulses.view(-1)[index] += 1
        cells.write(index, g.view(-1)[index], t_seconds)

    def pulse(self, cells: Cells, counts: Tensor, rng: torch.Generator, t_seconds: float = 0.0) -> None:
        """Raises ValueError: an exact analog cell has no step."""
        raise ValueError(
            "Ideal cells have no pulses: write them with program(), or choose a device with pulses."
        )

    def read(self, cells: Cells, rng: torch.Generator, t_seconds: float = 0.0) -> Tensor:
        """The programmed conductances (rows, cols) S, a copy."""
        cells.check_time(t_seconds)
        return cells.conductance.clone()
