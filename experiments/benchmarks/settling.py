"""How long an equilibrium takes, over the time of its matrix products alone.

The floor of a row does nothing but products. In a free phase x W1' + b once; then, as often as the solver
swept or evaluated the flow, every further weight matrix once upwards and once downwards (only upwards for
the free sweep of the feedforward circuit, a forward pass). They are of the same shapes and type, written to
tensors allocated before, and products with an output matrix in the faster of their orientations.

A settle does these, measures the residual of what it returns (as many products as one more sweep), and
before a nudged phase turns the free state into an origin to deviate from (at most as many again).

Fresh Hopfield weights have a coupling norm below 1: one free equilibrium, reached in more than a few sweeps.
Training makes it harder: the trained networks have learnt by EP with Muon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits import EnergyCircuit, FeedforwardCircuit, HopfieldCircuit, cost
from experiments.benchmarks.timing import alternately
from experiments.common import Options, console, generator, launch, print_table
from mep_sim.checkpoint import RunFolder
from mep_sim.data import Dataset, load
from mep_sim.optimizers import CompositeOptimizer, EPGradient, MuonUpdate
from mep_sim.settling import ODE, Equilibrium, Solver, Sweep, settle

WIDTH = 512
GAIN = 0.4  # of fresh Hopfield weights
TRAINING_BATCH, TRAINING_LR = 128, 0.02


@dataclass(frozen=True)
class Config(Options):
    """Time equilibria on both paths over their matrix products."""

    dataset: str = "auto"
    """mnist, digits, or auto: MNIST where it can be had."""
    layers: tuple[int, ...] = (1, 2)
    """Networks to time, by their number of hidden layers of 512 units."""
    batches: tuple[int, ...] = (1024,)
    """Batch sizes; on a GPU try 64 256 1024 4096."""
    beta: float = 0.1
    """Nudging strength, cross-entropy."""
    training_steps: int = 100
    """Steps of 128 samples that trained networks have learnt."""
    ode: bool = True
    """Time the ODE path too, which takes most of the minutes."""
    max_evaluations: int = 3_000
    """Budget of the ODE path per equilibrium."""
    rounds: int = 9
    """Times that floor and settle are timed in turn, fewer where that takes over half a minute."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("training_steps", "max_evaluations", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; choose at least 1")
        for name in ("layers", "batches"):
            if min(getattr(self, name), default=0) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; give numbers of at least 1")


COLUMNS = {
    "network": "",
    "batch": "d",
    "circuit": "",
    "phase": "",
    "solver": "",
    "tolerance": ".0e",
    "evaluations": "d",
    "settled": ".1%",
    "ms": ".2f",
    "us/sample": ".1f",
    "over products": ".2f",
    "quartiles": "",
}


def run(config: Config) -> list[dict[str, object]]:
    """Time every row; writes the run folder."""
    data = load(config.dataset, seed=config.seed).to(config.device)
    folder = RunFolder.open(config.folder("benchmark_settling"), config.identity(), config.resume)
    solvers: list[Solver] = [Sweep(1e-3), Sweep(1e-6)]
    if config.ode:
        methods = ("euler", "rk4", "dopri5")
        solvers += [ODE(1e-3, method, max_evaluations=config.max_evaluations) for method in methods]
    rows = []
    for layers in config.layers:
        sizes = (data.features, *[8 if config.smoke else WIDTH] * layers, data.classes)
        for name, circuit, phases in circuits(config, data, sizes):
            for batch in (32,) if config.smoke else config.batches:
                for phase in phases:
                    rows += [
                        time_settling(config, data, name, circuit, batch, phase, solver) for solver in solvers
                    ]
                    console.print(f"{rows[-1]['network']} {name} {phase}, batch {batch}: timed")
    folder.finish({"rows": rows, "source": data.source})
    print_table(f"Time per equilibrium, float32, {config.device}, {config.threads} thread(s)", rows, COLUMNS)
    return rows


def circuits(
    config: Config, data: Dataset, sizes: tuple[int, ...]
) -> list[tuple[str, EnergyCircuit, tuple[str, ...]]]:
    """(name, circuit, phases to time) of every network of these layer sizes."""

    def hopfield() -> HopfieldCircuit:
        return HopfieldCircuit(sizes, gain=GAIN, rng=generator(config.seed)).to(config.device)

    feedforward = FeedforwardCircuit.from_sizes(sizes, rng=generator(config.seed)).to(config.device)
    trained = train(hopfield(), data, 2 if config.smoke else config.training_steps)
    return [
        ("hopfield, fresh", hopfield(), ("free",)),
        ("hopfield, trained", trained, ("free", "nudged")),
        ("feedforward", feedforward, ("free", "nudged")),
    ]


def train(circuit: EnergyCircuit, data: Dataset, steps: int) -> EnergyCircuit:
    """The circuit, trained by EP for some steps."""
    gradient = EPGradient(solver=Sweep(1e-4))
    optimizer = CompositeOptimizer(
        circuit.parameters(), gradient, MuonUpdate(), lr=TRAINING_LR, model=circuit
    )
    parts = zip(data.train_x.split(TRAINING_BATCH), data.train_y.split(TRAINING_BATCH), strict=True)
    for _, (x, y) in zip(range(steps), parts, strict=False):
        optimizer.step(x=x, target=y)
    return circuit


@torch.no_grad()
def time_settling(
    config: Config, data: Dataset, name: str, circuit: EnergyCircuit, batch: int, phase: str, solver: Solver
) -> dict[str, object]:
    """One row of the table."""
    x, y = data.train_x[-batch:], data.train_y[-batch:]  # not the first, which trained
    if len(x) < batch:
        raise ValueError(f"batch {batch} is larger than the {len(x)} training samples; choose a smaller one")
    params = circuit.params()
    system = circuit.bind(params, x)
    free = settle(system, solver=Sweep(1e-6))
    nudged = system.nudged(cost("cross_entropy"), y, config.beta)

    def equilibrium() -> Equilibrium:
        return (
            settle(circuit.bind(params, x), solver=solver)
            if phase == "free"
            else settle(nudged, free, solver)
        )

    found = equilibrium()
    weights = [params[name] for name in circuit.weights]
    bias = params[circuit.weights[0].removesuffix("weight") + "bias"]
    drive = (x, weights[0], bias) if phase == "free" else None
    one_way = phase == "free" and isinstance(circuit, FeedforwardCircuit) and isinstance(solver, Sweep)
    floor = products(drive, weights[1:], batch, found.evaluations, one_way)
    floor()  # and the settle has just run: both are warm
    rounds = 2 if config.smoke else config.rounds
    timing = alternately({"floor": floor, "settle": equilibrium}, rounds, seconds=30, warm_up=False)["settle"]
    return {
        "network": "-".join(map(str, (data.features, *circuit.layout.sizes))),
        "batch": batch,
        "circuit": name,
        "phase": phase,
        "solver": getattr(solver, "method", "sweep"),
        "tolerance": solver.tolerance,
        "evaluations": found.evaluations,
        "settled": found.settled_fraction,
        "ms": 1e3 * timing.seconds,
        "us/sample": 1e6 * timing.seconds / batch,
        "over products": timing.ratio,
        "quartiles": f"{timing.low:.2f}-{timing.high:.2f}",
    }


def products(
    drive: tuple[Tensor, Tensor, Tensor] | None, weights: list[Tensor], batch: int, count: int, one_way: bool
) -> Callable[[], None]:
    """The floor: `drive` (x, W1, b) once, the other weights `count` times upwards, unless `one_way` down too."""
    layers = [torch.rand(batch, w.shape[1]).to(w) for w in weights]
    outputs = [torch.rand(batch, w.shape[0]).to(w) for w in weights]
    # W s' takes half the time of s W' for the ten rows of an output matrix, and as long for others
    transposed = [torch.empty(len(w), batch).to(w) if w is weights[-1] else None for w in weights]

    def run() -> None:
        if drive is not None:
            torch.nn.functional.linear(*drive)
        for _ in range(count):
            for w, below, above, flipped in zip(weights, layers, outputs, transposed, strict=True):
                if flipped is None:
                    torch.mm(below, w.T, out=above)
                else:
                    torch.mm(w, below.T, out=flipped)
                if not one_way:
                    torch.mm(above, w, out=below)

    return run


if __name__ == "__main__":
    launch(Config, run)
