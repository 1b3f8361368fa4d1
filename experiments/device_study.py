"""Which memory cells can learn: devices x bits x read noise x spread x update rule x seeds.

At every point of the grid 784-256-10 learns MNIST by EP on a chip of such cells; beside it, seed by seed, the same
network learns by backprop with the same update and exact weights. Points are computed by processes of this machine or
by a Dask cluster and kept one by one: --resume computes what is missing or has failed. The run folder holds runs.csv
and runs.h5 (one row per run), summary.csv (means over seeds with 95 % intervals) and figures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean

import devices
from experiments import study_figures
from experiments.common import console, launch, print_table
from experiments.crossbar_mnist import Config, make_learners
from experiments.executors import WorkerOptions, computed
from experiments.kept import Kept, Result
from experiments.learner import Learner
from experiments.mnist_seeds import trained
from experiments.recording import slug
from experiments.seeds import interval, mean_and_half
from experiments.tidy import Column, write_csv, write_hdf5
from mep_sim.data import Dataset

DIGITAL = "digital"  # stands in the column of devices for exact weights that learn by backprop


# -- update rules on the chip -------------------------------------------------------------------------


def on_chip(config: Config, data: Dataset) -> Learner:
    """EP, its steps written by pulses as `config` says."""
    return make_learners(config, data)[0]


def in_exact_arithmetic(config: Config, data: Dataset) -> Learner:
    """Backprop with the update of `config`."""
    return make_learners(config, data)[1]


@dataclass(frozen=True)
class Rule:
    """How the chip learns. settings: fields of `crossbar_mnist.Config`. reference: the rule of DIGITAL_RULES it is
    compared with. learner: makes the learner, a function of a module."""

    settings: Mapping[str, object]
    reference: str
    learner: Callable[[Config, Dataset], Learner] = on_chip


RULES: dict[str, Rule] = {
    update if write == "residual" else f"{update}-{write}": Rule({"update": update, "write": write}, update)
    for update in ("muon", "plain")
    for write in ("residual", "rounded", "stochastic", "mixed_precision", "tiki_taka")
}
RULES["trains"] = Rule({"update": "plain", "write": "trains", "momentum": 0.0, "gamma": 0.0}, "plain")
DIGITAL_RULES: dict[str, Rule] = {
    name: Rule({"update": name, "cell": "none"}, name, in_exact_arithmetic) for name in ("muon", "plain")
}


# -- the grid -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A point of the grid: one run. None leaves what the device has of its own."""

    device: str
    bits: int | None
    read_noise: float | None
    spread: float | None
    update: str
    seed: int

    @property
    def is_digital(self) -> bool:
        return self.device == DIGITAL

    @property
    def rule(self) -> Rule:
        return (DIGITAL_RULES if self.is_digital else RULES)[self.update]

    @property
    def reference(self) -> Point:
        """Its digital run."""
        return Point(DIGITAL, None, None, None, self.rule.reference, self.seed)

    @property
    def variant(self) -> Point:
        """What is the same over seeds."""
        return dataclasses.replace(self, seed=0)

    @property
    def name(self) -> str:
        """In words."""
        parts = [Path(self.device).stem if self.device.endswith(".json") else self.device]
        parts += [f"{self.bits} bits"] if self.bits is not None else []
        parts += [f"{self.read_noise:.4g} read noise"] if self.read_noise is not None else []
        parts += [f"{self.spread:.4g} spread"] if self.spread is not None else []
        return ", ".join([*parts, self.update])

    @property
    def file(self) -> str:
        """Name of the file of its result: readable, and unlike that of any other point."""
        return f"{slug(self.name)}-{self.seed}-{hashlib.sha256(repr(self).encode()).hexdigest()[:8]}"

    def cell(self) -> devices.Device | None:
        """The memory cell; ValueError where the device has no such property to set."""
        if self.is_digital:
            return None
        cell = Config(cell=self.device, bits=self.bits, read_noise=self.read_noise).memory_cell()
        return cell if self.spread is None else with_spread(cell, self.spread)


def with_spread(cell: devices.Device, spread: float) -> devices.Device:
    """The same device with another device-to-device spread of its pulses' step."""
    pulses = getattr(cell, "pulses", None)
    if not isinstance(pulses, devices.StepPulses):
        raise ValueError(
            f"spread = {spread} means nothing to a cell with pulses = {pulses!r}: no step to spread"
        )
    return dataclasses.replace(cell, pulses=dataclasses.replace(pulses, sigma_dtod=spread))


@dataclass(frozen=True)
class OnCell(Config):
    """`crossbar_mnist` on this very memory cell, of which `cell` is only the name."""

    memory: devices.Device | None = None

    def memory_cell(self) -> devices.Device | None:
        return self.memory


@dataclass(frozen=True)
class StudyConfig(WorkerOptions):
    """A grid of devices, resolutions, noises, spreads and update rules over seeds."""

    devices: tuple[str, ...] = ("all",)
    """Presets' names or device files (.json); all is every preset."""
    bits: tuple[int | None, ...] = (None,)
    """Resolutions, as powers of two; None is the device's own."""
    read_noise: tuple[float | None, ...] = (None,)
    """Standard deviations of a read over the conductance window; None is the device's own."""
    spread: tuple[float | None, ...] = (None,)
    """Device-to-device spreads of the step of a pulse, relative; None is the device's own."""
    updates: tuple[str, ...] = ("muon",)
    """Update rules on the chip: muon and plain, written with the residual, or, after a dash, as `--write` of
    crossbar_mnist calls it (muon-stochastic, plain-tiki_taka, ...); and trains."""
    seeds: int = 3
    """How many seeds, counted from `seed`."""
    dataset: str = "auto"
    """mnist, digits, or auto: MNIST where it can be had, else scikit-learn's digits."""
    samples: int | None = None
    """Training samples; None takes 10,000, or all of a smaller dataset."""
    epochs: int = 10
    """Passes over the training samples."""
    hidden: tuple[int, ...] = (256,)
    """Sizes of the hidden layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1:
            raise ValueError(f"seeds = {self.seeds}; choose at least 1")
        for axis in ("devices", "bits", "read_noise", "spread", "updates"):
            values = getattr(self, axis)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{axis} = {values}; choose at least one, and each once")
        for axis, low, high in (("bits", 1, 16), ("read_noise", 0, 1), ("spread", 0, 2)):
            for value in getattr(self, axis):
                if value is not None and not low <= value <= high:
                    raise ValueError(f"{axis} = {value}; choose {low} <= {axis} <= {high}, or None")
        if unknown := [name for name in self.updates if name not in RULES]:
            raise ValueError(f"unknown updates {unknown}; choose among {', '.join(RULES)}")
        for name in self.technologies:
            devices.resolve(name)
        self.base()  # checks samples and epochs

    @property
    def technologies(self) -> tuple[str, ...]:
        """The devices by name, `all` spelled out."""
        presets = devices.preset_names() if "all" in self.devices else ()
        return tuple(dict.fromkeys((*presets, *(name for name in self.devices if name != "all"))))

    def base(self) -> OnCell:
        """What all runs share."""
        shared = ("smoke", "device", "dataset", "samples", "epochs", "hidden")
        return OnCell(solver="sweep", **{name: getattr(self, name) for name in shared})

    def points(self) -> list[Point]:
        """The digital runs, then those on chips."""
        seeds = range(self.seed, self.seed + self.seeds)
        axes = (self.technologies, self.bits, self.read_noise, self.spread, self.updates, seeds)
        chips = [Point(*values) for values in product(*axes)]
        return [*dict.fromkeys(point.reference for point in chips), *chips]

    def task(self, point: Point) -> OnCell:
        """Everything that decides the run at a point; ValueError where its device has no such property."""
        cell = point.cell()
        named = {"cell": point.device, "memory": cell, "seed": point.seed}
        return dataclasses.replace(self.base(), **{**named, **point.rule.settings}).shrunk()


# -- one run ------------------------------------------------------------------------------------------

DONE, FAILED, SKIPPED = "done", "failed", "skipped"

Train = Callable[[Point, OnCell], Result]


def train(point: Point, config: OnCell) -> Result:
    """Train at one point; the numbers of `mnist_seeds.trained`."""
    data = config.data()
    return trained(point.rule.learner(config, data), data)


def attempt(train: Train, point: Point, config: OnCell) -> Result:
    """The result of `train`, or why there is none: one point that fails is no reason to stop the others."""
    try:
        return {"status": DONE, **train(point, config)}
    except Exception as error:
        return {"status": FAILED, "error": _words(error), "traceback": traceback.format_exc()}


def _words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


# -- the tables ---------------------------------------------------------------------------------------

COLUMNS: dict[str, Column] = {
    "device": Column("", "memory cell: a preset or a device file; digital for exact weights and backprop"),
    "bits": Column("1", "resolution asked for, as a power of two; nan for the device's own"),
    "read_noise": Column("1", "read noise asked for, over the conductance window; nan for the device's own"),
    "spread": Column("1", "device-to-device spread of the step asked for; nan for the device's own"),
    "update": Column("", "update rule"),
    "seed": Column("1", "seed of weights, cells, noise and order of samples"),
    "accuracy": Column("1", "test accuracy"),
    "validation": Column("1", "validation accuracy after the last epoch"),
    "digital_accuracy": Column("1", "test accuracy of the digital run of this update and seed"),
    "difference": Column("1", "accuracy - digital_accuracy"),
    "steps": Column("1", "nominal pulses across the conductance window; nan for cells that are programmed"),
    "pulses": Column("1", "mean pulses per memory cell; of cells without, direct writes"),
    "energy": Column("J", "energy of the memory cells; nan where the device does not state it"),
    "settled": Column("1", "share of samples settled in all phases, last epoch"),
    "seconds": Column("s", "time to train"),
    "data": Column("", "what was learned from"),
    "status": Column("", "done, failed, or skipped: the device has no such property"),
    "error": Column("", "why a run is not done"),
}
SUMMARY: dict[str, Column] = {
    **{name: COLUMNS[name] for name in ("device", "bits", "read_noise", "spread", "update")},
    "runs": Column("1", "seeds that are done"),
    "missing": Column("1", "seeds that failed or were skipped"),
    "accuracy": Column("1", "mean test accuracy"),
    "accuracy_half": Column("1", "half-width of its 95 % Student interval"),
    "digital_accuracy": Column("1", "mean test accuracy of the digital runs of all seeds that are done"),
    "difference": Column("1", "mean difference to the digital runs, paired by seed"),
    "difference_half": Column("1", "half-width of its 95 % Student interval"),
    **{name: COLUMNS[name] for name in ("steps", "pulses", "energy", "settled", "seconds")},
}
AVERAGED = ("digital_accuracy", "steps", "pulses", "energy", "settled", "seconds")


def row_of(point: Point, result: Result, reference: Result | None) -> dict[str, object]:
    """The row of a run in the tidy table; reference: the result of its digital run."""
    row = {**dataclasses.asdict(point), **{name: result.get(name) for name in COLUMNS if name in result}}
    if result["status"] == SKIPPED:
        return row
    cell = point.cell()
    if cell is not None:
        row["pulses"] = result.get("pulses/device")
        if cell.step_siemens is not None:
            row["steps"] = cell.window.span / cell.step_siemens
    if reference is not None and reference["status"] == DONE:
        row["digital_accuracy"] = reference["accuracy"]
        if result["status"] == DONE and not point.is_digital:
            row["difference"] = result["accuracy"] - reference["accuracy"]
    return row


def summarise(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Means over seeds, as SUMMARY has them, most accurate first; what has no run that is done comes last."""
    variants: dict[tuple, list[dict[str, object]]] = {}
    axes = ("device", "bits", "read_noise", "spread", "update")
    for row in rows:
        variants.setdefault(tuple(row[axis] for axis in axes), []).append(row)
    table = []
    for variant, runs in variants.items():
        done = [run for run in runs if run["status"] == DONE]
        line = {**dict(zip(axes, variant, strict=True)), "runs": len(done), "missing": len(runs) - len(done)}
        for name in ("accuracy", "difference"):
            if values := _known(done, name):
                line[name], line[f"{name}_half"] = mean_and_half(values)
        for name in AVERAGED:
            if values := _known(done, name):
                line[name] = fmean(values)
        line["accuracy %"], line["difference %"] = (
            _percent(done, "accuracy"),
            _percent(done, "difference", "+"),
        )
        table.append(line)
    return sorted(table, key=lambda line: -line.get("accuracy", -math.inf))


def _known(runs: list[dict[str, object]], name: str) -> list[float]:
    values = (run.get(name) for run in runs)
    return [value for value in values if value is not None and not math.isnan(value)]


def _percent(runs: list[dict[str, object]], name: str, sign: str = "") -> str | None:
    values = [100 * value for value in _known(runs, name)]
    return interval(values, sign) if values else None


# -- the study ----------------------------------------------------------------------------------------


def run(config: StudyConfig, train: Train = train) -> list[dict[str, object]]:
    """Compute what is missing, write tables and figures, return the tidy table.

    train: a run at one point, as a function of a module, for other processes have to find it.
    """
    data = config.base().data()
    config = dataclasses.replace(config, dataset=data.name)  # workers, too, learn what auto has found here
    kept = Kept.open(config.folder("device_study"), config.resume)
    results: dict[Point, Result] = {}
    jobs: dict[Point, tuple] = {}
    for point in config.points():
        try:
            task = config.task(point)
        except ValueError as error:
            results[point] = {"status": SKIPPED, "error": str(error)}
            continue
        if (found := kept.load(point.file, _settings(point, task))) is None:
            jobs[point] = (train, point, task)
        else:
            results[point] = found
    console.print(f"data: {data.source}; {len(jobs)} runs to compute, {len(results)} known", soft_wrap=True)
    for count, (point, future) in enumerate(computed(attempt, jobs, config), start=1):
        result = results[point] = _outcome(future)
        if result["status"] == DONE:
            kept.save(point.file, _settings(*jobs[point][1:]), result)
        said = f"{result['accuracy']:.2%}" if result["status"] == DONE else f"failed: {result['error']}"
        console.print(f"{count}/{len(jobs)}  {point.name}, seed {point.seed}: {said}", soft_wrap=True)
    return _report(config, kept.folder, {point: results[point] for point in config.points()}, data.source)


def _settings(point: Point, task: OnCell) -> str:
    """What a kept result must share: update rule, network, training, and the settings of the cell itself."""
    return f"{point.update}: {task!r}"


def _outcome(future: Future) -> Result:
    error = future.exception()  # here only where the worker was lost, or could not hand back what it found
    return future.result() if error is None else {"status": FAILED, "error": _words(error)}


def _report(
    config: StudyConfig, folder: Path, results: Mapping[Point, Result], source: str
) -> list[dict[str, object]]:
    """Write and print what is known."""
    rows = [row_of(point, result, results.get(point.reference)) for point, result in results.items()]
    summary = summarise(rows)
    write_csv(folder / "runs.csv", rows, COLUMNS)
    settings = json.dumps(config.identity(), default=str)
    write_hdf5(folder / "runs.h5", rows, COLUMNS, config=settings, source=source)
    write_csv(folder / "summary.csv", summary, SUMMARY)
    study_figures.draw(folder, summary)
    seeds = f"seeds {config.seed}-{config.seed + config.seeds - 1}"
    shown = [line for line in summary if line["runs"]]
    print_table(f"{source}; {seeds}; ± is a 95 % interval", shown, PRINTED)
    _report_failures(folder, results)
    (folder / "results.json").write_text(json.dumps(summary, indent=1))
    console.print(f"runs.csv, runs.h5, summary.csv and figures are in {folder}", soft_wrap=True)
    return rows


PRINTED = {
    "device": "",
    "bits": "",
    "read_noise": "",
    "spread": "",
    "update": "",
    "runs": "",
    "accuracy %": "",
    "difference %": "",
    "pulses": ".1f",
    "energy": ".2e",
    "settled": ".1%",
    "seconds": ".0f",
}


def _report_failures(folder: Path, results: Mapping[Point, Result]) -> None:
    """Say what is not there and why, once for each device and reason; tracebacks go into failures.txt."""
    missing = {point: result for point, result in results.items() if result["status"] != DONE}
    reasons = Counter((r["status"], point.device, r["error"]) for point, r in missing.items())
    for (status, device, error), count in reasons.items():
        console.print(f"{status}: {device}, {count} runs: {error}", soft_wrap=True)
    failed = {point: result for point, result in missing.items() if result["status"] == FAILED}
    file = folder / "failures.txt"
    if not failed:
        file.unlink(missing_ok=True)
        return
    texts = [f"{p.name}, seed {p.seed}\n{r.get('traceback', r['error'])}" for p, r in failed.items()]
    file.write_text("\n".join(texts))
    console.print(f"{len(failed)} runs failed, see {file}; --resume tries them again", soft_wrap=True)


if __name__ == "__main__":
    launch(StudyConfig, run)
