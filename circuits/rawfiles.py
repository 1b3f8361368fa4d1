"""ngspice's raw files, binary and ascii, one or several plots a file, and the `Solution` that each plot is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from circuits.netlist_names import GROUND, node_path


@dataclass(frozen=True)
class Solution:
    """What ngspice found, a row per point: one for an operating point, T of a transient, S of a replay.

    names: of the columns as ngspice has them, "v(node)", "i(source)", "time"; values (P, columns), float64, SI.
    analysis_seconds: the wall time of ngspice's analysis alone, without reading the deck; NaN if unknown.
    """

    plot: str
    names: tuple[str, ...]
    values: NDArray[np.float64]
    analysis_seconds: float = float("nan")

    @property
    def seconds(self) -> NDArray[np.float64]:
        """The time axis (P,) of a transient."""
        return self._column("time")

    def volts(self, node: str | Sequence[str]) -> NDArray[np.float64]:
        """Voltages (P,) of a node, (P, n) of n nodes; a node within an instance is "xname.node"."""
        if not isinstance(node, str):
            return np.stack([self.volts(one) for one in node], axis=-1)
        name = node_path(node)
        return np.zeros(len(self.values)) if name == GROUND else self._column(f"v({name})")

    def amperes(self, source: str) -> NDArray[np.float64]:
        """The current (P,) that flows through a voltage source from plus to minus."""
        return self._column(f"i({source.lower()})")

    def _column(self, name: str) -> NDArray[np.float64]:
        if name not in self.names:
            raise KeyError(f"{name} was not saved; there are {', '.join(self.names)}")
        return self.values[:, self.names.index(name)]


def read_raw(path: str | Path) -> list[Solution]:
    """All plots of a raw file, in order. Raises ValueError where it is cut short or not of real numbers."""
    content = Path(path).read_bytes()
    solutions = []
    start = 0
    while content[start:].strip():
        solution, start = _read_plot(content, start, str(path))
        solutions.append(solution)
    return solutions


def _read_plot(content: bytes, start: int, path: str) -> tuple[Solution, int]:
    """The plot that starts at this byte, and the byte behind it."""
    kind = re.compile(rb"^(Binary|Values):[ \r]*\n", re.MULTILINE).search(content, start)
    if kind is None:
        raise ValueError(f"{path}: no values behind the header at byte {start}; is it a raw file, and whole?")
    lines = content[start : kind.start()].decode(errors="replace").splitlines()
    names = tuple(line.split()[1].lower() for line in lines if line.startswith("\t"))  # index, name, type
    header = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = header.get("Flags", "").split()
    if "real" not in flags or "unpadded" in flags or len(names) != int(header["No. Variables"]):
        raise ValueError(
            f"{path}: Flags: {' '.join(flags)}, {len(names)} variables; only real, padded plots are read"
        )
    points = int(header["No. Points"])
    read = _binary if kind[1] == b"Binary" else _ascii
    values, end = read(content, kind.end(), points, len(names), path)
    return Solution(header.get("Plotname", ""), names, values), end


def _binary(
    content: bytes, start: int, points: int, columns: int, path: str
) -> tuple[NDArray[np.float64], int]:
    end = start + 8 * points * columns
    if end > len(content):
        raise ValueError(f"{path}: {len(content) - start} bytes of values where {end - start} are announced")
    values = np.frombuffer(content, np.float64, points * columns, start)  # of this machine's byte order
    return values.reshape(points, columns).copy(), end


def _ascii(
    content: bytes, start: int, points: int, columns: int, path: str
) -> tuple[NDArray[np.float64], int]:
    """A point is its index and then its values, between blanks of any kind."""
    count = points * (columns + 1)
    words = content[start:].split(maxsplit=count)
    if len(words) < count:
        raise ValueError(f"{path}: {len(words)} words of values where {count} are announced")
    values = np.array(words[:count], dtype=np.float64).reshape(points, columns + 1)[:, 1:]
    return values.copy(), len(content) - (len(words[count]) if len(words) > count else 0)
