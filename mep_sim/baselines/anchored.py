"""Weights pulled back to where they served earlier tasks: what EWC and SI share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mep_sim.baselines.base import Baseline, check_finite
from mep_sim.baselines.gradients import Gradients
from mep_sim.optimizers.strategies.update import check_choice

PULLS = ("implicit", "penalty")


class Anchored(Baseline):
    """Loss plus strength/2 sum Omega (w - a)^2, with importances Omega >= 0 and anchors a of the tasks so far.

    strength: finite, >= 0. pull: "penalty" adds the penalty's gradient to `.grad`, as differentiating it with the loss
    would, so that momentum and clipping see it, and diverges where lr strength Omega is large (`check_stable`).
    "implicit" moves the weights after the step, w <- (w + k a) / (1 + k) with k = lr strength Omega: the proximal step
    of the penalty, stable at any strength (Parikh & Boyd 2014, section 4.2). It needs weights that stay where they are
    put, so not those on a chip.
    """

    numbers_per_weight = 2

    def __init__(
        self,
        gradients: Gradients,
        strength: float,
        pull: str = "implicit",
        rng: torch.Generator | None = None,
    ):
        super().__init__(gradients, rng)
        check_finite(strength=strength)
        check_choice("pull", pull, PULLS)
        if pull == "implicit" and not gradients.is_digital:
            raise ValueError(
                "pull = 'implicit' sets weights, which a chip only changes by pulses; use pull = 'penalty'"
            )
        self.strength, self.pull = strength, pull
        self.importance: dict[str, Tensor] = {}  # empty until a task is over
        self.anchor: dict[str, Tensor] = {}
        self.offset: Tensor | float = 0.0  # what a sum of quadratics holds beside the one with mean anchors

    @torch.no_grad()
    def before_step(self) -> None:
        super().before_step()
        if self.pull != "penalty":
            return
        params = self.gradients.parameters
        for name, omega in self.importance.items():
            p = params[name]
            pulled = self.strength * omega * (p - self.anchor[name])
            p.grad = pulled if p.grad is None else p.grad + pulled

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        super().after_step(lr)
        if self.pull != "implicit":
            return
        params = self.gradients.parameters
        for name, omega in self.importance.items():
            k = lr * self.strength * omega
            params[name].lerp_(self.anchor[name], k / (1 + k))

    def penalty(self) -> Tensor:
        """strength/2 sum Omega (w - a)^2, a differentiable 0-d tensor."""
        params = self.gradients.parameters
        total = next(iter(params.values())).new_zeros(()) + self.offset
        for name, omega in self.importance.items():
            total = total + (omega * (params[name] - self.anchor[name]).square()).sum()
        return 0.5 * self.strength * total

    def check_stable(self, lr: float, momentum: float = 0.0) -> None:
        """ValueError where gradient descent with this momentum would diverge on the penalty alone: it is stable for
        lr strength Omega < 2 (1 + momentum) (Polyak 1964). The implicit pull always is."""
        if self.pull == "implicit" or not self.importance:
            return
        largest = max(omega.max().item() for omega in self.importance.values())
        stiffness, limit = lr * self.strength * largest, 2 * (1 + momentum)
        if not stiffness < limit:
            raise ValueError(
                f"lr strength max(Omega) = {lr} x {self.strength} x {largest:.3g} = {stiffness:.3g}, and gradient "
                f"descent with momentum {momentum} diverges from {limit:g} on; use pull = 'implicit', or a strength "
                f"below {limit / (lr * largest):.3g}"
            )

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.gradients.parameters.items()}

    def state_dict(self) -> dict[str, Any]:
        own = {"importance": self.importance, "anchor": self.anchor, "offset": self.offset}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.importance, self.anchor = self._fitting(state["importance"]), self._fitting(state["anchor"])
        self.offset = state["offset"]

    def _fitting(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies of a state's tensors on the parameters' devices."""
        params = self.gradients.parameters
        shapes = {name: tuple(p.shape) for name, p in params.items()}
        for name, tensor in tensors.items():
            if shapes.get(name) != tuple(tensor.shape):
                raise ValueError(
                    f"the state has {name} of shape {tuple(tensor.shape)}, the model {shapes.get(name, 'no such')}; "
                    "load it into a baseline of the same model"
                )
        return {name: tensor.to(params[name], copy=True) for name, tensor in tensors.items()}
