"""Conductance-versus-pulse measurements as CSV files.

    pulse,direction,conductance_uS
    0,0,1.02
    1,up,2.61
    2,up,3.94
    ...

One row is one reading, taken after the pulse of that number. Lines that begin with # and blank lines are skipped;
columns are separated by comma, semicolon or tab, numbers have a decimal point.

pulse        whole number, one more from pulse to pulse; the same number again is a repeated read of the same state
conductance_siemens, conductance_mS, conductance_uS, conductance_nS, resistance_ohm, resistance_kohm, resistance_Mohm
             exactly one of them
direction    of that pulse: 1 or up, -1 or down; 0 for a first reading before any pulse. Without this column either
             `branch` pulses up and as many down take turns, counted from pulse 1, or every cycle rises to its highest
             reading and falls from there
device       optional, any label: several devices give the spread between them
cycle        optional, any label; numbers of pulses may go on or begin anew with a cycle (then the step in between is
             unknown). Without it, a cycle begins where up follows down
"""

from __future__ import annotations

import csv
import difflib
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.pulse_data import PulseData, cycles_of

UNITS = {  # column: (siemens or ohm in one unit, whether it is a resistance)
    "conductance_siemens": (1.0, False),
    "conductance_mS": (1e-3, False),
    "conductance_uS": (1e-6, False),
    "conductance_nS": (1e-9, False),
    "resistance_ohm": (1.0, True),
    "resistance_kohm": (1e3, True),
    "resistance_Mohm": (1e6, True),
}
DIRECTIONS = {"1": 1, "+1": 1, "up": 1, "-1": -1, "down": -1, "0": 0}
USUAL = (1e-10, 1e-2)  # siemens: memory cells lie between 10 GOhm and 100 Ohm
_OPTIONAL = ("direction", "device", "cycle")


@dataclass
class _Row:
    line: int
    pulse: int
    conductance: float
    direction: int | None
    device: str
    cycle: str


def read_csv(path: str | Path, branch: int | None = None) -> PulseData:
    """The measurement in a file of the format above.

    branch  pulses of one direction before the other has its turn, where the file has no column `direction`; 1 or more

    OSError: no such file. ValueError names the file and the line: missing, doubled or ambiguous columns, empty or
    non-numeric cells, negative conductance, gaps between pulses, directions that cannot be told, conductances above
    1 S. Conductances that no memory cell has, and columns that are not used, make a note.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        return _parse(path.name, lines, branch)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error}). Export it as CSV.") from error
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from error


def write_csv(data: PulseData, path: str | Path) -> None:
    """Write the means of `data` to `path`, in siemens; `read_csv` gives back equal numbers, each read once."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["device", "cycle", "pulse", "direction", "conductance_siemens"])
        for device, *row in zip(
            data.device.tolist(),
            data.cycle.tolist(),
            data.pulse.tolist(),
            data.direction.tolist(),
            data.conductance.tolist(),
            strict=True,
        ):
            writer.writerow([data.devices[device], *row])


def _parse(name: str, lines: list[str], branch: int | None) -> PulseData:
    if branch is not None and branch < 1:
        raise ValueError(f"branch = {branch} is not allowed: it counts pulses of one direction, 1 or more.")
    numbered = [(k, x) for k, x in enumerate(lines, 1) if x.strip() and not x.lstrip().startswith("#")]
    if not numbered:
        raise ValueError("the file has no lines; it needs a header and one line per reading.")
    separator = next((s for s in (",", ";", "\t") if s in numbered[0][1]), ",")
    table = [(k, [cell.strip() for cell in next(csv.reader([x], delimiter=separator))]) for k, x in numbered]
    header = table[0][1]
    unit = _check_columns(header)
    if branch is not None and "direction" in header:
        raise ValueError(f"branch = {branch} beside a column 'direction': give one of them.")
    rows = [_row(line, cells, header, unit) for line, cells in table[1:]]
    unused = [x for x in header if x not in ("pulse", unit, *_OPTIONAL)]
    notes = [f"columns not used: {', '.join(unused)}"] if unused else []
    notes += _check_unit([row.conductance for row in rows], unit)

    names = tuple(dict.fromkeys(row.device for row in rows))
    parts = []
    for device in names:
        own = [row for row in rows if row.device == device]
        fresh, follows = _sequence(own)
        groups = np.split(np.arange(len(own)), np.flatnonzero(fresh)[1:])
        first = [own[group[0]] for group in groups]
        mean = np.array([np.mean([own[k].conductance for k in group]) for group in groups])
        direction = _directions(first, mean, branch)
        for group in groups:
            if len({own[k].direction for k in group}) > 1:
                raise ValueError(
                    f"line {own[group[-1]].line}: pulse {own[group[0]].pulse} is there twice with different "
                    "directions; a repeated read repeats the direction, another pulse has the next number."
                )
        labels = list(dict.fromkeys(row.cycle for row in first))
        parts.append(
            {
                "pulse": np.array([row.pulse for row in first]),
                "conductance": mean,
                "direction": direction,
                "device": np.full(len(groups), names.index(device)),
                "cycle": np.array([labels.index(row.cycle) for row in first])
                if "cycle" in header
                else cycles_of(direction),
                "follows": np.array([follows[group[0]] for group in groups]),
                "reads": np.array([len(group) for group in groups]),
                "deviation": np.array(
                    [
                        math.sqrt(sum((own[k].conductance - m) ** 2 for k in group))
                        for group, m in zip(groups, mean, strict=True)
                    ]
                ),
            }
        )
    if not parts:
        raise ValueError("the file has a header and no readings.")
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return PulseData(name=name, **arrays, devices=names, notes=tuple(notes))


def _check_columns(header: list[str]) -> str:
    """The column that holds the conductance; ValueError names what was found and what is needed."""
    found = f"found {', '.join(map(repr, header))}"
    twice = sorted({x for x in header if header.count(x) > 1})
    if twice:
        raise ValueError(f"column(s) {', '.join(twice)} there twice; {found}.")
    units = [x for x in header if x in UNITS]
    if len(units) > 1:
        raise ValueError(f"columns {' and '.join(units)} say the same: keep one of them.")
    missing = [] if "pulse" in header else ["'pulse' (running number)"]
    if not units:
        missing.append(f"one of {', '.join(map(repr, UNITS))}")
    if missing:
        known = {x.lower(): x for x in ("pulse", *UNITS)}
        near = [
            f"{x!r} -> {known[match]!r}"
            for x in header
            if x not in ("pulse", *UNITS, *_OPTIONAL)
            for match in difflib.get_close_matches(x.lower(), known, n=1, cutoff=0.7)
        ]
        hint = f" Rename {'; '.join(near)}?" if near else ""
        raise ValueError(
            f"wrong columns: {found}; missing {' and '.join(missing)}; optional are direction, device, cycle.{hint}"
        )
    return units[0]


def _row(line: int, cells: list[str], header: list[str], unit: str) -> _Row:
    if len(cells) != len(header):
        raise ValueError(f"line {line}: {len(cells)} cells, the header has {len(header)}.")
    row = dict(zip(header, cells, strict=True))
    for column in ("pulse", unit, *_OPTIONAL):
        if row.get(column) == "":
            raise ValueError(f"line {line}: empty cell in column {column!r}; fill it or leave the cycle out.")
    pulse, value = _number(line, "pulse", row["pulse"]), _number(line, unit, row[unit])
    if not pulse.is_integer():
        raise ValueError(f"line {line}: pulse = {row['pulse']} is not a whole number.")
    scale, resistance = UNITS[unit]
    if value < 0 or (resistance and value == 0):
        least = "above 0" if resistance else "0 or more"
        raise ValueError(
            f"line {line}: {unit} = {row[unit]} is not allowed: a memory cell is passive, give {least}. "
            "Subtract the offset of the instrument."
        )
    direction = None
    if "direction" in row:
        if row["direction"].lower() not in DIRECTIONS:
            raise ValueError(
                f"line {line}: direction = {row['direction']!r} is not allowed: choose one of {', '.join(DIRECTIONS)}."
            )
        direction = DIRECTIONS[row["direction"].lower()]
    siemens = 1 / (value * scale) if resistance else value * scale
    return _Row(line, int(pulse), siemens, direction, row.get("device", "1"), row.get("cycle", ""))


def _number(line: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        hint = " Use a decimal point." if "," in text else ""
        raise ValueError(f"line {line}: {column} = {text!r} is not a number.{hint}") from None
    if not math.isfinite(value):
        raise ValueError(f"line {line}: {column} = {text} is a gap; fill it or leave the whole cycle out.")
    return value


def _sequence(rows: list[_Row]) -> tuple[list[bool], list[bool]]:
    """For each reading of one device: whether it is no repetition of the one above, and whether it goes on from it."""
    fresh, follows = [True], [False]
    for last, row in itertools.pairwise(rows):
        begins = row.cycle != last.cycle
        repeats, goes_on = row.pulse == last.pulse and not begins, row.pulse == last.pulse + 1
        if not (begins or repeats or goes_on):
            raise ValueError(
                f"line {row.line}: pulse {row.pulse} after pulse {last.pulse} of device {row.device!r}: numbers must "
                "go on by one (a gap hides steps). Number the pulses anew, or mark where a cycle begins in a column "
                "'cycle'."
            )
        fresh.append(not repeats)
        follows.append(goes_on)
    return fresh, follows


def _directions(rows: list[_Row], conductance: np.ndarray, branch: int | None) -> np.ndarray:
    """Directions (n,) of one device, as given, counted, or told from the highest reading of each cycle."""
    if rows[0].direction is not None:
        inner = [
            k for k, row in enumerate(rows) if row.direction == 0 and k and row.cycle == rows[k - 1].cycle
        ]
        if inner:
            raise ValueError(
                f"line {rows[inner[0]].line}: direction 0 (no pulse) after the first reading; a repeated read has the "
                "number and the direction of the pulse before it."
            )
        return np.array([row.direction for row in rows])
    pulse = np.array([row.pulse for row in rows])
    if branch is not None:
        return np.where(pulse < 1, 0, np.where((pulse - 1) // branch % 2 == 0, 1, -1))
    direction = np.ones(len(rows), dtype=np.int64)
    labels = np.array([row.cycle for row in rows])
    for label in dict.fromkeys(labels.tolist()):
        own = np.flatnonzero(labels == label)
        g = conductance[own]
        top = int(g.argmax())
        direction[own[top + 1 :]] = -1
        fall = (np.maximum.accumulate(g[: top + 1]) - g[: top + 1]).max()
        rise = (g[top:] - np.minimum.accumulate(g[top:])).max()
        if max(fall, rise) > 0.5 * (g.max() - g.min()):
            raise ValueError(
                f"there is no column 'direction', and line {rows[own[0]].line} and the following are no single rise "
                "and fall. Add the column, or a column 'cycle', or say how many pulses go up before as many go down "
                "(--branch)."
            )
    return direction


def _check_unit(siemens: list[float], unit: str) -> list[str]:
    """Notes about conductances that no memory cell has; ValueError above 1 S."""
    if not siemens:
        return []
    typical, (low, high) = float(np.median(siemens)), USUAL
    if low <= typical <= high and max(siemens) <= 1:
        return []
    which = "the median"
    if max(siemens) > 1:
        typical, which = max(siemens), "the highest conductance"
    given = 1 / typical if UNITS[unit][1] else typical  # in ohm or siemens
    kind = [(name, scale) for name, (scale, r) in UNITS.items() if r == UNITS[unit][1]]
    values = given / UNITS[unit][0]
    likely = [name for name, scale in kind if low * 10 <= _siemens(values * scale, unit) <= high / 10]
    if "conductance_uS" in likely:  # by far the most frequent
        likely = ["conductance_uS", *(x for x in likely if x != "conductance_uS")]
    hint = f" The likely unit is {likely[0]}: rename the column." if likely else ""
    message = f"{unit} = {values:.3g} ({which}) is {typical:.3g} S; memory cells have {low:g} to {high:g} S."
    if max(siemens) > 1:
        raise ValueError(f"{message} No cell above 1 S is simulated.{hint}")
    return [f"check the unit: {message}{hint}"]


def _siemens(si: float, unit: str) -> float:
    return 1 / si if UNITS[unit][1] else si
