"""The claims of the README as a table: rows of `crossbar_mnist` over several seeds, with paired intervals.

Every row trains on the same samples in the same order from the same initial weights, seed by seed. All settings were
chosen on the validation split; test accuracy is looked at here only. Finished cells are kept in the run folder, so
that --resume with more rows or seeds computes only what is missing.
"""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev

import torch
from scipy.stats import t as student

from experiments.common import Options, console, launch, print_table
from experiments.crossbar_mnist import Config, make_learners
from experiments.recording import slug


@dataclass(frozen=True)
class Row:
    """One line of the table: a configuration, which of its learners (0 the circuit by EP, 1 and 2 the digital
    baselines) and the row it is compared with."""

    config: Config
    learner: int = 0
    reference: str | None = None


IDEAL = Config(cell="none", solver="sweep")
CELLS = replace(IDEAL, cell="soft-bounds-6bit")
HOPFIELD = replace(IDEAL, circuit="hopfield", phases="centred", gamma=1.0, lr=0.03)
# what has not settled in 200 sweeps, ten times what is needed, will not
DEEP = replace(IDEAL, hidden=(256, 256), epochs=3, max_evaluations=200)

ROWS: dict[str, Row] = {
    "backprop, Adam": Row(IDEAL, 2),
    "backprop, same update": Row(IDEAL, 1, "backprop, Adam"),
    "EP one-sided": Row(IDEAL, 0, "backprop, same update"),
    "EP centred": Row(replace(IDEAL, phases="centred"), 0, "backprop, same update"),
    "one_sweep (is backprop)": Row(replace(IDEAL, phases="one_sweep"), 0, "backprop, same update"),
    "EP one-sided, ODE": Row(replace(IDEAL, solver="euler"), 0, "EP one-sided"),
    "6-bit cells": Row(CELLS, 0, "EP one-sided"),
    "6-bit cells, plain rounding": Row(replace(CELLS, write_residual=False), 0, "6-bit cells"),
    "6-bit cells, ODE (the default run)": Row(replace(CELLS, solver="euler"), 0, "6-bit cells"),
    "6-bit cells, independent reads": Row(replace(CELLS, independent_reads=True), 0, "6-bit cells"),
    "Hopfield, EP centred": Row(HOPFIELD, 0, "Hopfield, implicit gradient"),
    "Hopfield, implicit gradient": Row(HOPFIELD, 1),
    "2 hidden, relu held at s >= 0": Row(DEEP),
    "2 hidden, plain relu": Row(replace(DEEP, constrain=False), 0, "2 hidden, relu held at s >= 0"),
    "2 hidden, softplus": Row(replace(DEEP, activation="softplus"), 0, "2 hidden, relu held at s >= 0"),
    "2 hidden, gelu": Row(replace(DEEP, activation="gelu"), 0, "2 hidden, relu held at s >= 0"),
    "2 hidden, tanh": Row(replace(DEEP, activation="tanh"), 0, "2 hidden, relu held at s >= 0"),
}


@dataclass(frozen=True)
class SeedsConfig(Options):
    """Rows of the README's table over seeds."""

    rows: tuple[str, ...] = field(default_factory=lambda: tuple(ROWS))
    """Names of the rows to compute; all by default."""
    seeds: int = 5
    """Seeds 0 .. seeds - 1."""
    workers: int = 2
    """Processes, one thread each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.rows if name not in ROWS]
        if unknown:
            raise ValueError(f"unknown rows {unknown}; choose among {list(ROWS)}")
        if self.seeds < 1 or self.workers < 1:
            raise ValueError(f"seeds = {self.seeds}, workers = {self.workers}; choose at least 1 of each")


def train(name: str, seed: int, smoke: bool, device: str) -> dict[str, float]:
    """One cell of the table: train a row at a seed, return accuracies and the settling of the last epoch."""
    torch.set_num_threads(1)
    row = ROWS[name]
    config = replace(row.config, seed=seed, smoke=smoke, device=device).shrunk()
    data = config.data()
    learner = make_learners(config, data)[row.learner]
    for _ in range(config.epochs):
        for _ in learner.fit(data.train_x, data.train_y, (data.validation_x, data.validation_y)):
            pass
    pulses = math.nan if learner.chip is None else learner.chip.pulses_per_device
    seconds = sum(record["seconds"] for record in learner.history)
    test = learner.accuracy(data.test_x, data.test_y)
    return {**learner.history[-1], "test": test, "pulses": pulses, "seconds": seconds, "data": data.source}


def run(config: SeedsConfig) -> list[dict[str, object]]:
    """Compute what is missing, print the table, return its rows."""
    folder = config.folder("mnist_seeds")
    if folder.exists() and any(folder.iterdir()) and not config.resume:
        raise FileExistsError(f"{folder} is not empty; choose another --out, or --resume")
    folder.mkdir(parents=True, exist_ok=True)
    cells = {
        (name, seed): folder / f"{slug(name)}-{seed}.json"
        for name in config.rows
        for seed in range(config.seeds)
    }
    missing = [cell for cell, path in cells.items() if not path.exists()]
    # fork would copy torch's thread pool in an unusable state
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.workers, mp_context=context) as pool:
        futures = {pool.submit(train, *cell, config.smoke, config.device): cell for cell in missing}
        for count, done in enumerate(as_completed(futures), start=1):
            name, seed = futures[done]
            result = done.result()
            cells[name, seed].write_text(json.dumps(result, indent=1))
            console.print(
                f"{count}/{len(missing)}  {name}, seed {seed}: {result['test']:.2%}", highlight=False
            )
    results = {
        name: [json.loads(cells[name, s].read_text()) for s in range(config.seeds)] for name in config.rows
    }
    rows = [_summarise(name, results) for name in config.rows]
    (folder / "results.json").write_text(json.dumps(rows, indent=1))
    print_table(
        f"{results[config.rows[0]][0]['data']}; seeds 0-{config.seeds - 1}; ± is a 95 % interval",
        rows,
        COLUMNS,
    )
    return rows


COLUMNS = {
    "row": "",
    "test accuracy %": "",
    "difference": "",
    "to": "",
    "nudged residual": ".1e",
    "settled": ".2%",
    "evaluations": ".1f",
    "pulses/device": ".1f",
    "seconds": ".0f",
}


def _summarise(name: str, results: dict[str, list[dict]]) -> dict[str, object]:
    cells, reference = results[name], ROWS[name].reference
    test = [100 * cell["test"] for cell in cells]
    compared = reference in results
    differences = (
        [a - 100 * b["test"] for a, b in zip(test, results[reference], strict=True)] if compared else []
    )
    return {
        "row": name,
        "test accuracy %": interval(test),
        "difference": interval(differences, "+") if compared else None,
        "to": reference if compared else None,
        "nudged residual": fmean(cell["nudged_residual"] for cell in cells),
        "settled": fmean(cell["settled"] for cell in cells),
        "evaluations": fmean(cell["evaluations"] for cell in cells),
        "pulses/device": fmean(cell["pulses"] for cell in cells),
        "seconds": fmean(cell["seconds"] for cell in cells),
        "test": test,
        "differences": differences,
    }


def interval(values: Sequence[float], sign: str = "") -> str:
    """Mean and half-width of the 95 % Student interval of the mean."""
    if len(values) < 2:
        return f"{fmean(values):{sign}.2f}"
    half = student.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return f"{fmean(values):{sign}.2f} ± {half:.2f}"


if __name__ == "__main__":
    launch(SeedsConfig, run)
