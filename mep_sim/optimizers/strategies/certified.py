"""A bound on all couplings of a Hopfield circuit together, under which it has one equilibrium."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from circuits import Cost, EnergyCircuit, FeedforwardCircuit, HopfieldCircuit, cost
from circuits.norms import chain_bound, spectral_norm
from mep_sim.optimizers.strategies.constraint import ConstraintStrategy, clip_singular_values


@dataclass(frozen=True)
class CertifiedConstraint(ConstraintStrategy):
    """One equilibrium, free or nudged by up to `beta` of either sign: lambda_max(W + |beta| C'' P) <= gamma < 1.

    W is the symmetric coupling of all free units, P projects on the output's and C'' is the largest curvature of the
    cost `loss_type`. I - W - |beta| C'' P bounds the energy's Hessian from below, so the energy is strictly convex on
    the box; its minimum is its only equilibrium, and the flow approaches it at a rate of at least 1 - gamma.
    Bounding each layer does not do: N free layers with sigma = gamma reach lambda_max = 2 cos(pi / (N + 1)) gamma.

    `chain_bound` estimates lambda_max from the layers' norms. Where it exceeds gamma, all singular values are clipped
    at the common cap that brings it down to gamma. The input's weights couple no two free units and stay.

    0 < gamma < 1; |beta| C'' < gamma; beta = 0 certifies the free phase alone.
    """

    gamma: float = 0.95
    beta: float = 0.1
    loss_type: str | Cost = "cross_entropy"

    def __post_init__(self) -> None:
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma = {self.gamma} certifies nothing; choose 0 < gamma < 1, such as 0.95")
        if not self.nudge < self.gamma:
            curvature = cost(self.loss_type).curvature
            raise ValueError(
                f"beta = {self.beta} alone takes {self.nudge:.3g} of gamma = {self.gamma}; "
                f"choose |beta| < {self.gamma / curvature:.3g} for {self.loss_type}"
            )

    @property
    def nudge(self) -> float:
        """|beta| C'': what the nudge adds to the output's coupling to itself."""
        return abs(self.beta) * cost(self.loss_type).curvature

    def check(self, circuit: EnergyCircuit | None) -> None:
        if isinstance(circuit, HopfieldCircuit):
            return
        if circuit is None:
            raise ValueError(
                "CertifiedConstraint needs to know which layers couple: pass model=, a HopfieldCircuit"
            )
        unique = isinstance(circuit, FeedforwardCircuit)
        reason = (
            "has one free equilibrium whatever its weights" if unique else "has no coupling it could bound"
        )
        raise ValueError(
            f"CertifiedConstraint is for a HopfieldCircuit; {type(circuit).__name__} {reason}: use SpectralConstraint"
        )

    def project(
        self, proposed: dict[str, Tensor], circuit: EnergyCircuit | None, state: Mapping[str, dict]
    ) -> dict[str, Tensor]:
        self.check(circuit)
        coupling, held = circuit.weights[1:], circuit.params()
        sigma = np.array([spectral_norm(proposed.get(name, held[name])) for name in coupling])
        cap = self._cap(sigma, np.array([name in proposed for name in coupling], dtype=bool))
        too_large = {name for name, s in zip(coupling, sigma, strict=True) if s > cap}
        return {
            name: clip_singular_values(w, cap) if name in too_large else w for name, w in proposed.items()
        }

    def _cap(self, sigma: np.ndarray, ours: np.ndarray) -> float:
        """The largest ceiling for the norms that are `ours` to change which keeps the bound; by bisection."""

        def bound(cap: float) -> float:
            return chain_bound(np.where(ours, np.minimum(sigma, cap), sigma), self.nudge)

        low, high = 0.0, float(sigma.max(initial=0.0))
        if bound(high) <= self.gamma:
            return high
        if bound(low) > self.gamma:
            raise ValueError(
                f"the layers the optimizer does not own couple by {bound(low):.3g} alone, above gamma = {self.gamma}; "
                "pass it all of model.parameters()"
            )
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if bound(middle) <= self.gamma else (low, middle)
        return low
