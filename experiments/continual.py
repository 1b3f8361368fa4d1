"""Who learns task after task and forgets the least: EWC and its peers beside local rules that know of no task.

Streams of MNIST (digits offline): a permutation of the pixels per task, a gradual turn, or class after class. Every row
learns the same samples in the same order from the same initial weights, seed by seed. Settings were chosen by a grid
search, as large for each method, on a validation split; `--tune` does it again. The run folder holds results.json (with
grid, choices and accuracy matrices) and pictures.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import h5py
import numpy as np
import torch

from experiments import continual_figures
from experiments.common import console, launch
from experiments.continual_methods import CHOSEN, GRIDS, Method, cheaply, methods, waiting
from experiments.continual_runs import Row, Stream, train
from experiments.seeds import Result, SeedsOptions, compute, show, summarised, titled
from mep_sim.continual import AccuracyMatrix
from mep_sim.data import load
from mep_sim.optimizers.strategies.update import check_choice

KINDS = ("permuted", "rotated", "split_class", "split_task")
TUNING_SEED = 1000  # of other weights, permutations and splits than any row of the table has
PANELS = 5  # accuracy matrices drawn, of the best
USUAL_SAMPLES = 10_000


@dataclass(frozen=True)
class ContinualConfig(SeedsOptions):
    """Methods on a stream of tasks, over seeds."""

    stream: str = "permuted"
    """permuted (a fixed permutation of all pixels per task), rotated (a gradual turn by 180 degrees, of which no task's
    beginning can be told), split_class or split_task (the classes divided; the latter is told which are asked for)."""
    tasks: int | None = None
    """How many tasks; None takes 10, or 5 of a split."""
    samples: int | None = None
    """Training samples of each task, of a split stream of all; None takes 10,000, or all of a smaller dataset."""
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
    """The whole table in minutes: three tasks, two passes, one seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("stream", self.stream, KINDS)
        for name in ("tasks", "samples", "epochs", "batch_size", "tune", "longest"):
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
        return replace(self, tasks=tasks, epochs=2, seeds=1)

    def patient(self, method: Method) -> Method:
        return method if self.longest is None else waiting(method, self.longest)

    def learned(self, samples: int) -> Stream:
        tasks = self.tasks or (5 if self.stream.startswith("split") else 10)
        sizes = (self.epochs, self.batch_size, self.hidden)
        return Stream(self.stream, tasks, samples, *sizes, self.dataset)

    def usual_samples(self) -> int:
        """As many as there are, up to what is usual."""
        return min(USUAL_SAMPLES, len(load(self.dataset, validation=0, seed=self.seed).train_y))


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
    stream = config.learned(config.samples or config.usual_samples())
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
