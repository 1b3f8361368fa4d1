"""Small circuits and epochs to look at."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from circuits import FeedforwardCircuit, HopfieldCircuit
from mep_sim import EPMonitor
from mep_sim.metrics import EpochMetrics
from mep_sim.optimizers import BackpropGradient, CompositeOptimizer
from tests.device_conformance import generator


def feedforward(sizes: tuple[int, ...] = (5, 12, 3), hidden: str = "tanh") -> FeedforwardCircuit:
    return FeedforwardCircuit.from_sizes(sizes, hidden, rng=generator()).double()


def hopfield() -> HopfieldCircuit:
    return HopfieldCircuit((5, 12, 3), gain=0.5, rng=generator()).double()


def batch(seed: int = 4) -> tuple[Tensor, Tensor]:
    rng = generator(seed)
    return torch.randn(20, 5, generator=rng, dtype=torch.float64), torch.randint(0, 3, (20,), generator=rng)


def optimizer_of(circuit: nn.Module, gradient=None, **options) -> CompositeOptimizer:
    return CompositeOptimizer(circuit.parameters(), gradient, model=circuit, **options)


def estimated(circuit: nn.Module, gradient) -> CompositeOptimizer:
    """An optimizer that has seen one batch."""
    optimizer = optimizer_of(circuit, gradient)
    optimizer.compute_gradient(*batch())
    return optimizer


def epoch_of(
    monitor: EPMonitor, circuit: nn.Module, gradient, steps: int = 1, lr: float = 1e-9
) -> EpochMetrics:
    """An epoch of so many steps, too small to matter."""
    optimizer = optimizer_of(circuit, gradient, lr=lr)
    monitor.start_epoch()
    for i in range(steps):
        x, y = batch(i)
        optimizer.step(x=x.to(next(circuit.parameters()).dtype), target=y)
    return monitor.end_epoch(circuit, optimizer)


@dataclasses.dataclass(frozen=True)
class Turned(BackpropGradient):
    """Backprop with the gradient of the first layer turned round."""

    def estimate(self, *args, **kwargs):
        e = super().estimate(*args, **kwargs)
        return dataclasses.replace(e, gradient={k: -g if "0" in k else g for k, g in e.gradient.items()})
