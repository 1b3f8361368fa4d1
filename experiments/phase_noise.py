"""Read noise that differs between the phases of EP: what it costs, and what helps, at which price.

784-256-10 on 10,000 images of MNIST, on 6-bit cells. A contrast divides the difference of two phases by beta, and
with it the difference of two reads of the weights. On the Hopfield energy that difference moves the states; on the
feedforward energy it does harm only where errors are read out anew, after the states have settled. The gradient's
cosine beside every row is to the one without noise, predicted by `mep_sim.phase_noise`; the figure has measured ones
too.

Cost: every settled phase and every read-out is one read of each cell, for each sample and each read that is averaged;
all of a run together, in units of 1e9. Energy is that plus 100 cell reads for each pulse: a proxy, with everything else
of a machine left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuits import Params
from circuits.chip import Chip
from experiments import crossbar_mnist, figures
from experiments.common import console, launch
from experiments.learner import Learner
from experiments.seeds import Result, TunedOptions, tabulate
from mep_sim.data import Dataset
from mep_sim.optimizers import EPGradient, GradientStrategy, InParts
from mep_sim.phase_noise import PhaseNoise, free_curvature, read_out_curvature
from mep_sim.settling import Sweep

SOLVER = Sweep(1e-5)
PULSE_READS = 100  # the energy of a pulse, in reads of a cell

HOPFIELD = {"circuit": "hopfield", "gamma": 1.0}
METHODS: dict[str, dict] = {
    "shared": {},
    "independent": {"independent_reads": True},
    "auto-zero": {"independent_reads": True, "auto_zero": True},
    "errors read": {"errors": "read"},
    "double sampled": {"errors": "double_sampled"},
}


@dataclass(frozen=True)
class Row:
    """One line of the table: circuit, noise of a read over the window, how the phases read and are nudged.

    reads: averaged wherever the array is read; parts: of a batch, each with reads of its own.
    """

    circuit: str = "feedforward"
    noise: float = 0.02
    method: str = "shared"
    phases: str = "one_sided"
    beta: float = 0.1
    reads: int = 1
    parts: int = 1
    epochs: int = 2
    lr: float = 0.05
    reference: str | None = None

    def config(self, seed: int, options: PhaseNoiseConfig) -> crossbar_mnist.Config:
        """The run it is, before its gradient is changed."""
        return crossbar_mnist.Config(
            **(HOPFIELD if self.circuit == "hopfield" else {}),
            read_noise=self.noise,
            phases=self.phases,
            beta=self.beta,
            epochs=self.epochs,
            lr=self.lr,
            solver="sweep",
            dataset="digits" if options.smoke else "auto",
            seed=seed,
            smoke=options.smoke,
            device=options.device,
        ).shrunk()

    def gradient(self, ep: EPGradient) -> GradientStrategy:
        """The estimate, made of one of these phases and this beta."""
        ep = replace(ep, reads=self.reads, **METHODS[self.method])
        return ep if self.parts == 1 else InParts(ep, self.parts)

    def learner(self, config: crossbar_mnist.Config, data: Dataset) -> Learner:
        learner = crossbar_mnist.make_learners(config, data)[0]
        learner.optimizer.gradient = self.gradient(learner.optimizer.gradient)
        return learner

    @property
    def reads_per_sample(self) -> int:
        """How often each cell is read for one sample of a step."""
        nudged = 2 if self.phases == "centred" else 1
        read_out = nudged if METHODS[self.method].get("errors") else 0
        return (1 + nudged + read_out) * self.reads

    @property
    def is_common_mode(self) -> bool:
        """Whether the difference of two reads cancels from the contrast."""
        return self.method in ("shared", "auto-zero", "double sampled") or (
            self.method == "independent" and self.circuit == "feedforward"
        )

    def cosine(self, noise: PhaseNoise) -> float:
        """Predicted, at this row's phases, beta and reads."""
        if self.is_common_mode or not self.noise:
            return 1.0
        reads = (
            self.reads * self.parts
        )  # parts of many samples: each part's own draw counts like one more read
        return noise.cosine(self.beta, centred=self.phases == "centred", reads=reads)


def _rows() -> dict[str, Row]:
    """By circuit: noiseless and shared reads first, then what differs between the phases."""
    clean = "feedforward, noiseless"
    base = Row(reference=clean)
    read = replace(base, method="errors read")
    rows = {
        clean: Row(noise=0.0),
        "feedforward, shared": base,
        "feedforward, independent": replace(base, method="independent"),
        "feedforward, double sampled": replace(base, method="double sampled"),
        "errors read": read,
        "errors read, beta 1": replace(read, beta=1.0),
        "errors read, beta 10": replace(read, beta=10.0),
        "errors read, 4 reads": replace(read, reads=4),
        "errors read, beta 1, 4 reads": replace(read, beta=1.0, reads=4),
        "errors read, beta 1, 8 epochs": replace(read, beta=1.0, epochs=8),
        "errors read, beta 1, 16 reads": replace(read, beta=1.0, reads=16),
        "errors read, beta 1, 16 parts": replace(read, beta=1.0, parts=16),
    }
    clean = "hopfield, noiseless"
    hopfield = Row("hopfield", phases="centred", lr=0.03, reference=clean)
    apart = replace(hopfield, method="independent")
    rows |= {
        clean: replace(hopfield, noise=0.0, reference=None),
        "hopfield, shared": hopfield,
        "hopfield, auto-zero": replace(hopfield, method="auto-zero"),
        "hopfield, one-sided": replace(apart, phases="one_sided"),
        "hopfield, centred": apart,
        "hopfield, centred, beta 0.9": replace(apart, beta=0.9),
        "hopfield, centred, beta 1.8": replace(apart, beta=1.8),
        "hopfield, centred, beta 0.9, 4 reads": replace(apart, beta=0.9, reads=4),
    }
    noisier = ("shared", "independent", "double sampled", "auto-zero", "16 reads", "0.9, 4 reads")
    return rows | {
        f"{name}, 5 %": replace(row, noise=0.05) for name, row in rows.items() if name.endswith(noisier)
    }


ROWS = _rows()


@dataclass(frozen=True)
class PhaseNoiseConfig(TunedOptions):
    """Rows of the table of phase noise over seeds, and its figure."""

    seeds: int = 3
    draws: int = 8
    """Of the noise, for every prediction and measurement of a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise ValueError(f"draws = {self.draws}; choose at least 1")


COLUMNS = {
    "reads/sample": ".0f",
    "cell reads (1e9)": ".1f",
    "energy (1e9)": ".1f",
    "pulses/device": ".1f",
    "cosine": ".2f",
    "settled": ".2%",
    "seconds": ".0f",
}


def train(_name: str, row: Row, seed: int, options: PhaseNoiseConfig) -> Result:
    """One cell: accuracy on the test part, or on the validation part to tune; cost, and the predicted cosine after the
    first epoch."""
    config = row.config(seed, options)
    data = config.data()
    learner = row.learner(config, data)
    cosine = math.nan
    for epoch in range(config.epochs):
        for _ in learner.fit(data.train_x, data.train_y, None):
            pass
        if epoch == 0:
            batch = data.train_x[: config.batch_size], data.train_y[: config.batch_size]
            cosine = row.cosine(noise_of(learner, *batch, row.method, options.draws))
    held = (data.validation_x, data.validation_y) if options.tune else (data.test_x, data.test_y)
    cells = sum(c.cell_count for c in learner.chip.crossbars.values())
    reads = row.reads_per_sample * len(data.train_x) * config.epochs * cells
    return {
        "accuracy": learner.accuracy(*held),
        "reads/sample": row.reads_per_sample,
        "cell reads (1e9)": reads / 1e9,
        "energy (1e9)": (reads + PULSE_READS * learner.chip.pulses_per_device * cells) / 1e9,
        "pulses/device": learner.chip.pulses_per_device,
        "cosine": cosine,
        "settled": learner.history[-1]["settled"],
        "seconds": sum(record["seconds"] for record in learner.history),
        "data": f"{data.source}; {len(data.train_x)} to train on",
    }


# -- cosines: predicted and measured ------------------------------------------------------------------


def noise_of(learner: Learner, x: Tensor, y: Tensor, method: str, draws: int) -> PhaseNoise:
    """Signal and noise at the weights as last read, on this batch, from `draws` pairs of reads."""
    circuit, chip = learner.circuit, learner.chip
    params = {name: p.detach().clone() for name, p in circuit.params().items()}
    signal = flat(EPGradient(solver=SOLVER, beta=0.05).estimate(circuit, lambda: params, x, y).gradient)
    curvature = read_out_curvature if method in ("errors read", "double sampled") else free_curvature
    squares = [
        flat(curvature(circuit, params, x, difference(chip, params))).square().sum() for _ in range(draws)
    ]
    # a difference of two reads has twice the variance of one
    return PhaseNoise(signal.norm().item(), math.sqrt(torch.stack(squares).mean().item() / 2))


def difference(chip: Chip, params: Params) -> dict[str, Tensor]:
    """Of two reads of every crossbar, as weights; the chip keeps what it read last."""
    t = chip.t_seconds
    return {name: (c.read(t) - c.read(t)).view_as(params[name]) for name, c in chip.crossbars.items()}


def flat(gradient: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradient.values()])


CURVES: dict[str, Row] = {
    "feedforward, errors read": Row(method="errors read"),
    "feedforward, errors read, 16 reads": Row(method="errors read", reads=16),
    "Hopfield, one-sided": Row("hopfield", method="independent", lr=0.03),
    "Hopfield, centred": Row("hopfield", method="independent", phases="centred", lr=0.03),
}
BETAS = (0.03, 0.1, 0.3, 0.9)


def cosines(options: PhaseNoiseConfig) -> dict[str, dict[str, list[float]]]:
    """Of every curve, over BETAS: "predicted" and "measured" cosine to the estimate of the same beta without noise,
    after an epoch with shared reads."""
    found = {}
    for name, curve in CURVES.items():
        config = replace(replace(curve, method="shared"), epochs=1).config(options.seed, options)
        data = config.data()
        learner = crossbar_mnist.make_learners(config, data)[0]
        for _ in learner.fit(data.train_x, data.train_y, None):
            pass
        batch = data.train_x[: config.batch_size], data.train_y[: config.batch_size]
        noise = noise_of(learner, *batch, curve.method, options.draws)
        rows = [replace(curve, beta=beta) for beta in BETAS]
        found[name] = {
            "predicted": [row.cosine(noise) for row in rows],
            "measured": [measured(learner, *batch, row, options.draws) for row in rows],
        }
    return found


@torch.no_grad()
def measured(learner: Learner, x: Tensor, y: Tensor, row: Row, draws: int) -> float:
    """Mean cosine of this row's estimate, from noisy reads, to that from the weights as last read."""
    circuit, chip = learner.circuit, learner.chip
    params = {name: p.detach().clone() for name, p in circuit.params().items()}

    def read() -> Params:
        noise = difference(chip, params)  # of two reads: sqrt(2) times that of one
        return {**params, **{name: params[name] + d / math.sqrt(2) for name, d in noise.items()}}

    ep = EPGradient(solver=SOLVER, phases=row.phases, beta=row.beta)
    clean = flat(ep.estimate(circuit, lambda: params, x, y).gradient)
    noisy = [flat(row.gradient(ep).estimate(circuit, read, x, y).gradient) for _ in range(draws)]
    return torch.stack([torch.cosine_similarity(clean, g, 0) for g in noisy]).mean().item()


def run(config: PhaseNoiseConfig) -> list[dict[str, object]]:
    """Compute what is missing, print the table, draw the figure; returns the table's rows."""
    config = replace(config, out=config.folder("phase_noise"))
    rows = config.chosen(ROWS)
    table = tabulate("phase_noise", config.tried(rows), train, config, COLUMNS)
    if not config.tune:
        file = config.out / "cosines.json"
        if not file.exists():
            file.write_text(json.dumps(cosines(config), indent=1))
        figures.phase_noise(
            config.out / "phase_noise.png", curves(rows, table), json.loads(file.read_text()), BETAS
        )
        console.print(f"the figure is {config.out / 'phase_noise.png'}", soft_wrap=True)
    return table


def curves(rows: Mapping[str, Row], table: list[dict[str, object]]) -> dict[str, list[tuple[float, float]]]:
    """(beta, mean accuracy %) by what else a row is, the rows of as many epochs as the others."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in table:
        row = rows[line["row"]]
        several = f", {row.reads} reads" * (row.reads > 1) + f", {row.parts} parts" * (row.parts > 1)
        name = f"{row.circuit}, {row.method}, {row.phases}{several}, {row.noise:.0%}"
        if row.epochs == Row.epochs:
            found.setdefault(name, []).append((row.beta, sum(line["scores"]) / len(line["scores"])))
    return {name: sorted(points) for name, points in found.items()}


if __name__ == "__main__":
    launch(PhaseNoiseConfig, run)
