"""Settling: the conformance suite on every circuit, every ODE method, errors, and the GPU."""

import dataclasses
import warnings

import pytest
import torch

from circuits import cost
from mep_sim.settling import ODE, ODE_METHODS, SettlingError, Sweep, settle
from tests.conformance import CASES, EXACT, OPEN, PHASES, circuit_checks, gap, hopfield, moved


@pytest.mark.parametrize("check", circuit_checks, ids=lambda f: f.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", CASES)
def test_circuit(name, check):
    check(CASES[name]())


@pytest.mark.parametrize("method", ODE_METHODS)
@pytest.mark.parametrize("nudge", PHASES)
@pytest.mark.parametrize("name", ["hopfield-1", "feedforward-tanh-1"])
def test_every_ode_method_reaches_the_same_equilibrium(name, method, nudge):
    system = CASES[name]().phase(nudge)
    e = settle(system, solver=ODE(1e-11, method))
    assert e.converged.all()
    assert gap(moved(e), moved(settle(system, solver=EXACT))) < 1e-9


@pytest.mark.parametrize("method", ODE_METHODS)
@pytest.mark.parametrize("nudge", PHASES)
def test_every_ode_method_settles_a_batch_whatever_the_companions(method, nudge):
    case = CASES["feedforward-softplus-2"]()
    x = case.x.clone()
    x[-1] *= 1e3
    stretched = dataclasses.replace(case, x=x).phase(nudge)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        e = settle(stretched, solver=ODE(1e-6, method))
    assert e.converged.all()
    assert (e.time > 0).all()
    assert gap(moved(e)[:-1], moved(settle(case.phase(nudge), solver=EXACT))[:-1]) < 2e-5


@pytest.mark.parametrize(
    ("method", "step", "allowed"),
    [("euler", 1e-2, 2e-3), ("rk4", 0.1, 1e-6), ("dopri5", None, 1e-6), ("dopri8", 0.5, 5e-6)],
)
def test_a_single_unit_follows_its_exponential(method, step, allowed):
    """ds/dt = b + W x - s from 0: s* (1 - exp(-t)), as a capacitor charges through a resistor."""
    system = hopfield(1, 1, box=OPEN, batch=3).bind()
    times = torch.linspace(0, 6, 25, dtype=torch.float64)
    e = settle(system, solver=ODE(1e-9, method, step=step, rtol=1e-7, max_evaluations=10**5), save_at=times)
    expected = system.drive * (1 - torch.exp(-times))[:, None, None]
    assert e.converged.all()
    assert gap(e.transient.state, expected) < allowed
    assert (
        gap(e.transient.residual, (system.drive * torch.exp(-times)[:, None, None]).abs().amax(2)) < allowed
    )


def test_settling_time_is_when_the_exponential_reaches_the_tolerance():
    """|s* - s| = e^-t s* falls below tolerance |s| at t = ln(1 / tolerance); small Euler steps see it."""
    e = settle(hopfield(1, 1, box=OPEN).bind(), solver=ODE(1e-3, "euler", step=0.01))
    assert e.time == pytest.approx(torch.full((4,), 6.909), abs=0.05)


def test_a_start_from_elsewhere_reaches_the_same_equilibrium():
    system = CASES["hopfield-2"]().bind()
    s0 = torch.ones(len(system.drive), system.layout.n, dtype=torch.float64)
    for solver in (Sweep(1e-11), ODE(1e-11)):
        assert gap(settle(system, s0, solver).state, settle(system, solver=EXACT).state) < 1e-9


def test_from_a_free_equilibrium_the_deviation_is_settled():
    case = CASES["feedforward-tanh-1"]()
    system = case.bind()
    free = settle(system, solver=EXACT)
    nudged = settle(system.nudged(cost("mse"), case.labels, 0.1), free, Sweep(1e-11))
    assert gap(nudged.state, free.state + nudged.deviation) < 1e-14
    assert torch.equal(nudged.deviation, settle(case.phase("mse"), solver=Sweep(1e-11)).deviation)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": 0.0}, "tolerance = 0.0"),
        ({"tolerance": 1.0}, "tolerance = 1.0"),
        ({"tolerance": float("nan")}, "tolerance = nan"),
        ({"method": "dopri6"}, "unknown ODE method 'dopri6'.*dopri5"),
        ({"method": "scipy_solver"}, "unknown ODE method 'scipy_solver'"),
        ({"method": "implicit_adams"}, "unknown ODE method"),
        ({"step": 0.0}, "step = 0.0"),
        ({"step": float("inf")}, "step = inf"),
        ({"rtol": 0.0}, "rtol = 0.0"),
        ({"max_evaluations": 0}, "max_evaluations = 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ODE(**settings)


def test_sweep_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="max_sweeps = 0"):
        Sweep(max_sweeps=0)
    with pytest.raises(ValueError, match="tolerance = 0"):
        Sweep(tolerance=0)


@pytest.mark.parametrize("times", [[0.0], [1.0, 2.0], [0.0, 1.0, 1.0], [[0.0, 1.0]]])
def test_save_times_must_increase_from_zero(times):
    system = CASES["feedforward-tanh-1"]().bind()
    with pytest.raises(ValueError, match="save_at must be increasing"):
        settle(system, solver=ODE(), save_at=torch.tensor(times))


def test_sweeps_record_no_transient():
    with pytest.raises(ValueError, match="sweeps have no time"):
        settle(CASES["feedforward-tanh-1"]().bind(), save_at=torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("beta", [0.0, float("nan"), float("inf")])
def test_a_nudge_of_no_strength_is_refused(beta):
    case = CASES["feedforward-tanh-1"]()
    with pytest.raises(ValueError, match="is no nudge"):
        case.bind().nudged(cost("mse"), case.labels, beta)


def test_a_diverging_nudge_is_reported_not_returned():
    """Far beyond its bound the nudged energy has no minimum: the dynamics run away, or out of budget."""
    runaway = CASES["hopfield-linear"]().phase("mse", beta=-3.0)
    with pytest.raises(SettlingError, match=r"lower \|beta\|"):
        settle(runaway, solver=ODE(1e-6, "euler"))
    assert not settle(runaway, solver=ODE(1e-6, max_evaluations=500)).converged.any()


@pytest.mark.cuda
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("nudge", PHASES)
def test_cuda_agrees_with_the_cpu(name, nudge):
    case = CASES[name]()
    reference = moved(settle(case.phase(nudge), solver=EXACT))
    system = case.phase(nudge, dtype=torch.float32, device="cuda")
    for solver in (Sweep(1e-6), ODE(1e-6, "euler"), ODE(1e-6)):
        e = settle(system, solver=solver)
        assert e.state.is_cuda
        assert e.converged.all()
        assert gap(moved(e), reference) < 1e-5
