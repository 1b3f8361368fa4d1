"""How long learning takes, over the same network's autograd step.

Timed in turn on the same batch, ReLU networks with He initialisation:
- gradient: an estimate of the gradient of the mean cross-entropy, over `nn.Sequential`'s forward pass,
  `F.cross_entropy` and `backward()`;
- step: the same and a Muon update of the weights (`CompositeOptimizer`), over autograd and the same update.

The methods: autograd (the reference); one_sweep (which equals backprop and is no equilibrium); Equilibrium
Propagation with all phases settled by sweeps to `EPGradient`'s own tolerances, one-sided and centred.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from circuits import FeedforwardCircuit
from experiments.benchmarks.timing import alternately
from experiments.common import Options, generator, launch, print_table
from mep_sim.checkpoint import RunFolder
from mep_sim.data import load
from mep_sim.optimizers import CompositeOptimizer, EPGradient, MuonUpdate

HIDDEN = ((256,), (512, 512))
LR = 1e-6  # steps this short leave the network at its initialisation


@dataclass(frozen=True)
class Config(Options):
    """Time gradients and steps over autograd's."""

    dataset: str = "auto"
    """mnist, digits, or auto: MNIST where it can be had."""
    batch: int = 128
    """Samples per step."""
    beta: float = 0.1
    """Nudging strength."""
    rounds: int = 101
    """Times that all methods are timed in turn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; choose at least 1")


COLUMNS = {
    "network": "",
    "method": "",
    "evaluations": "d",
    "settled": ".1%",
    "gradient ms": ".2f",
    "gradient / autograd": ".2f",
    "gradient quartiles": "",
    "step ms": ".2f",
    "step / autograd": ".2f",
    "step quartiles": "",
}


def run(config: Config) -> list[dict[str, object]]:
    """Time every method on every network; writes the run folder."""
    data = load(config.dataset, seed=config.seed).to(config.device)
    if config.batch > len(data.train_x):
        raise ValueError(f"batch = {config.batch}; {data.name} has {len(data.train_x)} training samples")
    folder = RunFolder.open(config.folder("benchmark_step_time"), config.identity(), config.resume)
    batch, rounds = (32, 2) if config.smoke else (config.batch, config.rounds)
    x, y = data.train_x[:batch], data.train_y[:batch]
    rows = []
    for hidden in ((64,), (64, 64)) if config.smoke else HIDDEN:
        sizes = (data.features, *hidden, data.classes)
        circuit = FeedforwardCircuit.from_sizes(sizes, rng=generator(config.seed)).to(config.device)
        rows += time_network(circuit, x, y, config.beta, rounds)
    folder.finish({"rows": rows, "source": data.source})
    title = f"Time per gradient and per step, batch {batch}, {config.device}, {config.threads} thread(s)"
    print_table(title, rows, COLUMNS)
    return rows


def time_network(
    circuit: FeedforwardCircuit, x: Tensor, y: Tensor, beta: float, rounds: int
) -> list[dict[str, object]]:
    """The rows of one network."""
    methods = {
        phases: EPGradient(beta=beta, phases=phases) for phases in ("one_sweep", "one_sided", "centred")
    }

    def gradient(method: EPGradient) -> Callable[[], object]:
        return lambda: method.estimate(circuit, circuit.params, x, y)

    def step(method: EPGradient) -> Callable[[], object]:
        optimizer = CompositeOptimizer(circuit.parameters(), method, MuonUpdate(), lr=LR, model=circuit)
        return lambda: optimizer.step(x=x, target=y)

    def autograd() -> None:
        circuit.zero_grad()
        F.cross_entropy(circuit.model(x), y).backward()

    muon = CompositeOptimizer(circuit.parameters(), update=MuonUpdate(), lr=LR)

    def autograd_step() -> None:
        autograd()
        muon.step()

    gradients = alternately(
        {"autograd": autograd, **{name: gradient(method) for name, method in methods.items()}}, rounds
    )
    steps = alternately(
        {"autograd": autograd_step, **{name: step(method) for name, method in methods.items()}}, rounds
    )
    rows = []
    for name in gradients:
        phases = []
        if name in methods:
            estimate = methods[name].estimate(circuit, circuit.params, x, y)
            phases = [estimate.free, *estimate.nudged]
        rows.append(
            {
                "network": "-".join(map(str, (circuit.features, *circuit.layout.sizes))),
                "method": name,
                "evaluations": sum(phase.evaluations for phase in phases) or None,
                "settled": min((phase.settled_fraction for phase in phases), default=None),
                "gradient ms": 1e3 * gradients[name].seconds,
                "gradient / autograd": gradients[name].ratio,
                "gradient quartiles": f"{gradients[name].low:.2f}-{gradients[name].high:.2f}",
                "step ms": 1e3 * steps[name].seconds,
                "step / autograd": steps[name].ratio,
                "step quartiles": f"{steps[name].low:.2f}-{steps[name].high:.2f}",
            }
        )
    return rows


if __name__ == "__main__":
    launch(Config, run)
