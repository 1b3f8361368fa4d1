"""A memory cell fitted to measured conductance-versus-pulse data: `python -m experiments.fit_device pulses.csv`.

Fits every family of pulse models, chooses by an information criterion, and leaves in its folder a table, pictures
of curves, steps and residuals, and `fitted.json`: a cell that every experiment takes by path, for example
`python -m experiments.crossbar_mnist --cell runs/fit_device/.../fitted.json`. The format of the file is described in
experiments/pulse_csv.py, the method in experiments/fitting.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Literal

import tyro

import devices
from devices import MemoryCell, SoftBoundsPulses, StepPulses, WhiteReadNoise
from experiments import fit_figures, fitting
from experiments.common import Options, console, launch, print_table
from experiments.fitting import Fit
from experiments.pulse_csv import read_csv, write_csv
from experiments.pulse_data import PulseData, measure
from mep_sim.checkpoint import RunFolder


@dataclass(frozen=True)
class Config(Options):
    """Fit pulse models to a measurement."""

    csv: tyro.conf.Positional[Path | None] = None
    """The measurement: columns pulse, direction and conductance_uS (or another unit), perhaps device and cycle."""
    criterion: Literal["bic", "aicc"] = "bic"
    """What chooses between the families; aicc forgives parameters more."""
    branch: int | None = None
    """Pulses up before as many go down, for a file without the column direction; None: the highest reading tells."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.csv is None and not self.smoke:
            raise ValueError(
                "give the CSV file of a measurement, python -m experiments.fit_device pulses.csv, or --smoke, "
                "which simulates one"
            )
        if self.csv is None and self.branch is not None:
            raise ValueError(
                f"branch = {self.branch} without a file to count pulses in; give one, or leave it out"
            )
        if self.criterion not in ("bic", "aicc"):
            raise ValueError(f"criterion = {self.criterion!r}; choose bic or aicc")

    def identity(self) -> dict:
        """The options, and what the file holds: it can change under its name."""
        if self.csv is None:
            return super().identity()
        content = hashlib.sha256(self.csv.read_bytes()).hexdigest()
        return {**super().identity(), "csv": str(self.csv), "csv_sha256": content}


SIMULATED = MemoryCell(
    5e-6,
    65e-6,
    pulses=SoftBoundsPulses(steps=40, sigma_c2c=0.2, sigma_dtod=0.1, asymmetry=0.1),
    read_noise=WhiteReadNoise(0.002),
)
"""What --smoke measures, for want of a file."""
COLUMNS = {
    "family": "",
    "chosen": "",
    "rms (µS)": ".4g",
    "residuals' correlation": "+.2f",
    "k": "d",
    "ln L": ".1f",
    "BIC - best": ".1f",
    "AICc - best": ".1f",
}


def run(config: Config) -> dict[str, object]:
    """Fit, choose, draw and save; writes the run folder and returns its results: the table's rows and the cell."""
    if config.csv is None:
        data = measure(
            SIMULATED, pulses=40, cycles=2, devices=2, reads=2, seed=config.seed, name="simulation"
        )
    else:
        data = read_csv(config.csv, config.branch)
    fitting.check(data)
    folder = RunFolder.open(config.folder("fit_device"), config.identity(), config.resume)
    if config.csv is None:
        write_csv(data, folder.path / "simulated.csv")
    noise = fitting.read_noise(data)
    fits, failed = fitting.fit_all(data, noise)
    if not fits:
        raise ValueError(f"{data.name}: no family can be fitted: {failed}")
    chosen = fitting.best(fits, config.criterion)
    cell = fitting.memory_cell(chosen, data, noise, _source(chosen, data, config.criterion))
    path = folder.path / "fitted.json"
    devices.save(cell, path)
    rows = [_row(fit, fits, chosen) for fit in fits]
    notes = [*data.notes, *_notes(chosen, data, noise), *(f"{name}: {why}" for name, why in failed.items())]
    fit_figures.curves(folder.path / "curves.png", data, fits, chosen)
    fit_figures.steps(folder.path / "steps.png", data, fits, chosen)
    folder.finish({"rows": rows, "notes": notes, "source": cell.source})
    n = len(data.steps.before)
    print_table(f"{data.name}: {n} steps of {len(data.devices)} device(s)", rows, COLUMNS)
    for row in rows:
        console.print(f"{row['family']}: {row['parameters']}", soft_wrap=True)
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)
    console.print(f"{path}: use it by --cell {path}", soft_wrap=True)
    return {"rows": rows, "notes": notes, "cell": cell, "path": path}


def _source(chosen: Fit, data: PulseData, criterion: str) -> str:
    return (
        f"fitted to {data.name} by experiments.fit_device on {date.today().isoformat()}: {chosen.family}, "
        f"{len(data.devices)} device(s), {len(data.steps.before)} steps, lowest {criterion.upper()}"
    )


def _row(fit: Fit, fits: list[Fit], chosen: Fit) -> dict[str, object]:
    return {
        "family": fit.family,
        "chosen": "<-" if fit is chosen else "",
        "parameters": describe(fit.pulses) + f" window={1e6 * fit.g_min:.4g}..{1e6 * fit.g_max:.4g} µS",
        "rms (µS)": 1e6 * fit.rms,
        "residuals' correlation": fit.correlation,
        "k": fit.parameters,
        "ln L": fit.log_likelihood,
        "BIC - best": fit.bic - min(other.bic for other in fits),
        "AICc - best": fit.aicc - min(other.aicc for other in fits),
    }


def describe(pulses: StepPulses) -> str:
    """Its settings that are not at their default, shortly; tables are left to the preset file."""
    shown = []
    for field in fields(pulses):
        value = getattr(pulses, field.name)
        if value != field.default and not isinstance(value, tuple):
            shown.append(f"{field.name}={value if isinstance(value, str) else format(value, '.3g')}")
    return " ".join(shown)


def _notes(chosen: Fit, data: PulseData, noise: WhiteReadNoise | None) -> list[str]:
    """What the numbers do not say by themselves."""
    notes = []
    if noise is None:
        notes.append(
            "every state was read once, so that the preset has no read noise; repeated reads (the same pulse number "
            "again) tell it from cycle-to-cycle noise"
        )
        if chosen.noise:
            notes.append(
                f"besides cycle-to-cycle noise the steps show noise of {1e6 * chosen.noise:.3g} µS per reading"
            )
        if chosen.correlation < -0.2:
            notes.append(
                f"neighbouring residuals correlate by {chosen.correlation:.2f}: part of sigma_c2c is read noise"
            )
    if chosen.correlation > 0.2:
        notes.append(
            f"neighbouring residuals correlate by {chosen.correlation:.2f}: no family follows the data everywhere"
        )
    if chosen.at_limit:
        notes.append(f"at the limit of what is fitted: {', '.join(chosen.at_limit)}")
    if len(data.devices) > 1:
        notes.append(
            f"spreads from device to device come from {len(data.devices)} devices; that of their bounds is not fitted"
        )
    return notes


if __name__ == "__main__":
    launch(Config, run)
