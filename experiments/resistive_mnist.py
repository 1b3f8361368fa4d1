"""A nonlinear resistive network learns handwritten digits by Equilibrium Propagation: volts, siemens, joules.

Beside it a digital network of the same layers learns by backprop with Adam. What the resistive one costs in time and
heat is measured on recorded transients, and test samples are replayed in ngspice. The run leaves a table, pictures,
the trained network as a netlist and an HDF5 trace in its folder.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from circuits import FeedforwardCircuit
from circuits.chip import Chip
from experiments import recording, resistive_figures
from experiments.common import console, generator, launch, print_table
from experiments.learner import Learner
from experiments.resistive_config import UPDATES, Config, preset_of
from experiments.resistive_measures import Energy, Replay, bound, measure_energy, record_energy, replay
from mep_sim.checkpoint import RunFolder
from mep_sim.data import Dataset
from mep_sim.optimizers import (
    AdamUpdate,
    BackpropGradient,
    CompositeOptimizer,
    EPGradient,
    ErrorFeedback,
    NoFeedback,
)
from mep_sim.settling import Sweep
from mep_sim.trace import Trace, Variable

TEST = {"test_error": Variable("1", "share of test samples classified wrong")}


@dataclass(frozen=True)
class Results:
    """What a run found: a row per learner, as in the table; energy, replay, and where its files are."""

    rows: list[dict[str, object]]
    energy: Energy
    replayed: Replay
    source: str
    folder: Path


def run(config: Config) -> Results:
    """Train the network and its baseline, or go on doing so, measure both; writes the run folder."""
    config = config.shrunk()
    data = config.data()
    config = dataclasses.replace(config, dataset=data.name)  # what auto has found is what a resumed run needs
    learners = make_learners(config, data)
    for learner in learners:
        learner.rehearse(data.train_x[:8], data.train_y[:8])
    folder = RunFolder.open(config.folder("resistive_mnist"), config.identity(), config.resume)
    say = partial(console.print, soft_wrap=True)
    ep = learners[0]
    say(f"data: {data.source}; training on {len(data.train_x)} samples")
    say(f"window: {ep.circuit.window} S; {ep.circuit.diode}; beta = {ep.optimizer.gradient.beta:.3g}")
    with recording.begin(config, folder, learners, _declare) as trace:
        recording.train(trace, folder, learners, data, partial(_after_epoch, data, trace))
        energy = measure_energy(ep, data.test_x[: config.transients], data.test_y[: config.transients])
        record_energy(trace, energy)
        replayed = replay(ep, data.test_x[: config.replay], folder.path)
        rows = [_summarise(learner, data) for learner in learners]
        rows[0] |= energy.summary() | {"replay": replayed.words}
        resistive_figures.draw(folder.path, trace, learners, energy)
    history = {x.name: x.history for x in learners}
    found = {"energy": energy.results(), "replay": dataclasses.asdict(replayed)}
    if wire_errors := bound(ep, data.test_x[:1]).wire_errors():
        found["wire_errors"] = wire_errors
        say("wires are approximate: " + ", ".join(f"{name} by {e:.1e}" for name, e in wire_errors.items()))
    folder.finish({"rows": rows, **found, "source": data.source, "history": history})
    title = f"{data.name}, {len(data.train_x)} samples, {config.epochs} epochs, seed {config.seed}"
    print_table(title, rows, COLUMNS)
    say(f"pictures, trace.h5 and results.json are in {folder.path}")
    return Results(rows, energy, replayed, data.source, folder.path)


COLUMNS = {
    "learner": "",
    "test error": ".2%",
    "validation error": ".2%",
    "settled": ".1%",
    "nudged residual": ".1e",
    "sweeps": ".1f",
    "settles (ns)": ".3g",
    "inference (J)": ".2e",
    "update (J)": ".2e",
    "replay": "",
    "seconds": ".0f",
}


def make_learners(config: Config, data: Dataset) -> list[Learner]:
    """The resistive network first, then the digital baseline: the same order of samples."""

    def learner(name: str, optimizer: CompositeOptimizer) -> Learner:
        return Learner(name, optimizer, config.epochs, config.batch_size, generator(config.seed + 2))

    circuit, cell = config.circuit(data), config.memory_cell()
    chip = None if cell is None else Chip(circuit, cell, generator(config.seed + 1, config.device))
    gradient = EPGradient(
        loss_type=config.loss,
        beta=config.strength(circuit, data),
        phases=config.phases,
        solver=Sweep(config.free_tolerance, max_sweeps=config.max_sweeps),
        nudged_tolerance=config.nudged_tolerance,
    )
    carries = config.momentum > 0 and config.update != "adam"
    optimizer = CompositeOptimizer(
        circuit.parameters(),
        gradient,
        UPDATES[config.update],
        feedback=ErrorFeedback(config.momentum) if carries else NoFeedback(),
        lr=config.lr,
        model=circuit,
        chip=chip,
    )
    sizes = (data.features, *config.hidden, data.classes)
    digital = FeedforwardCircuit.from_sizes(sizes, rng=generator(config.seed)).to(config.device)
    baseline = CompositeOptimizer(
        digital.parameters(),
        BackpropGradient(config.loss),
        AdamUpdate(),
        feedback=NoFeedback(),
        lr=config.baseline_lr,
        model=digital,
    )
    label = f"resistive EP {config.update}" + ("" if cell is None else f" on {Path(config.cell).stem}")
    return [learner(label, optimizer), learner("digital backprop adam", baseline)]


# -- training -----------------------------------------------------------------------------------------


def _after_epoch(data: Dataset, trace: Trace, learner: Learner, epoch: int) -> None:
    """Test, and where no bar shows it say how far the run is."""
    last = learner.history[-1]
    last["test_error"] = 1 - learner.accuracy(data.test_x, data.test_y)
    trace.append(_test_group(learner), epoch, {"test_error": last["test_error"]})
    if not console.is_terminal:
        errors = f"test {last['test_error']:.2%}"
        if len(data.validation_x):
            errors = f"validation {1 - last['validation']:.2%}, {errors}"
        done = f"{learner.name}: epoch {epoch}/{learner.epochs}, loss {last['loss']:.4f}"
        console.print(f"{done}, errors: {errors}, {last['seconds']:.0f} s")


def _declare(trace: Trace, learners: list[Learner]) -> None:
    recording.declare(trace, learners)
    for learner in learners:
        trace.declare(_test_group(learner), along="epoch", variables=TEST)


def _test_group(learner: Learner) -> str:
    return f"test_{recording.slug(learner.name)}"


def _summarise(learner: Learner, data: Dataset) -> dict[str, object]:
    """A learner's row: errors of the trained network, its settling over the last epoch."""
    last = learner.history[-1]
    return {
        "learner": learner.name,
        "test error": last["test_error"],
        "validation error": 1 - last["validation"],
        "settled": last["settled"],
        "free residual": last["free_residual"],
        "nudged residual": last["nudged_residual"],
        "sweeps": last["evaluations"],
        "settles (ns)": None,
        "inference (J)": None,
        "update (J)": None,
        "replay": "-",
        "seconds": sum(record["seconds"] for record in learner.history),
    }


if __name__ == "__main__":
    launch(preset_of(sys.argv[1:]), run)
