"""How fast resistive networks are, and what a nudge may be: eigenvalues, RC circuits, implicit steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from circuits import CrossEntropy, ResistiveCircuit, ResistiveSystem, SquaredError
from circuits.wires import Wires
from mep_sim.settling import ODE, Implicit, Sweep, settle
from tests.test_resistive import DIODES, F64, OFF, SILICON, bound, settled, targets


def swept(system: ResistiveSystem, z: Tensor) -> Tensor:
    """Where its sweeps no longer change anything."""
    for count, (found, change) in enumerate(system.sweeps(z)):
        if change.max() <= 1e-15 * found.abs().max() or count == 400:
            return found


# -- bounds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cost", "options"),
    [
        (SquaredError(), {}),
        (SquaredError(), {"amplification": 3.0, "readout_gain": 2.0}),
        (SquaredError(), {"paired_output": True}),
        (SquaredError(), {"paired_output": True, "amplification": 2.0, "readout_gain": 0.3}),
        (SquaredError(), {"wires": Wires(100.0, 200.0)}),
    ],
)
def test_the_largest_beta_is_where_the_nudged_minimum_is_lost(cost, options):
    system = bound((3, 4, 5, 2), OFF, 1, **options)
    largest = system.largest_beta(cost)

    def least_curvature(beta):
        nudged = system.nudged(cost, targets(system), beta)
        hessian = torch.autograd.functional.hessian(
            lambda z: nudged.energy(z[None]).sum(), torch.zeros(system.layout.n, dtype=F64)
        )
        return torch.linalg.eigvalsh(hessian)[0].item()

    assert least_curvature(-0.999 * largest) > 0
    assert least_curvature(-1.001 * largest) < 0
    certain = system.largest_beta(cost, enough=1e-30)
    assert 0 < certain <= largest * (1 + 1e-12)
    assert system.largest_beta(cost, enough=0.99 * certain) == certain
    assert system.largest_beta(cost, enough=2 * largest) == largest
    assert system.margin(cost, 0.5 * certain) > 0
    assert system.margin(cost, -1.001 * largest) < 0


def test_an_output_of_two_nodes_has_the_curvature_of_both():
    """One output between two nodes at g to ground each: beta 2 of (v+ - v-) against g."""
    circuit = ResistiveCircuit((1, 1), OFF, bias_volts=None, paired_output=True).double()
    params = {"layers.0.weight": torch.tensor([[1e-5, 3e-5], [2e-5, 2e-5]], dtype=F64)}
    system = circuit.bind(params, torch.ones(1, 1, dtype=F64))
    assert system.largest_beta(SquaredError()) == pytest.approx(2e-5, rel=1e-12)
    assert system.largest_beta(CrossEntropy()) == pytest.approx(4e-5, rel=1e-12)


@pytest.mark.parametrize("name", [*DIODES, "off"])
@pytest.mark.parametrize(
    "options", [{}, {"amplification": 3.0}, {"amplification": 0.3}, {"paired_output": True}]
)
def test_rates_bound_the_spectrum(name, options):
    """Of the flow's Jacobian at equilibrium, per second, free and nudged by either sign."""
    system = bound((3, 4, 3, 2), {**DIODES, "off": OFF}[name], 2, capacitance_farads=2e-12, **options)
    largest = system.largest_beta(SquaredError())
    for strength in (None, -0.7, 20.0):
        phase = system
        if strength is not None:
            phase = system.nudged(SquaredError(), targets(system), strength * largest)
        z = settled(phase, solver=Sweep(1e-9, max_sweeps=2000)).state
        jacobian = torch.autograd.functional.jacobian(lambda z, s=phase: s.flow(z).sum(0), z)
        rates = torch.linalg.eigvals(-jacobian.transpose(0, 1)).real
        assert rates.max().item() <= phase.fastest_rate() * (1 + 1e-6), strength
        assert (rates.amin(1) <= phase.slowest_rate() * (1 + 1e-6)).all(), strength


@pytest.mark.parametrize("gain", [0.05, 1.0, 8.0])
def test_the_steepest_diode_may_be_driven_by_biases_through_an_amplifier(gain):
    """Backwards, volts count 1 / A: a bias line of the output's crossbar drives the hidden node."""
    circuit = ResistiveCircuit((1, 1, 1), SILICON, amplification=gain).double()
    first, second = torch.full((1, 4), 1e-7, dtype=F64), torch.tensor([[1e-4, 1e-7, 1e-4]], dtype=F64)
    system = circuit.bind({"layers.0.weight": first, "layers.1.weight": second}, torch.ones(1, 1, dtype=F64))
    z = settled(system).state
    jacobian = torch.autograd.functional.jacobian(lambda z: system.flow(z).sum(0), z)[:, 0]
    largest = torch.linalg.eigvals(-jacobian).real.max().item()
    assert largest <= system.fastest_rate() <= 100 * largest


@pytest.mark.parametrize("paired", [False, True])
def test_a_nudge_makes_outputs_decay_faster(paired):
    """One layer: its rates are (G + beta) / C, or those of pairs, between which beta counts twice."""
    system = bound((2, 2), OFF, 1, paired_output=paired)
    nudged = system.nudged(SquaredError(), targets(system), 1e-3)
    jacobian = torch.autograd.functional.jacobian(
        lambda z: nudged.flow(z).sum(0), torch.zeros(1, 2 * (1 + paired), dtype=F64)
    )
    slowest = torch.linalg.eigvals(-jacobian[:, 0]).real.min().item()
    assert slowest <= nudged.slowest_rate() * (1 + 1e-9)


# -- time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [ODE(1e-9, "dopri5", rtol=1e-9), Implicit(1e-9, rtol=1e-6)])
def test_a_node_charges_through_its_conductances(solver):
    """RC: v = v_inf (1 - exp(-t G / C)), in seconds; to a tolerance it takes ln(1 + 1 / tolerance) C / G."""
    circuit = ResistiveCircuit((1, 1), bias_volts=None, capacitance_farads=3e-12, input_volts=0.5).double()
    plus, minus = 4e-5, 1e-5
    params = {"layers.0.weight": torch.tensor([[plus, minus]], dtype=F64)}
    system = circuit.bind(params, torch.tensor([[0.6]], dtype=F64))
    rate, volts = (plus + minus) / 3e-12, 0.3 * (plus - minus) / (plus + minus)
    assert system.slowest_rate() == pytest.approx(rate, rel=1e-12)
    times = torch.linspace(0, 4 / rate, 9, dtype=F64)
    found = settle(system, solver=solver, save_at=times)
    expected = volts * (1 - torch.exp(-rate * times))
    assert torch.allclose(found.transient.state[:, 0, 0], expected, rtol=0, atol=1e-4 * volts)
    assert found.state.item() == pytest.approx(volts, rel=1e-8)
    # half the input's sources are at -0.3 V: their power is the heat
    power = 0.3 * (plus * (0.3 - volts) + minus * (0.3 + volts))
    assert system.heat(found.state).item() == pytest.approx(power, rel=1e-7)
    again = settle(system, solver=type(solver)(1e-3, solver.method, 0.02 / rate, rtol=1e-5))
    assert again.time.item() == pytest.approx(math.log1p(1e3) / rate, rel=0.01)


@pytest.mark.parametrize("name", [*DIODES, "off"])
@pytest.mark.parametrize(("nudge", "moved"), [(None, False), (0.5, True)])
def test_a_proximal_system_rests_where_an_implicit_euler_step_ends(name, nudge, moved):
    system = bound((3, 4, 3, 2), {**DIODES, "off": OFF}[name], 2, amplification=1.5)
    if moved:
        system = system.around(settled(system))
    if nudge is not None:
        system = system.nudged(SquaredError(), targets(system), nudge * system.largest_beta(SquaredError()))
    rng = torch.Generator().manual_seed(3)
    centre = 0.2 * torch.randn(2, system.layout.n, generator=rng, dtype=F64)
    centre = centre.clamp(system.lower - system.state(0 * centre), system.upper - system.state(0 * centre))
    for tau in (1e-9, 1e-7, 1e-5):
        z = swept(system.proximal(tau, centre), centre)
        # the flow is that of node currents where no ideal diode is near; at a wall it is none
        step = z - centre - tau / 1e-12 * system.node_currents(z)
        low, high = (end - system.state(z) for end in (system.lower, system.upper))
        free = (low < -1e-12) & (high > 1e-12)
        scale = tau / 1e-12 * 1e-4 + 1
        assert (step[free].abs() < 1e-11 * scale).all()
        assert (low <= 1e-12).all()
        assert (high >= -1e-12).all()


def test_an_implicit_step_of_a_linear_network_is_a_linear_solve():
    """(1 + tau K / C) v = c + tau K v_inf / C."""
    system = bound((3, 4, 2), OFF, 2)
    rest, tau = settled(system).state, 2e-8
    k = -torch.autograd.functional.jacobian(lambda z: system.flow(z).sum(0), rest)[:, 0]
    centre = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    expected = torch.linalg.solve(torch.eye(6, dtype=F64) + tau * k, (centre + tau * rest @ k.T).T).T
    z = swept(system.proximal(tau, centre), centre)
    assert torch.allclose(z, expected, rtol=0, atol=1e-12)
