"""Which cells are concerned."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def nonzero(x: Tensor) -> Tensor:
    """Flat (row-major) numbers (n,) int64 of the entries other than 0, in order. numpy's on a CPU: 5 times as fast."""
    if x.is_cuda:
        return x.reshape(-1).nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(x.numpy() != 0))
