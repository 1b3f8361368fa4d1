"""Crossbars of resistive networks with the resistance of their wires, against nodal analysis of every segment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuits import IdealDiode, ShockleyDiode, SquaredError
from circuits.spice import operating_points
from circuits.wires import Wires
from mep_sim.settling import settle
from tests.marks import needs_ngspice
from tests.nodal import network, volts_of
from tests.test_resistive import EXACT, F64, OFF, bound, settled, targets

WIRES = Wires(30.0, 50.0, 200.0, 100.0)
some = settings(max_examples=12, deadline=None)


def weights(system) -> list[Tensor]:
    return list(system.params.values())


@some
@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
    ohm=st.sampled_from([1.0, 100.0, 5e3]),
    bias=st.sampled_from([None, 0.7]),
    gain=st.sampled_from([1.0, 2.5]),
    paired=st.booleans(),
)
def test_a_wired_network_is_the_nodal_analysis_of_all_its_segments(sizes, seed, ohm, bias, gain, paired):
    """Bit lines ten times as resistive as word lines: nodes of a layer feel each other through both."""
    wires = Wires(0.1 * ohm, ohm, 2 * ohm, 3 * ohm)
    options = {"bias_volts": bias, "amplification": gain, "paired_output": paired}
    system = bound(sizes, OFF, 2, seed, wires=wires, **options)
    state = settled(system).state
    for row, x in zip(state, system.x.tolist(), strict=True):
        solution = network(system.circuit, weights(system), x).solve()
        np.testing.assert_allclose(row, volts_of(system.circuit, solution), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("diode", [OFF, IdealDiode(offset_volts=0.1), ShockleyDiode(saturation_amperes=1e-8)])
def test_wires_of_a_microohm_are_none(diode):
    plain = bound((4, 5, 4, 2), diode)
    wired = bound((4, 5, 4, 2), diode, wires=Wires(1e-6, 1e-6))
    a, b = settled(plain).state, settled(wired).state
    assert torch.allclose(a, b, rtol=0, atol=1e-8)
    assert torch.allclose(plain.energy(a), wired.energy(b), rtol=1e-8)
    assert torch.allclose(plain.heat(a), wired.heat(b), rtol=1e-8)


@pytest.mark.parametrize("exact_lines", [66, 1])
@pytest.mark.parametrize("diode", [OFF, ShockleyDiode(saturation_amperes=1e-8)])
def test_the_contrast_is_the_derivative_of_the_least_cocontent(diode, exact_lines):
    """Envelope theorem: d/dg of min_v E is dE/dg there, of what the coupling says E is; free and nudged."""
    system = bound((2, 3, 2), diode, 2, wires=WIRES, exact_lines=exact_lines, amplification=1.5)
    beta = 2e-6
    free = settled(system)
    nudged = system.nudged(SquaredError(), targets(system), beta)
    after = settled(nudged, free)
    contrast = nudged.contrast(free, after)
    target = targets(system)

    def least(params) -> Tensor:
        """(min of E + beta C - min of E) / beta, mean over the batch."""
        again = system.rebind(params)
        rest = settled(again)
        pulled = again.nudged(SquaredError(), target, beta)
        return (pulled.energy(settled(pulled).state) - again.energy(rest.state)).mean().item() / beta

    for name, found in contrast.items():
        scale = found.abs().max().item()
        for i, j in [(0, 0), (1, 2), (found.shape[0] - 1, found.shape[1] - 1)]:
            step = 1e-3 * system.params[name][i, j].item()
            sides = []
            for sign in (1, -1):
                moved = system.params[name].clone()
                moved[i, j] += sign * step
                sides.append(least({**system.params, name: moved}))
            expected = (sides[0] - sides[1]) / (2 * step)
            assert found[i, j].item() == pytest.approx(expected, rel=1e-4, abs=1e-6 * scale), (name, i, j)


def test_exact_and_approximate_crossbars_say_what_they_get_wrong():
    wires = Wires(20.0, 20.0)
    exact = bound((6, 8, 3), OFF, wires=wires, exact_lines=14)
    assert exact.wire_errors() == {}
    both = bound((6, 8, 3), OFF, wires=wires, exact_lines=10)  # of 14 lines the first, of 10 the second
    assert list(both.wire_errors()) == ["layers.0.weight"]
    ladder = bound((6, 8, 3), OFF, wires=wires, exact_lines=1)
    errors = ladder.wire_errors()
    assert list(errors) == ["layers.0.weight", "layers.1.weight"]
    for error, coupling, true in zip(errors.values(), ladder.couplings, exact.couplings, strict=True):
        x = torch.eye(coupling.lines.count, dtype=F64)
        currents = -true.admittance[x.shape[0] :, : x.shape[0]]  # into held outputs, by line
        assert error == pytest.approx(
            ((coupling.weight - currents).norm() / currents.norm()).item(), rel=1e-9
        )
        assert 0 < error < 0.01
    a, b = settled(exact).state, settled(ladder).state
    ideal = settled(bound((6, 8, 3), OFF)).state
    assert (a - b).norm() < 0.5 * (a - ideal).norm()


def test_the_heat_of_wires_is_the_power_of_the_sources():
    system = bound((3, 4, 2), OFF, 2, wires=WIRES)
    state = settled(system).state
    for row, x in zip(system.heat(state), system.x.tolist(), strict=True):
        nodal = network(system.circuit, weights(system), x)
        assert row.sum().item() == pytest.approx(nodal.delivered(nodal.solve()), rel=1e-8)


def test_what_wires_take_from_a_network_does_not_break_learning_in_single_precision():
    """The contrast of the exact coupling in float32 against float64, in siemens of 1e-5."""
    double = bound((5, 6, 3), ShockleyDiode(saturation_amperes=1e-8), wires=WIRES)
    single = double.circuit.bind({k: w.float() for k, w in double.params.items()}, double.x.float())
    found = []
    for system, solver in ((double, EXACT), (single, None)):
        free = settle(system, solver=solver)
        nudged = system.nudged(SquaredError(), targets(double).to(system.x), 1e-9)
        found.append(nudged.contrast(free, settle(nudged, free, solver)))
    for name, exact in found[0].items():
        assert (found[1][name].double() - exact).norm() < 1e-3 * exact.norm()


@needs_ngspice
def test_ngspice_agrees_on_a_wired_network():
    diode = ShockleyDiode(saturation_amperes=1e-12, series_ohm=1e3)
    options = {"window": (1e-9, 1e-6), "wires": Wires(100.0, 200.0, 1e3, 500.0), "amplification": 3.0}
    system = bound((4, 6, 5, 3), diode, 2, **options)
    np.testing.assert_allclose(operating_points(system), settled(system).state, rtol=0, atol=1e-7)
    ideal = settled(bound((4, 6, 5, 3), diode, 2, **{**options, "wires": None})).state
    assert (settled(system).state - ideal).abs().max() > 1e-5  # wires have a say in it


def test_factors_are_refused_with_wires():
    system = bound((3, 4, 2), OFF, wires=WIRES)
    free = settled(system)
    nudged = system.nudged(SquaredError(), targets(system), 1e-6)
    with pytest.raises(ValueError, match=r"behind resistive wires .* so that the contrast has no factors"):
        nudged.factors(free, settled(nudged, free))


def test_a_line_that_floats_is_named():
    system = bound((3, 4, 2), OFF, wires=WIRES)
    with torch.no_grad():
        system.params["layers.1.weight"][1] = 0.0
    with pytest.raises(ValueError, match=r"layers.1.weight: bit line \(output\) 1 has no conductance at all"):
        system.rebind(system.params)
