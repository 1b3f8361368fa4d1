"""How deep Equilibrium Propagation goes: gradients and training of residual nets of 10, 100 and 1,000 blocks.

Every block is x + phi(W x + b). Gradients in float32 are compared with backprop's in float64, over all parameters and
in the first layer; times are over autograd's forward and backward pass, taken in turn. Where converged EP's cosine is
below 1 that is its bias, of order beta (beta^2 centred): it goes with beta, no digits are lost. The Euler rows descend
all states at once for a fixed number of steps. An error moves down by one block a step: most of a deep net never hears
of the target.

A net is then trained by converged EP beside backprop, from the same weights, on the same samples, by the same update.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circuits import FeedforwardCircuit, Params, cost
from circuits.activations import as_module
from circuits.residual import Residual
from experiments import figures, recording
from experiments.benchmarks.timing import alternately
from experiments.common import Options, console, generator, launch, print_table
from experiments.learner import Learner
from mep_sim import checkpoint
from mep_sim.checkpoint import RunFolder
from mep_sim.data import Dataset, load
from mep_sim.metrics import cosine_of
from mep_sim.optimizers import (
    AdamUpdate,
    AutoBeta,
    BackpropGradient,
    CompositeOptimizer,
    EPGradient,
    Estimate,
    GradientStrategy,
    NoFeedback,
)
from mep_sim.settling import ODE, Sweep, settle
from mep_sim.trace import Trace

COST = cost("cross_entropy")
SOLVER = Sweep(1e-5, max_sweeps=200)
AUTO = AutoBeta()
EULER_STEPS = 30
EULER = ODE(1e-3, "euler", step=0.15, max_evaluations=EULER_STEPS + 1)  # the last is a look
EULER_BETA = 0.5
RATE = 0.03  # Adam's learning rate times the depth: the changes of all blocks add up
# Branch weights ~ N(0, depth^(2 power) / width). What tanh adds to the stream has either sign and adds up like a random
# walk; what relu adds never cancels: with tanh's power, 1,000 blocks grow it by a factor of 2e5.
POWERS = {"tanh": -0.5, "relu": -1.0}


def residual_net(
    features: int, classes: int, depth: int, width: int, activation: str, rng: torch.Generator
) -> FeedforwardCircuit:
    """A linear layer up to `width`, `depth` residual blocks, a linear layer to the classes; biases zero."""
    blocks = [Residual(nn.Linear(width, width), as_module(activation)) for _ in range(depth)]
    model = nn.Sequential(nn.Linear(features, width), *blocks, nn.Linear(width, classes))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            inside = module is not model[0] and module is not model[-1]
            scale = depth ** POWERS[activation] if inside else 1.0
            nn.init.normal_(module.weight, 0, scale / math.sqrt(module.in_features), generator=rng)
            nn.init.zeros_(module.bias)
    return FeedforwardCircuit(model)


@dataclass(frozen=True)
class Config(Options):
    """Measure EP's gradients by depth, and train a deep residual net."""

    depths: tuple[int, ...] = (10, 100, 1000)
    """Residual blocks of the nets whose gradients are measured."""
    train_depth: int = 100
    """Residual blocks of the net to train; 0 trains none."""
    width: int = 64
    """Units of every block."""
    activation: str = "tanh"
    """Of every block: tanh or relu."""
    dataset: str = "auto"
    """mnist, digits, or auto: MNIST where it can be had, else scikit-learn's digits."""
    samples: int | None = None
    """Training samples; None takes 10,000, or all of a smaller dataset."""
    epochs: int = 5
    """Passes over the training samples."""
    batch_size: int = 64
    """Samples per gradient."""
    lr: float | None = None
    """Adam's learning rate, falling linearly to zero; None takes 0.03 / train_depth."""
    betas: tuple[float, ...] = (0.1, 0.01, 0.001)
    """Nudging strengths to measure besides the automatic one, with which the net is trained."""
    tolerance: float = 1e-3
    """Projected force over the errors of a nudged phase."""
    rounds: int = 5
    """Times that a gradient and autograd's are timed in turn, fewer where that takes over ten seconds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "epochs", "batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; choose at least 1")
        if min(self.depths, default=1) < 1 or self.train_depth < 0:
            raise ValueError(
                f"depths = {self.depths}, train_depth = {self.train_depth}; choose at least 1 block each, "
                "or train_depth = 0 to train none"
            )
        if not self.depths and not self.train_depth:
            raise ValueError("depths = () and train_depth = 0 leave nothing to do; give one of them")
        if self.activation not in POWERS:
            raise ValueError(f"activation = {self.activation!r}; choose one of {', '.join(POWERS)}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"lr = {self.lr}; choose a finite learning rate > 0, such as 3e-4")
        for beta in (AUTO, *self.betas):
            self.ep(beta)  # raises where beta or tolerance is out of range

    def shrunk(self) -> Config:
        """The --smoke size of this run."""
        small = {
            "depths": tuple(map(min, self.depths, (3, 8))),
            "train_depth": min(self.train_depth, 4),
            "width": 16,
            "samples": 200,
            "epochs": 2,
            "rounds": 1,
        }
        return dataclasses.replace(self, **small) if self.smoke else self

    def data(self) -> Dataset:
        data = load(self.dataset, samples=self.samples, seed=self.seed)
        if self.samples is None:
            data = data.head(10_000)
        return data.to(self.device)

    def circuit(self, depth: int, data: Dataset) -> FeedforwardCircuit:
        rng = generator(self.seed)
        net = residual_net(data.features, data.classes, depth, self.width, self.activation, rng)
        return net.to(self.device)

    def ep(self, beta: float | AutoBeta, phases: str = "one_sided") -> EPGradient:
        return EPGradient(beta=beta, phases=phases, solver=SOLVER, nudged_tolerance=self.tolerance)

    def learners(self, data: Dataset) -> list[Learner]:
        """By EP and by backprop: the same initial weights, the same order of samples, the same update."""
        strategies = {"EP": self.ep(AUTO), "backprop": BackpropGradient()}
        return [self._learner(name, strategy, data) for name, strategy in strategies.items()]

    def _learner(self, name: str, gradient: GradientStrategy, data: Dataset) -> Learner:
        circuit = self.circuit(self.train_depth, data)
        lr = RATE / self.train_depth if self.lr is None else self.lr
        optimizer = CompositeOptimizer(
            circuit.parameters(), gradient, AdamUpdate(), feedback=NoFeedback(), lr=lr, model=circuit
        )
        return Learner(name, optimizer, self.epochs, self.batch_size, generator(self.seed + 2))


# -- gradients ------------------------------------------------------------------------------------------


class Bench:
    """A net and a batch, the exact gradient there, and autograd to be timed beside."""

    def __init__(self, circuit: FeedforwardCircuit, x: Tensor, y: Tensor, rounds: int):
        self.circuit, self.x, self.y, self.rounds = circuit, x, y, rounds
        double = copy.deepcopy(circuit).double()
        self.exact = BackpropGradient().estimate(double, double.params, x.double(), y).gradient
        self.autograd()  # warms up

    def autograd(self) -> None:
        loss = F.cross_entropy(self.circuit.model(self.x), self.y)
        torch.autograd.grad(loss, list(self.circuit.parameters()))

    def timed(self, compute: Callable[[], Any]) -> tuple[Any, float]:
        """What is computed, and its time over autograd's."""
        found = []
        turns = {"autograd": self.autograd, "computed": lambda: found.append(compute())}
        timing = alternately(turns, self.rounds, seconds=10, warm_up=False)["computed"]
        return found[-1], timing.ratio

    def estimate(self, strategy: GradientStrategy, memory: Mapping[str, object] | None = None) -> Estimate:
        return strategy.estimate(self.circuit, self.circuit.params, self.x, self.y, dict(memory or {}))

    @torch.no_grad()
    def limit(self) -> float:
        """The beta up to which -beta has a minimum at this batch."""
        system = self.circuit.bind(self.circuit.params(), self.x)
        return system.around(settle(system, solver=SOLVER)).largest_beta(COST)

    @torch.no_grad()
    def descend(self) -> Estimate:
        """Euler steps from the free equilibrium itself, which is where a forward pass ends."""
        system = self.circuit.bind(self.circuit.params(), self.x)
        free = settle(system, solver=SOLVER)
        nudged = system.around(free).nudged(COST, self.y, EULER_BETA)
        at = settle(nudged, solver=EULER)
        output = system.readout(free.state)
        loss = COST.value(output, COST.target(self.y, output)).mean()
        return Estimate(nudged.contrast(free, at), loss, output, free, (at,), beta=EULER_BETA)

    def row(self, name: str, compute: Callable[[], Estimate]) -> dict[str, object]:
        """What is to be said of an estimate: medians over samples of what is left over, in the worst phase."""
        estimate, ratio = self.timed(compute)
        first = self.circuit.weights[0]
        row = {
            "gradient": name,
            "beta": abs(estimate.beta),
            "cosine": cosine(estimate.gradient, self.exact),
            "first layer": cosine(estimate.gradient, {first: self.exact[first]}),
            "over autograd": ratio,
        }
        if not estimate.nudged:
            return row | {"beta": None}
        phases = (estimate.free, *estimate.nudged)
        return row | {
            "settled": torch.stack([at.converged for at in phases]).all(0).double().mean().item(),
            "residual/error": max(at.relative_residual.median().item() for at in estimate.nudged),
            "sweeps": max(at.evaluations for at in estimate.nudged),
        }


def cosine(estimate: Params, exact: Params) -> float:
    """Between an estimate and the exact gradient, over the parameters of the latter."""
    a, b = (torch.cat([g[name].double().flatten() for name in exact]) for g in (estimate, exact))
    return F.cosine_similarity(a, b, dim=0).item()


def measure(depth: int, config: Config, data: Dataset) -> list[dict[str, object]]:
    """The rows of the net of that depth."""
    x, y = data.train_x[: config.batch_size], data.train_y[: config.batch_size]
    bench = Bench(config.circuit(depth, data), x, y, config.rounds)
    limit, ratio = bench.timed(bench.limit)
    rows = [
        bench.row("one_sweep", partial(bench.estimate, config.ep(0.1, "one_sweep"))),
        {"gradient": "measuring the limit of -beta", "beta": limit, "over autograd": ratio},
    ]
    for phases in ("one_sided", "centred"):
        for beta in config.betas:
            if phases == "centred" and beta >= limit:
                rows.append({"gradient": "EP centred: above the limit", "beta": beta})
                continue
            rows.append(bench.row(f"EP {phases}", partial(bench.estimate, config.ep(beta, phases))))
        # at a step, the fourth, at which it is not measured anew
        memory = {"beta": min(AUTO.largest, AUTO.safety * limit), "beta_steps": 3}
        auto = partial(bench.estimate, config.ep(AUTO, phases), memory)
        rows.append(bench.row(f"EP {phases}, beta auto", auto))
    euler = EPGradient(beta=EULER_BETA, settle_steps=EULER_STEPS, settle_lr=EULER.step)
    rows.append(bench.row("Euler, 30 steps of 0.15", partial(bench.estimate, euler)))
    rows.append(bench.row("Euler from the free equilibrium", bench.descend))
    console.print(f"depth {depth}: measured")
    return [{"depth": depth, **row} for row in rows]


# -- training -------------------------------------------------------------------------------------------


def train(learners: list[Learner], data: Dataset, folder: RunFolder, trace: Trace, rows: list) -> None:
    """Train every learner to the end, checkpointed after each epoch together with the rows measured."""
    for learner in learners:
        for epoch in range(len(learner.history) + 1, learner.epochs + 1):
            for step, metrics in learner.fit(
                data.train_x, data.train_y, (data.validation_x, data.validation_y)
            ):
                recording.step(trace, learner, step, metrics)
            recording.epoch(trace, learner, epoch)
            keep(folder, trace, learners, rows)
            last = learner.history[-1]
            done = f"{learner.name}: epoch {epoch}/{learner.epochs}, loss {last['loss']:.4f}"
            console.print(f"{done}, validation {last['validation']:.2%}, {last['seconds']:.0f} s")


def keep(folder: RunFolder, trace: Trace, learners: list[Learner], rows: list) -> None:
    states = {learner.name: learner.state_dict() for learner in learners}
    checkpoint.save(folder.checkpoint, {"learners": states, "rows": rows, "trace": trace.lengths()})


def summarise(learner: Learner, data: Dataset) -> dict[str, object]:
    """A learner's row: the trained net, its settling in the last epoch, its gradient against the exact one."""
    last, seconds = learner.history[-1], sum(record["seconds"] for record in learner.history)
    return {
        "learner": learner.name,
        "loss": last["loss"],
        "validation": last["validation"],
        "test accuracy": learner.accuracy(data.test_x, data.test_y),
        "settled": last["settled"],
        "residual/error": last["nudged_residual"],
        "beta": learner.optimizer.memory.get("beta"),
        "cosine": cosine_of(learner.optimizer, data.validation_x[:64], data.validation_y[:64]).overall,
        "s/step": seconds / learner.steps,
    }


# -- all of it ------------------------------------------------------------------------------------------

GRADIENTS = {
    "depth": "d",
    "gradient": "",
    "beta": ".1e",
    "cosine": ".4f",
    "first layer": ".4f",
    "settled": ".1%",
    "residual/error": ".1e",
    "sweeps": "d",
    "over autograd": ".1f",
}
TRAINED = {
    "learner": "",
    "loss": ".4f",
    "validation": ".2%",
    "test accuracy": ".2%",
    "settled": ".2%",
    "residual/error": ".1e",
    "beta": ".1e",
    "cosine": ".4f",
    "s/step": ".2f",
}


def run(config: Config) -> dict[str, list[dict[str, object]]]:
    """Measure, train, or go on training; writes the run folder, returns the rows of both tables."""
    config = config.shrunk()
    data = config.data()
    config = dataclasses.replace(config, dataset=data.name)  # what auto has found is what a resumed run needs
    folder = RunFolder.open(config.folder("depth"), config.identity(), config.resume)
    learners = config.learners(data) if config.train_depth else []
    if folder.resumable:
        state = checkpoint.load(folder.checkpoint, config.device)
        rows, trace = state["rows"], Trace.resume(folder.trace, state["trace"])
        for learner in learners:
            learner.load_state_dict(state["learners"][learner.name])
    else:
        rows = [row for depth in config.depths for row in measure(depth, config, data)]
        trace = Trace.create(folder.trace, config=config.identity(), seed=config.seed, overwrite=True)
    with trace:
        recording.declare(trace, learners)
        keep(folder, trace, learners, rows)
        if rows:
            net = f"{config.activation}, width {config.width}, batches of {config.batch_size}"
            print_table(f"Gradients in float32: {net}, {data.name}", rows, GRADIENTS)
        train(learners, data, folder, trace, rows)
        trained = [summarise(learner, data) for learner in learners]
        if learners:
            figures.learning_curves(folder.path / "learning_curves.png", trace, learners)
            net = f"{config.train_depth} blocks, {len(data.train_x)} samples of {data.name}, {config.epochs} epochs"
            print_table(net, trained, TRAINED)
    folder.finish({"gradients": rows, "trained": trained, "source": data.source})
    return {"gradients": rows, "trained": trained}


if __name__ == "__main__":
    launch(Config, run)
