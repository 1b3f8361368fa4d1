"""Heat of settling, against closed forms and against what the sources deliver."""

import pytest
import torch

from circuits import IdealDiode, PiecewiseLinearDiode, ResistiveCircuit, ShockleyDiode, cost
from mep_sim.energy import dissipated
from mep_sim.settling import Implicit, Sweep, settle

FARADS = 1e-12
DIODES = [
    IdealDiode(),
    IdealDiode(arrangement="pair", offset_volts=0.05),
    PiecewiseLinearDiode(on_siemens=1e-3, off_siemens=1e-6, offset_volts=0.02),
    ShockleyDiode(saturation_amperes=1e-6, offset_volts=0.1),
    ShockleyDiode(arrangement="pair", saturation_amperes=1e-6, series_ohm=100.0),
]


def recorded(system, seconds, points=400, start=None):
    """The transient of a system up to this time, densest at its start."""
    x = torch.linspace(0, 1, points, dtype=torch.float64)
    solver = Implicit(1e-9, rtol=1e-7, max_evaluations=200_000)
    return settle(system, start, solver, save_at=seconds * x**3).transient


def divider(up, down, volts):
    """One node between a source at `volts` and another at -volts, by these conductances."""
    circuit = ResistiveCircuit((1, 1), window=(0.0, 1.0), bias_volts=None, capacitance_farads=FARADS)
    return circuit.bind(
        {"layers.0.weight": torch.tensor([[up, down]], dtype=torch.float64)},
        torch.tensor([[volts]], dtype=torch.float64),
    )


def network(diode, amplification=1.0):
    rng = torch.Generator().manual_seed(0)
    circuit = ResistiveCircuit(
        (6, 5, 4, 2),
        diode,
        amplification=amplification,
        paired_output=True,
        capacitance_farads=FARADS,
        rng=rng,
    ).double()
    system = circuit.bind(circuit.params(), torch.randn(3, 6, generator=rng, dtype=torch.float64))
    return circuit, system


def delivered(circuit, system, rest):
    """Power (B,) of all ideal sources, from the current through every single cell: those of the lines, the amplifiers,
    and the bias sources of the diodes, which take power up. Of diodes in pairs with an offset, ideal ones only."""
    layers, gain = system.layout.split(rest), circuit.amplification
    power, into = torch.zeros(len(rest), dtype=rest.dtype), []
    for i, name in enumerate(circuit.weights):
        x = circuit.input_volts * system.x
        below = [x, -x] if i == 0 else [gain * layers[i - 1]]
        lines = torch.cat([*below, *(torch.full_like(x[:, :1], s * circuit.bias_volts) for s in (1, -1))], 1)
        current = circuit.params()[name] * (lines[:, None] - layers[i][:, :, None])  # (B, nodes, lines)
        power = power + torch.einsum("bl,bnl->b", lines, current)
        into.append(current.sum(2))
        if i > 0:  # an amplifier's node carries 1 / gain of the current of its line
            load = current[:, :, : layers[i - 1].shape[1]].sum(1) / gain
            into[i - 1] -= load
            power = power - (layers[i - 1] * load).sum(1)
    for v, current in zip(layers[:-1], into, strict=False):
        signs = circuit.diode.signs(v.shape[1])
        bias = torch.tensor(signs[0]) * circuit.diode.offset_volts if len(signs) == 1 else v
        if circuit.diode.offset_volts:
            power = power - (bias * current).sum(1)
    return power


def test_a_capacitor_charged_through_a_resistor_heats_it_with_half_c_v_squared():
    system = divider(1e-5, 0.0, 0.7)
    transient = recorded(system, 40 * FARADS / 1e-5)
    heat = dissipated(system, transient)
    torch.testing.assert_close(heat, torch.full((1, 1), 0.5 * FARADS * 0.7**2).double(), rtol=1e-4, atol=0)


def test_a_divider_at_rest_heats_with_v_squared_g_t():
    up, down, volts, seconds = 3e-5, 1e-5, 0.4, 2e-6
    system = divider(up, down, volts)
    rest = settle(system, solver=Sweep(1e-12)).state
    heat = dissipated(system, recorded(system, seconds, points=5, start=rest))
    series = up * down / (up + down)
    torch.testing.assert_close(
        heat, torch.full((1, 1), (2 * volts) ** 2 * series * seconds).double(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("amplification", [1.0, 3.0])
@pytest.mark.parametrize("diode", DIODES, ids=lambda d: f"{type(d).__name__}-{d.arrangement}")
def test_heat_at_rest_is_what_the_sources_deliver(diode, amplification):
    circuit, system = network(diode, amplification)
    rest = settle(system, solver=Sweep(1e-13)).state
    heat = system.heat(rest).sum(1)
    torch.testing.assert_close(heat, delivered(circuit, system, rest), rtol=1e-9, atol=0)


def test_what_a_nudge_drives_is_heat_too():
    """Of a nudged phase, whose states are deviations inside: at rest its heat is the power at that state, times the
    time."""
    _, system = network(ShockleyDiode(saturation_amperes=1e-6))
    free = settle(system, solver=Sweep(1e-12))
    nudged = system.nudged(cost("mse"), torch.tensor([0, 1, 0]), 1e-6)
    times = torch.linspace(0, 1e-6, 200, dtype=torch.float64)
    at = settle(nudged, free, Implicit(1e-9, rtol=1e-6), save_at=times)
    power = torch.stack([system.heat(state) for state in at.transient.state])
    around = system.around(free)
    torch.testing.assert_close(
        dissipated(around, at.transient), torch.trapezoid(power, times, dim=0), rtol=1e-12, atol=0
    )


def test_another_systems_transient_is_refused():
    _, system = network(IdealDiode())
    other = recorded(divider(1e-5, 1e-6, 1.0), 1e-6, points=3)
    with pytest.raises(ValueError, match="give the system that it was recorded of"):
        dissipated(system, other)
