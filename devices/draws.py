"""Random draws, always from the generator that was passed in."""

from __future__ import annotations

import torch
from torch import Tensor


def normal_like(x: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal numbers with the shape, dtype and device of `x`."""
    return torch.randn(x.shape, generator=rng, dtype=x.dtype, device=x.device)


def spread_factor(x: Tensor, sigma: float, rng: torch.Generator) -> Tensor:
    """Positive factors |1 + sigma xi| shaped like `x`; ones, without a draw, for sigma = 0.

    The absolute value keeps a step or a range positive. It folds the far tail of the normal over: below
    sigma = 0.3 that touches less than one cell in 2000, and mean and standard deviation are 1 and sigma.
    """
    if sigma == 0:
        return torch.ones_like(x)
    return (1 + sigma * normal_like(x, rng)).abs_()


def lognormal_factor(x: Tensor, sigma: float, rng: torch.Generator) -> Tensor:
    """Positive factors exp(sigma xi) shaped like `x`, of median 1; ones, without a draw, for sigma = 0."""
    return torch.ones_like(x) if sigma == 0 else (sigma * normal_like(x, rng)).exp_()
