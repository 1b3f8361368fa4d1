"""Consolidation with correlations: what a layer keeps is no list of synapses but a space of activities and errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits import EnergyCircuit, FeedforwardCircuit, Params
from circuits.base import Pairs
from mep_sim.optimizers.strategies.consolidation import Evidence, States
from mep_sim.optimizers.strategies.layers import bias_of, joined, joined_pairs, parted
from mep_sim.optimizers.strategies.surprise import GatedConsolidation


@dataclass(frozen=True, kw_only=True)
class KroneckerConsolidation(GatedConsolidation):
    """Per layer [W, b], with A = E[s s'] of the activity below it (and a 1 for the bias) and G = E[d d'] of its
    contrast, sample by sample, both summed over what has been consolidated:

        pulled   with the penalty strength / 2 tr(D' G D A), D = W - anchor, that is F = A (x) G: the online Laplace
                 approximation of Ritter et al. 2018 (Online structured Laplace approximations for overcoming
                 catastrophic forgetting), solved exactly in the eigenbases of A and G every `stride` steps, with that
                 many times the strength;
        steered  by seeing activities through (I + A / damping)^-1, so that a contrast d s' hardly touches what answers
                 to directions in use: the projector of orthogonal weights modification (Zeng et al. 2019).

    A and G are correlations at a layer's own two ends, which a lateral array beside the crossbar can learn by outer
    products; their eigenvectors, needed once per surprise, are digital work: local to a layer, not to a synapse.
    Positions of a convolution add up in A and average in G (Grosse & Martens 2016). A bias is pulled at its weight's
    learning rate. Feedforward circuits only. damping: > 0, in units of squared activities; None steers nothing.
    """

    strength: float = 10.0
    damping: float | None = 3.0
    stride: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.damping is not None and not 0 < self.damping < math.inf:
            raise ValueError(f"damping = {self.damping}; choose a finite damping > 0, such as 3, or None")
        if not (isinstance(self.stride, int) and self.stride >= 1):
            raise ValueError(f"stride = {self.stride} steps; choose a whole number of 1 or more, such as 10")

    @property
    def needs_factors(self) -> bool:
        return True

    def check(self, circuit: EnergyCircuit | None) -> None:
        super().check(circuit)
        if not isinstance(circuit, FeedforwardCircuit):
            raise ValueError(
                f"a {type(circuit).__name__} has no contrast of one error and one activity to correlate; use "
                "SurpriseGated, AutoEWC or PrecisionConsolidation"
            )

    def gather(self, evidence: Evidence, states: States, memory: dict) -> None:
        memory["steps"] = memory.get("steps", -1) + 1
        if memory["steps"] % self.stride:
            return
        keep = (1 - self.rate) ** self.stride
        for weight in evidence.factors:
            if weight not in evidence.gradient:
                if (bias := bias_of(weight)) in evidence.gradient:
                    raise ValueError(
                        f"{bias} learns and its weight does not: freeze both, or use SurpriseGated"
                    )
                continue
            post, pre = _one_pair(joined_pairs(evidence.factors, evidence.gradient, weight))
            state = states[weight]
            for name, now in (
                ("running A", pre.T @ pre / evidence.samples),
                ("running G", post.T @ post / len(post)),
            ):
                past = state.get(name)
                state[name] = (1 - keep) * now if past is None else now.lerp(past, keep)

    def consolidate(self, weights: Params, states: States) -> None:
        for weight, state in states.items():
            if "running A" not in state:
                continue
            state["anchor"] = joined(weights, weight).clone()
            for side in "AG":
                total = state[f"running {side}"]
                if f"{side} values" in state:
                    vectors = state[f"{side} vectors"]
                    total = total + (vectors * state[f"{side} values"]) @ vectors.T
                values, vectors = torch.linalg.eigh(total)
                state[f"{side} values"], state[f"{side} vectors"] = values.clamp(min=0), vectors
            if self.damping is not None:
                vectors, seen = state["A vectors"], self.damping / (self.damping + state["A values"])
                state["filter"] = (vectors * seen) @ vectors.T

    def contrast(self, gradient: Params, states: States, evidence: Evidence | None = None) -> Params:
        steered = dict(gradient)
        for weight, state in states.items():
            if "filter" in state and weight in gradient:
                layer = _steered(weight, gradient, evidence, state["filter"])
                steered |= parted(layer, gradient, weight)
        return steered

    def pulled(
        self, proposed: dict[str, Tensor], rates: Mapping[str, float], states: States, memory: dict
    ) -> dict[str, Tensor]:
        if memory["steps"] % self.stride or not self.strength:
            return proposed
        found = dict(proposed)
        for weight, state in states.items():
            if "anchor" in state and weight in proposed:
                k = self.stride * rates[weight] * self.strength
                away = _shrunk(joined(proposed, weight) - state["anchor"], k, state)
                found |= parted(state["anchor"] + away, proposed, weight)
        return found

    def held(self, state: dict) -> Tensor | None:
        if "anchor" not in state:
            return None
        left, right = ((state[f"{side} vectors"].square() * state[f"{side} values"]).sum(1) for side in "GA")
        return torch.outer(left, right)


def _one_pair(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Errors and activities where phases differ in the latter: the sum of errors, the mean of activities."""
    posts, pres = zip(*pairs, strict=True)
    return sum(posts), sum(pres) / len(pres)


def _steered(weight: str, gradient: Params, evidence: Evidence | None, seen: Tensor) -> Tensor:
    """The gradient [W, b] of a layer times the filter, of its samples' activities where these are fewer."""
    if evidence is not None:
        pairs = joined_pairs(evidence.factors, gradient, weight)
        if sum(len(post) for post, _ in pairs) < len(gradient[weight]):
            return sum(post.T @ (pre @ seen) for post, pre in pairs) / evidence.samples
    return joined(gradient, weight) @ seen


def _shrunk(away: Tensor, k: float, state: dict) -> Tensor:
    """The D that solves D + k G D A = away, (n_out, n_in)."""
    left, right = state["G vectors"], state["A vectors"]
    stiffness = 1 + k * state["G values"][:, None] * state["A values"]
    return left @ ((left.T @ away @ right) / stiffness) @ right.T
