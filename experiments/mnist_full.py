"""All 60,000 images of MNIST by converged EP, every row beside a backprop control with the same update.

A row and its control share the initial weights, the order of samples and every random distortion, seed by seed.
Learning rates and networks were chosen with --tune, on 5,000 images held out of the training part; without it a row
trains on all 60,000, and is tested once, at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from circuits import FeedforwardCircuit
from circuits.activations import activation, as_module
from experiments.augment import Augment, smoothed
from experiments.common import console, generator, launch
from experiments.learner import Learner
from experiments.seeds import Result, TunedOptions, tabulate
from mep_sim.data import Dataset, load
from mep_sim.optimizers import (
    AdamUpdate,
    BackpropGradient,
    CompositeOptimizer,
    EPGradient,
    GradientStrategy,
    MuonUpdate,
    NoConstraint,
    PlainUpdate,
    SpectralConstraint,
    UpdateStrategy,
)
from mep_sim.settling import Sweep

HELD_OUT = 5_000  # images to tune on


def image_side(data: Dataset) -> int:
    """Pixels along one side of the square images."""
    return math.isqrt(data.features)


@dataclass(frozen=True)
class Network:
    """Convolutions of 5 x 5 kernels that halve the image (stride 2), if any, and hidden linear layers.

    Weights ~ N(0, gain^2 / fan_in) (He et al. 2015, eq. 10), gain 1 for the output; biases zero.
    """

    hidden: tuple[int, ...] = (256,)
    channels: tuple[int, ...] = ()
    activation: str = "relu"

    def build(self, data: Dataset, rng: torch.Generator) -> FeedforwardCircuit:
        """A fresh circuit for images (B, 1, H, W) of this data set."""
        modules: list[nn.Module] = []
        inputs, side = 1, image_side(data)
        for outputs in self.channels:
            modules += [nn.Conv2d(inputs, outputs, 5, stride=2, padding=2), as_module(self.activation)]
            inputs, side = outputs, -(-side // 2)
        modules.append(nn.Flatten())
        features = inputs * side**2
        for size in self.hidden:
            modules += [nn.Linear(features, size), as_module(self.activation)]
            features = size
        modules.append(nn.Linear(features, data.classes))
        for module in modules:
            if hasattr(module, "weight"):
                gain = 1.0 if module is modules[-1] else activation(self.activation).gain
                nn.init.normal_(module.weight, 0, gain / math.sqrt(module.weight[0].numel()), generator=rng)
                nn.init.zeros_(module.bias)
        return FeedforwardCircuit(nn.Sequential(*modules))


@dataclass(frozen=True)
class Row:
    """One way to train, with a learning rate `lr` that falls linearly to zero, and the row it is compared with.

    gamma: bound on the singular values of every weight matrix, None for none. smoothing: of the labels.
    """

    network: Network
    gradient: GradientStrategy
    update: UpdateStrategy
    lr: float
    reference: str | None = None
    batch_size: int = 256
    epochs: int = 10
    gamma: float | None = None
    augment: Augment | None = None
    smoothing: float = 0.0

    def shrunk(self) -> Row:
        """The --smoke size."""
        channels = tuple(min(c, 4) for c in self.network.channels)
        small = replace(
            self.network, hidden=tuple(min(h, 32) for h in self.network.hidden), channels=channels
        )
        return replace(self, network=small, epochs=2, batch_size=50)

    def learner(self, name: str, data: Dataset, seed: int, device: str) -> Learner:
        circuit = self.network.build(data, generator(seed)).to(device)
        optimizer = CompositeOptimizer(
            circuit.parameters(),
            self.gradient,
            self.update,
            NoConstraint() if self.gamma is None else SpectralConstraint.regulariser(self.gamma),
            lr=self.lr,
            model=circuit,
        )

        def prepare(x: Tensor, y: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
            x = x if self.augment is None else self.augment(x, rng)
            return x, smoothed(y, data.classes, self.smoothing) if self.smoothing else y

        return Learner(name, optimizer, self.epochs, self.batch_size, generator(seed + 2), prepare=prepare)


EP = EPGradient(beta=0.1, solver=Sweep(1e-5))
GENTLE_EP = replace(EP, beta=0.03)  # deeper, a gentler nudge settles in fewer sweeps
BACKPROP = BackpropGradient()
MUON = {"update": MuonUpdate(), "gamma": 2.0, "lr": 0.048, "smoothing": 0.05}
ADAM = {"update": AdamUpdate()}
SHIFTED = {"augment": Augment(shift=2), "smoothing": 0.05}
SHALLOW = Network((256,))
SHALLOW_ADAM = {**ADAM, "lr": 2e-3, "smoothing": 0.1, "batch_size": 64}
WIDE = {**SHIFTED, "network": Network((512, 512), activation="gelu"), "epochs": 15}
CONV = {**SHIFTED, "network": Network((128,), (16, 32), "gelu"), "epochs": 8}

ROWS: dict[str, Row] = {
    "256: SMEP": Row(SHALLOW, EP, **MUON, reference="256: backprop, Adam"),
    "256: backprop, Muon": Row(SHALLOW, BACKPROP, **MUON, reference="256: SMEP"),
    "256: backprop, Adam": Row(SHALLOW, BACKPROP, **SHALLOW_ADAM),
    "256: EP, Adam": Row(SHALLOW, EP, **SHALLOW_ADAM, reference="256: backprop, Adam"),
    "256: backprop, SGD": Row(SHALLOW, BACKPROP, PlainUpdate(), lr=0.05, batch_size=64),
    "256: EP, SGD": Row(SHALLOW, EP, PlainUpdate(), lr=0.05, batch_size=64, reference="256: backprop, SGD"),
    "512-512: EP, Adam": Row(
        **WIDE, gradient=GENTLE_EP, **ADAM, lr=2e-3, reference="512-512: backprop, Adam"
    ),
    "512-512: backprop, Adam": Row(**WIDE, gradient=BACKPROP, **ADAM, lr=2e-3),
    "conv: EP, Adam": Row(**CONV, gradient=GENTLE_EP, **ADAM, lr=4e-3, reference="conv: backprop, Adam"),
    "conv: backprop, Adam": Row(**CONV, gradient=BACKPROP, **ADAM, lr=4e-3),
}


@dataclass(frozen=True)
class FullConfig(TunedOptions):
    """Rows over seeds on the whole of MNIST."""

    seeds: int = 3
    """How many seeds, counted from `seed`."""
    workers: int = 1
    """Processes, `threads` threads each."""
    dataset: str = "mnist"
    """mnist, digits, or auto: MNIST where it can be had, else scikit-learn's digits."""
    epochs: int | None = None
    """Passes over the training part in place of a row's own."""
    batch_size: int | None = None
    """Samples per step in place of a row's own."""
    gamma: float | None = None
    """Bound on singular values in place of a row's own."""
    smoothing: float | None = None
    """Share of the label spread over all classes, in [0, 1), in place of a row's own."""
    activation: str | None = None
    """Hidden activation in place of a row's own: relu, softplus, gelu, tanh, sigmoid."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; choose at least 1")
        if self.gamma is not None:
            SpectralConstraint.regulariser(self.gamma)  # raises where it is out of range, as the next line
        if self.smoothing is not None and not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing = {self.smoothing}; choose 0 <= smoothing < 1, such as 0.05")
        if self.activation is not None:
            activation(self.activation)

    def table(self) -> dict[str, Row]:
        """The rows to compute, with what overrides them."""
        overrides = ("epochs", "batch_size", "gamma", "smoothing")
        given = {name: getattr(self, name) for name in overrides if getattr(self, name) is not None}
        rows = {name: replace(row, **given) for name, row in self.chosen(ROWS).items()}
        if self.activation is not None:
            for name, row in rows.items():
                rows[name] = replace(row, network=replace(row.network, activation=self.activation))
        rows = self.tried(rows)
        return {name: row.shrunk() for name, row in rows.items()} if self.smoke else rows

    def data(self, seed: int) -> Dataset:
        """With images held out to tune on, without for a final run."""
        sizes = {"validation": HELD_OUT if self.tune else 0}
        if self.smoke:
            sizes = {"samples": 400, "validation": 100 if self.tune else 0}
        return load(self.dataset, seed=seed, **sizes).to(self.device)


def train(name: str, row: Row, seed: int, config: FullConfig) -> Result:
    """One cell: train a row at a seed; accuracy on the test part, or on what is held out to tune on."""
    data = config.data(seed)
    side = image_side(data)
    learner = row.learner(name, data, seed, config.device)
    x = data.train_x.view(-1, 1, side, side)
    held, labels = (data.validation_x, data.validation_y) if config.tune else (data.test_x, data.test_y)
    for epoch in range(1, row.epochs + 1):
        for _ in learner.fit(x, data.train_y, None):
            pass
        last = learner.history[-1]
        done = f"{name}, seed {seed}: epoch {epoch}/{row.epochs}"
        console.print(f"{done}, loss {last['loss']:.4f}, {last['seconds']:.0f} s")
    return {
        **last,
        "accuracy": learner.accuracy(held.view(-1, 1, side, side), labels),
        "s/epoch": sum(record["seconds"] for record in learner.history) / row.epochs,
        "data": f"{data.source}; {len(x)} to train on",
    }


COLUMNS = {
    "loss": ".4f",
    "nudged_residual": ".1e",
    "settled": ".2%",
    "evaluations": ".1f",
    "s/epoch": ".1f",
}


def run(config: FullConfig) -> list[dict[str, object]]:
    """Compute what is missing, print the table, return its rows."""
    return tabulate("mnist_full", config.table(), train, config, COLUMNS)


if __name__ == "__main__":
    launch(FullConfig, run)
