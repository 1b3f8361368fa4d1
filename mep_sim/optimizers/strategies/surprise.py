"""Consolidation when something new begins, which the cost itself tells: no task has to be announced."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuits import Params
from mep_sim.optimizers.strategies.consolidation import ConsolidationStrategy, Evidence, States


@dataclass(frozen=True)
class Surprise:
    """Something new has begun where the mean cost of a batch exceeds `ratio` times its slow mean.

    ratio: > 1. rate: of the slow mean, in (0, 1]. refractory: steps after a surprise, and after the first of all,
    without another, >= 1. longest: steps after which one is assumed, for a world that changes too slowly to surprise;
    None waits for ever. On a GPU each step waits for the cost.
    """

    ratio: float = 3.0
    rate: float = 0.01
    refractory: int = 200
    longest: int | None = None

    def __post_init__(self) -> None:
        if not 1 < self.ratio < math.inf:
            raise ValueError(f"ratio = {self.ratio}; choose a finite ratio > 1, such as 3")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate = {self.rate} of the slow mean cost; choose 0 < rate <= 1, such as 0.01")
        if self.refractory < 1:
            raise ValueError(f"refractory = {self.refractory} steps; choose at least 1, such as 200")
        if self.longest is not None and self.longest < self.refractory:
            raise ValueError(
                f"longest = {self.longest} steps without a surprise, and refractory = {self.refractory} after one; "
                "choose longest >= refractory, or None"
            )

    def noticed(self, loss: Tensor, memory: dict) -> bool:
        """Whether this batch of mean cost `loss`, a 0-d tensor, begins something new; counts it."""
        cost, mean = float(loss), memory.get("mean cost")
        since = memory.get("steps since surprise", -1) + 1
        new = mean is not None and since > self.refractory and cost > self.ratio * mean
        new = new or (self.longest is not None and since > self.longest)
        memory["mean cost"] = cost if new or mean is None else mean + self.rate * (cost - mean)
        memory["steps since surprise"] = 0 if new else since
        memory["surprises"] = memory.get("surprises", 0) + new
        return new


@dataclass(frozen=True, kw_only=True)
class GatedConsolidation(ConsolidationStrategy):
    """Statistics run all the time; at a surprise they are added to what is held, and the weights, averaged, become the
    anchors.

    strength: of the penalty strength / 2 (w - a)' F (w - a) on the mean cost, >= 0, applied implicitly: a step of
    learning rate lr ends at the minimum of that penalty + |w - proposed|^2 / (2 lr), which is stable at any strength. A
    momentum mu makes steps 1 / (1 - mu) larger than lr; strength has to be so too. rate: of the running statistics, per
    step, in (0, 1]; about one over the steps of a task, so that they are those of the one that ends. averaging: rate of
    the weights' running mean, in (0, 1]; 1 anchors at the last weights, with what the last batches and read noise do to
    them, which adds up from surprise to surprise.
    """

    strength: float = 300.0
    rate: float = 0.002
    averaging: float = 0.05
    surprise: Surprise = field(default_factory=Surprise)

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"strength = {self.strength}; choose a finite strength >= 0, such as 300")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate = {self.rate} of the statistics; choose 0 < rate <= 1, such as 0.002")
        if not 0 < self.averaging <= 1:
            raise ValueError(f"averaging = {self.averaging}; choose 0 < averaging <= 1, such as 0.05")

    def observe(self, evidence: Evidence, weights: Params, states: States, memory: dict) -> None:
        if evidence.loss is None:
            raise ValueError(
                f"{type(self).__name__} is gated by the cost, and loss.backward(); step() does not tell it: use "
                "step(x=, target=), or step(closure)"
            )
        for name, state in states.items():
            now = weights[name].detach()
            past = state.get("mean weight", now)
            state["mean weight"] = past.lerp(now, self.averaging)
        if self.surprise.noticed(evidence.loss, memory):
            self.consolidate({name: state["mean weight"] for name, state in states.items()}, states)
        self.gather(evidence, states, memory)

    @abstractmethod
    def gather(self, evidence: Evidence, states: States, memory: dict) -> None:
        """Let the running statistics see a batch."""

    @abstractmethod
    def consolidate(self, weights: Params, states: States) -> None:
        """Add the running statistics to those that hold, and anchor at these weights."""


@dataclass(frozen=True, kw_only=True)
class SynapticConsolidation(GatedConsolidation):
    """Elastic weight consolidation (Kirkpatrick et al. 2017, eq. 3, with the one anchor of Huszar 2018), synapse by
    synapse, on importances gathered while learning. Three numbers per synapse: running and held importance, anchor."""

    @abstractmethod
    def importance(self, evidence: Evidence) -> Params:
        """What a batch says of each synapse's importance."""

    def gather(self, evidence: Evidence, states: States, memory: dict) -> None:
        for name, importance in self.importance(evidence).items():
            past = states[name].get("running importance")
            past = torch.zeros_like(importance) if past is None else past
            states[name]["running importance"] = past.lerp_(importance, self.rate)

    def consolidate(self, weights: Params, states: States) -> None:
        for name, state in states.items():
            if "running importance" not in state:
                continue
            running = state["running importance"]
            state["importance"] = running + state["importance"] if "importance" in state else running.clone()
            state["anchor"] = weights[name].clone()

    def pulled(
        self, proposed: dict[str, Tensor], rates: Mapping[str, float], states: States, memory: dict
    ) -> dict[str, Tensor]:
        return {name: self._pulled(w, rates[name], states[name]) for name, w in proposed.items()}

    def _pulled(self, weight: Tensor, lr: float, state: dict) -> Tensor:
        if "anchor" not in state:
            return weight
        k = lr * self.strength * state["importance"]
        return torch.addcmul(weight, k, state["anchor"]) / (1 + k)

    def held(self, state: dict) -> Tensor | None:
        return state.get("importance")


@dataclass(frozen=True, kw_only=True)
class SurpriseGated(SynapticConsolidation):
    """Importance by each sample's squared contrast, squared signals multiplied: the empirical Fisher's diagonal."""

    @property
    def needs_factors(self) -> bool:
        return True

    def importance(self, evidence: Evidence) -> Params:
        return evidence.squares()


@dataclass(frozen=True, kw_only=True)
class AutoEWC(SynapticConsolidation):
    """Importance by the squared contrast of the whole batch, times its samples: what a synapse knows that sees nothing
    but its update, by EP or backprop. For samples whose contrasts are independent and zero in the mean it expects the
    mean of their squares. Where nobody tells how many samples there were, step(closure), they count as one."""

    def importance(self, evidence: Evidence) -> Params:
        samples = 1 if evidence.samples is None else evidence.samples
        return {name: g.square() * samples for name, g in evidence.gradient.items()}
