"""Runs ngspice, the judge of what a circuit settles to: a netlist in, voltages out, its complaints as errors."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from circuits.netlist import (
    CCCS,
    GROUND,
    Element,
    Netlist,
    OperatingPoint,
    TransientAnalysis,
    VoltageSource,
    number,
    write,
)
from circuits.rawfiles import Solution, read_raw

CELSIUS = 27.0
_TEMPERATURE = {"temp": CELSIUS, "tnom": CELSIUS}
DEFAULT = MappingProxyType(_TEMPERATURE)
"""ngspice's own tolerances (relative 1e-3, 1 uV, 1 pA, gmin 1 pS), at 27 degrees Celsius."""
TIGHT = MappingProxyType({"reltol": 1e-9, "vntol": 1e-12, "abstol": 1e-15, "gmin": 1e-15, **_TEMPERATURE})
"""For comparing voltages to 1e-7 V and better."""

SAMPLES_PER_RUN = 1000  # of a replay: ngspice reads a table in a time quadratic in its length


class NgspiceError(RuntimeError):
    """ngspice is missing, took too long, or gave up; the message holds what it said."""


def thermal_volts(celsius: float = CELSIUS) -> float:
    """kT/q in volts with the constants of ngspice 39, which are not those of the SI of 2019 (3e-7 apart)."""
    return 1.38064852e-23 * (celsius + 273.15) / 1.6021766208e-19


def available() -> bool:
    return shutil.which("ngspice") is not None


def version() -> str:
    """Such as "39". Raises NgspiceError where it is missing."""
    match = re.search(r"ngspice-(\S+)", _call(["--version"], None, timeout_s=60.0))
    return match[1] if match else "unknown"


def run(netlist: Netlist, timeout_s: float = 600.0) -> Solution:
    """What ngspice finds for a netlist: one row of an operating point, or the points of a transient.

    Raises NgspiceError if it is missing, fails, does not converge, or takes more than `timeout_s`.
    """
    with tempfile.TemporaryDirectory(prefix="ngspice-") as folder:
        deck, raw = Path(folder, "deck.cir"), Path(folder, "out.raw")
        deck.write_text(write(netlist))
        # -n: a user's .spiceinit must not change what is found
        log = _call(["-n", "-b", "-r", str(raw), str(deck)], folder, timeout_s)
        # without convergence it exits with 0 all the same, leaving no file, an empty one, or half a transient
        if re.search(r"(?im)^\s*(doAnalyses:|run simulation\(s\) aborted|simulation interrupted)", log):
            raise NgspiceError(f"ngspice gave up:\n{_complaints(log)}")
        solutions = read_raw(raw) if raw.exists() else []
    if len(solutions) != 1 or not len(solutions[0].values):
        raise NgspiceError(f"ngspice left no solution:\n{_complaints(log)}")
    (solution,) = solutions
    if isinstance(netlist.analysis, TransientAnalysis):
        reached, stop = solution.seconds[-1], netlist.analysis.stop_seconds
        if reached < stop * (1 - 1e-9):
            raise NgspiceError(f"ngspice stopped at {reached} s of {stop} s:\n{_complaints(log)}")
    elapsed = re.search(r"Total analysis time \(seconds\) = (\S+)", log)
    return replace(solution, analysis_seconds=float(elapsed[1]) if elapsed else float("nan"))


def _call(arguments: list[str], folder: str | None, timeout_s: float) -> str:
    """All that ngspice prints."""
    try:
        done = subprocess.run(
            ["ngspice", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            timeout=timeout_s,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise NgspiceError(
            "there is no program `ngspice` on the PATH; install it with `apt-get install ngspice` (Debian, Ubuntu) "
            "or `brew install ngspice` (macOS), or from https://ngspice.sourceforge.io/download.html"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise NgspiceError(f"ngspice took more than timeout_s = {timeout_s}; allow it more") from error
    if done.returncode != 0:
        raise NgspiceError(f"ngspice exited with {done.returncode}:\n{_complaints(done.stdout)}")
    return done.stdout


def _complaints(log: str) -> str:
    """The lines of a log that say what went wrong, or its last ones."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [
        line for line in lines if re.search(r"(?i)error|doAnalyses|singular|trouble|abort|failed -", line)
    ]
    return "\n".join((telling or lines)[-20:]) or "(it said nothing)"


@dataclass(frozen=True)
class _TableSource(Element):
    """A voltage that follows a table over the voltage of the index node: volts[i] at i volts."""

    plus: str
    minus: str
    index: str
    volts: tuple[float, ...]
    letter = "b"
    node_fields = ("plus", "minus")

    @property
    def tail(self) -> tuple[str, ...]:
        points = ", ".join(f"{row}, {number(volts)}" for row, volts in enumerate(self.volts))
        return (f"V=pwl(v({self.index}), {points})",)


@dataclass(frozen=True)
class _IndexSweep:
    """The operating points at 0, 1, ... count - 1 volts of the index source."""

    source: str
    count: int

    @property
    def card(self) -> str:
        return f".dc {self.source} 0 {self.count - 1} 1"


def replay(netlist: Netlist, sources: Sequence[str], volts: ArrayLike, timeout_s: float = 600.0) -> Solution:
    """The operating points of one circuit for many settings of its voltage sources, each with its own row.

    sources: n names of voltage sources of the circuit itself, not within a subcircuit; volts (S, n): a row for
    each operating point. All are found by one sweep over an index, which the sources follow by tables: each
    search starts from the solution before, and nothing is read twice.
    """
    rows = np.asarray(volts, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != len(sources) or not len(rows) or not np.isfinite(rows).all():
        raise ValueError(
            f"volts {rows.shape}; give finite (S >= 1, {len(sources)}), a column for each source"
        )
    parts = [
        run(_swept(netlist, sources, rows[first : first + SAMPLES_PER_RUN]), timeout_s)
        for first in range(0, len(rows), SAMPLES_PER_RUN)
    ]
    return Solution(
        parts[0].plot,
        parts[0].names,
        np.concatenate([part.values for part in parts]),
        sum(part.analysis_seconds for part in parts),
    )


def _swept(netlist: Netlist, sources: Sequence[str], rows: NDArray[np.float64]) -> Netlist:
    """The netlist whose one analysis finds all rows."""
    if not isinstance(netlist.analysis, OperatingPoint):
        raise ValueError(
            "a replay repeats an operating point; give the netlist the analysis OperatingPoint()"
        )
    columns = {name.lower(): column for column, name in enumerate(sources)}
    driven = frozenset(columns)
    if len(driven) < len(sources):
        raise ValueError(f"sources {tuple(sources)}: one is named twice")
    index = _free_name(netlist)
    elements: list[Element] = [VoltageSource(index, index, GROUND, 0.0)]
    for element in netlist.elements:
        if isinstance(element, CCCS) and element.source in driven:
            raise ValueError(
                f"{element.name} measures {element.source}; measure by a source of 0 V in series"
            )
        if isinstance(element, VoltageSource) and element.name in columns:
            table = rows[:, columns.pop(element.name)].tolist()
            table += table * (len(table) == 1)  # ngspice finds no solution with a table of one point
            elements.append(_TableSource(element.name, element.plus, element.minus, index, tuple(table)))
        else:
            elements.append(element)
    if columns:
        raise ValueError(f"no voltage source {', '.join(columns)} in the circuit itself")
    return replace(netlist, elements=tuple(elements), analysis=_IndexSweep(elements[0].name, len(rows)))


def _free_name(netlist: Netlist) -> str:
    """A name for the index that neither a node nor a source has."""
    taken = {name for element in netlist.elements for name in (element.name, *element.nodes)}
    name = "vindex"
    while name in taken:
        name += "_"
    return name
