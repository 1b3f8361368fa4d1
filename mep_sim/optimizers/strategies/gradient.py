"""How the gradient of the mean cost is estimated: what an estimate is, and what every strategy offers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuits import Cost, EnergyCircuit, Equilibrium, Params, cost
from circuits.base import Pairs
from mep_sim.optimizers.strategies.layers import mean_squares


@dataclass(frozen=True)
class Estimate:
    """A gradient of the mean cost by parameter name, and where it came from.

    loss: mean cost of the free output, a 0-d tensor; output (B, C): the free output; free and nudged: the
    equilibria (none for backprop); energy_gap: mean over samples and phases of (E_nudged - E_free) / beta,
    the cost as the energies see it, a 0-d tensor; beta: the nudging strength really used, with its sign
    where only one was, nan without a nudge. factors: gives, by name of a weight matrix, `Pairs` whose products add up
    to B times its gradient, and whose posts alone to B times that of its bias; None where the estimate is no sum over
    samples.
    """

    gradient: Params
    loss: Tensor
    output: Tensor
    free: Equilibrium | None = None
    nudged: tuple[Equilibrium, ...] = ()
    energy_gap: Tensor | None = None
    beta: float = math.nan
    factors: Callable[[], dict[str, Pairs]] | None = field(default=None, repr=False)

    def squares(self, share: Tensor | None = None) -> dict[str, Tensor] | None:
        """`layers.mean_squares` of these samples; None where `factors` is."""
        return (
            None
            if self.factors is None
            else mean_squares(self.factors(), self.gradient, len(self.output), share)
        )


@dataclass(frozen=True)
class GradientStrategy(ABC):
    """`loss_type`: "cross_entropy", "mse" (1/2 |o - y|^2), or a cost."""

    loss_type: str | Cost = "cross_entropy"

    def __post_init__(self) -> None:
        cost(self.loss_type)

    @abstractmethod
    def estimate(
        self,
        circuit: EnergyCircuit,
        read: Callable[[], Params],
        x: Tensor,
        target: Tensor,
        memory: dict | None = None,
    ) -> Estimate:
        """The gradient at input x (B, ...) and target.

        `read()` returns the weights as read now: call it once for weights shared by all phases, again for a
        fresh read. `memory` is the strategy's running state from step to step, a flat dict of tensors and
        numbers that starts empty and is the caller's to keep; None for an estimate on its own.
        """


@contextmanager
def remembered(
    memory: dict, name: str, seed: int, device: torch.device | str = "cpu"
) -> Iterator[torch.Generator]:
    """A generator that goes on from its state `name` in a caller's `memory`, or begins with the seed, and whose state
    is left there, so that training resumes bit for bit."""
    rng = torch.Generator(device).manual_seed(seed)
    if name in memory:
        rng.set_state(memory[name].cpu())
    yield rng
    memory[name] = rng.get_state()
