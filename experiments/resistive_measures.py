"""What a trained resistive network costs in time and heat, and what ngspice says of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from circuits import Equilibrium, cost
from circuits.netlist import write
from circuits.ngspice import NgspiceError, available, version
from circuits.resistive_system import ResistiveSystem
from circuits.spice import netlist_of, operating_points
from experiments.learner import Learner
from mep_sim.energy import heat
from mep_sim.settling import Implicit, Sweep, settle
from mep_sim.trace import Axis, Trace, Variable

POINTS = 241  # of a transient
# within a thousandth of rest: a class is decided long before
SETTLED = Implicit(1e-3, rtol=1e-4)
NETLIST = "network.cir"


@dataclass(frozen=True)
class Settling:
    """Samples on their way to rest. times (T,) s; volts (T, B, n); watts (T, L), mean over samples, by layer.

    seconds: until each sample was settled (B,). joules (B, L): heat until the slowest was.
    """

    times: Tensor
    volts: Tensor
    watts: Tensor
    seconds: Tensor
    joules: Tensor


@dataclass(frozen=True)
class Energy:
    """An inference is a free phase from 0 V; an update has, for every sample, that and nudged phases, and the pulses
    that write it. write_joules: per step; 0 without cells, nan where these do not say their voltages."""

    free: Settling
    nudged: tuple[Settling, ...]
    batch_size: int
    write_joules: float

    @property
    def inference_joules(self) -> float:
        """Mean over samples."""
        return self.free.joules.sum(1).mean().item()

    @property
    def update_joules(self) -> float:
        """Per step of a batch, sample after sample."""
        phases = sum(phase.joules.sum(1).mean().item() for phase in (self.free, *self.nudged))
        return self.batch_size * phases + self.write_joules

    def summary(self) -> dict[str, float]:
        """For the table."""
        return {
            "settles (ns)": 1e9 * self.free.seconds.max().item(),
            "inference (J)": self.inference_joules,
            "update (J)": self.update_joules,
        }

    def results(self) -> dict[str, object]:
        """For results.json; of several samples the means, of settling times the slowest too."""
        phases = {"free": [self.free], "nudged": list(self.nudged)}
        found: dict[str, object] = {
            name: [
                {
                    "seconds_mean": phase.seconds.mean().item(),
                    "seconds_slowest": phase.seconds.max().item(),
                    "joules_by_layer": phase.joules.mean(0).tolist(),
                    "watts_at_rest_by_layer": phase.watts[-1].tolist(),
                }
                for phase in several
            ]
            for name, several in phases.items()
        }
        return found | {
            "samples": len(self.free.seconds),
            "inference_joules": self.inference_joules,
            "write_joules_per_step": self.write_joules,
            "update_joules_per_step": self.update_joules,
            "batch_size": self.batch_size,
        }


@dataclass(frozen=True)
class Replay:
    """Test samples in ngspice: the largest difference of a node's voltage, V, and the share of equal decisions."""

    samples: int
    largest_volts: float | None = None
    equal_decisions: float | None = None
    simulator: str | None = None
    skipped: str | None = None

    @property
    def words(self) -> str:
        if self.skipped is not None:
            return f"skipped: {self.skipped}"
        return f"{self.largest_volts:.1e} V, {self.equal_decisions:.0%} equal"


def bound(learner: Learner, x: Tensor) -> ResistiveSystem:
    """The trained network with these inputs, in float64 on the CPU."""
    params = {k: p.detach().double().cpu() for k, p in learner.circuit.params().items()}
    return learner.circuit.bind(params, x.double().cpu())


def measure_energy(learner: Learner, x: Tensor, y: Tensor) -> Energy:
    """Settle samples x (B, d) of classes y (B,) in time: freely from 0 V, and nudged from there."""
    system, gradient = bound(learner, x), learner.optimizer.gradient
    rest = settle(system, solver=Sweep(1e-9))
    signs = (1, -1) if gradient.phases == "centred" else (1,)
    loss = cost(gradient.loss_type)
    nudged = [system.nudged(loss, y.cpu(), sign * gradient.beta) for sign in signs]
    return Energy(
        _settling(system, system, None),
        tuple(_settling(system, phase, rest) for phase in nudged),
        learner.batch_size,
        _write_joules(learner),
    )


def _settling(free: ResistiveSystem, system: ResistiveSystem, start: Equilibrium | None) -> Settling:
    slowest = settle(system, start, SETTLED).time.max().item()
    # nodes of large conductance move first
    times = torch.cat([torch.zeros(1), torch.logspace(-5, 0, POINTS - 1)]).double() * slowest
    at = settle(system, start, SETTLED, save_at=times)
    watts = heat(free, at.transient)
    joules = torch.trapezoid(watts, times, dim=0)
    return Settling(times, at.transient.state, watts.mean(1), at.time, joules)


def _write_joules(learner: Learner) -> float:
    if learner.chip is None:
        return 0.0
    return math.nan if learner.chip.joules is None else learner.chip.joules[0] / max(learner.steps, 1)


def replay(learner: Learner, x: Tensor, folder: Path) -> Replay:
    """Leave the network in `folder`, with its first sample at its sources, and let ngspice find where it rests with
    each of x (B, d), B >= 0."""
    if not len(x):
        return Replay(0, skipped="not asked for")
    system = bound(learner, x)
    (folder / NETLIST).write_text(write(netlist_of(system)))
    if not available():
        return Replay(len(x), skipped="no ngspice")
    try:
        judged = operating_points(system)
    except NgspiceError as error:
        return Replay(len(x), skipped=str(error).splitlines()[0])
    ours = settle(system, solver=Sweep(1e-12)).state
    equal = system.readout(ours).argmax(1) == system.readout(judged).argmax(1)
    return Replay(
        len(x), (ours - judged).abs().max().item(), equal.double().mean().item(), f"ngspice {version()}"
    )


def record_energy(trace: Trace, energy: Energy) -> None:
    """One group for every phase of `measure_energy`."""
    phases = {"settling_free": energy.free}
    phases |= {f"settling_nudged_{k}": phase for k, phase in enumerate(energy.nudged)}
    for name, phase in phases.items():
        _, samples, nodes = phase.volts.shape
        trace.write(
            name,
            variables={
                "volts": Variable("V", "node voltages", ("time", "sample", "node"), "float32"),
                "watts": Variable("W", "heat of each layer, mean over samples", ("time", "layer")),
                "joules": Variable("J", "heat of each layer until the slowest settled", ("sample", "layer")),
                "seconds": Variable("s", "until settled", ("sample",)),
            },
            values={
                "volts": phase.volts,
                "watts": phase.watts,
                "joules": phase.joules,
                "seconds": phase.seconds,
            },
            dims={
                "time": Axis(phase.times, "s", "time since the phase began"),
                "sample": samples,
                "node": nodes,
                "layer": phase.joules.shape[1],
            },
        )
    trace.flush()
