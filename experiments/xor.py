"""XOR by Equilibrium Propagation: how many seeds solve it, and after how many steps.

A 2-8-2 network of tanh units sees all four points at every step, at a constant learning rate. A seed counts as solved
from the step on after which all four points stay right to the end of the run. (With ReLU in place of tanh 3 of the 30
seeds end with a point wrong, by backprop too: units die.)
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from circuits import FeedforwardCircuit
from experiments.common import Options, generator, launch, print_table
from mep_sim.checkpoint import RunFolder
from mep_sim.metrics import metrics_of
from mep_sim.optimizers import CompositeOptimizer
from mep_sim.presets import eqprop, smep

SIZES = (2, 8, 2)
X = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
Y = torch.tensor([0, 1, 1, 0])

OPTIMIZERS: dict[str, Callable[[nn.Sequential], CompositeOptimizer]] = {
    "EqProp": lambda model: eqprop(model.parameters(), model, lr=0.2),
    "SMEP": lambda model: smep(model.parameters(), model, lr=0.05),
}


@dataclass(frozen=True)
class Config(Options):
    """Train on XOR from many initial weights."""

    seeds: int = 30
    """How many seeds, counted from `seed`."""
    steps: int = 100
    """Steps of every seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeds", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; choose at least 1")


BY = (5, 10, 20, 40, 80)  # steps at which the table shows the curve
COLUMNS = {
    "optimizer": "",
    "solved": "",
    "median steps": ".0f",
    "most steps": "d",
    **{f"by {step}": ".0%" for step in BY},
    "settled": ".1%",
}


def solve(name: str, seed: int, config: Config) -> tuple[int | None, float]:
    """The number of steps after which a seed is solved, None where it is not; the mean share settled."""
    circuit = FeedforwardCircuit.from_sizes(SIZES, "tanh", rng=generator(seed)).to(config.device)
    optimizer = OPTIMIZERS[name](circuit.model)
    x, y = X.to(config.device), Y.to(config.device)
    last_wrong, settled = 0, []
    for step in range(1, config.steps + 1):
        optimizer.step(x=x, target=y)
        settled.append(metrics_of(optimizer).settled)
        if not torch.equal(circuit(x).argmax(1), y):
            last_wrong = step
    return (last_wrong + 1 if last_wrong < config.steps else None), statistics.fmean(settled)


def run(config: Config) -> list[dict[str, object]]:
    """Train every seed by every optimizer; writes the run folder with the curve, returns the table's rows."""
    seeds = range(config.seed, config.seed + (3 if config.smoke else config.seeds))
    folder = RunFolder.open(config.folder("xor"), config.identity(), config.resume)
    rows = []
    for name in OPTIMIZERS:
        found, settled = zip(*(solve(name, seed, config) for seed in seeds), strict=True)
        steps = sorted(n for n in found if n is not None)
        rows.append(
            {
                "optimizer": name,
                "solved": f"{len(steps)} of {len(found)}",
                "median steps": statistics.median(steps) if steps else None,
                "most steps": max(steps, default=None),
                **{f"by {step}": sum(n <= step for n in steps) / len(found) for step in BY},
                "settled": statistics.fmean(settled),
                "steps": found,
            }
        )
    draw(folder.path / "solved.png", {row["optimizer"]: row["steps"] for row in rows}, config.steps)
    folder.finish({"rows": rows})
    print_table(f"XOR, {'-'.join(map(str, SIZES))}, seeds {seeds[0]}-{seeds[-1]}", rows, COLUMNS)
    return rows


def draw(path: Path, found: Mapping[str, Sequence[int | None]], steps: int) -> None:
    """The share of seeds solved by step."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    ax = figure.subplots()
    for name, of_seeds in found.items():
        solved = [sum(n is not None and n <= t for n in of_seeds) / len(of_seeds) for t in range(steps + 1)]
        ax.step(range(steps + 1), solved, where="post", label=name)
    ax.set(xlabel="step", ylabel="share of seeds solved", ylim=(0, 1.02))
    ax.legend(frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    launch(Config, run)
