"""How a gradient signal becomes a step direction: plain, Adam, diagonal Fisher (Muon and Dion: next door).

`direction(signal, state, weight)` returns the direction (the optimizer moves by -lr times it) and what of the
signal it *kept*, so that a feedback strategy can carry the rest over: carry = signal - (1 - mu) kept.
Kept = the whole signal makes the carry a momentum; kept = a low-rank part makes it Dion's error feedback.
"""

from __future__ import annotations

import functools
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

# What a parameter is for. Head: the weight of the last layer. Vector: biases and gains, whatever their shape.
ROLES = ("hidden", "head", "embedding", "vector")


@dataclass(frozen=True)
class UpdateStrategy(ABC):
    """Settings of a rule; its running tensors live in the optimizer's per-parameter `state`."""

    def rule(self, parameter: Tensor, role: str = "hidden") -> UpdateStrategy:
        """The rule for this parameter: itself, or a fallback where it does not apply. role: one of ROLES."""
        return self

    @property
    def has_own_memory(self) -> bool:
        """True where the rule averages gradients itself and wants them raw, without a carry."""
        return False

    @abstractmethod
    def direction(self, signal: Tensor, state: dict, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(direction, kept) of a signal at this weight, all shaped like the parameter; no input is changed."""


@dataclass(frozen=True, kw_only=True)
class MomentumUpdate(UpdateStrategy):
    """A rule that may average gradients itself, v <- momentum v + g.

    momentum: in [0, 1); 0 leaves the averaging to the feedback's carry, above 0 the feedback is not asked.
    nesterov: hand on g + momentum v in place of v (Sutskever et al. 2013, as torch.optim.SGD writes it).
    weight_decay: >= 0.
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fraction(momentum=self.momentum)
        check_weight_decay(self.weight_decay)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov = True with momentum = 0; give it a momentum of its own, such as 0.9")

    @property
    def has_own_memory(self) -> bool:
        return self.momentum > 0

    def averaged(self, signal: Tensor, state: dict) -> Tensor:
        """The signal with this rule's own momentum."""
        if not self.momentum:
            return signal
        past = state.get("velocity")
        state["velocity"] = velocity = signal.clone() if past is None else signal + self.momentum * past
        return signal + self.momentum * velocity if self.nesterov else velocity


@dataclass(frozen=True, kw_only=True)
class PlainUpdate(MomentumUpdate):
    """Gradient descent, step by step torch.optim.SGD (dampening 0).

    Weight decay is coupled, g + weight_decay w: the rule's own momentum averages it as part of the gradient.
    Without that, momentum is the feedback's carry of g alone, and the decay acts beside it on each step.
    """

    def direction(self, signal: Tensor, state: dict, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self.averaged(decayed(signal, weight, self.weight_decay), state), signal


@dataclass(frozen=True)
class AdamUpdate(UpdateStrategy):
    """Adam (Kingma & Ba 2015, algorithm 1) with decoupled weight decay (AdamW, Loshchilov & Hutter 2019).

    scale multiplies Adam's direction, not the decay, so that it can share a learning rate with an
    orthogonalised update.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    scale: float = 1.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fraction(beta1=self.beta1, beta2=self.beta2)
        check_weight_decay(self.weight_decay)
        for name, value in (("eps", self.eps), ("scale", self.scale)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} = {value}; choose a finite {name} > 0")

    @property
    def has_own_memory(self) -> bool:
        return True

    def direction(self, signal: Tensor, state: dict, weight: Tensor) -> tuple[Tensor, Tensor]:
        if "adam_step" not in state:
            state["adam_step"] = 0
            state["adam_mean"], state["adam_square"] = torch.zeros_like(signal), torch.zeros_like(signal)
        state["adam_step"] += 1
        mean = state["adam_mean"].lerp_(signal, 1 - self.beta1)
        square = state["adam_square"].mul_(self.beta2).addcmul_(signal, signal, value=1 - self.beta2)
        bias1, bias2 = 1 - self.beta1 ** state["adam_step"], 1 - self.beta2 ** state["adam_step"]
        root = square.sqrt().div_(math.sqrt(bias2)).add_(self.eps)
        return decayed((mean / root).mul_(self.scale / bias1), weight, self.weight_decay), signal


@dataclass(frozen=True)
class FisherUpdate(MomentumUpdate):
    """The gradient over a running diagonal of the empirical Fisher, F <- decay F + (1 - decay) g^2:

        direction = g / (F / mean(F) + damping), with weight decay decoupled.

    Natural gradient descent (Amari 1998), diagonal and for each parameter tensor in units of its own
    gradient: F enters only relative to its mean, so that neither the scale of the gradient nor the bias of a
    young average (the same factor in F and mean(F)) shapes the step. damping > 0 bounds the gain by 1 / damping.
    g is the gradient of the mean over a batch: this "empirical Fisher" is the curvature only near the optimum
    of a well-specified model; elsewhere it can mislead (Kunstner et al. 2019), hence the generous damping.
    F needs raw gradients, so that the averaging is always this rule's own.
    """

    decay: float = 0.95
    damping: float = 0.1
    momentum: float = field(default=0.9, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(decay=self.decay)
        if not 0 < self.damping < math.inf:
            raise ValueError(f"damping = {self.damping}; choose a finite damping > 0, such as 0.1")

    @property
    def has_own_memory(self) -> bool:
        return True

    def direction(self, signal: Tensor, state: dict, weight: Tensor) -> tuple[Tensor, Tensor]:
        if "fisher" not in state:
            state["fisher"] = torch.zeros_like(signal)
        fisher = state["fisher"].mul_(self.decay).addcmul_(signal, signal, value=1 - self.decay)
        mean = fisher.mean()
        # no gradient so far: 0 / tiny = 0
        metric = fisher.add(mean, alpha=self.damping).clamp_(min=torch.finfo(fisher.dtype).tiny)
        return decayed(self.averaged(signal, state) * mean / metric, weight, self.weight_decay), signal


def is_matrix(parameter: Tensor, role: str) -> bool:
    """Whether a rule for linear maps fits: matrices and kernels (out, ...), but no tables of embeddings, no gains."""
    check_choice("role", role, ROLES)
    return parameter.ndim >= 2 and role not in ("embedding", "vector")


def decayed(direction: Tensor, weight: Tensor, weight_decay: float) -> Tensor:
    return direction.add(weight, alpha=weight_decay) if weight_decay else direction


def smallest_norm(x: Tensor) -> float:
    """Below it a norm of x may have lost entries whose squares underflow: a floor to divide by."""
    return math.sqrt(torch.finfo(x.dtype).tiny * x.numel())


@functools.cache
def log_fallback(rule: str, role: str, fallback: str) -> None:
    """State on the logger "mep_sim" that `rule` hands a role over: once per process, not per step."""
    logging.getLogger("mep_sim").warning("%s leaves %s parameters to %s", rule, role, fallback)


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(allowed)}")


def check_count(**settings: int) -> None:
    for name, value in settings.items():
        if not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{name} = {value}; choose a whole number of 1 or more")


def check_fraction(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} = {value}; choose 0 <= {name} < 1")


def check_weight_decay(weight_decay: float) -> None:
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay = {weight_decay}; choose a finite weight_decay >= 0 (0: none)")
