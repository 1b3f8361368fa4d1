"""Every solver on the same problem: how long each takes to equilibrium, and how close it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from circuits import ngspice, spice
from circuits.diodes import Diode, IdealDiode, PiecewiseLinearDiode
from circuits.resistive_system import ResistiveSystem
from experiments.benchmarks.timing import alternately
from experiments.common import generator
from experiments.settling_networks import DIODE, bound, inputs, network
from mep_sim.settling import ODE, Implicit, SettlingError, Solver, Sweep, settle

TOLERANCE = 1e-6
REFERENCE = Sweep(1e-12, max_sweeps=5_000)
SOLVERS: dict[str, Solver] = {
    "sweeps": Sweep(TOLERANCE),
    **{name: Implicit(TOLERANCE, name) for name in ("tr_bdf2", "implicit_euler", "trapezoid")},
    **{name: ODE(TOLERANCE, name) for name in ("euler", "rk4", "bosh3", "dopri5")},
}
DIODES: dict[str, Diode] = {
    "ideal": IdealDiode(),
    "piecewise linear": PiecewiseLinearDiode(),
    "Shockley": DIODE,
}
RADAU_SECONDS = 1e-6  # by when all is at rest


@dataclass(frozen=True)
class Found:
    """What a way to equilibrium found: states (B, n) V, its evaluations, and whether all samples settled."""

    state: Tensor
    evaluations: int | None = None
    settled: bool = True


Way = Callable[[ResistiveSystem], Found]


def _by(solver: Solver) -> Way:
    def way(system: ResistiveSystem) -> Found:
        found = settle(system, solver=solver)
        return Found(found.state, found.evaluations, bool(found.converged.all()))

    return way


def radau(system: ResistiveSystem) -> Found:
    """scipy's implicit Runge-Kutta method of fifth order, of one sample, until it is as settled as the others."""
    count = 0

    def at(volts: np.ndarray) -> Tensor:
        return torch.from_numpy(volts)[None]

    def flow(_: float, volts: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return RADAU_SECONDS * system.flow(at(volts))[0].numpy()

    def unsettled(_: float, volts: np.ndarray) -> float:
        z = at(volts)
        return (system.residual(z) - TOLERANCE * system.scale(z)).item()

    unsettled.terminal = True
    start = system.initial_state()[0].numpy()
    path = solve_ivp(flow, (0, 1), start, "Radau", events=unsettled, rtol=1e-4, atol=1e-9)
    return Found(at(np.ascontiguousarray(path.y[:, -1])), count, path.status == 1)


def ways(diode: Diode, samples: int) -> dict[str, Way]:
    """All that apply to these diodes and this many samples."""
    found = {name: _by(solver) for name, solver in SOLVERS.items()}
    if samples == 1 and not isinstance(diode, IdealDiode):
        found["Radau (scipy)"] = radau
    if ngspice.available():
        found["ngspice, operating point"] = lambda system: Found(spice.operating_points(system))
    return found


@torch.no_grad()
def race(
    name: str, sizes: tuple[int, ...], volts: float, batches: tuple[int, ...], rounds: int, seed: int
) -> list[dict[str, object]]:
    """A row for every way to the equilibrium of the network with diodes `name`, sources of `volts` at x = 1.

    A solver refuses what it cannot hold, stiff circuits or ideal diodes. Times are medians of `rounds` repeats in turn,
    fewer where they take over 8 s; errors are the largest of a node.
    """
    diode, rng = DIODES[name], generator(seed)
    circuit = network(sizes, diode, rng=rng, volts=volts)
    x = inputs(circuit, max(batches), rng)
    rows: dict[str, dict[str, object]] = {}
    for samples in batches:
        system = bound(circuit, x[:samples])
        reference = settle(system, solver=REFERENCE).state
        to_time = {}
        for label, way in ways(diode, samples).items():
            row = rows.setdefault(label, {"diodes": name, "solver": label})
            try:
                found = way(system)
            except SettlingError:
                row["note"] = "refused"
                continue
            row["evaluations"] = found.evaluations
            row["max error (V)"] = (found.state - reference).abs().max().item()
            if found.settled:
                to_time[label] = lambda way=way, system=system: way(system)
            else:
                row["note"] = f"not settled, batch {samples}"
        for label, timing in alternately(to_time, rounds, seconds=8, warm_up=False).items():
            rows[label][f"ms/sample, batch {samples}"] = 1e3 * timing.seconds / samples
            rows[label][f"times sweeps, batch {samples}"] = timing.ratio
    return list(rows.values())
