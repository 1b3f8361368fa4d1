"""Train digitally, deploy on a chip, let it drift: what hardware-aware training and drift compensation are worth.

Networks are trained on a computer, plainly or at weights perturbed anew every step, and then programmed on several
chips each. The chips are left alone; their accuracy is measured from time to time, as it is, with one gain per array,
and with one gain per output line, set anew before every measurement. Rows share initial weights, the order of samples
and the random numbers of their chips, seed by seed; the three compensations look at the same programmed chips.

Noise strengths are chosen with --validation, which leaves the test part alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

from devices import Device
from experiments import crossbar_mnist
from experiments.common import console, generator, launch, print_table
from experiments.figures import figure
from experiments.learner import Learner, update_rule
from experiments.seeds import Result, SeedsOptions, compute, interval, titled
from mep_sim.optimizers import (
    BackpropGradient,
    CompositeOptimizer,
    DeviceWeights,
    EPGradient,
    ErrorFeedback,
    GradientStrategy,
    NoisyWeights,
    PerturbedWeights,
    SpectralConstraint,
)

COMPENSATIONS = ("none", "global", "column")
PLAIN = "backprop"
UNITS = {"y": 365 * 86_400.0, "d": 86_400.0, "h": 3_600.0, "s": 1.0}


@dataclass(frozen=True)
class Row:
    """A way to train `network`, the cell that it is deployed on, and when its chips are looked at (s)."""

    network: crossbar_mnist.Config
    gradient: GradientStrategy
    cell: Device
    times: tuple[float, ...]
    chips: int
    validation: bool
    reference: str | None = None


@dataclass(frozen=True)
class DeployConfig(SeedsOptions):
    """Train digitally, deploy on chips, let them drift."""

    seeds: int = 3
    """How many seeds, counted from `seed`."""
    chips: int = 3
    """Chips that every trained network is programmed on."""
    times: tuple[float, ...] = (0.0, 1.0, UNITS["h"], UNITS["d"], 30 * UNITS["d"], UNITS["y"])
    """Seconds after programming at which the accuracy is measured, rising."""
    cell: str = "pcm"
    """Memory cell: a preset's name or a device file (.json)."""
    mapping: str = "one_sided"
    """Cells of a weight: one_sided (one of two at its lowest), pair (around mid-window), offset, symmetry, auto."""
    w_range: float = 5.0
    """Largest weight a crossbar can hold, over the root mean square of the trained weights."""
    tolerance: float | None = None
    """Program and verify to this share of the window; None programs once."""
    noise: tuple[float, ...] = (0.05,)
    """Strengths of the noise in training, over the largest weight of a crossbar: a row each."""
    dataset: str = "auto"
    """mnist, digits, or auto: MNIST where it can be had, else scikit-learn's digits."""
    samples: int | None = None
    """Training samples; None takes 10,000, or all of a smaller dataset."""
    epochs: int = 10
    """Passes over the training samples."""
    validation: bool = False
    """Judge on the validation part, to choose settings by, and leave the test part alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chips < 1:
            raise ValueError(f"chips = {self.chips}; choose at least 1")
        if not self.times or list(self.times) != sorted(set(self.times)):
            raise ValueError(f"times = {self.times}; give one or more times, each later than the one before")
        if not 0 <= self.times[0] <= self.times[-1] < math.inf:
            raise ValueError(f"times = {self.times}; choose finite times >= 0 s")
        self.network()  # checks what it takes

    def network(self) -> crossbar_mnist.Config:
        """What is trained, and how it is put on chips."""
        same = ("cell", "mapping", "w_range", "tolerance", "dataset", "samples", "epochs", "smoke", "device")
        return crossbar_mnist.Config(**{name: getattr(self, name) for name in same}).shrunk()

    def table(self) -> dict[str, Row]:
        """The rows to compute."""
        network = self.network()
        cell = network.memory_cell()
        if cell is None:
            raise ValueError("cell = none is no chip to deploy on; choose a cell, such as pcm")
        drift = getattr(cell, "drift", None)
        if drift is not None and self.times[-1] > drift.valid_seconds:
            raise ValueError(
                f"times reach {duration(self.times[-1])}, but the drift of {self.cell} is known for "
                f"{duration(drift.valid_seconds)} only: choose --times within that"
            )
        plain = BackpropGradient()
        ep = EPGradient(beta=network.beta)
        gradients: dict[str, GradientStrategy] = {PLAIN: plain}
        for inner, name in ((plain, PLAIN), (ep, "EP")):
            for sigma in self.noise:
                noisy = NoisyWeights(inner, sigma, w_range=self.w_range)
                gradients[f"{name}, {100 * sigma:g} % noise"] = noisy
        gradients[f"{PLAIN}, the cell itself"] = DeviceWeights(
            plain, device=cell, mapping=crossbar_mnist.MAPPINGS[self.mapping], w_range=self.w_range
        )
        rows = {
            name: Row(network, gradient, cell, self.times, self.chips, self.validation, PLAIN)
            for name, gradient in gradients.items()
        }
        rows[PLAIN] = dataclasses.replace(rows[PLAIN], reference=None)
        return self.chosen(rows)


def trained(name: str, row: Row, seed: int) -> Learner:
    """The row's network, trained digitally."""
    config = dataclasses.replace(row.network, seed=seed)
    data = config.data()
    circuit = config.network("feedforward", config.layer_sizes(data)).to(config.device)
    gradient, (rule, lr) = row.gradient, update_rule(config.update)
    if isinstance(gradient, PerturbedWeights):
        gradient = dataclasses.replace(gradient, seed=seed)
    optimizer = CompositeOptimizer(
        circuit.parameters(),
        gradient,
        rule,
        SpectralConstraint(config.gamma),
        ErrorFeedback(config.momentum),
        lr=lr,
        model=circuit,
    )
    learner = Learner(name, optimizer, config.epochs, config.batch_size, generator(seed + 2))
    for _ in range(config.epochs):
        for _ in learner.fit(data.train_x, data.train_y, None):
            pass
    return learner


def drifting(learner: Learner, times: tuple[float, ...], x: Tensor, y: Tensor) -> dict[str, list[float]]:
    """Accuracies of a freshly programmed chip at `times`, by compensation."""
    chip, accuracies = learner.chip, {}
    chip.calibrate()
    start, programmed = chip.t_seconds, chip.state_dict()
    for compensation in COMPENSATIONS:
        chip.load_state_dict(programmed)
        accuracies[compensation] = []
        for t in times:
            chip.t_seconds = start + t
            if compensation != "none":
                chip.compensate(compensation)
            accuracies[compensation].append(learner.accuracy(x, y))
    return accuracies


def train(name: str, row: Row, seed: int, _options: SeedsOptions) -> Result:
    """One cell: train, deploy on every chip; accuracies before and, by compensation, chip and time, after."""
    learner = trained(name, row, seed)
    config = dataclasses.replace(row.network, seed=seed)
    data = config.data()
    x, y = (data.validation_x, data.validation_y) if row.validation else (data.test_x, data.test_y)
    digital = learner.accuracy(x, y)
    network = {key: value.clone() for key, value in learner.circuit.state_dict().items()}
    deployed = {compensation: [] for compensation in COMPENSATIONS}
    for number in range(row.chips):
        learner.circuit.load_state_dict(network)  # a chip mirrors what it reads into it
        rng = generator(1000 * (seed + 1) + number, config.device)
        learner.optimizer.chip = config.chip(learner.circuit, row.cell, rng)
        for compensation, accuracies in drifting(learner, row.times, x, y).items():
            deployed[compensation].append(accuracies)
    seconds = sum(record["seconds"] for record in learner.history)
    part = "validation" if row.validation else "test"
    return {
        "accuracy": digital,
        "deployed": deployed,
        "seconds": seconds,
        "data": f"{data.source}; {part} accuracy",
    }


def summarised(
    row: Row, results: list[Result], reference: list[Result] | None, name: str
) -> list[dict[str, object]]:
    """Lines of the table, one per compensation: intervals over seeds of the means over chips."""
    lines = []
    for compensation in COMPENSATIONS:
        scores = _percent(results, compensation)
        line = {
            "training": name,
            "digital": interval([100 * cell["accuracy"] for cell in results]),
            "compensation": compensation,
            **{duration(t): interval([seed[i] for seed in scores]) for i, t in enumerate(row.times)},
            "difference": None,
            "scores": scores,
        }
        if reference is not None:
            pairs = zip(scores, _percent(reference, compensation), strict=True)
            line["difference"] = interval([a[-1] - b[-1] for a, b in pairs], "+")
        lines.append(line)
    return lines


def _percent(results: list[Result], compensation: str) -> list[list[float]]:
    """By seed and time, the mean over chips."""
    cells = (cell["deployed"][compensation] for cell in results)
    return [[100 * fmean(at) for at in zip(*chips, strict=True)] for chips in cells]


def duration(seconds: float) -> str:
    """In the largest unit it has one of: 7200 is 2 h."""
    unit, length = next(((u, n) for u, n in UNITS.items() if seconds >= n), ("s", 1.0))
    return f"{seconds / length:g} {unit}"


def draw(path: Path, lines: list[dict[str, object]], times: tuple[float, ...]) -> None:
    """Accuracy against time, a panel per compensation: means over seeds with their range."""
    with figure(path, 1, len(COMPENSATIONS), (11, 3.8)) as axes:
        panels = dict(zip(COMPENSATIONS, axes[0], strict=True))
        for compensation, ax in panels.items():
            ax.set_xscale("symlog", linthresh=1)  # so that 0 s has a place
            ax.set(title=f"compensation: {compensation}", xlabel="time after programming")
        for line in lines:
            by_time = list(zip(*line["scores"], strict=True))
            means = [fmean(at) for at in by_time]
            spread = [[m - min(at) for m, at in zip(means, by_time, strict=True)]]
            spread += [[max(at) - m for m, at in zip(means, by_time, strict=True)]]
            panels[line["compensation"]].errorbar(
                times, means, spread, fmt="o-", ms=4, lw=1, capsize=2, label=line["training"]
            )
        low, high = zip(*(ax.get_ylim() for ax in axes[0]), strict=True)
        for ax in axes[0]:
            ax.set_xticks(times, [duration(t) for t in times])
            ax.set_ylim(min(low), max(high))
        axes[0, 0].set_ylabel("accuracy (%)")
        axes[0, 0].legend(frameon=False, fontsize=8)


def run(config: DeployConfig) -> list[dict[str, object]]:
    """Compute what is missing, print the table, return its lines, also kept in results.json and drawn."""
    rows, folder = config.table(), config.folder("deploy")
    results = compute(folder, rows, train, config)
    lines = [
        line
        for name, row in rows.items()
        for line in summarised(row, results[name], results.get(row.reference), name)
    ]
    (folder / "results.json").write_text(json.dumps(lines, indent=1))
    columns = ("training", "digital", "compensation", *map(duration, config.times), "difference")
    title = f"{titled(results, config)}; {config.cell}, {config.mapping}; difference: to {PLAIN}, at the end"
    print_table(title, lines, dict.fromkeys(columns, ""))
    draw(folder / "deploy.png", lines, config.times)
    console.print(f"deploy.png and results.json are in {folder}", soft_wrap=True)
    return lines


if __name__ == "__main__":
    launch(DeployConfig, run)
