"""An energy network on memristor crossbars learns handwritten digits by Equilibrium Propagation.

Beside it, on the same data and with the same layers, digital networks learn by backprop: one with Adam, one with
the update rule of the chip. The run leaves a table, pictures and an HDF5 trace in its folder.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import devices
from circuits import EnergyCircuit, FeedforwardCircuit, HopfieldCircuit
from circuits.chip import Chip
from circuits.mapping import DifferentialPair, OffsetColumn, OneSidedPair, SymmetryReference
from circuits.periphery import Converter
from circuits.pulse_trains import PulseTrains
from circuits.tiki_taka import TikiTakaChip
from experiments import figures, recording
from experiments.common import Options, console, generator, launch, print_table
from experiments.learner import Learner, update_rule
from mep_sim.checkpoint import RunFolder
from mep_sim.data import Dataset, load
from mep_sim.optimizers import (
    AdamUpdate,
    BackpropGradient,
    CompositeOptimizer,
    EPGradient,
    ErrorFeedback,
    GradientStrategy,
    ImplicitGradient,
    MixedPrecision,
    NoConstraint,
    NoFeedback,
    NoWriteFeedback,
    SampledEPGradient,
    SpectralConstraint,
    WriteResidual,
)
from mep_sim.optimizers.strategies.update import check_choice
from mep_sim.settling import ODE, Solver, Sweep

MAPPINGS = {
    "auto": None,
    "pair": DifferentialPair(),
    "one_sided": OneSidedPair(),
    "offset": OffsetColumn(),
    "symmetry": SymmetryReference(),
}

# how a change is written -> the chip, its options, and what is carried to the next step
WRITES = {
    "residual": (Chip, {}, WriteResidual()),
    "mixed_precision": (Chip, {}, MixedPrecision(every=10)),
    "rounded": (Chip, {"rounding": "nearest"}, NoWriteFeedback()),
    "stochastic": (Chip, {"rounding": "stochastic"}, NoWriteFeedback()),
    "tiki_taka": (TikiTakaChip, {}, NoWriteFeedback()),
    "trains": (Chip, {"trains": PulseTrains()}, NoWriteFeedback()),
}


@dataclass(frozen=True)
class Config(Options):
    """Train a chip by EP and its digital baselines by backprop."""

    dataset: str = "auto"
    """mnist, digits, or auto: MNIST where it can be had, else scikit-learn's digits."""
    samples: int | None = None
    """Training samples; None takes 10,000, or all of a smaller dataset."""
    epochs: int = 10
    """Passes over the training samples."""
    batch_size: int = 128
    """Samples per step."""

    circuit: str = "feedforward"
    """feedforward (MEP energy) or hopfield. ODE settling starts both at s = 0."""
    hidden: tuple[int, ...] = (256,)
    """Sizes of the hidden layers; input and output follow from the data."""
    sizes: tuple[int, ...] | None = None
    """All layer sizes, input and output included; overrides hidden and must match the data."""
    activation: str = "relu"
    """Hidden activation of the feedforward circuit: relu, softplus, gelu, tanh, sigmoid."""
    box: tuple[float, float] = (0.0, 4.0)
    """Interval of the Hopfield circuit's hidden states; a higher ceiling than 1 saturates fewer units."""
    constrain: bool = True
    """Hold ReLU states at s >= 0, without which deep nudged phases never settle."""

    cell: str = "soft-bounds-6bit"
    """Memory cell of the crossbars: a preset's name or a device file (.json); none for ideal weights."""
    bits: int | None = None
    """Levels of the cell, as a power of two; None leaves the preset's."""
    read_noise: float | None = None
    """Standard deviation of a read over the conductance window; None leaves the preset's."""
    independent_reads: bool = False
    """Read the weights anew in every phase; else one read, with its noise, serves a whole step."""
    w_range: float = 5.0
    """Largest weight a crossbar can hold, over the root mean square of the initial weights."""
    mapping: str = "auto"
    """Cells of a weight: pair, one_sided, offset, symmetry (see circuits/mapping.py), or auto, as the cell wants it."""
    write: str = "residual"
    """How a weight change reaches the cells: residual (whole pulses, the rest is carried to the next step),
    mixed_precision (the same, every tenth step), rounded (to the nearest pulse, the rest is lost), stochastic (the
    rest is drawn, unbiased), tiki_taka (pulses to a second, fast array that the weights learn from), or trains of
    random pulses, sample by sample, for plain steps."""
    tolerance: float | None = None
    """Program and verify the initial weights to this share of the window; None programs them once."""
    dac_bits: int | None = None
    """Resolution of the input, in the range of each sample; None for any."""
    adc_bits: int | None = None
    """Resolution of the free state, and of the deviation from it while nudged, each in its own range; None for any."""
    step_seconds: float = 1e-3
    """Simulated time between training steps, for cells that drift."""
    read_seconds: float = 0.0
    """Simulated time of a read, for noise with a memory: reads closer than its correlation time share it."""

    solver: str = "euler"
    """How to settle: sweep (layer-wise minimisation, fast) or a torchdiffeq method: euler, rk4, dopri5 ..."""
    free_tolerance: float = 1e-5
    """Projected force over the state at which the free phase counts as settled."""
    nudged_tolerance: float = 1e-3
    """Projected force over the nudge at which the nudged phase counts as settled."""
    max_evaluations: int = 5_000
    """Budget of sweeps or flow evaluations per phase."""

    beta: float = 0.1
    """Nudging strength."""
    phases: str = "one_sided"
    """one_sided, centred, or one_sweep (equals backprop; no equilibrium)."""
    loss: str = "cross_entropy"
    """cross_entropy or mse."""
    update: str = "muon"
    """muon, dion, plain or adam."""
    lr: float | None = None
    """Learning rate, falling linearly to zero; None takes the update rule's own."""
    momentum: float = 0.9
    """Gradient carry."""
    gamma: float = 2.0
    """Bound on the largest singular value of every weight matrix; 0 for none."""
    adam_lr: float = 4e-3
    """Learning rate of the backprop-Adam baseline."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("samples", "epochs", "batch_size", "max_evaluations"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; choose at least 1")
        if self.read_noise is not None and not 0 <= self.read_noise <= 1:
            raise ValueError(f"read_noise = {self.read_noise}; choose a share of the window in [0, 1]")
        check_choice("mapping", self.mapping, MAPPINGS)
        check_choice("write", self.write, WRITES)
        if self.write == "trains" and (self.update, self.gamma, self.momentum) != ("plain", 0, 0):
            raise ValueError(
                "pulse trains know single samples only, and take plain steps: write = trains needs update = plain, "
                f"gamma = 0 and momentum = 0, not {self.update}, {self.gamma} and {self.momentum}"
            )
        if self.adc_bits is not None and (self.write == "trains" or self.phases == "one_sweep"):
            raise ValueError(
                f"adc_bits = {self.adc_bits} with write = {self.write} and phases = {self.phases}: states are sampled "
                "of settled phases, for a digital contrast; leave adc_bits out, or choose other ones"
            )
        if self.gamma < 0:
            raise ValueError(f"gamma = {self.gamma}; choose gamma > 0, or 0 for no bound")
        if not 0 <= self.step_seconds < math.inf:
            raise ValueError(f"step_seconds = {self.step_seconds}; choose a time >= 0 s")
        for lr in (self.lr, self.adam_lr):
            if lr is not None and not 0 < lr < math.inf:
                raise ValueError(f"lr = {lr}; choose a finite learning rate > 0, such as 0.01")

    def shrunk(self) -> Config:
        """The --smoke size of this run."""
        small = {
            "samples": min(self.samples or 400, 400),
            "epochs": min(self.epochs, 2),
            "hidden": (32,),
            "batch_size": 100,
        }
        return dataclasses.replace(self, **small) if self.smoke else self

    def data(self) -> Dataset:
        """The dataset, on the device."""
        data = load(self.dataset, samples=self.samples, seed=self.seed)
        if self.samples is None:
            data = data.head(10_000)
        for part in ("train_x", "validation_x", "test_x"):
            if not getattr(data, part).isfinite().all():
                raise ValueError(
                    f"{part} holds NaN or infinite pixels; check where they came from: {data.source}"
                )
        return data.to(self.device)

    def identity(self) -> dict:
        """The options, and the settings of the cell itself: a device file can change under its name."""
        cell = self.memory_cell()
        return {**super().identity(), "cell_settings": None if cell is None else dataclasses.asdict(cell)}

    def settling(self) -> Solver:
        if self.solver == "sweep":
            return Sweep(self.free_tolerance, max_sweeps=self.max_evaluations)
        return ODE(self.free_tolerance, method=self.solver, max_evaluations=self.max_evaluations)

    def network(self, kind: str, sizes: tuple[int, ...]) -> EnergyCircuit:
        """A fresh feedforward or hopfield circuit of these layer sizes."""
        rng = generator(self.seed)
        if kind == "feedforward":
            return FeedforwardCircuit.from_sizes(sizes, self.activation, rng=rng, constrain=self.constrain)
        if kind == "hopfield":
            return HopfieldCircuit(sizes, self.box, rng=rng)
        raise ValueError(f"unknown circuit {kind!r}; choose feedforward or hopfield")

    def memory_cell(self) -> devices.Device | None:
        """The cell with its overrides, or None for ideal weights."""
        if self.cell == "none":
            if self.bits is not None or self.read_noise is not None:
                raise ValueError("cell = none has no bits and no read noise to set; choose a cell")
            return None
        cell = devices.resolve(self.cell)
        if self.bits is not None:
            cell = devices.with_bits(cell, self.bits)
        if self.read_noise is not None:
            if not isinstance(cell, devices.MemoryCell):
                raise ValueError(
                    f"cell {self.cell} cannot have read noise; choose a memory cell, such as levels-6bit"
                )
            cell = dataclasses.replace(cell, read_noise=devices.WhiteReadNoise(self.read_noise))
        return cell

    def chip(self, circuit: EnergyCircuit, cell: devices.Device, rng: torch.Generator) -> Chip:
        """The circuit's weights on crossbars of this cell."""
        kind, options, _ = WRITES[self.write]
        return kind(
            circuit,
            cell,
            rng,
            **options,
            w_range=self.w_range,
            mapping=MAPPINGS[self.mapping],
            programming=None if self.tolerance is None else devices.ProgramVerify(self.tolerance),
            dac=None if self.dac_bits is None else Converter(self.dac_bits),
            read_seconds=self.read_seconds,
        )

    def layer_sizes(self, data: Dataset) -> tuple[int, ...]:
        sizes = self.sizes or (data.features, *self.hidden, data.classes)
        if sizes[0] != data.features or sizes[-1] != data.classes:
            raise ValueError(
                f"sizes {sizes} do not match {data.name}, which has {data.features} inputs and {data.classes} "
                f"classes; use --sizes {data.features} ... {data.classes}, or --hidden"
            )
        return sizes


@dataclass(frozen=True)
class Results:
    """What a run found: one row per learner, as in the table, and where its files are."""

    rows: list[dict[str, object]]
    source: str
    folder: Path


def run(config: Config) -> Results:
    """Train the chip and its baselines, or go on doing so; writes the run folder."""
    config = config.shrunk()
    data = config.data()
    config = dataclasses.replace(config, dataset=data.name)  # what auto has found is what a resumed run needs
    learners = make_learners(config, data)
    for learner in learners:
        learner.rehearse(data.train_x[:8], data.train_y[:8])
    folder = RunFolder.open(config.folder("crossbar_mnist"), config.identity(), config.resume)
    say = partial(console.print, soft_wrap=True)
    say(f"data: {data.source}; training on {len(data.train_x)} samples")
    say(f"cell: {'ideal weights' if config.cell == 'none' else config.cell}; settling: {config.settling()}")
    with recording.begin(config, folder, learners) as trace:

        def after_epoch(learner: Learner, epoch: int) -> None:
            recording.transient(trace, learner, epoch, data.validation_x, data.validation_y)

        recording.train(trace, folder, learners, data, after_epoch)
        rows = [_summarise(learner, data) for learner in learners]
        figures.draw(folder.path, trace, learners, config.epochs)
    folder.finish({"rows": rows, "source": data.source, "history": {x.name: x.history for x in learners}})
    title = f"{data.name}, {len(data.train_x)} samples, {config.epochs} epochs, seed {config.seed}"
    print_table(title, rows, COLUMNS)
    say(f"pictures, trace.h5 and results.json are in {folder.path}")
    return Results(rows, data.source, folder.path)


COLUMNS = {
    "learner": "",
    "test accuracy": ".2%",
    "validation": ".2%",
    "free residual": ".1e",
    "nudged residual": ".1e",
    "settled": ".1%",
    "evaluations": ".1f",
    "time": ".1f",
    "pulses/device": ".2f",
    "seconds": ".1f",
}


def make_learners(config: Config, data: Dataset) -> list[Learner]:
    """The chip first, then the digital baselines: the same initial weights, the same order of samples."""
    sizes, cell = config.layer_sizes(data), config.memory_cell()
    rule, lr = update_rule(config.update)
    lr = lr if config.lr is None else config.lr
    bound = SpectralConstraint(config.gamma) if config.gamma else NoConstraint()

    def learner(
        name: str, kind: str, gradient: GradientStrategy, cell: devices.Device | None, **strategies
    ) -> Learner:
        circuit = config.network(kind, sizes).to(config.device)
        chip = None
        if cell is not None:
            rng = generator(config.seed + 1, config.device)
            chip = config.chip(circuit, cell, rng)
        optimizer = CompositeOptimizer(
            circuit.parameters(), gradient=gradient, model=circuit, chip=chip, **strategies
        )
        return Learner(
            name, optimizer, config.epochs, config.batch_size, generator(config.seed + 2), config.step_seconds
        )

    sampled = {} if config.adc_bits is None else {"adc": Converter(config.adc_bits)}
    ep = (SampledEPGradient if sampled else EPGradient)(
        **sampled,
        loss_type=config.loss,
        beta=config.beta,
        phases=config.phases,
        solver=config.settling(),
        nudged_tolerance=config.nudged_tolerance,
        independent_reads=config.independent_reads,
    )
    carry = ErrorFeedback(config.momentum) if config.momentum else NoFeedback()
    same = {"update": rule, "constraint": bound, "feedback": carry, "lr": lr}
    exact = (
        BackpropGradient(config.loss) if config.circuit == "feedforward" else ImplicitGradient(config.loss)
    )
    adam = {
        "update": AdamUpdate(),
        "constraint": NoConstraint(),
        "feedback": NoFeedback(),
        "lr": config.adam_lr,
    }
    label = f"EP {config.phases} {config.update}" + ("" if cell is None else f" on {Path(config.cell).stem}")
    exact_label = "backprop" if config.circuit == "feedforward" else "implicit gradient"
    as_chip = ", as on chip" if config.update == "adam" else ""  # not the baseline, whose name it would have
    return [
        learner(label, config.circuit, ep, cell, write_feedback=WRITES[config.write][2], **same),
        learner(f"{exact_label} {config.update}{as_chip}", config.circuit, exact, None, **same),
        learner("backprop adam", "feedforward", BackpropGradient(config.loss), None, **adam),
    ]


def _summarise(learner: Learner, data: Dataset) -> dict[str, object]:
    """A learner's row: accuracies of the trained network, its settling over the last epoch, its cost."""
    last = learner.history[-1]
    return {
        "learner": learner.name,
        "test accuracy": learner.accuracy(data.test_x, data.test_y),
        "validation": last["validation"],
        "free residual": last["free_residual"],
        "nudged residual": last["nudged_residual"],
        "settled": last["settled"],
        "evaluations": last["evaluations"],
        "time": last["time"],
        "pulses/device": None if learner.chip is None else learner.chip.pulses_per_device,
        "seconds": sum(record["seconds"] for record in learner.history),
    }


if __name__ == "__main__":
    launch(Config, run)
