"""How a synapse keeps what it has learned: importances that it gathers itself, without a task's name or samples.

Importances are statistics of the *raw* contrast, taken before feedback, D and M, which erase its magnitudes. They act
on the step *after* M, and before S, so that the bound holds of what is written. They live beside the parameters, in
the optimizer's `state`, and count in weights as read: a chip needs nothing more.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits import EnergyCircuit, Params
from circuits.base import Pairs
from mep_sim.optimizers.strategies.layers import bias_of, mean_squares

States = Mapping[str, dict]
"""By name of a parameter, the running tensors of its own."""


@dataclass(frozen=True)
class Evidence:
    """What a batch tells the synapses.

    gradient: the raw contrast, mean over the batch, by parameter name. loss: its mean cost, a 0-d tensor, None where
    nobody worked it out. samples: how many there were, and factors: `Estimate.factors`; None where the gradient came
    from elsewhere (loss.backward()) or nobody asked.
    """

    gradient: Params
    loss: Tensor | None = None
    samples: int | None = None
    factors: Mapping[str, Pairs] | None = None

    def squares(self) -> dict[str, Tensor]:
        """`layers.mean_squares` of its samples."""
        return mean_squares(self.factors, self.gradient, self.samples)


@dataclass(frozen=True)
class ConsolidationStrategy(ABC):
    """Settings. What a parameter remembers is in its `states`, what all share in `memory`, a flat dict that starts
    empty."""

    @property
    def needs_factors(self) -> bool:
        """True where it learns from single samples, so that the evidence must have factors."""
        return False

    def check(self, circuit: EnergyCircuit | None) -> None:
        """ValueError where it cannot consolidate all that this circuit learns; None: parameters without a circuit."""
        if not self.needs_factors:
            return
        if circuit is None:
            raise ValueError(f"{type(self).__name__} learns from single samples: pass model=")
        covered = {name for weight in circuit.weights for name in (weight, bias_of(weight))}
        if others := [n for n, p in circuit.named_parameters() if p.requires_grad and n not in covered]:
            raise ValueError(
                f"{type(self).__name__} knows weights and biases of layers only, and {', '.join(others)} learn too: "
                "use AutoEWC, or freeze them"
            )

    @abstractmethod
    def observe(self, evidence: Evidence, weights: Params, states: States, memory: dict) -> None:
        """Take note of a batch at these weights, before the step."""

    def contrast(self, gradient: Params, states: States, evidence: Evidence | None = None) -> Params:
        """What to learn from in place of a gradient. evidence: where it is of just this gradient; None where others may
        have changed that since."""
        return gradient

    def plasticity(self, state: dict) -> Tensor | None:
        """What the step of each synapse is multiplied by, in (0, 1]; None is 1."""
        return None

    def pulled(
        self, proposed: dict[str, Tensor], rates: Mapping[str, float], states: States, memory: dict
    ) -> dict[str, Tensor]:
        """Where the parameters go instead of where steps of these learning rates would bring them."""
        return proposed

    def held(self, state: dict) -> Tensor | None:
        """How firmly each synapse of a weight holds, >= 0, for people to look at; None: not at all, so far."""
        return None


@dataclass(frozen=True)
class NoConsolidation(ConsolidationStrategy):
    def observe(self, evidence: Evidence, weights: Params, states: States, memory: dict) -> None:
        pass


@dataclass(frozen=True)
class PrecisionConsolidation(ConsolidationStrategy):
    """Bayesian metaplasticity: a synapse is a Gaussian whose precision grows with what it learns from, and steps by its
    variance.

        Lambda <- Lambda + gain sum_b c_b^2 + leak (1 / sigma^2 - Lambda),        step <- step / (sigma^2 Lambda)

    c_b is the contrast of sample b alone: the sum is the empirical Fisher's diagonal and, on the feedforward energy, a
    product of squared errors and squared activities. With lr = B sigma^2 a plain step is B g / Lambda, that of online
    variational learning with a diagonal Gaussian, to first order in its variance (Zeno et al. 2018, Task-agnostic
    continual learning using online variational Bayes; Bonnet et al. 2025, Bayesian continual learning and forgetting,
    where leak > 0). One number per synapse, no anchor, no trigger.

    sigma: standard deviation of a fresh synapse, > 0. gain: >= 0; 1 counts a sample once. leak: in [0, 1), what is
    forgotten per step; with none a synapse hardly learns in the end.
    """

    sigma: float = 0.07
    gain: float = 10.0
    leak: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma = {self.sigma}; choose a finite sigma > 0, such as 0.07")
        if not 0 <= self.gain < math.inf:
            raise ValueError(f"gain = {self.gain}; choose a finite gain >= 0, such as 10")
        if not 0 <= self.leak < 1:
            raise ValueError(f"leak = {self.leak}; choose 0 <= leak < 1, such as 1e-4")

    @property
    def needs_factors(self) -> bool:
        return True

    def observe(self, evidence: Evidence, weights: Params, states: States, memory: dict) -> None:
        # in units of the fresh precision
        for name, squares in evidence.squares().items():
            state, gain = states[name], self.gain * self.sigma**2 * evidence.samples
            past = state.get("precision")
            past = torch.ones_like(squares) if past is None else past.lerp(torch.ones_like(past), self.leak)
            state["precision"] = past.add_(squares, alpha=gain)

    def plasticity(self, state: dict) -> Tensor | None:
        return state["precision"].reciprocal() if "precision" in state else None

    def held(self, state: dict) -> Tensor | None:
        return state["precision"] / self.sigma**2 if "precision" in state else None
