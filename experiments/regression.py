"""Regression by Equilibrium Propagation on scikit-learn's own data, beside backprop with the same update and ridge.

Five-fold cross-validation with folds drawn anew for every seed. R^2 is taken over all samples, each predicted by a
network that did not see it, and averaged over the targets; inputs and targets are standardised by the training part.
EP and backprop share the network (32 tanh units), its initial weights and the order of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean

import numpy as np
import torch
from sklearn import datasets
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, train_test_split
from sklearn.preprocessing import StandardScaler

from circuits import FeedforwardCircuit
from experiments.common import generator, launch
from experiments.learner import Learner
from experiments.seeds import Result, TunedOptions, tabulate
from mep_sim.optimizers import BackpropGradient, CompositeOptimizer
from mep_sim.presets import eqprop, smep

FOLDS, HIDDEN, BATCH, EPOCHS = 5, 32, 32, 30
RIDGE = tuple(
    10.0**k for k in range(-4, 5)
)  # penalties; one is chosen by leave-one-out within the training part


@dataclass(frozen=True)
class Samples:
    """x (N, d) and y (N, k), float64; where they come from, in words."""

    x: np.ndarray
    y: np.ndarray
    source: str

    @classmethod
    def of(cls, name: str, x: np.ndarray, y: np.ndarray) -> Samples:
        y = y.reshape(len(x), -1)
        return cls(x, y, f"{name}: {len(x)} samples, {x.shape[1]} inputs, {y.shape[1]} target(s)")


SETS: dict[str, Callable[[], Samples]] = {
    "diabetes": lambda: Samples.of("diabetes", *datasets.load_diabetes(return_X_y=True)),
    "linnerud": lambda: Samples.of("linnerud", *datasets.load_linnerud(return_X_y=True)),
    "friedman1": lambda: Samples.of(
        "synthetic, make_friedman1", *datasets.make_friedman1(500, noise=1.0, random_state=0)
    ),
    "linear": lambda: Samples.of(
        "synthetic, make_regression",
        *datasets.make_regression(300, 20, n_targets=2, noise=50.0, random_state=0),
    ),
}


@dataclass(frozen=True)
class Method:
    """make: an optimizer of a circuit at a learning rate. rates: by set, as in SETS. reference: the method it is
    compared with."""

    make: Callable[[FeedforwardCircuit, float], CompositeOptimizer]
    rates: tuple[float, ...]
    reference: str


# On noisy targets, which leave an error however long one trains, a one-sided beta of 0.1 is too large: to first order
# it makes the output weights grow with that error squared, and costs five points of R^2 on diabetes.
BETA = 0.01

# Found with --tune 0.5 1 2 --seeds 1, and again around the best where that was an end of the grid; row by row, and
# the same for EP as for backprop.
SGD_RATES, MUON_RATES = (0.02, 0.005, 0.02, 0.04), (0.005, 0.01, 0.01, 0.02)


def _sgd(circuit: FeedforwardCircuit, lr: float) -> CompositeOptimizer:
    return CompositeOptimizer(circuit.parameters(), BackpropGradient("mse"), lr=lr, model=circuit)


METHODS: dict[str, Method] = {
    "backprop, SGD": Method(_sgd, SGD_RATES, "ridge"),
    "EP, SGD": Method(
        lambda c, lr: eqprop(c.parameters(), c, lr, loss_type="mse", beta=BETA), SGD_RATES, "backprop, SGD"
    ),
    "backprop, Muon": Method(
        lambda c, lr: smep(c.parameters(), c, lr, "backprop", loss_type="mse"), MUON_RATES, "ridge"
    ),
    "EP, Muon": Method(
        lambda c, lr: smep(c.parameters(), c, lr, loss_type="mse", beta=BETA), MUON_RATES, "backprop, Muon"
    ),
}


@dataclass(frozen=True)
class Row:
    """A method on a set (names in SETS, and in METHODS or "ridge"), and what it is compared with."""

    method: str
    samples: str
    lr: float = math.nan
    reference: str | None = None

    @classmethod
    def of(cls, method: str, samples: str) -> Row:
        if method == "ridge":
            return cls(method, samples)
        found = METHODS[method]
        return cls(method, samples, found.rates[list(SETS).index(samples)], found.reference)


@dataclass(frozen=True)
class Config(TunedOptions):
    """EP, backprop and ridge regression, cross-validated."""

    sets: tuple[str, ...] = field(default_factory=lambda: tuple(SETS))
    """diabetes and linnerud (real), friedman1 and linear (synthetic); all come with scikit-learn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.sets if name not in SETS]:
            raise ValueError(f"unknown sets {unknown}; choose among {list(SETS)}")

    def table(self, samples: str) -> Mapping[str, Row]:
        """The rows of a set; to tune, each but ridge once per factor."""
        known = METHODS if self.tune else {"ridge": None, **METHODS}
        return self.tried({name: Row.of(name, samples) for name in self.chosen(known)})


COLUMNS = {"settled": ".1%"}


def train(_name: str, row: Row, seed: int, config: Config) -> Result:
    """One cell: R^2 over all folds, and the share settled in the last epochs."""
    samples = SETS[row.samples]()
    truth, predicted, settled = [], [], []
    for fit, held in KFold(FOLDS, shuffle=True, random_state=seed).split(samples.x):
        if config.tune:
            fit, held = train_test_split(fit, test_size=0.2, random_state=seed)
        to_x, to_y = StandardScaler().fit(samples.x[fit]), StandardScaler().fit(samples.y[fit])
        x, y, asked = (
            to_x.transform(samples.x[fit]),
            to_y.transform(samples.y[fit]),
            to_x.transform(samples.x[held]),
        )
        found, share = (
            _ridge(x, y, asked) if row.method == "ridge" else _network(row, x, y, asked, seed, config)
        )
        truth.append(samples.y[held])
        predicted.append(to_y.inverse_transform(found))
        settled.append(share)
    score = r2_score(np.concatenate(truth), np.concatenate(predicted))
    return {"R²": score, "settled": fmean(settled), "data": samples.source}


def _ridge(x: np.ndarray, y: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, float]:
    return RidgeCV(RIDGE).fit(x, y).predict(asked).reshape(len(asked), -1), math.nan


def _network(
    row: Row, x: np.ndarray, y: np.ndarray, asked: np.ndarray, seed: int, config: Config
) -> tuple[np.ndarray, float]:
    """Predictions for the inputs asked for, and the share settled in the last epoch."""
    x, y, asked = (torch.from_numpy(a).float().to(config.device) for a in (x, y, asked))
    sizes = (x.shape[1], HIDDEN, y.shape[1])
    circuit = FeedforwardCircuit.from_sizes(sizes, "tanh", rng=generator(seed)).to(config.device)
    optimizer = METHODS[row.method].make(circuit, row.lr)
    epochs = 2 if config.smoke else EPOCHS
    learner = Learner(row.method, optimizer, epochs, BATCH, generator(seed + 2))
    for _ in range(epochs):
        for _ in learner.fit(x, y, None):
            pass
    return learner.outputs(asked).cpu().double().numpy(), learner.history[-1]["settled"]


def run(config: Config) -> dict[str, list[dict[str, object]]]:
    """Compute what is missing, print a table per set, return them."""
    folder = config.folder("regression")
    return {
        name: tabulate(
            "regression", config.table(name), train, replace(config, out=folder / name), COLUMNS, score="R²"
        )
        for name in config.sets
    }


if __name__ == "__main__":
    launch(Config, run)
