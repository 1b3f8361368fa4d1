"""A nonlinear resistive network learns handwritten digits by Equilibrium Propagation: volts, siemens, joules.

Beside it a digital network of the same layers learns by backprop with Adam. What the resistive one costs in time and
heat is measured on recorded transients, and test samples are replayed in ngspice. The run leaves a table, pictures,
the trained network as a netlist and an HDF5 trace in its folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import devices
from circuits import (
    FeedforwardCircuit,
    IdealDiode,
    PiecewiseLinearDiode,
    ResistiveCircuit,
    ShockleyDiode,
    cost,
)
from circuits.chip import Chip
from circuits.diodes import ARRANGEMENTS, Diode
from experiments import recording, resistive_figures
from experiments.common import Options, console, generator, launch, print_table
from experiments.learner import Learner
from experiments.resistive_measures import Energy, Replay, measure_energy, record_energy, replay
from mep_sim import checkpoint
from mep_sim.checkpoint import RunFolder
from mep_sim.data import Dataset, load
from mep_sim.optimizers import (
    AdamUpdate,
    BackpropGradient,
    CompositeOptimizer,
    EPGradient,
    ErrorFeedback,
    MuonUpdate,
    NoFeedback,
    PlainUpdate,
)
from mep_sim.optimizers.strategies.update import check_choice
from mep_sim.settling import Sweep
from mep_sim.trace import Trace, Variable

DIODES = ("ideal", "linear", "shockley")
PHASES = ("one_sided", "centred")
LOSSES = ("cross_entropy", "mse")
UPDATES = {"adam": AdamUpdate(), "muon": MuonUpdate(), "plain": PlainUpdate()}
IDEAL_WINDOW = (1e-8, 1e-4)  # S
SHARE_OF_LARGEST_BETA = 0.1  # of what the outputs of the untrained network bear
TEST = {"test_error": Variable("1", "share of test samples classified wrong")}


@dataclass(frozen=True)
class Config(Options):
    """Train a resistive network by EP and its digital baseline by backprop."""

    preset: str = "none"
    """Settings to start from, which the other options override: shockley-100, ideal-1024, or none."""
    dataset: str = "auto"
    """mnist, digits, or auto: MNIST where it can be had, else scikit-learn's digits."""
    samples: int | None = None
    """Training samples; None takes all that are not held out."""
    validation: int | None = None
    """Training samples held out; None takes 5,000 of MNIST or a tenth of digits, 0 none."""
    epochs: int = 10
    """Passes over the training samples."""
    batch_size: int = 64
    """Samples per step."""

    hidden: tuple[int, ...] = (100,)
    """Sizes of the hidden layers; input and output follow from the data."""
    diode: str = "ideal"
    """At hidden nodes: ideal, linear (two straight lines) or shockley."""
    arrangement: str = "alternating"
    """alternating (one diode at every node, facing up and down in turns) or pair (both at every node)."""
    offset_volts: float = 0.0
    """Of the bias source in series with every diode."""
    on_siemens: float = 1e-2
    """Of linear diodes that conduct."""
    off_siemens: float = 1e-9
    """Of linear diodes that block."""
    saturation_amperes: float = 1e-9
    """I_s of Shockley diodes."""
    ideality: float = 1.0
    """n of Shockley diodes: n kT/q is 25.9 mV times it."""
    series_ohm: float = 0.0
    """Resistance in series with Shockley diodes."""
    window: tuple[float, float] | None = None
    """Range of every conductance in siemens; None takes that of the cells, or 1e-8 to 1e-4 without cells."""
    initial: float = 0.2
    """Conductances start uniform between the least and this share of the window."""
    input_volts: float = 1.0
    """Of a source at a pixel of one standard deviation; also of the bias lines."""
    amplification: float = 1.0
    """Voltage gain of the bidirectional amplifiers behind hidden nodes; 1 for none."""
    paired_output: bool = True
    """Two nodes per output, which is the voltage between them."""
    readout_gain: float = 500.0
    """Of the amplifiers that read the outputs, and that a nudge comes back through."""
    capacitance: float = 1e-12
    """Of every node to ground, in farads."""
    cell: str = "none"
    """Memory cell of the conductances: a preset's name or a device file (.json); none for ideal ones."""

    loss: str = "cross_entropy"
    """cross_entropy or mse, of the amplified outputs."""
    phases: str = "one_sided"
    """one_sided or centred."""
    beta: float | None = None
    """Nudging strength: siemens for mse, watts for cross_entropy; None takes a tenth of what the outputs bear."""
    update: str = "adam"
    """adam, muon or plain."""
    lr: float = 1e-6
    """Learning rate, falling linearly to zero: siemens per step for adam and muon."""
    momentum: float = 0.9
    """Gradient carry of muon and plain; adam has its own."""
    baseline_lr: float = 2e-3
    """Learning rate of the backprop-Adam baseline."""
    free_tolerance: float = 1e-4
    """Distance to rest over the state at which the free phase counts as settled."""
    nudged_tolerance: float = 1e-3
    """Distance to rest over the nudge at which the nudged phase counts as settled."""
    max_sweeps: int = 500
    """Budget of sweeps per phase."""

    transients: int = 16
    """Test samples whose settling is recorded for time and heat."""
    replay: int = 16
    """Test samples replayed in ngspice, with the network as a netlist in the run folder; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("preset", self.preset, PRESETS)
        if PRESETS[self.preset] is not type(self):
            raise ValueError(
                f"preset = {self.preset!r} of a {type(self).__name__}; make a PRESETS[{self.preset!r}]()"
            )
        check_choice("diode", self.diode, DIODES)
        check_choice("arrangement", self.arrangement, ARRANGEMENTS)
        check_choice("phases", self.phases, PHASES)
        check_choice("loss", self.loss, LOSSES)
        check_choice("update", self.update, UPDATES)
        for name in ("samples", "epochs", "batch_size", "max_sweeps", "transients"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; choose at least 1")
        if self.replay < 0:
            raise ValueError(f"replay = {self.replay}; choose a number of test samples, or 0 for none")
        if self.validation is not None and self.validation < 0:
            raise ValueError(f"validation = {self.validation}; choose a number of samples, or 0 for none")
        for name in ("lr", "baseline_lr", "beta"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)}; choose a finite value > 0")
        if not 0 < self.initial <= 1:
            raise ValueError(f"initial = {self.initial}; choose a share of the window, 0 < initial <= 1")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum = {self.momentum}; choose 0 <= momentum < 1, such as 0.9")
        if self.window is not None and self.cell != "none":
            raise ValueError(
                f"window = {self.window} beside cell = {self.cell}, which has its own; leave it out"
            )
        self.diodes()  # raises where a setting is out of range

    def shrunk(self) -> Config:
        """The --smoke size of this run."""
        small = {
            "samples": min(self.samples or 400, 400),
            "validation": 100 if self.validation is None else min(self.validation, 100),
            "epochs": min(self.epochs, 2),
            "hidden": (16,),
            "batch_size": 100,
            "transients": 2,
            "replay": min(self.replay, 2),
        }
        return dataclasses.replace(self, **small) if self.smoke else self

    def identity(self) -> dict:
        """The options, and the settings of the cell itself: a device file can change under its name."""
        cell = self.memory_cell()
        return {**super().identity(), "cell_settings": None if cell is None else dataclasses.asdict(cell)}

    def data(self) -> Dataset:
        return load(self.dataset, samples=self.samples, validation=self.validation, seed=self.seed).to(
            self.device
        )

    def memory_cell(self) -> devices.Device | None:
        return None if self.cell == "none" else devices.resolve(self.cell)

    def diodes(self) -> Diode:
        common = {"arrangement": self.arrangement, "offset_volts": self.offset_volts}
        if self.diode == "ideal":
            return IdealDiode(**common)
        if self.diode == "linear":
            return PiecewiseLinearDiode(**common, on_siemens=self.on_siemens, off_siemens=self.off_siemens)
        return ShockleyDiode(
            **common,
            saturation_amperes=self.saturation_amperes,
            ideality=self.ideality,
            series_ohm=self.series_ohm,
        )

    def circuit(self, data: Dataset) -> ResistiveCircuit:
        """A fresh network for these data."""
        cell = self.memory_cell()
        window = self.window or (IDEAL_WINDOW if cell is None else (cell.g_min_siemens, cell.g_max_siemens))
        circuit = ResistiveCircuit(
            (data.features, *self.hidden, data.classes),
            self.diodes(),
            window=window,
            capacitance_farads=self.capacitance,
            input_volts=self.input_volts,
            bias_volts=self.input_volts,
            amplification=self.amplification,
            paired_output=self.paired_output,
            readout_gain=self.readout_gain,
            rng=generator(self.seed),
        ).to(self.device)
        with torch.no_grad():
            for conductances in circuit.parameters():  # which the circuit starts below the middle
                conductances.sub_(window[0]).mul_(2 * self.initial).add_(window[0])
        return circuit

    def strength(self, circuit: ResistiveCircuit, data: Dataset) -> float:
        """beta, or a share of what the outputs of this network bear, whose diodes do not matter."""
        if self.beta is not None:
            return self.beta
        system = circuit.bind({k: p.detach() for k, p in circuit.params().items()}, data.train_x[:1])
        return SHARE_OF_LARGEST_BETA * system.largest_beta(cost(self.loss))


@dataclass(frozen=True)
class Shockley100(Config):
    """100 hidden nodes with Shockley diodes."""

    preset: str = "shockley-100"
    validation: int | None = 0
    epochs: int = 20
    batch_size: int = 128
    diode: str = "shockley"
    saturation_amperes: float = 1e-6
    ideality: float = 1.933
    input_volts: float = 10.0
    readout_gain: float = 50.0
    update: str = "muon"
    lr: float = 2e-5


@dataclass(frozen=True)
class Ideal1024(Config):
    """1,024 hidden nodes with ideal diodes."""

    preset: str = "ideal-1024"
    validation: int | None = 0
    epochs: int = 10
    batch_size: int = 128
    hidden: tuple[int, ...] = (1024,)
    replay: int = 0


PRESETS: dict[str, type[Config]] = {"none": Config, "shockley-100": Shockley100, "ideal-1024": Ideal1024}


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
    with _begin(config, folder, learners) as trace:
        _train(config, data, learners, folder, trace)
        energy = measure_energy(ep, data.test_x[: config.transients], data.test_y[: config.transients])
        record_energy(trace, energy)
        replayed = replay(ep, data.test_x[: config.replay], folder.path)
        rows = [_summarise(learner, data) for learner in learners]
        rows[0] |= energy.summary() | {"replay": replayed.words}
        resistive_figures.draw(folder.path, trace, learners, energy)
    history = {x.name: x.history for x in learners}
    found = {"energy": energy.results(), "replay": dataclasses.asdict(replayed)}
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


def _train(config: Config, data: Dataset, learners: list[Learner], folder: RunFolder, trace: Trace) -> None:
    """Train every learner to the end, checkpointed after each epoch."""
    validation = (data.validation_x, data.validation_y) if len(data.validation_x) else None
    with _progress() as progress:
        for learner in learners:
            total = config.epochs * -(-len(data.train_x) // config.batch_size)
            task = progress.add_task(learner.name, total=total, completed=learner.steps)
            for epoch in range(len(learner.history) + 1, config.epochs + 1):
                for step, metrics in learner.fit(data.train_x, data.train_y, validation):
                    recording.step(trace, learner, step, metrics)
                    progress.advance(task)
                last = learner.history[-1]
                last["test_error"] = 1 - learner.accuracy(data.test_x, data.test_y)
                recording.epoch(trace, learner, epoch)
                trace.append(_test_group(learner), epoch, {"test_error": last["test_error"]})
                states = {x.name: x.state_dict() for x in learners}
                checkpoint.save(folder.checkpoint, {"learners": states, "trace": trace.lengths()})
                if not console.is_terminal:
                    errors = f"validation {1 - last['validation']:.2%}, test {last['test_error']:.2%}"
                    done = f"{learner.name}: epoch {epoch}/{config.epochs}, loss {last['loss']:.4f}"
                    console.print(f"{done}, errors: {errors}, {last['seconds']:.0f} s")


def _begin(config: Config, folder: RunFolder, learners: list[Learner]) -> Trace:
    """A new trace, or the one of the last checkpoint with all learners set back to it."""
    if folder.resumable:
        state = checkpoint.load(folder.checkpoint, config.device)
        for learner in learners:
            learner.load_state_dict(state["learners"][learner.name])
        trace = Trace.resume(folder.trace, state["trace"])
        _declare(trace, learners)
        return trace
    trace = Trace.create(folder.trace, config=config.identity(), seed=config.seed, overwrite=True)
    _declare(trace, learners)
    recording.start(trace, learners[0])
    return trace


def _declare(trace: Trace, learners: list[Learner]) -> None:
    recording.declare(trace, learners)
    for learner in learners:
        trace.declare(_test_group(learner), along="epoch", variables=TEST)


def _test_group(learner: Learner) -> str:
    return f"test_{recording.slug(learner.name)}"


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


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


def preset_of(arguments: list[str]) -> type[Config]:
    """The settings that --preset asks for; `Config` refuses an unknown one."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="none")
    return PRESETS.get(parser.parse_known_args(arguments)[0].preset, Config)


if __name__ == "__main__":
    launch(preset_of(sys.argv[1:]), run)
