"""Resistive networks against ngspice: what our settling finds in float64 is what the circuit does."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from circuits import spice_crossbars
from circuits.costs import CrossEntropy, SquaredError
from circuits.diodes import IdealDiode, PiecewiseLinearDiode, ShockleyDiode
from circuits.netlist import Diode, Resistor, write
from circuits.netlist_parser import parse
from circuits.resistive import ResistiveCircuit
from circuits.spice import netlist_of, node_names, operating_points, transient
from mep_sim.settling import Sweep, settle
from tests.marks import needs_ngspice

WINDOW = (1e-9, 1e-6)  # currents that diodes of these saturations answer to at 1 V
SHOCKLEY = ShockleyDiode(saturation_amperes=1e-12)


def bound(sizes, diode=SHOCKLEY, batch=3, seed=0, window=WINDOW, **settings):
    rng = torch.Generator().manual_seed(seed)
    circuit = ResistiveCircuit(sizes, diode, window=window, rng=rng, **settings).double()
    params = {name: parameter.detach() for name, parameter in circuit.named_parameters()}
    for weight in params.values():  # few large ones at a node, so that voltages do not average to nothing
        chosen = torch.rand(weight.shape, generator=rng) < 5 / weight.shape[1]
        weight.copy_(torch.where(chosen, weight, window[0]))
    x = 2 * torch.rand(batch, sizes[0], generator=rng, dtype=torch.float64) - 1
    return circuit.bind(params, x)


def nudged(system, strength):
    """Nudged towards random targets with `strength` times what the network bears of either sign."""
    rng = torch.Generator().manual_seed(1)
    target = torch.randn(len(system.x), system.circuit.outputs, generator=rng, dtype=torch.float64)
    return system.nudged(SquaredError(), target, strength * system.largest_beta(SquaredError()))


def settled(system):
    found = settle(system, solver=Sweep(tolerance=1e-10, max_sweeps=20_000))
    assert found.converged.all()
    return found.state


@needs_ngspice
@pytest.mark.parametrize("sizes", [(8, 16, 4), (64, 32, 10)])
def test_operating_points_of_shockley_networks(sizes):
    system = bound(sizes)
    found = operating_points(system)
    np.testing.assert_allclose(found, settled(system), rtol=0, atol=1e-7)
    # and diodes have a say in it
    without = bound(sizes, ShockleyDiode(saturation_amperes=1e-30))
    assert (settled(without) - found).abs().max() > 0.01


@needs_ngspice
def test_layers_with_more_ports_than_a_subcircuit_may_have_are_cut(monkeypatch):
    monkeypatch.setattr(spice_crossbars, "PORTS", 12)
    monkeypatch.setattr(spice_crossbars, "TILE", 6)
    system = bound((5, 14, 10, 3))
    deck = write(netlist_of(system))
    assert all(f".subckt layer1_{row}_{column}" in deck for row in (0, 6, 12) for column in (0, 6))
    np.testing.assert_allclose(operating_points(system), settled(system), rtol=0, atol=1e-7)


arrangements = st.sampled_from(["alternating", "pair"])
offsets = st.sampled_from([0.0, 0.05, 0.3])
diodes = st.one_of(
    st.builds(
        ShockleyDiode,
        arrangement=arrangements,
        offset_volts=offsets,
        saturation_amperes=st.floats(1e-14, 1e-12),
        ideality=st.floats(1, 2),
        series_ohm=st.sampled_from([0.0, 1e3, 1e5]),
        kelvin=st.floats(250, 400),
    ),
    st.builds(
        PiecewiseLinearDiode,
        arrangement=arrangements,
        offset_volts=offsets,
        on_siemens=st.floats(1e-5, 1e-2),
        off_siemens=st.floats(0, 1e-6),
    ),
    st.builds(IdealDiode, arrangement=arrangements, offset_volts=st.sampled_from([0.05, 0.3])),
)


@needs_ngspice
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    diode=diodes,
    seed=st.integers(0, 1000),
    bias=st.sampled_from([None, 0.5]),
    gain=st.sampled_from([1.0, 4.0]),
    paired=st.booleans(),
    readout=st.sampled_from([1.0, 3.0]),
    strength=st.sampled_from([None, 2.0, -0.5]),
)
def test_operating_points_of_any_network_free_and_nudged(
    sizes, diode, seed, bias, gain, paired, readout, strength
):
    amplifiers = {"amplification": gain, "readout_gain": readout}
    system = bound(sizes, diode, 2, seed, bias_volts=bias, paired_output=paired, **amplifiers)
    if strength is not None:
        system = nudged(system, strength)
    least = (
        1e-6 if isinstance(diode, IdealDiode) else 1e-7
    )  # one that conducts 1e7 times better than its node
    np.testing.assert_allclose(operating_points(system), settled(system), rtol=0, atol=least)


@needs_ngspice
@pytest.mark.parametrize(
    ("diode", "start", "gain"),
    [(SHOCKLEY, 0.0, 1.0), (SHOCKLEY, 0.3, 4.0), (PiecewiseLinearDiode(on_siemens=1e-5), 0.2, 1.0)],
)
def test_transients(diode, start, gain):
    system = bound((8, 16, 4), diode, amplification=gain)
    system = bound((8, 16, 4), diode, amplification=gain, batch=1) if start else nudged(system, 0.5)
    sample = len(system.x) - 1
    rng = torch.Generator().manual_seed(2)
    begin = start * torch.randn(system.layout.n, generator=rng, dtype=torch.float64)
    slowest = system.circuit.capacitance_farads / min(g.min().item() for g in system.conductances)
    seconds = slowest * torch.cat([torch.zeros(1), torch.logspace(-2, 0.5, 15)]).double()

    def flow(_, volts):
        return system.flow(torch.from_numpy(volts).expand(len(system.x), -1))[sample].numpy()

    ours = solve_ivp(
        flow, (0, seconds[-1].item()), begin.numpy(), "LSODA", seconds.numpy(), rtol=1e-9, atol=1e-11
    )
    theirs = transient(system, seconds, sample, begin)
    assert theirs.shape == (16, 1, system.layout.n)
    np.testing.assert_allclose(theirs[:, 0], ours.y.T, rtol=0, atol=1e-5)


def test_nodes_are_named_in_the_order_of_the_layout():
    system = bound((2, 2, 1, 2), paired_output=True)
    assert node_names(system) == ["h1_0", "h1_1", "h2_0", "out_0", "out_1", "outn_0", "outn_1"]


def test_a_netlist_has_a_resistor_for_every_conductance_and_reads_back_the_same():
    system = nudged(bound((3, 4, 2), amplification=4.0, paired_output=True), 0.1)
    with torch.no_grad():
        system.params["layers.0.weight"][1, 2] = 0.0
    netlist = netlist_of(system.circuit.bind(system.params, system.x))
    assert parse(write(netlist)) == netlist
    for layer, subcircuit in zip(("layers.0.weight", "layers.1.weight"), netlist.subcircuits, strict=False):
        weight = system.params[layer]
        resistors = {
            element.name: element for element in subcircuit.elements if isinstance(element, Resistor)
        }
        assert len(resistors) == torch.count_nonzero(weight)
        for (row, column), siemens in np.ndenumerate(weight.numpy()):
            if siemens:
                element = resistors[f"r{row}_{column}"]
                assert (element.a, element.b) == (
                    subcircuit.ports[column],
                    subcircuit.ports[weight.shape[1] + row],
                )
                assert element.ohm == 1 / siemens
    assert [subcircuit.name for subcircuit in netlist.subcircuits] == ["layer1", "layer2", "amplifier"]
    found = [element for element in netlist.subcircuits[0].elements if isinstance(element, Diode)]
    assert [(element.anode, element.cathode) for element in found] == [
        ("0", "h1_0"),
        ("h1_1", "0"),
        ("0", "h1_2"),
        ("h1_3", "0"),
    ]


def test_what_has_no_netlist_is_refused():
    system = bound((3, 4, 2))
    with pytest.raises(ValueError, match="nudged by SquaredError"):
        netlist_of(system.nudged(CrossEntropy(), torch.zeros(3, dtype=torch.int64), 1e-7))
    for seconds in (torch.zeros(2), -torch.ones(1), torch.ones(0), torch.ones(2, 2)):
        with pytest.raises(ValueError, match="seconds"):
            transient(system, seconds)
