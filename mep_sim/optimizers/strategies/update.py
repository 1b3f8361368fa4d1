"""How a gradient signal becomes a step direction.

`direction(signal, state)` returns the direction (the optimizer moves by -lr times it) and what of the
signal it *kept*, so that a feedback strategy can carry the rest over: carry = signal - (1 - mu) kept.
Kept = the whole signal makes the carry a momentum; kept = a low-rank part makes it Dion's error feedback.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class UpdateStrategy(ABC):
    """Settings of a rule; its running tensors live in the optimizer's per-parameter `state`."""

    def rule(self, parameter: Tensor) -> UpdateStrategy:
        """The rule for this parameter: itself, or a fallback where it does not apply."""
        return self

    @property
    def has_own_memory(self) -> bool:
        """True where the rule averages gradients itself and wants them raw, without a carry."""
        return False

    @abstractmethod
    def direction(self, signal: Tensor, state: dict) -> tuple[Tensor, Tensor]:
        """(direction, kept), each shaped like the parameter."""


@dataclass(frozen=True)
class PlainUpdate(UpdateStrategy):
    """The signal itself: gradient descent, with a carry heavy-ball momentum."""

    def direction(self, signal: Tensor, state: dict) -> tuple[Tensor, Tensor]:
        return signal, signal


@dataclass(frozen=True)
class AdamUpdate(UpdateStrategy):
    """Adam (Kingma & Ba 2015, algorithm 1); `scale` multiplies the direction, so that it can share a
    learning rate with an orthogonalised update."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} = {value}; choose 0 <= {name} < 1")

    @property
    def has_own_memory(self) -> bool:
        return True

    def direction(self, signal: Tensor, state: dict) -> tuple[Tensor, Tensor]:
        if "adam_step" not in state:
            state["adam_step"] = 0
            state["adam_mean"], state["adam_square"] = torch.zeros_like(signal), torch.zeros_like(signal)
        state["adam_step"] += 1
        mean = state["adam_mean"].lerp_(signal, 1 - self.beta1)
        square = state["adam_square"].lerp_(signal.square(), 1 - self.beta2)
        bias1, bias2 = 1 - self.beta1 ** state["adam_step"], 1 - self.beta2 ** state["adam_step"]
        root = square.sqrt().div_(math.sqrt(bias2)).add_(self.eps)
        return self.scale * (mean / bias1) / root, signal


# Odd polynomials p(X) = a X + b X X'X + c X (X'X)^2 that drive singular values towards 1.
_CUBIC = ((1.5, -0.5, 0.0),)
_QUINTIC = ((3.4445, -4.7750, 2.0315),)  # Jordan 2024: fast, lands in [0.7, 1.2]
NEWTON_SCHULZ = {"cubic": _CUBIC, "quintic": _QUINTIC}


def orthogonalise(matrix: Tensor, polynomial: str = "quintic", steps: int = 5) -> Tensor:
    """The polar factor of a matrix (m, n) by `steps` Newton-Schulz iterations.

    Scaled by the Frobenius norm first: the cubic diverges for singular values above sqrt(5) and flips their
    sign above sqrt(3). "cubic" converges to the factor itself, slowly (Higham 2008, section 8.3).
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-30)
    coefficients = NEWTON_SCHULZ[polynomial]
    for step in range(steps):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        gram = x @ x.T
        mixed = torch.addmm(gram, gram, gram, beta=b, alpha=c) if c else b * gram
        x = torch.addmm(x, mixed, x, beta=a)
    return x.T if tall else x


@dataclass(frozen=True)
class MuonUpdate(UpdateStrategy):
    """Muon: the orthogonalised signal times sqrt(max(1, out/in)) (Jordan 2024).

    ns_steps: Newton-Schulz iterations; polynomial: "quintic" or "cubic"; fallback: the rule of
    parameters that are not matrices.
    """

    ns_steps: int = 5
    polynomial: str = "quintic"
    fallback: UpdateStrategy = field(default_factory=lambda: AdamUpdate(scale=0.05))

    def __post_init__(self) -> None:
        if self.ns_steps < 1:
            raise ValueError(f"ns_steps = {self.ns_steps}; take at least 1 Newton-Schulz step")
        if self.polynomial not in NEWTON_SCHULZ:
            raise ValueError(
                f"unknown polynomial {self.polynomial!r}; choose one of {', '.join(NEWTON_SCHULZ)}"
            )

    def rule(self, parameter: Tensor) -> UpdateStrategy:
        return self if parameter.ndim == 2 else self.fallback

    def direction(self, signal: Tensor, state: dict) -> tuple[Tensor, Tensor]:
        rows, columns = signal.shape
        orthogonal = orthogonalise(signal, self.polynomial, self.ns_steps)
        return orthogonal * math.sqrt(max(1.0, rows / columns)), signal


@dataclass(frozen=True)
class DionUpdate(UpdateStrategy):
    """Dion: the signal's leading subspace by one warm power iteration, orthonormalised (Ahn et al. 2025).

    P = qr(M Q), R = M'P, direction sqrt(out/in) P Q'+ with Q+ = R with unit columns, kept = P R'.
    With a gradient carry of decay mu the part of M outside the subspace is carried in full. rank: of the update;
    dion_thresh: matrices with fewer entries go to `small` (full orthogonalisation).
    """

    rank: int = 16
    dion_thresh: int = 100_000
    small: UpdateStrategy = field(default_factory=MuonUpdate)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank = {self.rank}; choose a rank of at least 1")

    def rule(self, parameter: Tensor) -> UpdateStrategy:
        fits = parameter.ndim == 2 and parameter.numel() >= self.dion_thresh
        return self if fits else self.small.rule(parameter)

    def direction(self, signal: Tensor, state: dict) -> tuple[Tensor, Tensor]:
        rows, columns = signal.shape
        if "dion_basis" not in state:
            rank = min(self.rank, rows, columns)
            state["dion_basis"] = torch.linalg.svd(signal, full_matrices=False).Vh[:rank].T.contiguous()
        p, _ = torch.linalg.qr(signal @ state["dion_basis"])
        r = signal.T @ p
        size = r.norm(dim=0)
        # rounding errors of a signal of lower rank are no directions to step in
        noise = max(rows, columns) * torch.finfo(r.dtype).eps * size.max()
        q = r / torch.maximum(size, noise).clamp(min=1e-30)
        state["dion_basis"] = q
        return math.sqrt(rows / columns) * (p @ q.T), p @ r.T
