"""Who learns task after task and forgets the least: EWC and its peers beside local rules that know of no task.

Streams of MNIST (digits offline): a permutation of the pixels per task, a gradual turn, or class after class. Every row
learns the same samples in the same order from the same initial weights, seed by seed. Settings were chosen by a grid
search, as large for each method, on a validation split; `--tune` does it again. The run folder holds results.json (with
grid, choices and accuracy matrices) and pictures.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import h5py
import numpy as np
import torch

from circuits import FeedforwardCircuit, MaskedCrossEntropy
from experiments import continual_figures
from experiments.common import console, generator, launch
from experiments.continual_methods import CHOSEN, GRIDS, Method, cheaply, methods, waiting
from experiments.recording import slug
from experiments.seeds import Result, SeedsOptions, compute, show, summarised, titled
from experiments.tasks import Batch, Joint, Task, permuted, rotated, split
from mep_sim.baselines import Baseline
from mep_sim.continual import AccuracyMatrix
from mep_sim.data import Dataset, load
from mep_sim.metrics import metrics_of
from mep_sim.optimizers import CompositeOptimizer
from mep_sim.optimizers.strategies.update import check_choice

KINDS = ("permuted", "rotated", "split_class", "split_task")
TUNING_SEED = 1000  # of other weights, permutations and splits than any row of the table has
PANELS = 5  # accuracy matrices drawn, of the best
LOOK_EVERY = 20  # steps between looks at how phases settle


# -- what is learned --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stream:
    """Tasks, and how long each is learned. samples: training images, of each task, or of all classes where a stream
    splits them; None takes all."""

    kind: str
    tasks: int
    samples: int | None
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
def _images(dataset: str, samples: int | None, validation: int | None, seed: int) -> Dataset:
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
        self.masked: dict[tuple[int, ...], object] = {}

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


def train(name: str, row: Row, seed: int, options: ContinualConfig) -> Result:
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


# -- the table --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ContinualConfig(SeedsOptions):
    """Methods on a stream of tasks, over seeds."""

    stream: str = "permuted"
    """permuted (a fixed permutation of all pixels per task), rotated (a gradual turn by 180 degrees, of which no task's
    beginning can be told), split_class or split_task (the classes divided; the latter is told which are asked for)."""
    tasks: int | None = None
    """How many tasks; None takes 10, or 5 of a split."""
    samples: int = 10_000
    """Training samples of each task, of a split stream of all; 0 takes all there are."""
    epochs: int = 3
    """Passes over each task."""
    batch_size: int = 64
    """Samples per step."""
    hidden: tuple[int, ...] = (256, 256)
    """Sizes of the hidden layers."""
    dataset: str = "auto"
    """mnist, digits, or auto: MNIST where it can be had, else scikit-learn's digits."""
    tune: int | None = None
    """Choose every method's settings anew, with so many training samples (None: take the choices made before)."""
    longest: int | None = None
    """Steps after which the rules that wait for a surprise consolidate without one; None: they wait for ever. A gradual
    drift surprises nobody."""
    quick: bool = False
    """The whole table in minutes: three tasks, one pass, one seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("stream", self.stream, KINDS)
        if self.samples < 0:
            raise ValueError(f"samples = {self.samples}; choose at least 1, or 0 for all there are")
        for name in ("tasks", "epochs", "batch_size", "tune", "longest"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}; choose at least 1")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden = {self.hidden}; give at least one layer of at least one unit")

    def sized(self) -> ContinualConfig:
        """With --quick and --smoke spelled out."""
        if self.smoke:
            small = {"tasks": 2, "samples": 600, "epochs": 1, "hidden": (16,), "dataset": "digits"}
            tune = None if self.tune is None else 400
            return replace(self, **small, seeds=1, workers=1, tune=tune)
        if not self.quick:
            return self
        tasks = None if self.stream.startswith("split") else 3
        return replace(self, tasks=tasks, epochs=1, seeds=1)

    def patient(self, method: Method) -> Method:
        return method if self.longest is None else waiting(method, self.longest)

    def learned(self, samples: int | None) -> Stream:
        tasks = self.tasks or (5 if self.stream.startswith("split") else 10)
        return Stream(
            self.stream,
            tasks,
            samples or None,
            self.epochs,
            self.batch_size,
            self.hidden,
            self.dataset,
        )


COLUMNS = {
    "forgetting %": ".2f",
    "learning %": ".2f",
    "settled": ".1%",
    "needs": "",
    "numbers/weight": ".1f",
    "stored": ".0f",
    "seconds": ".0f",
}
ALSO = ("pulses/cell", "surprises")  # kept in results.json, for want of room
PERCENT = ("forgetting", "learning", "backward", "forward")


def tuned(config: ContinualConfig, names: Sequence[str]) -> tuple[dict[str, int], list[dict[str, object]]]:
    """The place in its grid where each of these methods has the best validation accuracy, and all that was tried."""
    stream = config.learned(config.tune)
    rows = {
        f"{name}, {k}": Row(cheaply(config.patient(method)), stream, "validation")
        for name in names
        for k, method in enumerate(GRIDS[name])
    }
    options = replace(config, seed=TUNING_SEED, seeds=1, rows=())
    found = compute(config.out / "tuning", rows, train, options)
    chosen, tried = {}, []
    for name in names:
        scores = [found[f"{name}, {k}"][0]["accuracy"] for k in range(len(GRIDS[name]))]
        chosen[name] = int(np.argmax(scores))
        tried += [
            {
                "method": name,
                "place": k,
                "settings": repr(method),
                "validation": score,
                "chosen": k == chosen[name],
            }
            for k, (method, score) in enumerate(zip(GRIDS[name], scores, strict=True))
        ]
        listed = ", ".join(f"{score:.2%}" for score in scores)
        console.print(f"{name}: place {chosen[name]} of {listed}", soft_wrap=True)
    return chosen, tried


def run(config: ContinualConfig) -> list[dict[str, object]]:
    """Compute what is missing, print the table, draw, return the table's rows."""
    config = config.sized()
    config = replace(config, out=config.folder("continual"))
    stream = config.learned(config.samples)
    stream.make(config.seed, config.device, "test")  # what cannot be made fails before anything is computed
    chosen, tried = dict(CHOSEN), []
    asked = config.chosen(methods(chosen))
    if config.tune is not None:
        found, tried = tuned(config, [name for name in GRIDS if any(row.startswith(name) for row in asked)])
        chosen |= found
        asked = config.chosen(methods(chosen))
    rows = {name: Row(config.patient(method), stream) for name, method in asked.items()}
    results = compute(config.out / "runs", rows, train, config)
    table = summarised(rows, results, {}, "accuracy")
    for line in table:
        cells = results[line["row"]]
        line["needs"] = rows[line["row"]].method.needs
        line |= {f"{name} %": 100 * fmean(cell[name] for cell in cells) for name in PERCENT}
        line |= {name: fmean(cell[name] for cell in cells) for name in (*COLUMNS, *ALSO) if name in cells[0]}
        line["matrices"] = [cell["rows"] for cell in cells]
    kept = {"table": table, "chosen": chosen, "grid": tried, "stream": dataclasses.asdict(stream)}
    (config.out / "results.json").write_text(json.dumps(kept, indent=1))
    show(titled(results, config), table, COLUMNS, "accuracy")
    draw(config.out, rows, results)
    console.print(f"results.json and pictures are in {config.out}", soft_wrap=True)
    return table


def draw(folder: Path, rows: Mapping[str, Row], results: Mapping[str, list[Result]]) -> None:
    """Pictures of what has a sequence, and of the cells."""
    sequences = {
        name: [AccuracyMatrix(cell["rows"], cell["before"]) for cell in cells]
        for name, cells in results.items()
        if not rows[name].method.joint
    }
    if sequences:
        best = sorted(sequences, key=lambda name: -fmean(m.average for m in sequences[name]))[:PANELS]
        means = {name: np.mean([m.accuracy for m in sequences[name]], 0) for name in best}
        continual_figures.matrices(folder / "matrices.png", means)
        continual_figures.curves(folder / "curves.png", sequences)
    for path in sorted(folder.glob("importance-*.h5")):
        with h5py.File(path) as file:
            layers = [
                (name, *(torch.from_numpy(group[kind][:]) for kind in ("importance", "conductance")))
                for name, group in file.items()
            ]
        side = math.isqrt(layers[0][1].shape[1])
        whole = side if side**2 == layers[0][1].shape[1] else None
        continual_figures.importance(path.with_suffix(".png"), layers, whole)


if __name__ == "__main__":
    launch(ContinualConfig, run)
