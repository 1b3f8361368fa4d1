"""SPICE netlists as data, and the deck they make: the dialect that a resistive energy circuit needs.

Whatever `write` writes, `circuits.netlist_parser.parse` reads back the same. Mistakes that a simulator reports
late, or as a matrix without a solution, are refused when a `Netlist` is made: see `circuits.netlist_checks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

from circuits.netlist_checks import check_netlist, check_subcircuit
from circuits.netlist_elements import (
    CCCS,
    PWL,
    VCCS,
    VCVS,
    Capacitor,
    CurrentSource,
    Diode,
    DiodeModel,
    Element,
    Instance,
    OperatingPoint,
    Rectifier,
    Resistor,
    TransientAnalysis,
    VoltageSource,
)
from circuits.netlist_names import GROUND, node_name, node_path, number, plain_name, store

__all__ = [
    "CCCS",
    "GROUND",
    "PWL",
    "VCCS",
    "VCVS",
    "Capacitor",
    "CurrentSource",
    "Diode",
    "DiodeModel",
    "Element",
    "Instance",
    "Netlist",
    "OperatingPoint",
    "Rectifier",
    "Resistor",
    "Subcircuit",
    "TransientAnalysis",
    "VoltageSource",
    "number",
    "write",
]

WIDTH = 100  # of a card, before it goes on in the next line


@dataclass(frozen=True)
class Subcircuit:
    """Elements behind ports; its other nodes are its own, only ground is everybody's."""

    name: str
    ports: tuple[str, ...]
    elements: tuple[Element, ...]

    def __post_init__(self) -> None:
        store(self, "name", plain_name(self.name))
        store(self, "ports", tuple(node_name(port) for port in self.ports))
        store(self, "elements", tuple(self.elements))
        check_subcircuit(self)


@dataclass(frozen=True)
class Netlist:
    """A circuit and what is asked of it.

    options: ngspice's `.options` by name, such as `circuits.ngspice.TIGHT`. initial_volts: node -> V at 0 s
    of a transient from initial conditions. saved: the nodes whose voltages are kept; None keeps all, and the
    sources' currents. A node within an instance is "xname.node". Raises ValueError: `circuits.netlist_checks`.
    """

    title: str
    elements: tuple[Element, ...]
    subcircuits: tuple[Subcircuit, ...] = ()
    models: tuple[DiodeModel, ...] = ()
    options: Mapping[str, float] = field(default_factory=dict)
    analysis: OperatingPoint | TransientAnalysis = field(default_factory=OperatingPoint)
    initial_volts: Mapping[str, float] = field(default_factory=dict)
    saved: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("elements", "subcircuits", "models"):
            store(self, name, tuple(getattr(self, name)))
        store(self, "options", {plain_name(key): float(value) for key, value in self.options.items()})
        initial = {node_path(node): float(volts) for node, volts in self.initial_volts.items()}
        store(self, "initial_volts", initial)
        if self.saved is not None:
            store(self, "saved", tuple(node_path(node) for node in self.saved))
        check_netlist(self)


def write(netlist: Netlist) -> str:
    """The deck of `netlist` as ngspice and `parse` read it: sections with heads, columns aligned."""
    return "\n".join(_wrapped(_lines(netlist))) + "\n"


def _lines(netlist: Netlist) -> Iterator[str]:
    yield netlist.title
    if netlist.options:
        yield from ("", "* ---- options")
        yield _joined(".options", (f"{key}={number(value)}" for key, value in netlist.options.items()))
    if netlist.models:
        yield from ("", "* ---- models")
        for model in netlist.models:
            yield f".model {model.name} {model.parameters}"
    for subcircuit in netlist.subcircuits:
        yield from ("", f"* ---- subcircuit {subcircuit.name}: {_summary(subcircuit.elements)}")
        yield _joined(f".subckt {subcircuit.name}", subcircuit.ports)
        yield from _cards(subcircuit.elements)
        yield f".ends {subcircuit.name}"
    yield from ("", f"* ---- circuit: {_summary(netlist.elements)}")
    yield from _cards(netlist.elements)
    yield from ("", "* ---- analysis")
    if netlist.initial_volts:
        volts = (f"v({node})={number(value)}" for node, value in netlist.initial_volts.items())
        yield _joined(".ic", volts)
    yield netlist.analysis.card
    yield _joined(".save", ("all",) if netlist.saved is None else (f"v({node})" for node in netlist.saved))
    yield ".end"


def _joined(head: str, words: Iterable[str]) -> str:
    return " ".join((head, *words))


def _summary(elements: Iterable[Element]) -> str:
    """How many elements there are of each kind: "3 Resistor, 1 Diode"."""
    counts: dict[str, int] = {}
    for element in elements:
        kind = type(element).__name__
        counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def _cards(elements: Iterable[Element]) -> Iterator[str]:
    """A card per element; neighbours of a kind share the widths of their columns."""
    for kind, group in groupby(elements, key=type):
        rows = [(element.name, *element.nodes, *element.tail) for element in group]
        if kind is Instance:  # of different lengths, and nothing to compare
            yield from map(" ".join, rows)
            continue
        columns = min(map(len, rows)) - 1  # the last words may differ in number, as those of waveforms do
        widths = [max(len(row[column]) for row in rows) for column in range(columns)]
        for row in rows:
            yield " ".join(
                (*(word.ljust(width) for word, width in zip(row, widths, strict=False)), *row[columns:])
            )


def _wrapped(lines: Iterable[str]) -> Iterator[str]:
    """Cards that are too long, gone on with in lines that start with "+"; title and comments stay whole."""
    for position, line in enumerate(lines):
        if position == 0 or line.startswith("*") or len(line) <= WIDTH:
            yield line
            continue
        part, *words = line.split()
        for word in words:
            if len(part) + 1 + len(word) <= WIDTH:
                part += f" {word}"
            else:
                yield part
                part = f"+ {word}"
        yield part
