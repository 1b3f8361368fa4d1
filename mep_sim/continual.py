"""What continual learning is judged by: how well each task is done after each task learned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class AccuracyMatrix:
    """Accuracies in [0, 1] of a network that learned T tasks one after another; tasks count from 0.

    accuracy: R (T, T), R[i, j] on task j after task i was learned. before: (T,), of the untrained network. What one
    task alone does not define is nan.
    """

    accuracy: np.ndarray
    before: np.ndarray

    def __post_init__(self) -> None:
        accuracy, before = (np.array(a, dtype=float) for a in (self.accuracy, self.before))
        if accuracy.ndim != 2 or len(set(accuracy.shape)) != 1 or not accuracy.size:
            raise ValueError(
                f"accuracies of shape {accuracy.shape}; give (T, T), a row after each of T >= 1 tasks"
            )
        if before.shape != accuracy.shape[:1]:
            raise ValueError(
                f"before of shape {before.shape}; give one accuracy for each of {len(accuracy)} tasks"
            )
        for name, values in (("accuracy", accuracy), ("before", before)):
            if len(wrong := values[~((values >= 0) & (values <= 1))]):
                raise ValueError(f"{name} {wrong[0]:g}; give shares from 0 to 1")
            values.flags.writeable = False
            object.__setattr__(self, name, values)

    @property
    def tasks(self) -> int:
        """T."""
        return len(self.before)

    @property
    def average(self) -> float:
        """Mean accuracy over all tasks in the end."""
        return self.average_after(self.tasks - 1)

    def average_after(self, task: int) -> float:
        """Mean accuracy over tasks 0 to `task` once that is learned."""
        if not 0 <= task < self.tasks:
            raise ValueError(f"task {task}; choose 0 to {self.tasks - 1}")
        return float(self.accuracy[task, : task + 1].mean())

    @property
    def learning(self) -> float:
        """Mean accuracy on each task right after it was learned (Riemer et al. 2019)."""
        return float(np.diag(self.accuracy).mean())

    @property
    def forgetting(self) -> float:
        """How far the tasks but the last have come down from their best in the end (Chaudhry et al. 2018, eq. 3)."""
        earlier = self.accuracy[:-1, :-1]
        return _mean(earlier.max(0) - self.accuracy[-1, :-1]) if earlier.size else math.nan

    @property
    def backward(self) -> float:
        """Backward transfer: change of accuracy since each task was learned (Lopez-Paz and Ranzato 2017, eq. 3)."""
        return _mean(self.accuracy[-1, :-1] - np.diag(self.accuracy)[:-1])

    @property
    def forward(self) -> float:
        """Forward transfer: accuracy on each task just before it is learned, above that of the untrained network
        (Lopez-Paz and Ranzato 2017, eq. 4)."""
        return _mean(np.diag(self.accuracy, 1) - self.before[1:])


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
