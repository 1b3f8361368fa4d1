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
    """sigma(W) <= gamma: clips the leading singular values, W - sum_k (sigma_k - gamma)+ u_k v_k'.

    Subspace iteration on `rank` vectors, kept warm between steps, finds them; clipping disturbs W less than
    rescaling it. It underestimates sigma, so it clips to (1 - margin) gamma. What more than `rank` directions
    exceed is scaled away.
    """

    gamma: float = 0.95
    rank: int = 4
    margin: float = 0.01

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma = {self.gamma}; choose gamma > 0 (below 1 to contract)")
        if self.rank < 1:
            raise ValueError(f"rank = {self.rank}; track at least 1 singular value")
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin = {self.margin}; choose 0 <= margin < 1")

    def project(self, weight: Tensor, state: dict) -> Tensor:
        if weight.ndim != 2:
            return weight
        rank = min(self.rank, *weight.shape)
        if "spectral_basis" not in state:
            state["spectral_basis"] = torch.linalg.svd(weight, full_matrices=False).Vh[:rank].T.contiguous()
        left, _ = torch.linalg.qr(weight @ state["spectral_basis"])
        right, sigma, turn = torch.linalg.svd(weight.T @ left, full_matrices=False)
        state["spectral_basis"] = right
        target = (1 - self.margin) * self.gamma
        clipped = weight - (left @ turn.T) * (sigma - target).clamp(min=0) @ right.T
        # where even the last tracked value is too large, untracked ones may be too
        return clipped / (sigma[-1] / target).clamp(min=1) if rank < min(weight.shape) else clipped
