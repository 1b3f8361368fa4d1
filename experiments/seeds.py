"""Rows of a table over seeds, each compared with another row seed by seed.

A cell is one row at one seed. Each is kept in the run folder as soon as it is finished: --resume, with more rows or
seeds if need be, computes only what is missing.
"""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Protocol

import torch
from scipy.stats import t as student

from experiments.common import Options, console, print_table
from experiments.recording import slug

Result = dict[str, object]  # of a cell: the score, at most 1, "data", and the numbers that the columns show


class Row(Protocol):
    """A frozen dataclass of everything that decides a row's results."""

    reference: str | None
    """The row it is compared with, where that is computed too."""


Train = Callable[[str, Row, int, Options], Result]


@dataclass(frozen=True)
class SeedsOptions(Options):
    """Options of every table over seeds."""

    rows: tuple[str, ...] = ()
    """Names of the rows to compute; all by default."""
    seeds: int = 5
    """How many seeds, counted from `seed`."""
    workers: int = 2
    """Processes, `threads` threads each; 1 is this process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1 or self.workers < 1:
            raise ValueError(f"seeds = {self.seeds}, workers = {self.workers}; choose at least 1 of each")

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

    name: of the experiment. train: a cell, as a function of a module, for other processes have to find it.
    columns: what to show of a cell besides its score, with formats as of `print_table`.
    """
    folder = options.folder(name)
    if folder.exists() and any(folder.iterdir()) and not options.resume:
        raise FileExistsError(f"{folder} is not empty; choose another --out, or --resume")
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(options.seed, options.seed + options.seeds)
    files = {(row, seed): folder / f"{slug(row)}-{seed}.json" for row in rows for seed in seeds}
    settings = {row: f"{rows[row]!r}, smoke = {options.smoke}" for row in rows}
    cells = {cell: _kept(file, settings[cell[0]]) for cell, file in files.items() if file.exists()}
    missing = [cell for cell in files if cell not in cells]
    for count, (cell, result) in enumerate(_computed(missing, rows, train, options), start=1):
        cells[cell] = result
        files[cell].write_text(json.dumps({"settings": settings[cell[0]], **result}, indent=1))
        console.print(f"{count}/{len(missing)}  {cell[0]}, seed {cell[1]}: {result[score]:.2%}")
    results = {row: [cells[row, seed] for seed in seeds] for row in rows}
    table = [_summarise(row, rows[row].reference, results, columns, score) for row in rows]
    (folder / "results.json").write_text(json.dumps(table, indent=1))
    source = next(iter(cells.values()))["data"]
    title = f"{source}; seeds {seeds[0]}-{seeds[-1]}; ± is a 95 % interval"
    print_table(title, table, {**dict.fromkeys(("row", f"{score} %", "difference", "to"), ""), **columns})
    return table


def _computed(
    cells: Sequence[tuple[str, int]], rows: Mapping[str, Row], train: Train, options: SeedsOptions
) -> Iterator[tuple[tuple[str, int], Result]]:
    """Cells and their results as they are finished; a single worker is this process."""
    if options.workers == 1:
        for row, seed in cells:
            yield (row, seed), train(row, rows[row], seed, options)
        return
    # fork would copy torch's thread pool in an unusable state
    pool = ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn"))
    try:
        futures = {
            pool.submit(_compute, train, row, rows[row], seed, options): (row, seed) for row, seed in cells
        }
        for done in as_completed(futures):
            yield futures[done], done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _compute(train: Train, name: str, row: Row, seed: int, options: SeedsOptions) -> Result:
    torch.set_num_threads(options.threads)
    return train(name, row, seed, options)


def _kept(file: Path, settings: str) -> Result:
    """A cell of an earlier run, which must be of the same settings."""
    cell = json.loads(file.read_text())
    if cell.pop("settings", None) != settings:
        raise ValueError(f"{file} was computed with other settings; remove it, or choose another --out")
    return cell


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


def interval(values: Sequence[float], sign: str = "") -> str:
    """Mean and half-width of the 95 % Student interval of the mean."""
    if len(values) < 2:
        return f"{fmean(values):{sign}.2f}"
    half = student.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return f"{fmean(values):{sign}.2f} ± {half:.2f}"
