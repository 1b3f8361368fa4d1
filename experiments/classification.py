"""Who learns digits, how well and in what time: backprop's optimizers beside everything that learns by EP.

One network, 784-256-10 (or 64-256-10), batches of 128; all rows of a seed share the initial weights and the order of
samples, and every row has a learning rate of its own, chosen on the validation part, that falls linearly to zero. The
rows called backprop are an nn.Sequential, `backward()` and an optimizer, as anybody trains it. Times are taken in the
end, in turn and in one process, over backprop's with SGD.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circuits import FeedforwardCircuit
from experiments.benchmarks.timing import alternately
from experiments.common import console, generator, launch, print_table
from experiments.learner import Learner
from experiments.seeds import Result, TunedOptions, tabulate
from mep_sim.data import Dataset, batches, load
from mep_sim.metrics import StepMetrics
from mep_sim.optimizers import (
    AdamUpdate,
    BackpropGradient,
    CompositeOptimizer,
    DionUpdate,
    EPGradient,
    MuonUpdate,
    NoFeedback,
)
from mep_sim.presets import eqprop, local_ep, muon_backprop, natural_ep, sdmep, smep
from mep_sim.settling import SettlingError

HIDDEN, BATCH = 256, 128
TURN = 10  # steps timed at a time: few, so that whatever else the machine does disturbs all rows alike


@dataclass(frozen=True)
class Task:
    """samples: of the training part, None for all of it."""

    dataset: str
    samples: int | None
    epochs: int

    def data(self, seed: int, config: Config) -> Dataset:
        samples = 256 if config.smoke else self.samples
        return load(self.dataset, samples=samples, seed=seed).to(config.device)


TASKS = {
    "mnist-3": Task("mnist", 10_000, 3),
    "mnist-10": Task("mnist", 10_000, 10),
    "digits-30": Task("digits", None, 30),
}


Make = Callable[[nn.Sequential, float], torch.optim.Optimizer]


def _autograd(kind: Callable[..., torch.optim.Optimizer], **settings) -> Make:
    return lambda model, lr: kind(model.parameters(), lr=lr, **settings)


def _ep(preset: Callable[..., CompositeOptimizer], **settings) -> Make:
    return lambda model, lr: preset(model.parameters(), model=model, lr=lr, **settings)


def _adam(*arguments, **settings) -> CompositeOptimizer:
    return CompositeOptimizer(*arguments, EPGradient(), AdamUpdate(), feedback=NoFeedback(), **settings)


@dataclass(frozen=True)
class Method:
    """make: an optimizer of a network at a learning rate. mnist, digits: that rate. reference: the method it is
    compared with, the same update by backprop where there is one."""

    make: Make
    mnist: float
    digits: float
    reference: str | None = None


# Rates found with --tune 0.5 1 2 on mnist-10 (one seed) and digits-30 (four), and again around the best where that
# was an end of the grid; mnist-3 takes over MNIST's, and one_sweep, being backprop, backprop's.
METHODS: dict[str, Method] = {
    "backprop, SGD": Method(_autograd(torch.optim.SGD, momentum=0.9), 0.1, 0.1),
    "backprop, Adam": Method(_autograd(torch.optim.Adam), 4e-3, 4e-3, "backprop, SGD"),
    "backprop, Muon": Method(_autograd(muon_backprop), 0.1, 0.05, "backprop, SGD"),
    "EqProp": Method(_ep(eqprop), 0.1, 0.1, "backprop, SGD"),
    "EP, Adam": Method(_ep(_adam), 8e-3, 4e-3, "backprop, Adam"),
    "SMEP": Method(_ep(smep), 0.1, 0.1, "backprop, Muon"),
    "SDMEP": Method(_ep(sdmep), 0.08, 0.08, "SMEP"),
    "local": Method(_ep(local_ep), 0.4, 0.8, "EqProp"),
    "natural": Method(_ep(natural_ep), 0.01, 0.02, "EqProp"),
    "EqProp, one_sweep": Method(_ep(eqprop, phases="one_sweep"), 0.1, 0.1, "backprop, SGD"),
    "SMEP, one_sweep": Method(_ep(smep, phases="one_sweep"), 0.1, 0.05, "backprop, Muon"),
}


@dataclass(frozen=True)
class Row:
    """A method on a task (names in METHODS and TASKS), its learning rate, and what it is compared with."""

    method: str
    task: str
    lr: float
    reference: str | None = None

    @classmethod
    def of(cls, method: str, task: str) -> Row:
        rate = getattr(METHODS[method], TASKS[task].dataset)
        return cls(method, task, rate, METHODS[method].reference)

    def learner(self, data: Dataset, seed: int, config: Config) -> Learner:
        sizes = (data.features, 16 if config.smoke else HIDDEN, data.classes)
        circuit = FeedforwardCircuit.from_sizes(sizes, rng=generator(seed)).to(config.device)
        optimizer = METHODS[self.method].make(circuit.model, self.lr)
        learned_by_ep = getattr(optimizer, "circuit", None) is not None
        kind = Learner if learned_by_ep else partial(AutogradLearner, circuit)
        return kind(self.method, optimizer, TASKS[self.task].epochs, BATCH, generator(seed + 2))


class AutogradLearner(Learner):
    """The same by `backward()` and any of torch's optimizers, which know no circuit."""

    chip = None

    def __init__(self, circuit: FeedforwardCircuit, *arguments):
        super().__init__(*arguments)
        self._circuit, self.loss = circuit, math.nan

    @property
    def circuit(self) -> FeedforwardCircuit:
        return self._circuit

    def learn(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.circuit.model(x), y)
        loss.backward()
        self.optimizer.step()
        self.loss = loss.detach()

    def metrics(self) -> StepMetrics:
        return StepMetrics(float(self.loss))


@dataclass(frozen=True)
class Config(TunedOptions):
    """Every optimizer on MNIST and on digits: accuracy over seeds, and time."""

    tasks: tuple[str, ...] = field(default_factory=lambda: tuple(TASKS))
    """mnist-3 and mnist-10: 10,000 images of MNIST, 3 and 10 epochs; digits-30: scikit-learn's digits, 30 epochs."""
    rounds: int = 15
    """Times that all rows are timed in turn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.tasks if name not in TASKS]:
            raise ValueError(f"unknown tasks {unknown}; choose among {list(TASKS)}")
        if self.rounds < 1:
            raise ValueError(f"rounds = {self.rounds}; choose at least 1")

    def table(self, task: str) -> Mapping[str, Row]:
        """The rows of a task, each once per factor to tune."""
        return self.tried({name: Row.of(name, task) for name in self.chosen(METHODS)})


COLUMNS = {"train accuracy %": ".2f", "settled": ".2%"}


def train(name: str, row: Row, seed: int, config: Config) -> Result:
    """One cell: accuracy on the test part, or on the validation part to tune; settling of the last epoch."""
    task = TASKS[row.task]
    data = task.data(seed, config)
    learner = row.learner(data, seed, config)
    held = (data.validation_x, data.validation_y) if config.tune else (data.test_x, data.test_y)
    try:
        for _ in range(2 if config.smoke else task.epochs):
            for _ in learner.fit(data.train_x, data.train_y, None):
                pass
    except (ValueError, SettlingError) as error:
        if not config.tune:
            raise
        console.print(f"{name}: {error}")  # a rate too large is one of the things to find out
        return dict.fromkeys(("accuracy", *COLUMNS), math.nan) | {"data": data.source}
    return {
        "accuracy": learner.accuracy(*held),
        "train accuracy %": 100 * learner.accuracy(data.train_x, data.train_y),
        "settled": learner.history[-1]["settled"],
        "data": f"{data.source}; {len(data.train_x)} to train on, {len(learner.history)} epochs",
    }


TIME_COLUMNS = {
    "network": "",
    "row": "",
    "s/epoch": ".3f",
    "over SGD": ".2f",
    "quartiles": "",
    "orthogonalising": ".0%",
    "bounding": ".0%",
}


def time_rows(task: str, config: Config) -> list[dict[str, object]]:
    """Seconds of an epoch by row on a task's network, and what of a step goes into matrices, not the gradient."""
    data, rows = TASKS[task].data(config.seed, config), config.table(task)
    rows = {"backprop, SGD": Row.of("backprop, SGD", task), **rows}
    learners = {name: row.learner(data, config.seed, config) for name, row in rows.items()}
    steps = -(-len(data.train_x) // BATCH)
    turns = {name: partial(_turn, learner, data) for name, learner in learners.items()}
    timings = alternately(turns, config.rounds, seconds=600)
    return [
        {
            "network": "-".join(map(str, (data.features, *learners[name].circuit.layout.sizes))),
            "row": name,
            "s/epoch": timing.seconds * steps / min(TURN, steps),
            "over SGD": timing.ratio,
            "quartiles": f"{timing.low:.2f}-{timing.high:.2f}",
            **_shares(learners[name], data, config.rounds),
        }
        for name, timing in timings.items()
    ]


def _turn(learner: Learner, data: Dataset) -> None:
    """A few steps on batches as they come, without any monitoring."""
    for _, (x, y) in zip(
        range(TURN), batches(data.train_x, data.train_y, BATCH, learner.order), strict=False
    ):
        learner.learn(x, y)


def _shares(learner: Learner, data: Dataset, rounds: int) -> dict[str, float]:
    """The shares of a step that make matrices orthogonal (Muon) or of low rank (Dion), and that bound their norm."""
    optimizer = learner.optimizer
    if not isinstance(optimizer, CompositeOptimizer):
        return {}
    weights = {name: p for name, p in learner.circuit.named_parameters() if p.ndim == 2}
    rules = {name: optimizer.update.rule(p) for name, p in weights.items()}
    if not any(isinstance(rule, MuonUpdate | DionUpdate) for rule in rules.values()):
        return {}

    x, y = data.train_x[:BATCH], data.train_y[:BATCH]
    circuit = learner.circuit
    gradient = BackpropGradient().estimate(circuit, circuit.params, x, y).gradient

    @torch.no_grad()
    def orthogonalise() -> dict[str, Tensor]:
        pairs = [(name, p, dict(optimizer.state[p])) for name, p in weights.items()]
        return {name: rules[name].direction(gradient[name], state, p)[0] for name, p, state in pairs}

    lr = optimizer.param_groups[0]["lr"]
    proposed = {name: (weights[name] - lr * step).detach() for name, step in orthogonalise().items()}

    @torch.no_grad()
    def bound() -> None:
        optimizer.constraint.project(proposed, optimizer.circuit, {})

    step = partial(learner.learn, x, y)
    timings = alternately({"step": step, "orthogonalising": orthogonalise, "bounding": bound}, rounds)
    return {name: timings[name].ratio for name in ("orthogonalising", "bounding")}


def run(config: Config) -> dict[str, list[dict[str, object]]]:
    """Compute what is missing, print a table per task and, unless tuning, one of times; returns their rows by task,
    and by "time"."""
    folder = config.folder("classification")
    results = {
        task: tabulate(
            "classification", config.table(task), train, replace(config, out=folder / task), COLUMNS
        )
        for task in config.tasks
    }
    if not config.tune:
        networks = {TASKS[task].dataset: task for task in config.tasks}
        results["time"] = [row for task in networks.values() for row in time_rows(task, config)]
        (folder / "time.json").write_text(json.dumps(results["time"], indent=1))
        title = f"Time, {config.device}, {config.threads} thread(s), in turn; quartiles over {config.rounds} rounds"
        print_table(title, results["time"], TIME_COLUMNS)
    return results


if __name__ == "__main__":
    launch(Config, run)
