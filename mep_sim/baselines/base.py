"""What every continual-learning baseline offers: hooks between gradient and step, and at the end of a task."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from mep_sim.baselines.gradients import Gradients
from mep_sim.checkpoint import restore_generator


class Baseline(ABC):
    """Bound to a `Gradients`; used around a training step of one's own:

        ewc = EWC(Autograd(model), strength=100)
        loss.backward(); ewc.before_step(); optimizer.step(); ewc.after_step(lr)  # per batch
        ewc.end_task(x, y)  # after each task

    With Equilibrium Propagation: `EWC(ByOptimizer(optimizer))`, and `optimizer.compute_gradient(x, y)` in place of
    `loss.backward()`. numbers_per_weight: what a method stores from step to step beside each weight. rng: for what is
    drawn, its state part of `state_dict`; one on the CPU serves a model on a GPU too.
    """

    numbers_per_weight: int = 0

    def __init__(self, gradients: Gradients, rng: torch.Generator | None = None):
        if not isinstance(gradients, Gradients):
            raise ValueError(
                f"gradients = {type(gradients).__name__}; give Autograd(model) or ByOptimizer(optimizer)"
            )
        self.gradients, self.rng = gradients, rng

    @property
    def stored_samples(self) -> int:
        """Training samples kept from tasks that are over."""
        return 0

    def before_step(self) -> None:
        """Every parameter's `.grad` holds the batch's gradient; it may be changed."""

    def after_step(self, lr: float) -> None:
        """The weights have moved, at this learning rate."""
        if not 0 <= lr < math.inf:
            raise ValueError(f"lr = {lr}; give the step's learning rate, finite and >= 0")

    @abstractmethod
    def end_task(self, x: Tensor, y: Tensor) -> None:
        """A task with training samples x (N, ...) and labels y (N,) int64 is over; `gradients.cost` is its cost."""

    def state_dict(self) -> dict[str, Any]:
        return {} if self.rng is None else {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Settings are not part of it: make the baseline with the same ones, then load."""
        if (self.rng is None) != ("rng" not in state):
            raise ValueError(
                "the state is that of a baseline with another rng setting; make it with the same"
            )
        if self.rng is not None:
            restore_generator(self.rng, state["rng"])


def check_task(x: Tensor, y: Tensor) -> None:
    if not len(x):
        raise ValueError("the task has no samples; give end_task those that it was learnt from")
    if y.shape != (len(x),) or y.dtype != torch.int64:
        raise ValueError(
            f"labels of shape {tuple(y.shape)} and type {y.dtype} for {len(x)} samples; give one int64 label per "
            "sample"
        )


def check_finite(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} = {value}; choose a finite {name} >= 0")
