"""XOR by Equilibrium Propagation: how many seeds solve it, and after how many steps.

A 2-8-2 network of tanh units sees all four points at every step, with a constant learning rate. A seed is solved from
the step on after which all four stay right until the end of the run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
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
    steps: int = 200
    """Steps of every seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeds", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; choose at least 1")


COLUMNS = {
    "optimizer": "",
    "solved": "",
    "median steps": ".0f",
    "most steps": "d",
    "by 25": ".0%",
    "by 50": ".0%",
    "by 100": ".0%",
    "settled": ".1%",
}
