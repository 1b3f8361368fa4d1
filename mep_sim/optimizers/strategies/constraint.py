"""What a weight may be: applied to the proposed weight before it is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ConstraintStrategy(ABC):
    @abstractmethod
    def project(self, weight: Tensor, state: dict) -> Tensor:
        """The nearest allowed weight, same shape. Running tensors live in `state`."""


@dataclass(frozen=True)
class NoConstraint(ConstraintStrategy):
    def project(self, weight: Tensor, state: dict) -> Tensor:
        return weight


@dataclass(frozen=True)
class SpectralConstraint(ConstraintStrategy):
    """sigma(W) <= gamma: the nearest such matrix, W with every singular value above gamma set to it.

    gamma > 0: below 1 it contracts, above it is a regulariser. Exact, from the eigenvectors of the smaller Gram
    matrix. A warm power iteration would be cheaper, but Muon raises all singular values alike and outruns it: the
    bound was missed by up to a quarter.
    """

    gamma: float = 0.95

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma = {self.gamma}; choose gamma > 0 (below 1 to contract)")

    def project(self, weight: Tensor, state: dict) -> Tensor:
        if weight.ndim != 2:
            return weight
        wide = weight if weight.shape[0] <= weight.shape[1] else weight.T
        squares, vectors = torch.linalg.eigh(wide @ wide.T)
        sigma = squares.clamp(min=0).sqrt()
        # rounding in the Gram matrix and the product: without a margin float32 ends a hair above gamma
        ceiling = self.gamma * (1 - 16 * torch.finfo(weight.dtype).eps)
        shrink = torch.where(sigma > ceiling, ceiling / sigma - 1, 0.0)
        # as a correction, so that a weight within the bound stays as it is to the bit
        clipped = torch.addmm(wide, (vectors * shrink) @ vectors.T, wide)
        return clipped if wide is weight else clipped.T
