"""Resistive networks against dense nodal analysis, Kirchhoff's laws and finite differences."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuits import (
    Diode,
    Equilibrium,
    IdealDiode,
    PiecewiseLinearDiode,
    ResistiveCircuit,
    ResistiveSystem,
    ShockleyDiode,
    SquaredError,
)
from circuits.wires import Wires
from mep_sim.settling import Sweep, settle
from tests.nodal import network, volts_of
from tests.test_diodes import amperes, signs

F64 = torch.float64
WINDOW = (1e-7, 1e-4)
EXACT = Sweep(1e-14, max_sweeps=20_000)
OFF = IdealDiode(arrangement="pair", offset_volts=1e6)  # never conducts
SILICON = ShockleyDiode(saturation_amperes=1e-9)
DIODES = {
    "ideal": IdealDiode(offset_volts=0.1),
    "ideal pair": IdealDiode(arrangement="pair", offset_volts=0.1),
    "linear": PiecewiseLinearDiode(on_siemens=1e-3, off_siemens=1e-7, offset_volts=0.05),
    "Shockley": ShockleyDiode(saturation_amperes=1e-8, series_ohm=1e3),
    "Shockley pair": ShockleyDiode(arrangement="pair", saturation_amperes=1e-7, offset_volts=0.1),
}
some = settings(max_examples=15, deadline=None)


def bound(
    sizes, diode: Diode = OFF, batch: int = 3, seed: int = 0, dtype=F64, window=WINDOW, **options
) -> ResistiveSystem:
    """Of conductances over all decades of the window, so that neither signals nor biases average out."""
    rng = torch.Generator().manual_seed(seed)
    circuit = ResistiveCircuit(sizes, diode, window=window, rng=rng, **options).to(dtype)
    params = {}
    for name, weight in circuit.named_parameters():
        power = torch.rand(weight.shape, generator=rng, dtype=F64)
        params[name] = (window[1] * (window[0] / window[1]) ** power).to(dtype)
    x = 2 * torch.rand(batch, sizes[0], generator=rng, dtype=F64) - 1
    return circuit.bind(params, x.to(dtype))


def settled(system: ResistiveSystem, start=None, solver=EXACT) -> Equilibrium:
    found = settle(system, start, solver)
    assert found.converged.all()
    return found


def targets(system: ResistiveSystem, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(len(system.x), system.circuit.outputs, generator=rng, dtype=F64).to(system.x.dtype)


def layers_of(system: ResistiveSystem, state: Tensor) -> list[list[list[float]]]:
    """Volts of the lines and nodes of all crossbars, by sample: [source lines, nodes 1, nodes 2, ..]."""
    return [part.tolist() for part in (system.x * system.circuit.input_volts, *system.layout.split(state))]


def lines_of(circuit: ResistiveCircuit, layer: int, below: list[float]) -> list[float]:
    """Volts of the lines of crossbar `layer` (0: of the input) of those below it."""
    mirrored = [-v for v in below]
    lines = [*below, *mirrored] if layer == 0 else [circuit.amplification * v for v in below]
    return lines if circuit.bias_volts is None else [*lines, circuit.bias_volts, -circuit.bias_volts]


# -- nodal analysis ----------------------------------------------------------------------------------

sizes_of = st.lists(st.integers(1, 5), min_size=2, max_size=4)


@some
@given(
    sizes=sizes_of,
    seed=st.integers(0, 1000),
    bias=st.sampled_from([None, 0.7]),
    gain=st.sampled_from([0.5, 1.0, 3.0]),
    paired=st.booleans(),
    readout=st.sampled_from([1.0, 2.5]),
)
def test_a_network_whose_diodes_are_off_is_its_nodal_analysis(sizes, seed, bias, gain, paired, readout):
    options = {"amplification": gain, "paired_output": paired, "readout_gain": readout}
    system = bound(sizes, OFF, 2, seed, bias_volts=bias, input_volts=0.8, **options)
    state = settled(system).state
    for row, x in zip(state, system.x.tolist(), strict=True):
        solution = network(system.circuit, list(system.params.values()), x).solve()
        expected = volts_of(system.circuit, solution)
        np.testing.assert_allclose(row, expected, rtol=1e-9, atol=1e-10)
    outputs = state[:, -sizes[-1] * (1 + paired) :].tolist()
    for read, nodes in zip(system.readout(state).tolist(), outputs, strict=True):
        n = sizes[-1]
        volts = [nodes[k] - nodes[k + n] for k in range(n)] if paired else nodes
        np.testing.assert_allclose(read, [readout * v for v in volts], rtol=1e-12, atol=1e-15)


@some
@given(
    sizes=sizes_of,
    seed=st.integers(0, 1000),
    gain=st.sampled_from([0.5, 4.0]),
    conducts=st.booleans(),
)
def test_in_units_of_the_amplification_a_network_is_the_one_without(sizes, seed, gain, conducts):
    """A diode that has no voltage of its own, ideal and without offset, conducts in both or in neither."""
    diode = IdealDiode() if conducts else OFF
    system = bound(sizes, diode, 2, seed, bias_volts=None, amplification=gain)
    plain = bound(sizes, diode, 2, seed, bias_volts=None)
    a, b = settled(system).state, settled(plain).state
    for l, (amplified, own) in enumerate(zip(system.layout.split(a), plain.layout.split(b), strict=True)):
        assert torch.allclose(amplified / gain**l, own, rtol=0, atol=1e-10)
    assert torch.allclose(system.energy(a), plain.energy(b), rtol=1e-10)


def test_energies_of_amplified_crossbars_count_with_their_share():
    """sum over crossbars of A^(-2 l) half their heat, cell by cell."""
    system = bound((3, 4, 2), OFF, 2, amplification=2.5)
    z = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    layers = layers_of(system, z)
    for sample, energy in enumerate(system.energy(z).tolist()):
        expected = 0.0
        for l, weight in enumerate(system.params.values()):
            lines = lines_of(system.circuit, l, layers[l][sample])
            for (i, j), g in np.ndenumerate(weight.numpy()):
                expected += 2.5 ** (-2 * l) * 0.5 * g * (lines[j] - layers[l + 1][sample][i]) ** 2
        assert energy == pytest.approx(expected, rel=1e-12)


# -- diodes in a network -----------------------------------------------------------------------------


@some
@given(
    sizes=st.lists(st.integers(1, 5), min_size=3, max_size=4),
    seed=st.integers(0, 1000),
    name=st.sampled_from([*DIODES]),
    gain=st.sampled_from([1.0, 3.0]),
)
def test_kirchhoffs_current_law_at_every_node(sizes, seed, name, gain):
    """What crossbars bring is what diodes pass: by their curve, or at a wall of ideal ones any current of its sign."""
    diode = DIODES[name]
    system = bound(sizes, diode, 2, seed, amplification=gain)
    circuit, state = system.circuit, settled(system).state
    layers, weights = layers_of(system, state), [w.tolist() for w in system.params.values()]
    scale = max(w.sum(1).max().item() for w in system.params.values()) * gain ** len(sizes)
    for sample in range(2):
        volts = [layer[sample] for layer in layers]
        for l, nodes in enumerate(volts[1:]):
            lines = lines_of(circuit, l, volts[l])
            for i, v in enumerate(nodes):
                brought = sum(g * (line - v) for g, line in zip(weights[l][i], lines, strict=True))
                if l + 1 < len(weights):
                    drawn = (
                        row[i] * (gain * v - u) for row, u in zip(weights[l + 1], volts[l + 2], strict=True)
                    )
                    brought -= sum(drawn) / gain
                of = signs(diode, i + 1)[i] if l + 1 < len(weights) else ()
                if not isinstance(diode, IdealDiode):
                    passed = sum(s * amperes(diode, s * v - diode.offset_volts) for s in of)
                    assert brought == pytest.approx(passed, abs=1e-10 * scale)
                    continue
                below, above = (v + diode.offset_volts, diode.offset_volts - v)  # room to the walls
                assert -1 not in of or below >= -1e-14
                assert 1 not in of or above >= -1e-14
                if brought < -1e-10 * scale:
                    assert -1 in of
                    assert below < 1e-14
                elif brought > 1e-10 * scale:
                    assert 1 in of
                    assert above < 1e-14


@pytest.mark.parametrize("name", DIODES)
def test_heat_is_the_power_of_the_sources(name):
    """Inputs, biases, and the sources of offsets, which take up offset times current."""
    diode = DIODES[name]
    system = bound((4, 6, 5, 3), diode)
    state = settled(system).state
    heat = system.heat(state)
    assert heat.shape == (3, 3)
    assert (heat > 0).all()
    layers, weights = layers_of(system, state), [w.tolist() for w in system.params.values()]
    for sample in range(3):
        power = 0.0
        for l, weight in enumerate(weights):
            below, nodes = layers[l][sample], layers[l + 1][sample]
            lines = lines_of(system.circuit, l, below)
            first = 0 if l == 0 else len(below)  # others are nodes
            for j in range(first, len(lines)):
                power += lines[j] * sum(row[j] * (lines[j] - v) for row, v in zip(weight, nodes, strict=True))
            if l + 1 == len(weights):
                continue
            for i, v in enumerate(nodes):
                # what comes in from both sides leaves through the diodes, and through their sources at +-offset
                came = sum(g * (line - v) for g, line in zip(weight[i], lines, strict=True))
                came -= sum(
                    row[i] * (v - u) for row, u in zip(weights[l + 1], layers[l + 2][sample], strict=True)
                )
                of = signs(diode, i + 1)[i]
                if isinstance(diode, IdealDiode):
                    power -= diode.offset_volts * abs(came)
                else:
                    through = [amperes(diode, s * v - diode.offset_volts) for s in of]
                    power -= diode.offset_volts * sum(through)
        assert heat[sample].sum().item() == pytest.approx(power, rel=1e-7)


# -- gradients ---------------------------------------------------------------------------------------


def test_the_contrast_is_that_of_squared_cell_voltages():
    """((dv_n)^2 - (dv_f)^2) / (2 beta), cell by cell, A^(-2 l) of it behind l amplifiers."""
    gain, beta = 1.7, 3e-6
    system = bound((3, 4, 3, 2), DIODES["ideal"], amplification=gain, paired_output=True, readout_gain=1.5)
    free = settled(system)
    nudged = system.nudged(SquaredError(), targets(system), beta)
    after = settled(nudged, free)
    contrast = nudged.contrast(free, after)
    f, n = layers_of(system, free.state), layers_of(system, after.state)
    for l, (name, found) in enumerate(contrast.items()):
        expected = np.zeros(found.shape)
        for sample in range(3):
            lines_f, lines_n = (lines_of(system.circuit, l, v[l][sample]) for v in (f, n))
            for i, j in np.ndindex(*found.shape):
                dv_f, dv_n = lines_f[j] - f[l + 1][sample][i], lines_n[j] - n[l + 1][sample][i]
                expected[i, j] += gain ** (-2 * l) * (dv_n**2 - dv_f**2) / (2 * beta) / 3
        np.testing.assert_allclose(
            found, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max(), err_msg=name
        )


def test_factors_add_up_to_the_contrast():
    """Lines that no nudge moves have no pairs: a train of pulses on them would meet nothing."""
    system = bound((3, 4, 3, 2), DIODES["Shockley"], amplification=1.7, paired_output=True)
    free = settled(system)
    nudged = system.nudged(SquaredError(), targets(system), 3e-6)
    after = settled(nudged, free)
    factors = nudged.factors(free, after)
    for name, exact in nudged.contrast(free, after).items():
        found = sum(post.T @ pre for post, pre in factors[name]) / 3
        assert torch.allclose(found, exact, rtol=1e-9, atol=1e-9 * exact.abs().max().item())
        assert all(post.abs().max() > 0 and pre.abs().max() > 0 for post, pre in factors[name])


@pytest.mark.parametrize("name", ["linear", "Shockley", "Shockley pair"])
def test_small_nudges_find_the_derivative_of_the_cost(name):
    """Against finite differences of the settled cost, in V^2 / S, of conductances of 1e-5 S."""
    options = {"amplification": 1.5, "readout_gain": 2.0}
    system = bound((4, 5, 4, 2), DIODES[name], **options)
    target, cost = targets(system), SquaredError()
    free = settled(system)
    beta = 1e-5 * system.largest_beta(cost)
    estimates = []
    for sign in (-1, 1):
        nudged = system.nudged(cost, target, sign * beta)
        estimates.append(nudged.contrast(free, settled(nudged, free)))
    rng = torch.Generator().manual_seed(4)

    def settled_cost(params):
        again = system.rebind(params)
        return cost.value(again.readout(settled(again).state), target).mean().item()

    for parameter, weight in system.params.items():
        estimate = 0.5 * (estimates[0][parameter] + estimates[1][parameter])
        direction = torch.rand(weight.shape, generator=rng, dtype=F64) * weight
        step = 1e-5
        up, down = (
            settled_cost({**system.params, parameter: weight + sign * step * direction}) for sign in (1, -1)
        )
        expected = (up - down) / (2 * step)
        assert (estimate * direction).sum().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["ideal", "linear", "Shockley", "Shockley pair"])
def test_single_precision_keeps_the_contrast_of_real_units(name):
    """Window of four decades from 1e-8 S, 1 V, a millionth of the nudge that is allowed: squares would lose it."""
    sizes, window, cost = (20, 16, 5), (1e-8, 1e-4), SquaredError()
    double, single = (
        bound(sizes, DIODES[name], window=window, dtype=dtype) for dtype in (F64, torch.float32)
    )
    single = single.circuit.bind({k: w.float() for k, w in double.params.items()}, double.x.float())
    double = double.circuit.bind({k: w.double() for k, w in single.params.items()}, single.x.double())
    beta = 1e-6 * double.largest_beta(cost)
    target = targets(double)

    def contrast(system, free, start, solver):
        nudged = system.nudged(cost, target.to(system.x.dtype), beta)
        found = nudged.contrast(free, settled(nudged, start, solver))
        return torch.cat([g.flatten().double() for g in found.values()])

    free = settled(double)
    exact = contrast(double, free, free, EXACT)
    free = settled(single, solver=Sweep(1e-6, max_sweeps=5000))
    found = contrast(single, free, free, Sweep(1e-6, max_sweeps=5000))
    assert (found - exact).norm() < 1e-4 * exact.norm()
    subtracted = contrast(single, free, free.state, Sweep(1e-6, max_sweeps=5000))
    assert (subtracted - exact).norm() > 1e-2 * exact.norm()


# -- complaints --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResistiveCircuit((3,)), r"sizes \(3,\); give at least an input and an output"),
        (lambda: ResistiveCircuit((3, 0, 2)), r"sizes \(3, 0, 2\)"),
        (lambda: ResistiveCircuit((3, 2), window=(1e-4, 1e-7)), "choose 0 <= g_min < g_max in siemens"),
        (lambda: ResistiveCircuit((3, 2), window=(-1e-7, 1e-4)), "choose 0 <= g_min < g_max"),
        (lambda: ResistiveCircuit((3, 2), window=(0, math.inf)), "choose 0 <= g_min < g_max"),
        (
            lambda: ResistiveCircuit((3, 2), capacitance_farads=0.0),
            "capacitance_farads = 0.0; choose a finite",
        ),
        (lambda: ResistiveCircuit((3, 2), input_volts=-1.0), "input_volts = -1.0; choose a finite value > 0"),
        (lambda: ResistiveCircuit((3, 2), bias_volts=0.0), "bias_volts = 0.0"),
        (lambda: ResistiveCircuit((3, 2), amplification=math.nan), "amplification = nan"),
        (lambda: ResistiveCircuit((3, 2), readout_gain=math.inf), "readout_gain = inf"),
    ],
)
def test_settings_out_of_range_are_named_with_their_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def ones(*sizes, **options):
    circuit = ResistiveCircuit(sizes, window=(0.0, 1e-4), **options).double()
    return circuit, {name: torch.full_like(w, 1e-5) for name, w in circuit.params().items()}


def test_a_node_that_floats_is_named():
    circuit, params = ones(2, 3, 2)
    with torch.no_grad():
        params["layers.1.weight"][1] = 0.0
        with pytest.raises(
            ValueError, match="node 1 of layer 2 floats: all its conductances are 0 S; choose a window"
        ):
            circuit.bind(params, torch.ones(1, 2, dtype=F64))
        params["layers.1.weight"][1] = 1e-5
        params["layers.0.weight"][2] = 0.0
        circuit.bind(params, torch.ones(1, 2, dtype=F64))  # it hangs at the next layer
        params["layers.1.weight"][:, 2] = 0.0
        with pytest.raises(ValueError, match="node 2 of layer 1 floats"):
            circuit.bind(params, torch.ones(1, 2, dtype=F64))


@pytest.mark.parametrize("wires", [None, Wires(1.0, 1.0)])
def test_a_negative_conductance_is_named_with_the_way_out(wires):
    circuit, params = ones(2, 3, 2, wires=wires)
    with torch.no_grad():
        params["layers.1.weight"][0, 1] = -2e-6
    with pytest.raises(
        ValueError, match=r"layers.1.weight holds a negative .*-2e-06 S.*learn with WindowConstraint"
    ):
        circuit.bind(params, torch.ones(1, 2, dtype=F64))


def test_inputs_that_do_not_fit_are_refused():
    circuit, params = ones(2, 3, 2)
    for x in (torch.ones(1, 3, dtype=F64), torch.ones(1, 2), torch.ones(2, dtype=F64)):
        with pytest.raises(ValueError, match=r"this circuit takes floats \(B, 2\)"):
            circuit.bind(params, x)
    with pytest.raises(ValueError, match="real voltages only; use the feedforward energy for contours"):
        circuit.bind({k: w.to(torch.complex128) for k, w in params.items()}, torch.ones(1, 2, dtype=F64))


def test_layers_are_joined_by_the_lines_that_they_need():
    circuit = ResistiveCircuit((3, 5, 4, 2), paired_output=True)
    assert [tuple(w.shape) for w in circuit.params().values()] == [(5, 8), (4, 7), (4, 6)]
    assert circuit.layout.sizes == (5, 4, 4)
    circuit = ResistiveCircuit((3, 5, 2), bias_volts=None)
    assert [tuple(w.shape) for w in circuit.params().values()] == [(5, 6), (2, 5)]
    low, high = circuit.window
    assert all(((w >= low) & (w <= (low + high) / 2)).all() for w in circuit.params().values())
    assert all(a.shape[0] == b.shape[1] for a, b in pairwise(circuit.params().values()))
