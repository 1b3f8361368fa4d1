"""Settle a system to equilibrium: by integrating its dynamics, or by layer-wise minimisation.

Every path stops on the same criterion, per sample: the projected force is at most `tolerance` times the
sample's scale (`System.scale`): max |s| for a free phase, and for a nudged one what its contrast has to resolve.
What does not get there within the budget is reported as not converged.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits import Equilibrium, System
from mep_sim import explicit, implicit
from mep_sim.explicit import ODE, ODE_METHODS
from mep_sim.implicit import Implicit
from mep_sim.outcome import SettlingError, Solver, report

__all__ = ["ODE", "ODE_METHODS", "EPWarning", "Implicit", "SettlingError", "Solver", "Sweep", "settle"]


class EPWarning(UserWarning):
    """Gradients may not be what Equilibrium Propagation promises; the message says why and what to do."""


@dataclass(frozen=True)
class Sweep(Solver):
    """Layer-wise minimisation, at most `max_sweeps` of them."""

    max_sweeps: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_sweeps < 1:
            raise ValueError(f"max_sweeps = {self.max_sweeps}; allow at least 1 sweep")


@torch.no_grad()
def settle(
    system: System,
    s0: Tensor | Equilibrium | None = None,
    solver: Solver | None = None,
    save_at: Tensor | None = None,
) -> Equilibrium:
    """Settle `system`, from its initial state, from states s0 (B, n), or from a free equilibrium.

    From an `Equilibrium` the deviation from it is what is settled, so that float32 resolves any nudge.
    `save_at` (T,): increasing times in the circuit's unit, from 0, at which an ODE or Implicit solver records a
    `Transient`; it settles on after the last. Raises SettlingError where the state stops being finite, and where
    the solver cannot follow the dynamics.
    """
    solver = Sweep() if solver is None else solver
    if isinstance(s0, Equilibrium):
        system, s0 = system.around(s0), None
    z = system.initial_state() if s0 is None else s0
    if isinstance(solver, ODE):
        return explicit.integrate(system, z, solver, save_at)
    if isinstance(solver, Implicit):
        return implicit.integrate(system, z, solver, save_at)
    if save_at is not None:
        raise ValueError(
            "sweeps have no time to save at; settle with an ODE or Implicit solver to record a transient"
        )
    return _sweep(system, z, solver)


def _sweep(system: System, z: Tensor, solver: Sweep) -> Equilibrium:
    # on a GPU a look at the result stalls the queue: look less often there
    look_every = 4 if z.is_cuda else 1
    sweeps = system.sweeps(z)
    for count in itertools.count(1):
        z, change = next(sweeps)
        is_last = count >= solver.max_sweeps
        looks = change is not None and count % look_every == 0
        # the change is an estimate: the force that is left decides, also on what is no number any more
        if is_last or (looks and not bool((change > solver.tolerance * system.scale(z)).any())):
            at = report(system, z, solver, count, torch.zeros(len(z), device=z.device))
            if is_last or bool(at.converged.all()):
                return at
