"""Dion: Muon's idea at low rank, with the rest of the signal fed back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mep_sim.optimizers.strategies.muon import MuonUpdate
from mep_sim.optimizers.strategies.update import (
    UpdateStrategy,
    check_count,
    check_weight_decay,
    decayed,
    is_matrix,
    smallest_norm,
)


@dataclass(frozen=True)
class DionUpdate(UpdateStrategy):
    """Dion: the signal's leading subspace by one warm power iteration, orthonormalised (Ahn et al. 2025).

    P = qr(M Q), R = M'P, direction sqrt(out/in) P Q'+ with Q+ = R with unit columns, kept = P R'; kernels
    (out, ...) as matrices (out, rest). With a gradient carry of decay mu the part of M outside the subspace is
    carried in full. rank: of the update; dion_thresh: parameters with fewer entries, and those which `small`
    hands to a fallback, go by `small` (full orthogonalisation). Weight decay is decoupled.
    """

    rank: int = 16
    dion_thresh: int = 100_000
    small: UpdateStrategy = field(default_factory=MuonUpdate)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_count(rank=self.rank)
        if not self.dion_thresh >= 0:
            raise ValueError(f"dion_thresh = {self.dion_thresh}; choose a number of entries >= 0")
        check_weight_decay(self.weight_decay)

    def rule(self, parameter: Tensor, role: str = "hidden") -> UpdateStrategy:
        small = self.small.rule(parameter, role)
        fits = is_matrix(parameter, role) and parameter.numel() >= self.dion_thresh
        return self if fits and small is self.small else small

    def direction(self, signal: Tensor, state: dict, weight: Tensor) -> tuple[Tensor, Tensor]:
        matrix = signal.flatten(1)
        rows, columns = matrix.shape
        if "dion_basis" not in state:
            rank = min(self.rank, rows, columns)
            state["dion_basis"] = torch.linalg.svd(matrix, full_matrices=False).Vh[:rank].T.contiguous()
        p, _ = torch.linalg.qr(matrix @ state["dion_basis"])
        r = matrix.T @ p
        size = r.norm(dim=0)
        # rounding errors of a signal of lower rank are no directions to step in
        noise = max(rows, columns) * torch.finfo(r.dtype).eps * size.max()
        q = r / torch.maximum(size, noise).clamp(min=smallest_norm(r))
        state["dion_basis"] = q
        step = (math.sqrt(rows / columns) * (p @ q.T)).reshape(signal.shape)
        return decayed(step, weight, self.weight_decay), (p @ r.T).reshape(signal.shape)
