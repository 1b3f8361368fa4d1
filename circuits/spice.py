"""Resistive networks as netlists, and what ngspice finds for them: the judge of every settling.

In a netlist the inputs are the nodes x0, x1, .. and their negatives xn0, xn1, .., hidden nodes h1_0, h1_1, ..,
outputs out_0, .. (the second ones of pairs outn_0, ..), and the lines behind amplifiers a1_0, a1_1, ... Every
layer is a subcircuit, or several where it has more ports than one can: its crossbar, and the diodes and capacitors of
its nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from circuits.costs import SquaredError
from circuits.couplings import Lines
from circuits.diodes import Diode as DiodeSettings
from circuits.diodes import IdealDiode, PiecewiseLinearDiode, ShockleyDiode
from circuits.netlist import (
    CCCS,
    GROUND,
    VCCS,
    VCVS,
    Capacitor,
    Diode,
    DiodeModel,
    Element,
    Instance,
    Netlist,
    OperatingPoint,
    Rectifier,
    Subcircuit,
    TransientAnalysis,
    VoltageSource,
)
from circuits.ngspice import TIGHT, replay, run, thermal_volts
from circuits.resistive_system import ResistiveSystem
from circuits.spice_crossbars import tiles

IDEAL_ON = 1e7
"""How many times better an ideal diode conducts than all else at its node; with more, the rounding of voltages is more
than `reltol` of its current, and ngspice finds no end."""
STEPS = 1000  # a transient takes at least
FIRST_STEP = 1e-3  # of the largest one: diodes far from rest move fast at first
MODEL, AMPLIFIER = "shockley", "amplifier"


def node_names(system: ResistiveSystem) -> list[str]:
    """The nodes of the netlist in the order of the layout, (n,)."""
    return list(chain.from_iterable(_layers(system)))


def netlist_of(
    system: ResistiveSystem,
    sample: int = 0,
    analysis: OperatingPoint | TransientAnalysis | None = None,
    start: Tensor | None = None,
    options: Mapping[str, float] = TIGHT,
) -> Netlist:
    """A bound network, free or nudged by the squared error, as the circuit that settles to its equilibrium.

    sample: the row of the inputs, and of the targets, that the sources are set to. analysis: an operating point
    unless given. start: voltages (n,) that a transient starts from, 0 V unless given. An ideal diode is one that
    conducts `IDEAL_ON` times better than its node; the temperature among the options is set such that kT/q is
    that of the diodes. What `system.proximal` adds is no part of the network, nor of its netlist. Raises ValueError
    for a cost other than the squared error.
    """
    circuit, layers = system.circuit, _layers(system)
    elements = [*_sources(system, sample), *_nudge(system, sample)]
    subcircuits, below = [], _line_names(circuit.lines[0], _named("x", circuit.features))
    for i, (coupling, nodes) in enumerate(zip(system.couplings, layers, strict=True)):
        for tile in tiles(coupling, below, nodes):
            name, inside, some = f"layer{i + 1}{tile.name}", [*tile.elements], nodes[tile.nodes]
            if tile.is_first:
                if i < len(layers) - 1:
                    inside += _diodes(circuit.diode, some, system.conductances[i][tile.nodes])
                inside += [Capacitor(node, node, GROUND, circuit.capacitance_farads) for node in some]
            ports = (*tile.lines, *some)
            subcircuits.append(Subcircuit(name, ports, tuple(inside)))
            elements.append(Instance(name, ports, name))
        if i < len(layers) - 1:
            lines = nodes
            if circuit.amplification != 1:
                lines = _named(f"a{i + 1}_", len(nodes))
                pairs = zip(nodes, lines, strict=True)
                elements += [Instance(line, (node, line), AMPLIFIER) for node, line in pairs]
            below = _line_names(circuit.lines[i + 1], lines)
    if circuit.amplification != 1 and len(layers) > 1:
        subcircuits.append(_amplifier(circuit.amplification))
    initial = {}
    if start is not None:
        initial = dict(zip(node_names(system), start.double().tolist(), strict=True))
    sizes = "-".join(map(str, (circuit.features, *circuit.layout.sizes)))
    return Netlist(
        title=f"Resistive network {sizes}, {'free' if system.nudge is None else 'nudged'}",
        elements=tuple(elements),
        subcircuits=tuple(subcircuits),
        models=tuple(_models(circuit.diode)),
        options=dict(options) | _temperature(circuit.diode),
        analysis=OperatingPoint() if analysis is None else analysis,
        initial_volts=initial,
        saved=tuple(node_names(system)),
    )


def operating_points(
    system: ResistiveSystem, options: Mapping[str, float] = TIGHT, timeout_s: float = 600.0
) -> Tensor:
    """Where ngspice finds the network at rest, (B, n) V in the layout's order, float64: a replay of the batch."""
    settings = [_settings(system, sample) for sample in range(len(system.x))]
    sources = [f"v{name}" for name in settings[0]]
    volts = [list(setting.values()) for setting in settings]
    solution = replay(netlist_of(system, options=options), sources, volts, timeout_s)
    return torch.from_numpy(solution.volts(node_names(system)))


def transient(
    system: ResistiveSystem,
    seconds: Tensor,
    sample: int = 0,
    start: Tensor | None = None,
    options: Mapping[str, float] = TIGHT,
    timeout_s: float = 600.0,
) -> Tensor:
    """Node voltages (T, 1, n) at times (T,) >= 0 s of one sample on its way from `start` (n,), 0 V unless given.

    ngspice chooses its own points, `STEPS` at least; between them monotone cubics read the times asked for.
    """
    if seconds.ndim != 1 or not len(seconds) or not (seconds >= 0).all() or not seconds.max() > 0:
        raise ValueError(f"seconds {tuple(seconds.shape)}; give times (T,) >= 0 s, one of them above 0")
    if start is None:
        start = torch.zeros(system.layout.n)
    stop = seconds.max().item()
    largest = stop / STEPS
    analysis = TransientAnalysis(largest * FIRST_STEP, stop, largest)
    solution = run(netlist_of(system, sample, analysis, start, options), timeout_s)
    later = solution.seconds > 0  # started from voltages given, ngspice leaves out 0 s
    points = np.append(0.0, solution.seconds[later])
    volts = np.concatenate([start.double().cpu().numpy()[None], solution.volts(node_names(system))[later]])
    read = PchipInterpolator(points, volts, axis=0)
    return torch.from_numpy(read(seconds.double().cpu().numpy()))[:, None]


# -- parts ------------------------------------------------------------------------------------------


def _named(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{k}" for k in range(count)]


def _layers(system: ResistiveSystem) -> list[list[str]]:
    """Names of the nodes of every layer."""
    *hidden, last = system.layout.sizes
    names = [_named(f"h{i}_", n) for i, n in enumerate(hidden, start=1)]
    if system.circuit.paired_output:
        return [*names, [*_named("out_", last // 2), *_named("outn_", last // 2)]]
    return [*names, _named("out_", last)]


def _line_names(lines: Lines, nodes: Sequence[str]) -> list[str]:
    """The input lines of a crossbar in their order; see `Lines`."""
    names = [*nodes]
    if lines.doubled:
        names += _named("xn", len(nodes))
    if lines.bias_volts is not None:
        names += ["bias", "biasn"]
    return names


def _settings(system: ResistiveSystem, sample: int) -> dict[str, float]:
    """Volts of the sources that differ from sample to sample, by the node that each holds."""
    settings = dict(
        zip(_named("x", system.circuit.features), system.source[sample].double().tolist(), strict=True)
    )
    if system.nudge is not None:
        target = (system.nudge.target[sample].double() / system.circuit.readout_gain).tolist()
        settings |= dict(zip(_named("target_", len(target)), target, strict=True))
    return settings


def _sources(system: ResistiveSystem, sample: int) -> Iterator[Element]:
    for node, volts in _settings(system, sample).items():
        yield VoltageSource(node, node, GROUND, volts)
    for k in range(system.circuit.features):
        yield VCVS(f"xn{k}", f"xn{k}", GROUND, f"x{k}", GROUND, -1.0)
    if (bias := system.circuit.bias_volts) is not None:
        yield VoltageSource("bias", "bias", GROUND, bias)
        yield VoltageSource("biasn", "biasn", GROUND, -bias)


def _nudge(system: ResistiveSystem, sample: int) -> Iterator[Element]:
    """What the squared error injects into an output node, -beta a (a v - y) with the gain a of its readout, drawn by
    sources that v - y / a controls."""
    if system.nudge is None:
        return
    if not isinstance(system.nudge.cost, SquaredError):
        raise ValueError(
            f"{system.nudge.cost} has no circuit of controlled sources; export a network nudged by SquaredError()"
        )
    siemens = float(system.nudge.beta) * system.circuit.readout_gain**2 / system.shares[-1]
    nodes = _layers(system)[-1]
    for k in range(system.circuit.outputs):
        out, target = nodes[k], f"target_{k}"
        if system.circuit.paired_output:
            other = nodes[k + system.circuit.outputs]
            yield VCCS(f"nudge_{k}", out, other, out, other, siemens)
            yield VCCS(f"nudge_target_{k}", other, out, target, GROUND, siemens)
        else:
            yield VCCS(f"nudge_{k}", out, GROUND, out, target, siemens)


def _diodes(diode: DiodeSettings, nodes: Sequence[str], conductances: Tensor) -> Iterator[Element]:
    """The diodes of a layer's nodes, and the sources of their offsets."""
    ends = {1: "hold", -1: "holdn"} if diode.offset_volts else {1: GROUND, -1: GROUND}
    rows = diode.signs(len(nodes))
    if diode.offset_volts:
        for sign in sorted(set(chain.from_iterable(rows)), reverse=True):
            yield VoltageSource(ends[sign], ends[sign], GROUND, sign * diode.offset_volts)
    for row in rows:
        for node, sign, siemens in zip(nodes, row, conductances.tolist(), strict=True):
            terminals = (node, ends[1]) if sign > 0 else (ends[-1], node)
            name = f"{node}_{'above' if sign > 0 else 'below'}"
            if isinstance(diode, ShockleyDiode):
                yield Diode(name, *terminals, MODEL)
            elif isinstance(diode, PiecewiseLinearDiode):
                yield Rectifier(name, *terminals, diode.on_siemens, diode.off_siemens)
            elif isinstance(diode, IdealDiode):
                yield Rectifier(name, *terminals, IDEAL_ON * siemens)
            else:
                raise ValueError(f"no netlist of a {type(diode).__name__}")


def _models(diode: DiodeSettings) -> Iterator[DiodeModel]:
    if isinstance(diode, ShockleyDiode):
        yield DiodeModel(MODEL, diode.saturation_amperes, diode.ideality, diode.series_ohm)


def _temperature(diode: DiodeSettings) -> dict[str, float]:
    """Options that give ngspice, with its own constants, the kT/q of the diodes."""
    if not isinstance(diode, ShockleyDiode):
        return {}
    celsius = diode.thermal_volts / diode.ideality / (thermal_volts(0.0) / 273.15) - 273.15
    return {"temp": celsius, "tnom": celsius}


def _amplifier(gain: float) -> Subcircuit:
    """The line is held at `gain` times the node's voltage; the node is loaded with 1 / gain of the line's current."""
    return Subcircuit(
        AMPLIFIER,
        ("node", "line"),
        (
            VCVS("forward", "held", GROUND, "node", GROUND, gain),
            VoltageSource("sense", "held", "line", 0.0),
            CCCS("back", "node", GROUND, "sense", 1 / gain),
        ),
    )
