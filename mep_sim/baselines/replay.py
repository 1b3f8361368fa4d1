"""Experience replay from a class-balanced buffer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mep_sim.baselines.gradients import Gradients
from mep_sim.baselines.rehearsal import Rehearsal
from mep_sim.optimizers.strategies.update import check_count


class Replay(Rehearsal):
    """Each step learns from a batch of stored samples too: .grad <- (1 - share) .grad + share memory's gradient
    (Chaudhry et al. 2019b; Rolnick et al. 2019). Until a first task is over, `.grad` is left alone.

    capacity: samples kept in all, divided equally over the tasks so far and within a task over its classes; what a
    small one leaves goes to the others. Each end of a task thins what is there. batch_size: drawn from all of them
    alike, 1 to capacity, or all where there are fewer. share: in (0, 1).
    """

    def __init__(
        self,
        gradients: Gradients,
        capacity: int,
        batch_size: int,
        rng: torch.Generator,
        share: float = 0.5,
    ):
        super().__init__(gradients, rng)
        check_count(capacity=capacity, batch_size=batch_size)
        if batch_size > capacity:
            raise ValueError(f"batch_size = {batch_size} of a capacity of {capacity}; draw at most as many")
        if not 0 < share < 1:
            raise ValueError(f"share = {share}; choose 0 < share < 1, such as 0.5")
        self.capacity, self.batch_size, self.share = capacity, batch_size, share

    @torch.no_grad()
    def before_step(self) -> None:
        super().before_step()
        if not self.memory:
            return
        remembered, params = self._drawn_gradient(self.batch_size), self.gradients.parameters
        for name, g in remembered.items():
            p = params[name]
            p.grad = self.share * g if p.grad is None else torch.lerp(p.grad, g, self.share)

    def end_task(self, x: Tensor, y: Tensor) -> None:
        tasks = [*self.memory, self._store(x, y, self.capacity)]
        kept = equal_shares(self.capacity, [len(task) for task in tasks])
        classes = [len(task.y.unique()) for task in self.memory] + [len(y.unique())]
        if any(n < c for n, c in zip(kept, classes, strict=True)):
            raise ValueError(
                f"capacity = {self.capacity} for {len(tasks)} tasks of up to {max(classes)} classes leaves a class "
                f"without a sample; choose capacity >= {len(tasks) * max(classes)}"
            )
        self.memory = [task.first(n) for task, n in zip(tasks, kept, strict=True)]


def equal_shares(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` divided as equally as it can be over parts of at most these sizes; what does not divide goes to the
    largest and last."""
    shares = [0] * len(sizes)
    for rank, i in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        shares[i] = min(sizes[i], total // (len(sizes) - rank))
        total -= shares[i]
    return shares
