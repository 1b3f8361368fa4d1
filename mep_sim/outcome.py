"""What every way of settling shares: its settings' base, its errors, and the report on where it ended."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuits import Equilibrium, System, Transient


class SettlingError(RuntimeError):
    """There is no equilibrium to report: the dynamics diverged, or this solver cannot follow them."""


@dataclass(frozen=True)
class Solver:
    """How to settle. `tolerance`: projected force over the sample's scale, > 0."""

    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(
                f"tolerance = {self.tolerance}; choose 0 < tolerance < 1, such as 1e-6 in float32"
            )

    def diverged(self, system: System) -> SettlingError:
        """The error to raise where the state of `system` stops being finite."""
        fastest = system.fastest_rate()
        return SettlingError(
            f"settling with {self} diverged (fastest rate {fastest:.3g} per unit of time): {self._way_out(fastest)}"
        )

    def _way_out(self, fastest: float) -> str:
        return "check weights and data for huge or NaN values, or lower |beta| and gamma"


def report(
    system: System,
    z: Tensor,
    solver: Solver,
    evaluations: int,
    time: Tensor,
    transient: Transient | None = None,
) -> Equilibrium:
    """Measure the force that is left at z itself: what is reported is never an estimate on the way."""
    residual, scale = system.residual(z), system.scale(z)
    if not torch.isfinite((residual + scale).sum()):
        raise solver.diverged(system)
    return Equilibrium(
        state=system.state(z),
        residual=residual,
        relative_residual=torch.where(residual > 0, residual / scale, 0.0),
        converged=residual <= solver.tolerance * scale,
        evaluations=evaluations,
        time=time,
        deviation=None if system.origin is None else z,
        transient=transient,
    )


def checked_save_times(save_at: Tensor) -> Tensor:
    if save_at.ndim != 1 or len(save_at) < 2 or save_at[0] != 0 or bool((save_at.diff() <= 0).any()):
        raise ValueError("save_at must be increasing times (T,), T >= 2, that start at 0")
    return save_at


def record(system: System, times: Tensor, states: Tensor) -> Transient:
    return Transient(
        time=times,
        state=torch.stack([system.state(z) for z in states]),
        energy=torch.stack([system.energy(z) for z in states]),
        residual=torch.stack([system.residual(z) for z in states]),
    )
