"""Rows of a table over seeds, each compared with another row seed by seed.

A cell is one row at one seed. Each is kept in the run folder as soon as it is finished: --resume, with more rows or
seeds if need be, computes only what is missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Protocol

from scipy.stats import t as student

from experiments.common import Options, console, print_table
from experiments.executors import WorkerOptions, computed
from experiments.kept import Kept, Result
from experiments.recording import slug


class Row(Protocol):
    """A frozen dataclass of everything that decides a row's results."""

    reference: str | None
    """The row it is compared with, where that is computed too."""


# the result of a cell: the score, at most 1, "data", and the numbers that the columns show
Train = Callable[[str, Row, int, Options], Result]


@dataclass(frozen=True)
class SeedsOptions(WorkerOptions):
    """Options of every table over seeds."""

    rows: tuple[str, ...] = ()
    """Names of the rows to compute; all by default."""
    seeds: int = 5
    """How many seeds, counted from `seed`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1:
            raise ValueError(f"seeds = {self.seeds}; choose at least 1")

    def chosen(self, known: Mapping[str, Row]) -> dict[str, Row]:
        """The rows asked for."""
        if unknown := [name for name in self.rows if name not in known]:
            raise ValueError(f"unknown rows {unknown}; choose among {list(known)}")
        return {name: known[name] for name in self.rows or known}


@dataclass(frozen=True)
class TunedOptions(SeedsOptions):
    """And of tables whose rows have a learning rate `lr` each."""

    tune: tuple[float, ...] = ()
    """Factors on every row's learning rate to try, judged on what is held out of the training part."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for factor in self.tune:
            if not 0 < factor < math.inf:
                raise ValueError(f"factor {factor} to tune; choose finite factors > 0, such as 0.5 1 2")

    def tried(self, rows: Mapping[str, Row]) -> Mapping[str, Row]:
        """The rows, each once per factor where there are any to try."""
        if not self.tune:
            return rows
        rates = [(name, row, row.lr * factor) for name, row in rows.items() for factor in self.tune]
        return {f"{name}, lr {lr:g}": replace(row, lr=lr, reference=None) for name, row, lr in rates}


def tabulate(
    name: str,
    rows: Mapping[str, Row],
    train: Train,
    options: SeedsOptions,
    columns: Mapping[str, str],
    score: str = "accuracy",
) -> list[dict[str, object]]:
    """Compute what is missing of `rows`, print the table and return its rows, also kept in results.json.

    columns: what to show of a cell besides its score, with formats as of `print_table`; otherwise as `compute`.
    """
    folder = options.folder(name)
    results = compute(folder, rows, train, options, score)
    table = summarised(rows, results, columns, score)
    (folder / "results.json").write_text(json.dumps(table, indent=1))
    show(titled(results, options), table, columns, score)
    return table


def summarised(
    rows: Mapping[str, Row], results: Mapping[str, list[Result]], columns: Mapping[str, str], score: str
) -> list[dict[str, object]]:
    """The rows of the table: scores in per cent with their interval, differences paired by seed, means of `columns`."""
    return [_summarise(name, row.reference, results, columns, score) for name, row in rows.items()]


def show(title: str, table: list[dict[str, object]], columns: Mapping[str, str], score: str) -> None:
    """Print what `summarised` gives."""
    print_table(title, table, {**dict.fromkeys(("row", f"{score} %", "difference", "to"), ""), **columns})


def compute(
    folder: Path, rows: Mapping[str, Row], train: Train, options: SeedsOptions, score: str = "accuracy"
) -> dict[str, list[Result]]:
    """The results of every row, seed by seed; what `folder` has of them already is not computed again.

    train: a cell, as a function of a module, for other processes have to find it. score: what to say of a cell.
    """
    kept = Kept.open(folder, options.resume)
    seeds = range(options.seed, options.seed + options.seeds)
    names = {(row, seed): f"{slug(row)}-{seed}" for row in rows for seed in seeds}
    settings = {row: f"{rows[row]!r}, smoke = {options.smoke}" for row in rows}
    found = {cell: kept.load(file, settings[cell[0]]) for cell, file in names.items()}
    cells = {cell: result for cell, result in found.items() if result is not None}
    missing = {
        (row, seed): (row, rows[row], seed, options) for row, seed in names if (row, seed) not in cells
    }
    for count, (cell, future) in enumerate(computed(train, missing, options), start=1):
        result = cells[cell] = future.result()
        kept.save(names[cell], settings[cell[0]], result)
        console.print(f"{count}/{len(missing)}  {cell[0]}, seed {cell[1]}: {result[score]:.2%}")
    return {row: [cells[row, seed] for seed in seeds] for row in rows}


def titled(results: Mapping[str, list[Result]], options: SeedsOptions) -> str:
    """What the title of a table says: the data, the seeds, and what ± is."""
    source = next(iter(results.values()))[0]["data"]
    return f"{source}; seeds {options.seed}-{options.seed + options.seeds - 1}; ± is a 95 % interval"


def _summarise(
    name: str,
    reference: str | None,
    results: Mapping[str, list[Result]],
    columns: Mapping[str, str],
    score: str,
) -> dict[str, object]:
    cells, compared = results[name], reference in results
    scores = [100 * cell[score] for cell in cells]
    differences = []
    if compared:
        pairs = zip(scores, results[reference], strict=True)
        differences = [a - 100 * other[score] for a, other in pairs]
    return {
        "row": name,
        f"{score} %": interval(scores),
        "difference": interval(differences, "+") if compared else None,
        "to": reference if compared else None,
        **{column: fmean(cell[column] for cell in cells) for column in columns},
        "scores": scores,
        "differences": differences,
    }


def mean_and_half(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % Student interval of the mean, nan for a single value."""
    if len(values) < 2:
        return fmean(values), math.nan
    half = student.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values), float(half)


def interval(values: Sequence[float], sign: str = "") -> str:
    """`mean_and_half` in words."""
    mean, half = mean_and_half(values)
    return f"{mean:{sign}.2f}" if math.isnan(half) else f"{mean:{sign}.2f} ± {half:.2f}"
