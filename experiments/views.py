"""Views: what a task shows of its images (B, d), at a progress (B,) in [0, 1] through the task."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

View = Callable[[Tensor, Tensor], Tensor]


def unchanged(x: Tensor, progress: Tensor) -> Tensor:
    """The view of the images as they are."""
    return x


@dataclass(frozen=True, eq=False)
class Permutation:
    """The view that puts pixel order[i] in place i."""

    order: Tensor

    def __call__(self, x: Tensor, progress: Tensor) -> Tensor:
        return x[:, self.order.to(x.device)]


@dataclass(frozen=True)
class Rotation:
    """The view of square images turned anticlockwise, by `start` degrees in the beginning and `stop` in the end, with
    bilinear interpolation; what comes in from outside has the value `background`."""

    start: float
    stop: float
    background: float

    def __call__(self, x: Tensor, progress: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1])
        angle = torch.deg2rad(self.start + (self.stop - self.start) * progress).to(x)
        still = torch.zeros_like(angle)
        # where an output pixel comes from, the vertical axis pointing down
        rows = [angle.cos(), -angle.sin(), still, angle.sin(), angle.cos(), still]
        grid = F.affine_grid(
            torch.stack(rows, 1).view(-1, 2, 3), [len(x), 1, side, side], align_corners=False
        )
        shown = F.grid_sample((x - self.background).view(-1, 1, side, side), grid, align_corners=False)
        return shown.flatten(1) + self.background
