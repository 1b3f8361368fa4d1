"""Read noise that differs between the phases: what it does to a contrast, and how much of the gradient it leaves.

Let F(theta) = mean over the batch of min_s E(s; theta), the energy of the settled free phase. By the envelope theorem
its gradient is dE/dtheta at the equilibrium: what a phase contributes to the contrast. A nudged phase that sees
theta + d in place of theta therefore adds to the estimate

    (1 / beta) F''(theta) d + O(d),

whatever the circuit: noise over beta, through the curvature of the free energy, averaged over the batch *before* it
meets d, as all samples share the read. On the feedforward energy F = 0 for any weights and the term vanishes
identically; what is left, O(d), is the gradient of the network as the nudged phase has read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits import EnergyCircuit, Params, System, cost
from mep_sim.settling import Solver, Sweep, settle


@dataclass(frozen=True)
class PhaseNoise:
    """Signal and noise of an EP estimate whose phases read the weights anew.

    signal: norm of the gradient; unit_noise: root mean square norm of F'' d over the noise d of one read, both over the
    same parameters.
    """

    signal: float
    unit_noise: float

    def noise(self, beta: float, *, centred: bool = False, reads: int = 1, correlation: float = 0.0) -> float:
        """Root mean square norm of the estimate's error: unit_noise sqrt(2 (1 - correlation) / reads) / beta.

        Centred, half of that: of (n_+ - n_0) / beta and (n_- - n_0) / -beta the mean is (n_+ - n_-) / 2 beta, in
        which the free phase's read cancels. correlation: of the noise of the two reads subtracted, in [-1, 1],
        such as exp(-t / tau) for noise of correlation time tau at reads t apart; reads: averaged for each, >= 1;
        beta > 0.
        """
        if not beta > 0 or reads < 1 or not -1 <= correlation <= 1:
            raise ValueError(
                f"beta = {beta}, reads = {reads}, correlation = {correlation}; choose beta > 0, reads >= 1 and a "
                "correlation in [-1, 1]"
            )
        return self.unit_noise * math.sqrt(2 * (1 - correlation) / reads) / (2 * beta if centred else beta)

    def cosine(self, beta: float, **reading) -> float:
        """To the gradient without noise, 1 / sqrt(1 + (noise / signal)^2): in many dimensions noise is at right
        angles to it. Arguments as of `noise`."""
        return 1 / math.hypot(1.0, self.noise(beta, **reading) / self.signal)


@torch.no_grad()
def free_curvature(
    circuit: EnergyCircuit, params: Params, x: Tensor, change: Params, solver: Solver | None = None
) -> dict[str, Tensor]:
    """F''(theta) change by parameter name, as the central difference of two free phases at params -+ change / 2.

    change: by name, of some of the parameters. A small one gives the derivative (float64 and a solver to match); one
    drawn as the noise is gives what noise of that size does, kinks included. solver: `Sweep(1e-6)` unless given.
    """
    low, high = (_shifted(circuit, params, x, change, part) for part in (-0.5, 0.5))
    below, above = (settle(system, solver=solver or Sweep(1e-6)) for system in (low, high))
    return dict(_unit_nudge(high).contrast(below, above))


@torch.no_grad()
def read_out_curvature(
    circuit: EnergyCircuit, params: Params, x: Tensor, change: Params, solver: Solver | None = None
) -> dict[str, Tensor]:
    """The same where states are kept and only the read-out sees params + change, d2E/dtheta2 at the free state: what
    `EPGradient(errors="read")` divides by beta. Zero where the contrast is made of states alone."""
    free = settle(circuit.bind(params, x), solver=solver or Sweep(1e-6))
    return dict(_unit_nudge(_shifted(circuit, params, x, change, 1.0)).contrast(free, free))


def _shifted(circuit: EnergyCircuit, params: Params, x: Tensor, change: Params, part: float) -> System:
    return circuit.bind({**params, **{name: params[name] + part * d for name, d in change.items()}}, x)


def _unit_nudge(system: System) -> System:
    """So that `contrast` divides by one."""
    return system.nudged(cost("mse"), torch.zeros_like(system.readout(system.initial_state())), 1.0)
