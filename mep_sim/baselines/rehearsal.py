"""Samples of earlier tasks kept for later: what GEM, A-GEM and replay share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circuits.costs import Cost
from mep_sim.baselines.base import Baseline, check_task
from mep_sim.baselines.gradients import Gradients


@dataclass(frozen=True)
class Stored:
    """Samples x (n, ...) of a task, their labels y (n,) and the cost that they were learnt under."""

    x: Tensor
    y: Tensor
    cost: Cost

    def __len__(self) -> int:
        return len(self.y)

    def first(self, n: int) -> Stored:
        return Stored(self.x[:n].clone(), self.y[:n].clone(), self.cost)


class Rehearsal(Baseline):
    """Keeps some of each task's samples, as many of each of its classes as can be, drawn at random.

    A sample's gradient is that of its own task's cost.
    """

    def __init__(self, gradients: Gradients, rng: torch.Generator):
        super().__init__(gradients, rng)
        if not isinstance(rng, torch.Generator):
            raise ValueError(f"rng = {rng}; samples are drawn: give a torch.Generator")
        self.memory: list[Stored] = []

    @property
    def stored_samples(self) -> int:
        return sum(map(len, self.memory))

    def _store(self, x: Tensor, y: Tensor, most: int) -> Stored:
        """At most so many samples, in an order whose every beginning is balanced over the classes: one drawn from
        each, then the second ones, and so on, while a class lasts."""
        check_task(x, y)
        drawn = torch.randperm(len(y), generator=self.rng, device=self.rng.device).to(y.device)
        _, group = y[drawn].unique(return_inverse=True)
        turn = F.one_hot(group).cumsum(0).gather(1, group[:, None])[:, 0]
        order = drawn[torch.argsort(turn * len(y) + group)][:most]
        return Stored(x[order].detach(), y[order], self.gradients.cost)

    def _drawn_gradient(self, count: int) -> dict[str, Tensor]:
        """Of the mean cost over so many stored samples, or all where there are fewer, drawn without replacement."""
        drawn = torch.randperm(self.stored_samples, generator=self.rng, device=self.rng.device)[:count]
        parts: dict[Cost, list[tuple[Tensor, Tensor]]] = {}
        start = 0
        for task in self.memory:
            chosen = drawn[(drawn >= start) & (drawn < start + len(task))] - start
            start += len(task)
            if len(chosen):
                chosen = chosen.to(task.y.device)
                parts.setdefault(task.cost, []).append((task.x[chosen], task.y[chosen]))
        totals: dict[str, Tensor] = {}
        for cost, pairs in parts.items():
            x, y = (torch.cat(part) for part in zip(*pairs, strict=True))
            for name, g in self._gradient_of(Stored(x, y, cost)).items():
                share = g * (len(y) / len(drawn))
                totals[name] = totals[name] + share if name in totals else share
        return totals

    def _gradient_of(self, samples: Stored) -> dict[str, Tensor]:
        with self.gradients.under(samples.cost):
            return self.gradients.gradient(samples.x, samples.y)

    def state_dict(self) -> dict[str, Any]:
        tasks = [{"x": task.x, "y": task.y, "cost": str(task.cost)} for task in self.memory]
        return {**super().state_dict(), "memory": tasks}

    def load_state_dict(self, state: dict[str, Any], costs: Sequence[Cost] | None = None) -> None:
        """costs: that of each task, in order; `gradients.cost` for all unless given. A state holds only what they are
        called, to check."""
        tasks = state["memory"]
        costs = [self.gradients.cost] * len(tasks) if costs is None else costs
        if [str(cost) for cost in costs] != (names := [task["cost"] for task in tasks]):
            raise ValueError(f"the state's tasks were learnt under {', '.join(names)}; give these as costs=")
        super().load_state_dict(state)
        device = next(iter(self.gradients.parameters.values())).device
        self.memory = [
            Stored(task["x"].to(device), task["y"].to(device), cost)
            for task, cost in zip(tasks, costs, strict=True)
        ]
