"""Synaptic intelligence: importances from the path that the weights took."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mep_sim.baselines.anchored import Anchored
from mep_sim.baselines.base import check_task
from mep_sim.baselines.gradients import Gradients


class SI(Anchored):
    """Zenke et al. 2017, eqs. 3 to 5: omega = -sum over a task's steps of g dw, how much of its loss each weight took
    off, and Omega = sum over tasks of omega / (delta^2 + damping), delta the weight's change over the task.

    g is the batch's gradient as `before_step` finds it, without any pull; dw the change over the whole step, pulls
    included. strength is twice the paper's c, whose penalty has no 1/2. damping: the paper's xi, finite, > 0. A weight
    that climbed has omega < 0; the sum Omega is held at 0 or more after each task, as in the authors' code, for a
    negative one would push its weight away without bound. The gradient noise of small batches biases omega upwards
    (Benzing 2022). Within a step the weights and the gradient before it are kept too.
    """

    numbers_per_weight = 3

    def __init__(
        self, gradients: Gradients, strength: float = 1.0, damping: float = 0.1, pull: str = "implicit"
    ):
        super().__init__(gradients, strength, pull)
        if not 0 < damping < math.inf:
            raise ValueError(f"damping = {damping}; choose a finite damping > 0, such as 0.1")
        self.damping = damping
        self.anchor = self._weights()  # of the start, where the first task's path begins
        self.path = {name: torch.zeros_like(w) for name, w in self.anchor.items()}
        self._before: dict[str, tuple[Tensor, Tensor]] | None = None  # weight and gradient, within a step

    @torch.no_grad()
    def before_step(self) -> None:
        params = self.gradients.parameters
        # copies: the optimizer moves the weights and may clip the gradients in place
        self._before = {n: (p.clone(), p.grad.clone()) for n, p in params.items() if p.grad is not None}
        super().before_step()

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        super().after_step(lr)
        if self._before is None:
            raise ValueError("after_step without before_step: SI needs the gradient and weights from before")
        params = self.gradients.parameters
        for name, (weight, gradient) in self._before.items():
            self.path[name] = self.path[name] - gradient * (params[name] - weight)
        self._before = None

    @torch.no_grad()
    def end_task(self, x: Tensor, y: Tensor) -> None:
        check_task(x, y)
        weights = self._weights()
        for name, weight in weights.items():
            new = self.path[name] / ((weight - self.anchor[name]).square() + self.damping)
            self.importance[name] = (self.importance.get(name, 0.0) + new).clamp(min=0)
            self.path[name] = torch.zeros_like(weight)
        self.anchor = weights

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "path": self.path}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.path = self._fitting(state["path"])
