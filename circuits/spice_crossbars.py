"""Crossbars as the elements of a netlist: conductances between ideal lines, or with the wires of an array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from circuits.couplings import Coupling
from circuits.netlist import GROUND, Element, Instance, Netlist, Resistor, Subcircuit, VoltageSource
from circuits.ngspice import TIGHT
from circuits.wired_array import WiredArray

PORTS = 900  # of a subcircuit; ngspice gives up at about 1000
TILE = 440  # lines or nodes of a part of a crossbar that has more ports; even, as nodes alternate


@dataclass(frozen=True)
class Tile:
    """A part of a crossbar that makes a subcircuit: some of its lines, and a slice of its nodes."""

    name: str
    lines: tuple[str, ...]
    nodes: slice
    elements: tuple[Element, ...]
    is_first: bool  # of those with these nodes


def tiles(coupling: Coupling, lines: Sequence[str], nodes: Sequence[str]) -> Iterator[Tile]:
    """The elements between a crossbar's input lines and its output nodes, both in their order: all in one, or in parts
    where ngspice could not hold that many ports."""
    if len(lines) + len(nodes) <= PORTS:
        inside = _wired_or_ideal(coupling, lines, nodes)
        yield Tile("", tuple(lines), slice(0, len(nodes)), tuple(inside), is_first=True)
        return
    if coupling.array is not None:
        raise ValueError(
            f"a wired array of {len(lines)} lines and {len(nodes)} nodes has more than {PORTS} ports, and its wires "
            "cannot be cut into subcircuits; export one of a smaller network, or without wires"
        )
    for row in range(0, len(nodes), TILE):
        for column in range(0, len(lines), TILE):
            rows, columns = slice(row, row + TILE), slice(column, column + TILE)
            inside = ideal_elements(coupling.weight[rows, columns], lines[columns], nodes[rows])
            yield Tile(f"_{row}_{column}", tuple(lines[columns]), rows, tuple(inside), is_first=column == 0)


def _wired_or_ideal(coupling: Coupling, lines: Sequence[str], nodes: Sequence[str]) -> Iterator[Element]:
    if coupling.array is not None:  # the wires themselves, also of one that is settled without them
        return wired_elements(coupling.array, lines, nodes)
    return ideal_elements(coupling.weight, lines, nodes)


def ideal_elements(weight: Tensor, lines: Sequence[str], nodes: Sequence[str]) -> Iterator[Element]:
    """A resistor rI_J for each conductance (out, lines) that is not 0 S, from line J to node I."""
    for i, (node, row) in enumerate(zip(nodes, weight.detach().double().tolist(), strict=True)):
        for j, (line, siemens) in enumerate(zip(lines, row, strict=True)):
            if siemens:
                yield Resistor(f"{i}_{j}", line, node, 1 / siemens)


def wired_elements(array: WiredArray, lines: Sequence[str], nodes: Sequence[str]) -> Iterator[Element]:
    """Segments and cells between the terminals of an array: see the drawing at `WiredArray`.

    Word line J has the nodes wJ_0, wJ_1, .. where it crosses bit lines 0, 1, ..; bit line I has bI_0, bI_1, ..
    A cell is one resistor with its access transistor.
    """
    wires = array.wires
    for j, line in enumerate(lines):
        word = [line, *(f"w{j}_{i}" for i in range(len(nodes)))]
        for i, node in enumerate(word[1:]):
            yield Resistor(
                f"word{j}_{i}", word[i], node, wires.word_ohm + (wires.source_ohm if i == 0 else 0)
            )
    for i, node in enumerate(nodes):
        bit = [*(f"b{i}_{j}" for j in range(len(lines))), node]
        for j, here in enumerate(bit[:-1]):
            last = j == len(lines) - 1
            yield Resistor(f"bit{i}_{j}", here, bit[j + 1], wires.bit_ohm + (wires.load_ohm if last else 0))
    for i, row in enumerate(array.series_siemens.tolist()):
        for j, siemens in enumerate(row):
            if siemens:
                yield Resistor(f"cell{i}_{j}", f"w{j}_{i}", f"b{i}_{j}", 1 / siemens)


def netlist_of_array(
    array: WiredArray,
    v_in: Sequence[float],
    v_out: Sequence[float],
    options: Mapping[str, float] = TIGHT,
) -> Netlist:
    """A wired array with its terminals held at v_in (in,) and v_out (out,) V by the sources vin0, .. and vout0, ..

    A source's current, from plus to minus, is minus what flows into the array: `WiredArray.currents`.
    """
    n_out, n_in = array.shape
    lines, nodes = [f"in{j}" for j in range(n_in)], [f"out{i}" for i in range(n_out)]
    volts = zip((*lines, *nodes), (*v_in, *v_out), strict=True)
    sources = [VoltageSource(f"v{node}", node, GROUND, value) for node, value in volts]
    ports = (*lines, *nodes)
    return Netlist(
        title=f"Crossbar array of {n_in} word lines and {n_out} bit lines",
        elements=(*sources, Instance("array", ports, "array")),
        subcircuits=(Subcircuit("array", ports, tuple(wired_elements(array, lines, nodes))),),
        options=options,
    )
