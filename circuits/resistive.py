"""Nonlinear resistive networks: crossbars of conductances between layers of nodes, with diodes, in SI units.

    C dv_k/dt = sum_j g_kj (v_j - v_k) - i_diode(v_k) - beta dC/dv_k

The energy is the co-content (Millar 1951; Kendall et al., arXiv:2006.01981), in watts: half of the heat of the
crossbars, and for each diode the integral of its current over its voltage. It is strictly convex, so that a free
network has one equilibrium whatever its conductances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from circuits.base import EnergyCircuit, Layout, Params
from circuits.couplings import Coupling, Lines, couple
from circuits.diodes import Diode, IdealDiode
from circuits.mapping import Mapping, OneCell
from circuits.resistive_system import ResistiveSystem
from circuits.wires import Wires
from devices import Device


class ResistiveCircuit(EnergyCircuit):
    """Layers of these sizes, input first, joined by crossbars of conductances `layers.i.weight` (out, lines) in S.

    An input x (B, sizes[0]) sets voltage sources, x and -x times `input_volts`; each crossbar has two more lines, at
    +bias_volts and -bias_volts. So a conductance pair has a sign although each of its conductances is positive.
    Hidden nodes have diodes, output nodes have none.

    diode               at hidden nodes; see `circuits.diodes`
    window              (g_min, g_max) of every conductance, S; 0 <= g_min < g_max
    capacitance_farads  of every node to ground, > 0; with the conductances it sets the pace
    input_volts         of a source at x = 1, > 0
    bias_volts          > 0, or None for no bias lines
    amplification       A of the bidirectional amplifier behind every hidden node: the next crossbar sees A v, and the
                        node is loaded with 1/A of the current that this crossbar draws. 1: none
    paired_output       two nodes for every output, which is the voltage between them
    readout_gain        of the amplifier that reads an output, > 0; a nudge by dC/do comes back through it, as a current
                        of -beta readout_gain dC/do into the node
    wires               resistances of the wires of every crossbar (`circuits.wires`), or None
    exact_lines         crossbars of no more lines on their longer side know their wires exactly; larger ones by
                        an approximation, whose error `ResistiveSystem.wire_errors` reports
    rng                 conductances start uniform between g_min and the middle of the window

    An amplifier makes up for what voltages lose from layer to layer: in units of A^l the network is the same without.
    The energy is then that of the network without them, sum over crossbars l = 0, 1, .. of A^(-2 l) times their own.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        diode: Diode | None = None,
        *,
        window: tuple[float, float] = (1e-7, 1e-4),
        capacitance_farads: float = 1e-12,
        input_volts: float = 1.0,
        bias_volts: float | None = 1.0,
        amplification: float = 1.0,
        paired_output: bool = False,
        readout_gain: float = 1.0,
        wires: Wires | None = None,
        exact_lines: int = 66,
        rng: torch.Generator | None = None,
    ):
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes {tuple(sizes)}; give at least an input and an output size, each >= 1")
        if not 0 <= window[0] < window[1] < math.inf:
            raise ValueError(f"window {window}; choose 0 <= g_min < g_max in siemens, such as (1e-7, 1e-4)")
        positive = {
            "capacitance_farads": capacitance_farads,
            "input_volts": input_volts,
            "bias_volts": 1.0 if bias_volts is None else bias_volts,
            "amplification": amplification,
            "readout_gain": readout_gain,
        }
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} = {value}; choose a finite value > 0")
        self.diode = IdealDiode() if diode is None else diode
        self.window = tuple(window)
        self.capacitance_farads, self.input_volts, self.bias_volts = (
            capacitance_farads,
            input_volts,
            bias_volts,
        )
        self.amplification = amplification
        self.paired_output, self.readout_gain = paired_output, readout_gain
        self.wires, self.exact_lines = wires, exact_lines
        self.features, self.outputs = sizes[0], sizes[-1]
        nodes = (*sizes[1:-1], sizes[-1] * (1 + paired_output))
        self.layout = Layout(nodes)
        self.lines = tuple(
            Lines(n, doubled=i == 0, bias_volts=bias_volts) for i, n in enumerate((sizes[0], *nodes[:-1]))
        )
        self.layers = nn.ModuleList()
        for lines, out in zip(self.lines, nodes, strict=True):
            crossbar = nn.Linear(lines.count, out, bias=False)
            nn.init.uniform_(crossbar.weight, window[0], sum(window) / 2, generator=rng)
            self.layers.append(crossbar)
        self.weights = tuple(f"layers.{i}.weight" for i in range(len(self.layers)))

    def mapping(self, device: Device) -> Mapping:
        return OneCell()

    def check_mapping(self, mapping: Mapping, device: Device) -> None:
        if not isinstance(mapping, OneCell):
            raise ValueError(
                f"{mapping} makes weights of differences; a conductance is one cell: choose OneCell()"
            )
        if self.window[0] < device.g_min_siemens or self.window[1] > device.g_max_siemens:
            raise ValueError(
                f"window {self.window} S of the circuit is wider than that of the cells, {device.g_min_siemens:g} to "
                f"{device.g_max_siemens:g} S; make the circuit with a window that they can reach"
            )

    def bind(self, params: Params, x: Tensor) -> ResistiveSystem:
        return ResistiveSystem(self, params, self.check_input(x, params))

    def check_input(self, x: Tensor, params: Params) -> Tensor:
        return self.check_dense(x, self.features, params)

    def inputs_of(self, layer: int) -> tuple[int, ...]:
        return (layer - 1,)

    def layer_parameters(self, layer: int) -> tuple[str, ...]:
        return (self.weights[layer],)

    def coupling(self, layer: int, params: Params) -> Coupling:
        """The crossbar of a layer with these conductances."""
        name = self.weights[layer]
        try:
            return couple(params[name], self.lines[layer], self.wires, self.exact_lines)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def below(self, layer: int, state: Tensor) -> Tensor:
        """The voltages at the input lines of a crossbar, from those of the layer below it, or from x."""
        return state * (self.input_volts if layer == 0 else self.amplification)

    def share(self, layer: int) -> float:
        """What a watt of crossbar `layer` counts in the energy: A^(-2 layer)."""
        return self.amplification ** (-2 * layer)

    def local_contrast(
        self,
        layer: int,
        params: Params,
        inputs: Sequence[tuple[Tensor, Tensor]],
        own: tuple[Tensor, Tensor],
        beta: float,
    ) -> Params:
        """((dv)^2 nudged - (dv)^2 free) / (2 beta) of the voltage over each cell, V^2/S; from the carried difference,
        (dv_n - dv_f)(dv_n + dv_f), so that nothing cancels."""
        return self.contrast_of(layer, self.coupling(layer, params), inputs[0], own, beta)

    def contrast_of(
        self,
        layer: int,
        coupling: Coupling,
        inputs: tuple[Tensor, Tensor],
        own: tuple[Tensor, Tensor],
        beta: float,
    ) -> Params:
        """`local_contrast` of a crossbar that is there already."""
        free, moved = self.below(layer, inputs[0]), None if layer == 0 else self.below(layer, inputs[1])
        total = 2 * free if moved is None else 2 * free + moved
        scale = self.share(layer) / (beta * len(free))
        weight = coupling.contrast((total, moved), (2 * own[0] + own[1], own[1]), scale)
        return {self.weights[layer]: weight}
