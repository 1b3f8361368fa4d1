"""How node voltages come to rest: every integration beside ngspice, and the co-content and heat on the way."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits import cost, ngspice, spice
from circuits.resistive_system import ResistiveSystem
from mep_sim.energy import heat
from mep_sim.settling import ODE, Implicit, Solver, settle

SETTLED = 1e-6  # tolerance of free equilibria that are nudged
INTEGRATIONS: dict[str, Solver] = {
    "tr_bdf2, accurate": Implicit(SETTLED, "tr_bdf2", rtol=1e-6),
    "tr_bdf2, fast": Implicit(SETTLED, "tr_bdf2", rtol=1e-3),
    # it is slow, and nothing begins where it ends: no farther than the times asked for
    "dopri5": ODE(0.5, "dopri5", rtol=1e-4, max_evaluations=100_000),
}
FIRST = 1e-4  # of the last time, where times to save begin


def save_times(stop_seconds: float, points: int) -> Tensor:
    """0 and `points` more, in geometric steps up to `stop_seconds`: fast nodes and slow ones are seen alike."""
    log = torch.logspace(0, 1, points, base=1 / FIRST, dtype=torch.float64) * (FIRST * stop_seconds)
    return torch.cat([log.new_zeros(1), log])


@dataclass(frozen=True)
class Overlay:
    """The first sample's voltages (T, n) by the name of what computed them; differences are to the `judge`."""

    seconds: Tensor
    volts: dict[str, Tensor]
    judge: str
    rows: list[dict[str, object]]

    def difference(self, name: str) -> Tensor:
        """max over nodes of |dV| at every time, (T,)."""
        return (self.volts[name] - self.volts[self.judge]).abs().amax(1)


@torch.no_grad()
def overlay(system: ResistiveSystem, seconds: Tensor) -> Overlay:
    """From 0 V by every integration, all samples at once; by ngspice, where there is one, the first sample."""
    volts, rows = {}, []
    for name, solver in INTEGRATIONS.items():
        started = time.perf_counter()
        found = settle(system, solver=solver, save_at=seconds)
        ms = 1e3 * (time.perf_counter() - started) / len(system.x)
        volts[name] = found.transient.state[:, 0]
        rows.append({"solver": name, "rtol": solver.rtol, "evaluations": found.evaluations, "ms/sample": ms})
    judge = "dopri5"
    if ngspice.available():
        judge, started = "ngspice", time.perf_counter()
        volts[judge] = spice.transient(system, seconds)[:, 0]
        ms = 1e3 * (time.perf_counter() - started)
        rows.append({"solver": judge, "rtol": ngspice.TIGHT["reltol"], "ms/sample": ms})
    found = Overlay(seconds, volts, judge, rows)
    for row in rows:
        if row["solver"] != judge:
            row["max |dV| (V)"] = found.difference(row["solver"]).max().item()
    return found


@dataclass(frozen=True)
class Descent:
    """Of a batch, free and then nudged. seconds (T,) from 0 to the end of both; energy (T, B) W, the nudge's share
    included from `nudged_from` on, an index; heat (T, L) W of each layer, the mean over the batch."""

    seconds: Tensor
    energy: Tensor
    heat: Tensor
    nudged_from: int
    beta: float

    @property
    def phases(self) -> tuple[slice, slice]:
        return slice(0, self.nudged_from), slice(self.nudged_from, None)

    @property
    def rise(self) -> float:
        """The largest rise from one time to the next, over the largest fall of a phase. Rounding leaves some 1e-16."""
        energies = [self.energy[phase] for phase in self.phases]
        falls = torch.cat([e[0] - e[-1] for e in energies])
        return (torch.cat([e.diff(dim=0) for e in energies]).max() / falls.max()).item()

    def joules(self) -> list[list[float]]:
        """Heat of each layer in each phase, mean over the batch."""
        return [torch.trapezoid(self.heat[p], self.seconds[p], dim=0).tolist() for p in self.phases]


@torch.no_grad()
def descent(system: ResistiveSystem, target: Tensor, share: float, seconds: Tensor) -> Descent:
    """Settle free, then nudged from there towards `target` (B, C) V with beta = share of the largest one."""
    solver = INTEGRATIONS["tr_bdf2, accurate"]
    squares = cost("mse")
    beta = share * system.largest_beta(squares)
    free = settle(system, solver=solver, save_at=seconds)
    nudged = settle(system.nudged(squares, target, beta), free, solver, save_at=seconds)
    runs = [free.transient, nudged.transient]
    return Descent(
        seconds=torch.cat([seconds, seconds[-1] + seconds]),
        energy=torch.cat([run.energy for run in runs]),
        heat=torch.cat([heat(system, run).mean(1) for run in runs]),
        nudged_from=len(seconds),
        beta=beta,
    )
