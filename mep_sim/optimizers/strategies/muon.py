"""Muon: steps whose singular values are all alike, by odd polynomials of the signal (no SVD)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mep_sim.optimizers.strategies.update import (
    AdamUpdate,
    MomentumUpdate,
    UpdateStrategy,
    check_choice,
    check_count,
    decayed,
    is_matrix,
    log_fallback,
    smallest_norm,
)

# Odd polynomials a X + b X X'X + c X (X'X)^2, one per step, that drive singular values towards 1; the last is
# repeated. Cubic: Newton-Schulz (Higham 2008, section 8.3). Quintic: Jordan 2024, fast, lands in [0.7, 1.2].
# Polar Express: Amsel et al. 2025, algorithm 1: the best composition for singular values in [1e-3, 1], each but
# the last with the safety factor 1.01 against rounding.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
POLYNOMIALS = {
    "cubic": ((1.5, -0.5, 0.0),),
    "quintic": ((3.4445, -4.7750, 2.0315),),
    "polar_express": (
        *((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _POLAR_EXPRESS),
        (1.875, -1.25, 0.375),
    ),
}
# The size of a step by its shape (out, in).
SCALES = {
    "spectral": lambda out, into: math.sqrt(max(1.0, out / into)),
    "match_rms": lambda out, into: 0.2 * math.sqrt(max(out, into)),
}
HEADS = ("muon", "fallback")
_FUSED_STEPS = 3  # more would be faster still, but float32 loses small singular values in the Gram matrix


def orthogonalise(matrix: Tensor, polynomial: str = "quintic", steps: int = 5) -> Tensor:
    """The polar factor U V' of a matrix U S V' (m, n), in float32 or float64, by `steps` steps of a polynomial of
    POLYNOMIALS.

    Scaled by the Frobenius norm first: the cubic diverges for singular values above sqrt(5) and flips their
    sign above sqrt(3). Error for a Gaussian (256, 784) in 5 steps: quintic 0.16, polar_express 0.085, cubic 0.59
    (0.009 in 10); only "cubic" and "polar_express" converge to the factor itself.
    """
    check_choice("polynomial", polynomial, POLYNOMIALS)
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=smallest_norm(x))
    coefficients = POLYNOMIALS[polynomial]
    schedule = [coefficients[min(step, len(coefficients) - 1)] for step in range(steps)]
    # the steps commute with the Gram matrix; several in one product pay where that is much the smaller matrix
    fused = _FUSED_STEPS if x.shape[1] >= 2 * x.shape[0] else 1
    for start in range(0, steps, fused):
        x = _composed(x @ x.T, schedule[start : start + fused]) @ x
    return x.T if tall else x


def _composed(gram: Tensor, schedule: list[tuple[float, float, float]]) -> Tensor:
    """The matrix P (n, n) that does these steps in one product, X <- P X, given the Gram matrix X X' (n, n)."""
    product = factor = _factor(gram, *schedule[0])
    for coefficients in schedule[1:]:
        gram = factor @ gram @ factor
        factor = _factor(gram, *coefficients)
        product = factor @ product
    return product


def _factor(gram: Tensor, a: float, b: float, c: float) -> Tensor:
    """a I + b G + c G^2."""
    factor = torch.addmm(gram, gram, gram, beta=b, alpha=c) if c else b * gram
    factor.diagonal().add_(a)
    return factor


@dataclass(frozen=True)
class MuonUpdate(MomentumUpdate):
    """Muon: the orthogonalised signal (Jordan 2024), of kernels (out, ...) as matrices (out, rest).

    ns_steps, polynomial: see `orthogonalise`. scale: "spectral", sqrt(max(1, out/in)), or "match_rms",
    0.2 sqrt(max(out, in)), the size of a step of Adam (Liu et al. 2025). Weight decay is decoupled.
    fallback: the rule, with settings of its own, of biases and other vectors, of embeddings and, with
    heads = "fallback", of the last layer's weight; stated once on the logger "mep_sim".
    """

    ns_steps: int = 5
    polynomial: str = "quintic"
    fallback: UpdateStrategy = field(default_factory=lambda: AdamUpdate(scale=0.05))
    scale: str = "spectral"
    heads: str = "muon"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(ns_steps=self.ns_steps)
        check_choice("polynomial", self.polynomial, POLYNOMIALS)
        check_choice("scale", self.scale, SCALES)
        check_choice("heads", self.heads, HEADS)

    def rule(self, parameter: Tensor, role: str = "hidden") -> UpdateStrategy:
        if is_matrix(parameter, role) and not (role == "head" and self.heads == "fallback"):
            return self
        fallback = self.fallback.rule(parameter, role)
        log_fallback(type(self).__name__, role if parameter.ndim >= 2 else "vector", type(fallback).__name__)
        return fallback

    def direction(self, signal: Tensor, state: dict, weight: Tensor) -> tuple[Tensor, Tensor]:
        matrix = self.averaged(signal, state).flatten(1)
        size = SCALES[self.scale](*matrix.shape)
        step = orthogonalise(matrix, self.polynomial, self.ns_steps).mul_(size).reshape(signal.shape)
        return decayed(step, weight, self.weight_decay), signal
