"""One run of `experiments.continual`: a stream of tasks, a network that learns it by a method, and what it took."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import h5py
import torch

from circuits import FeedforwardCircuit, MaskedCrossEntropy
from experiments.common import generator
from experiments.continual_methods import Method
from experiments.recording import slug
from experiments.seeds import Result, SeedsOptions
from experiments.tasks import Batch, Joint, Task, permuted, rotated, split
from mep_sim.baselines import Baseline
from mep_sim.continual import AccuracyMatrix
from mep_sim.data import Dataset, load
from mep_sim.metrics import metrics_of
from mep_sim.optimizers import CompositeOptimizer, GradientStrategy

LOOK_EVERY = 20  # steps between looks at how phases settle


@dataclass(frozen=True)
class Stream:
    """Tasks, and how long each is learned. samples: training images of each task, or of all where classes are split."""

    kind: str
    tasks: int
    samples: int
    epochs: int
    batch_size: int
    hidden: tuple[int, ...]
    dataset: str

    def make(self, seed: int, device: str, part: str) -> tuple[list[Task], str]:
        """The tasks and what their images are; what is no validation run keeps none aside."""
        aside = None if part == "validation" else 0
        data = _images(self.dataset, self.samples, aside, seed).to(device)
        if self.kind == "permuted":
            return permuted(data, self.tasks, generator(seed + 100)), data.source
        if self.kind == "rotated":
            return rotated(data, self.tasks), data.source
        return split(data, self.tasks, self.kind.removeprefix("split_")), data.source


@functools.lru_cache(maxsize=1)  # many runs of a process learn the same images
def _images(dataset: str, samples: int, validation: int | None, seed: int) -> Dataset:
    return load(dataset, samples=samples, validation=validation, seed=seed)


@dataclass(frozen=True)
class Row:
    """A method on a stream. part: the part of each task that accuracies are of, "test" or "validation"."""

    method: Method
    stream: Stream
    part: str = "test"

    @property
    def reference(self) -> str | None:
        return self.method.reference


# -- one run ----------------------------------------------------------------------------------------------


class Pupil:
    """One network that learns by a method; where a task allows some outputs only, by the cost over those."""

    def __init__(self, method: Method, circuit: FeedforwardCircuit, seed: int, device: str):
        self.method = method
        self.optimizer: CompositeOptimizer = method.optimizer(circuit, seed, device)
        self.baseline: Baseline | None = method.around(self.optimizer, seed)
        self.plain = self.optimizer.gradient
        self.masked: dict[tuple[int, ...], GradientStrategy] = {}

    def learn(self, batch: Batch) -> None:
        """One step."""
        self.heed(batch.classes)
        if self.baseline is None:
            self.optimizer.step(x=batch.x, target=batch.y)
            return
        self.optimizer.compute_gradient(batch.x, batch.y)
        self.baseline.before_step()
        self.optimizer.step()
        self.baseline.after_step(self.method.lr)
        self.optimizer.zero_grad()

    def heed(self, classes: tuple[int, ...] | None) -> None:
        """Learn by the cost over these outputs from now on."""
        if classes is not None:
            if classes not in self.masked:
                self.masked[classes] = replace(self.plain, loss_type=MaskedCrossEntropy(classes))
            self.optimizer.gradient = self.masked[classes]

    def end_task(self, task: Task) -> None:
        if self.baseline is not None:
            self.baseline.end_task(*task.part("train"))

    @torch.no_grad()
    def accuracy(self, task: Task, part: str) -> float:
        """Share of a part classified right, at the free equilibrium (the forward pass), the chip read once."""
        x, y = task.part(part)
        if self.optimizer.chip is not None:
            self.optimizer.chip.read()
        output = torch.cat([self.optimizer.circuit(some) for some in x.split(2000)])
        if task.classes is None:
            return int((output.argmax(1) == y).sum()) / len(y)
        allowed = torch.tensor(task.classes, device=y.device)
        return int((allowed[output[:, allowed].argmax(1)] == y).sum()) / len(y)

    def numbers_per_weight(self) -> float:
        """What is stored beside each weight, apart from what the update and the write need."""
        if self.baseline is not None:
            return self.baseline.numbers_per_weight
        others = {"carry", "write_residual", "adam_mean", "adam_square"}
        kept = (
            value.numel()
            for state in self.optimizer.state.values()
            for name, value in state.items()
            if isinstance(value, torch.Tensor) and name not in others
        )
        return sum(kept) / sum(p.numel() for p in self.optimizer.circuit.parameters())


def train(name: str, row: Row, seed: int, options: SeedsOptions) -> Result:
    """One cell: learn the stream at a seed; all accuracies, and what the method took."""
    stream, method = row.stream, row.method
    tasks, source = stream.make(seed, options.device, row.part)
    data = tasks[0].data
    sizes = (data.features, *stream.hidden, data.classes)
    circuit = FeedforwardCircuit.from_sizes(sizes, rng=generator(seed)).to(options.device)
    pupil, order = Pupil(method, circuit, seed, options.device), generator(seed + 2)

    def accuracies() -> list[float]:
        return [pupil.accuracy(task, row.part) for task in tasks]

    before, rows, settled, seconds, steps = accuracies(), [], [], 0.0, 0
    for task in [Joint(tasks)] if method.joint else tasks:
        started = time.perf_counter()
        for batch in task.batches(stream.epochs, stream.batch_size, order):
            pupil.learn(batch)
            if steps % LOOK_EVERY == 0:
                settled.append(float(metrics_of(pupil.optimizer).settled))
            steps += 1
        if not method.joint:
            pupil.end_task(task)
        seconds += time.perf_counter() - started
        if row.part == "test" or method.joint or task is tasks[-1]:
            rows.append(accuracies())
    found = {
        "accuracy": fmean(rows[-1]),
        "settled": fmean(settled),
        "numbers/weight": pupil.numbers_per_weight(),
        "stored": 0 if pupil.baseline is None else pupil.baseline.stored_samples,
        "pulses/cell": math.nan if method.cell is None else pupil.optimizer.chip.pulses_per_device,
        "surprises": pupil.optimizer.memory.get("surprises", math.nan),
        "seconds": seconds,
        "data": f"{source}; {stream.kind}, {stream.tasks} tasks of {len(data.train_y)} samples",
        "rows": rows,
        "before": before,
    }
    if method.cell is not None and seed == options.seed and options.out is not None:
        _keep_importance(options.out / f"importance-{slug(name)}.h5", pupil.optimizer)
    return found | _judged(found, method.joint)


def _judged(found: Result, joint: bool) -> Result:
    """What the accuracy matrix says; nan for what there is no sequence for."""
    names = ("learning", "forgetting", "backward", "forward")
    if joint or len(found["rows"]) < len(found["before"]):
        return dict.fromkeys(names, math.nan)
    matrix = AccuracyMatrix(found["rows"], found["before"])
    return {name: getattr(matrix, name) for name in names}


def _keep_importance(path: Path, optimizer: CompositeOptimizer) -> None:
    """How firmly each synapse holds, and the conductance of its first cell, by weight."""
    weights = {name: optimizer.circuit.get_parameter(name) for name in optimizer.chip.crossbars}
    held = {name: optimizer.consolidation.held(optimizer.state[p]) for name, p in weights.items()}
    if any(importance is None for importance in held.values()):  # nothing has been consolidated
        return
    with h5py.File(path, "w") as file:
        for name, array in optimizer.chip.crossbars.items():
            group = file.create_group(name)
            group["importance"] = held[name][:, : array.shape[1]].cpu().numpy()  # of [W, b], the weights
            group["conductance"] = next(iter(array.cells.values())).conductance.cpu().numpy()
            group["conductance"].attrs["units"] = "S"
