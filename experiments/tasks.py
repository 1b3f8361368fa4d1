"""Streams of tasks for continual learning: permuted, rotated and split images, one task after another or all at once.

A task's images are shown through its view batch by batch: tasks that differ in their view alone share the images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from experiments.views import Permutation, Rotation, View, unchanged
from mep_sim import data as images
from mep_sim.data import Dataset


class Batch(NamedTuple):
    """Images x (B, d) as their task shows them, labels y (B,), and the outputs that count, None for all."""

    x: Tensor
    y: Tensor
    classes: tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class Task:
    """What is learned at a time.

    data: the images before the view. view: what is shown of images (B, d) at a progress (B,) in [0, 1] through the
    task. classes: the outputs allowed where the task is known (task-incremental learning); None: all.
    """

    name: str
    data: Dataset = field(repr=False)
    view: View = unchanged
    classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            if not len(labels := getattr(self.data, f"{part}_y")):
                raise ValueError(
                    f"task {self.name} has no {part} samples; choose fewer tasks or more samples"
                )
            if self.classes is not None and (wrong := set(labels.unique().tolist()) - set(self.classes)):
                raise ValueError(f"task {self.name} allows {self.classes} and has labels {sorted(wrong)}")
        if self.classes is not None and len(set(self.classes)) < 2:
            raise ValueError(f"task {self.name} allows {self.classes}; choose at least two to tell apart")

    def batches(self, epochs: int, batch_size: int, rng: torch.Generator) -> Iterator[Batch]:
        """`epochs` passes over the training part, each shuffled anew, while progress runs from 0 to 1."""
        _check_passes(epochs, batch_size)
        return self._passes(epochs, batch_size, rng)

    def _passes(self, epochs: int, batch_size: int, rng: torch.Generator) -> Iterator[Batch]:
        seen, total = 0, epochs * len(self.data.train_y)
        for _ in range(epochs):
            for x, y in images.batches(self.data.train_x, self.data.train_y, batch_size, rng):
                # at the middle of each presentation, so that a drift goes on evenly in the next task
                progress = (torch.arange(seen, seen + len(y), device=x.device) + 0.5) / total
                seen += len(y)
                yield Batch(self.view(x, progress), y, self.classes)

    def part(self, name: Literal["train", "validation", "test"]) -> tuple[Tensor, Tensor]:
        """Images (N, d) of a part as the task shows them in the middle of its course, and labels (N,)."""
        if name not in ("train", "validation", "test"):
            raise ValueError(f"part {name!r}; choose 'train', 'validation' or 'test'")
        x, y = getattr(self.data, f"{name}_x"), getattr(self.data, f"{name}_y")
        if not len(y):  # validation may be empty, and not every view takes nothing
            return x, y
        return self.view(x, torch.full(y.shape, 0.5, device=x.device)), y


def check(tasks: Sequence[Task]) -> None:
    """ValueError unless one network can learn all of these tasks, at least one."""
    if not tasks:
        raise ValueError("no tasks; give at least one")
    first = tasks[0]
    for task in tasks[1:]:
        for what in ("features", "classes"):
            expected, found = getattr(first.data, what), getattr(task.data, what)
            if found != expected:
                raise ValueError(
                    f"task {task.name} has {found} {what} and {first.name} {expected}; give tasks for one network"
                )


@dataclass(frozen=True, eq=False)
class Joint:
    """All tasks at once, the usual upper bound of continual learning."""

    tasks: Sequence[Task]

    def __post_init__(self) -> None:
        check(self.tasks)

    def batches(self, epochs: int, batch_size: int, rng: torch.Generator) -> Iterator[Batch]:
        """As many presentations as in `epochs` passes over one task after another.

        A batch mixes the tasks that allow the same outputs, each sample in its own task's view at a random progress;
        batches of different outputs come in random order.
        """
        _check_passes(epochs, batch_size)
        return self._passes(epochs, batch_size, rng)

    def _passes(self, epochs: int, batch_size: int, rng: torch.Generator) -> Iterator[Batch]:
        groups: dict[tuple[int, ...] | None, list[int]] = {}
        for k, task in enumerate(self.tasks):
            groups.setdefault(task.classes, []).append(k)
        samples = [self._samples(members) for members in groups.values()]
        for _ in range(epochs):
            drawn = [pair for of_group in samples for pair in images.batches(*of_group, batch_size, rng)]
            for i in torch.randperm(len(drawn), generator=rng, device=rng.device).tolist():
                yield self._show(*drawn[i], rng)

    def _samples(self, members: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of every training sample of these tasks, the task and its place there, (N,) each."""
        counts = torch.tensor([len(self.tasks[k].data.train_y) for k in members])
        rows = torch.cat([torch.arange(count) for count in counts.tolist()])
        return torch.tensor(members).repeat_interleave(counts), rows

    def _show(self, owner: Tensor, rows: Tensor, rng: torch.Generator) -> Batch:
        parts = []
        for k in owner.unique().tolist():
            task, own = self.tasks[k], rows[owner == k]
            x, y = task.data.train_x, task.data.train_y
            own = own.to(x.device)
            progress = torch.rand(len(own), generator=rng, device=rng.device).to(x.device)
            parts.append((task.view(x[own], progress), y[own]))
        x, y = (torch.cat(each) for each in zip(*parts, strict=True))
        return Batch(x, y, task.classes)


# -- streams ----------------------------------------------------------------------------------------------


def permuted(data: Dataset, tasks: int, rng: torch.Generator) -> list[Task]:
    """The images as they are, then under a fixed random permutation of all pixels per task (Goodfellow et al. 2013;
    Kirkpatrick et al. 2017)."""
    _check_count(tasks)
    orders = [
        torch.randperm(data.features, generator=rng, device=rng.device).to(data.train_x.device)
        for _ in range(tasks - 1)
    ]
    views = [unchanged, *map(Permutation, orders)]
    return [Task(f"permutation {k}", data, view) for k, view in enumerate(views)]


def rotated(data: Dataset, tasks: int, degrees: float = 180.0) -> list[Task]:
    """Images that turn steadily from 0 to `degrees`, an equal share in each task, so that training sees no boundary;
    each is judged at its middle angle. The background is the least value of the training images."""
    _check_count(tasks)
    if math.isqrt(data.features) ** 2 != data.features:
        raise ValueError(f"images of {data.features} pixels are not square; choose 'mnist' or 'digits'")
    if not math.isfinite(degrees):
        raise ValueError(f"degrees = {degrees}; choose a finite angle, such as 180")
    if not len(data.train_x):
        raise ValueError("the data has no training samples; choose at least 1")
    angles = [degrees * k / tasks for k in range(tasks + 1)]
    background = data.train_x.min().item()
    return [
        Task(f"{start:g} to {stop:g} degrees", data, Rotation(start, stop, background))
        for start, stop in pairwise(angles)
    ]


def split(data: Dataset, tasks: int, incremental: Literal["class", "task"] = "class") -> list[Task]:
    """The classes in equal shares, in order. incremental: "class" has to choose among all outputs, "task" knows the
    task and chooses among its own (van de Ven and Tolias 2019)."""
    _check_count(tasks)
    if incremental not in ("class", "task"):
        raise ValueError(f"incremental = {incremental!r}; choose 'class' or 'task'")
    if data.classes % tasks:
        divisors = [n for n in range(1, data.classes + 1) if data.classes % n == 0]
        raise ValueError(
            f"{tasks} tasks cannot share {data.classes} classes equally; choose one of {divisors} tasks"
        )
    each = data.classes // tasks
    shares = [tuple(range(first, first + each)) for first in range(0, data.classes, each)]
    names = [f"classes {share[0]} to {share[-1]}" if each > 1 else f"class {share[0]}" for share in shares]
    allowed = shares if incremental == "task" else [None] * tasks
    return [
        Task(name, _only(data, share), classes=classes)
        for name, share, classes in zip(names, shares, allowed, strict=True)
    ]


def _only(data: Dataset, classes: Sequence[int]) -> Dataset:
    """The samples of these classes; labels and number of classes stay."""
    chosen = {}
    for part in ("train", "validation", "test"):
        x, y = getattr(data, f"{part}_x"), getattr(data, f"{part}_y")
        own = torch.isin(y, torch.tensor(classes, device=y.device))
        chosen |= {f"{part}_x": x[own], f"{part}_y": y[own]}
    return dataclasses.replace(data, **chosen)


def _check_count(tasks: int) -> None:
    if tasks < 1:
        raise ValueError(f"tasks = {tasks}; choose at least 1")


def _check_passes(epochs: int, batch_size: int) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} = {value}; choose at least 1")
