"""Modified nodal analysis (Ho, Ruehli & Brennan 1975) of linear networks, an element at a time, in float64."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from circuits import ResistiveCircuit
from circuits.wires import Wires


class Nodal:
    """Elements between named nodes; "ground" is one of them. Every row is a Kirchhoff law or the law of a source."""

    def __init__(self):
        self._index: dict[str, int] = {}
        self._stamps: list[tuple[str, str, float]] = []
        self._driven: dict[str, float] = {}

    def resistor(self, a: str, b: str, siemens: float) -> None:
        for here, there in ((a, b), (b, a)):
            self._stamps += [(here, here, siemens), (here, there, -siemens)]

    def source(self, node: str, volts: float) -> None:
        """Holds a node at so many volts; its current is the unknown "i node"."""
        self._stamps += [(node, f"i {node}", -1.0), (f"i {node}", node, 1.0)]
        self._driven[f"i {node}"] = volts

    def amplifier(self, node: str, line: str, gain: float) -> None:
        """The line is held at `gain` times the node's volts, the node loaded with 1 / gain of the line's current."""
        current = f"i {line}"
        self._stamps += [(line, current, -1.0), (node, current, 1 / gain)]
        self._stamps += [(current, line, 1.0), (current, node, -gain)]

    def solve(self) -> dict[str, float]:
        """Volts of all nodes by name, and amperes of all sources ("i ..") into their nodes."""
        for row, column, _ in self._stamps:
            for name in (row, column):
                self._index.setdefault(name, len(self._index))
        n = len(self._index)
        matrix, right = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        for row, column, value in self._stamps:
            matrix[self._index[row], self._index[column]] += value
        for name, volts in self._driven.items():
            right[self._index[name]] = volts
        solution = torch.linalg.solve(matrix, right).tolist()
        return {name: solution[k] for name, k in self._index.items()}

    def delivered(self, solution: dict[str, float]) -> float:
        """The power of all sources held at given volts, W."""
        return sum(volts * solution[current] for current, volts in self._driven.items())


def network(circuit: ResistiveCircuit, weights: list[Tensor], x: list[float]) -> Nodal:
    """A resistive network without its diodes, for one input. The nodes of layer l are "l i", 1 <= l; what drives the
    crossbar of layer l are the lines "line l j"; with wires there are "word l i j" and "bit l i j" as well."""
    nodal = Nodal()
    for layer, weight in enumerate(weights, 1):
        n_out, count = weight.shape
        below = circuit.features if layer == 1 else len(weights[layer - 2])
        lines = [f"line {layer} {j}" for j in range(count)]
        for j in range(below):
            if layer == 1:
                volts = circuit.input_volts * x[j]
                nodal.source(lines[j], volts)
                nodal.source(lines[below + j], -volts)
            else:
                nodal.amplifier(f"{layer - 1} {j}", lines[j], circuit.amplification)
        if circuit.bias_volts is not None:
            nodal.source(lines[-2], circuit.bias_volts)
            nodal.source(lines[-1], -circuit.bias_volts)
        nodes = [f"{layer} {i}" for i in range(n_out)]
        cells = _wired(nodal, circuit.wires, layer, lines, nodes)
        for i in range(n_out):
            for j in range(count):
                nodal.resistor(*cells(i, j), weight[i, j].item())
    return nodal


def _wired(nodal: Nodal, wires: Wires | None, layer: int, lines: list[str], nodes: list[str]):
    """Adds the segments of a crossbar's wires; returns between which nodes the cell (i, j) lies."""
    if wires is None:
        return lambda i, j: (lines[j], nodes[i])
    for j, line in enumerate(lines):
        word = [f"word {layer} {i} {j}" for i in range(len(nodes))]
        nodal.resistor(line, word[0], 1 / (wires.source_ohm + wires.word_ohm))
        for a, b in pairwise(word):
            nodal.resistor(a, b, 1 / wires.word_ohm)
    for i, node in enumerate(nodes):
        bit = [f"bit {layer} {i} {j}" for j in range(len(lines))]
        for a, b in pairwise(bit):
            nodal.resistor(a, b, 1 / wires.bit_ohm)
        nodal.resistor(bit[-1], node, 1 / (wires.load_ohm + wires.bit_ohm))
    return lambda i, j: (f"word {layer} {i} {j}", f"bit {layer} {i} {j}")


def volts_of(circuit: ResistiveCircuit, solution: dict[str, float]) -> list[float]:
    """Of the nodes, in the order of the layout."""
    return [solution[f"{layer} {i}"] for layer, n in enumerate(circuit.layout.sizes, 1) for i in range(n)]
