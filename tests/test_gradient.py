"""Gradient estimates: the conformance suite on every circuit, and what their settings refuse."""

import io
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from circuits import FeedforwardCircuit, cost
from mep_sim.optimizers import (
    BackpropGradient,
    EPGradient,
    HolomorphicGradient,
    ImplicitGradient,
    LocalEPGradient,
    NaturalGradient,
)
from mep_sim.settling import ODE, SettlingError, Sweep, settle
from tests.conformance import (
    CASES,
    COSTS,
    EXACT,
    ep_errors,
    exact_gradient,
    feedforward,
    flat,
    gradient_checks,
    relative,
    slope,
)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """One for all checks, which leave it as it is: its exact gradients are worked out but once."""
    return CASES[request.param]()


@pytest.mark.parametrize("check", gradient_checks, ids=lambda f: f.__name__.removeprefix("check_"))
def test_circuit(case, check):
    check(case)


@pytest.mark.parametrize("loss_type", COSTS)
@pytest.mark.parametrize(("constrain", "order"), [(False, 2), (True, 1)])
def test_holding_relu_at_zero_costs_the_centred_order(loss_type, constrain, order):
    """Plain ReLU answers +beta and -beta in mirror images; a state held at s >= 0 can only rise."""
    case = feedforward("relu", 8, 12, 10, 4, constrain=constrain)
    betas = [1e-3, 1e-4, 1e-5]
    errors = ep_errors(case, loss_type, "centred", betas, exact_gradient(case, loss_type))
    assert slope(betas, errors) == pytest.approx(order, abs=0.05)


def test_a_batch_gradient_is_the_mean_over_its_samples():
    case = CASES["feedforward-tanh-2"]()
    strategy = EPGradient(solver=EXACT, nudged_tolerance=1e-11)
    singles = [
        flat(strategy.estimate(case.circuit, case.params, case.x[i : i + 1], case.labels[i : i + 1]).gradient)
        for i in range(len(case.x))
    ]
    assert relative(case.gradient(strategy), torch.stack(singles).mean(0)) < 1e-9


@pytest.mark.parametrize("name", ["hopfield-1", "feedforward-gelu-2"])
@pytest.mark.parametrize("loss_type", COSTS)
@pytest.mark.parametrize("phases", ["one_sided", "centred"])
def test_the_energies_see_the_cost(name, loss_type, phases):
    """(E_nudged - E_free) / beta is the cost at the free state to O(beta), to O(beta^2) centred."""
    case, beta = CASES[name](), 1e-4
    strategy = EPGradient(loss_type, beta, phases, EXACT, nudged_tolerance=1e-9)
    estimate = strategy.estimate(case.circuit, case.params, case.x, case.labels)
    allowed = 10 * beta ** (2 if phases == "centred" else 1)
    assert estimate.energy_gap.item() == pytest.approx(estimate.loss.item(), rel=allowed)


def test_weights_are_read_once_or_once_a_phase():
    case, reads = CASES["feedforward-tanh-1"](), []

    def read():
        reads.append(1)
        return case.params()

    for independent, expected in ((False, 1), (True, 3)):
        reads.clear()
        strategy = EPGradient(beta=0.01, phases="centred", independent_reads=independent)
        strategy.estimate(case.circuit, read, case.x, case.labels)
        assert len(reads) == expected


def test_fresh_reads_of_the_same_weights_change_nothing():
    """Without read noise the states of two reads are merely subtracted: the same numbers in float64."""
    case = CASES["hopfield-1"]()
    shared, fresh = (
        case.gradient(EPGradient("mse", 0.01, "centred", EXACT, 1e-9, independent_reads=i))
        for i in (False, True)
    )
    assert relative(fresh, shared) < 1e-7


# -- phases ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hopfield-1", "feedforward-tanh-2", "feedforward-relu-2"])
@pytest.mark.parametrize("loss_type", COSTS)
def test_random_signs_average_to_the_centred_estimate(name, loss_type):
    """E[c(+-beta)] over a fair coin is (c(beta) + c(-beta)) / 2: the odd orders in beta cancel in the mean."""
    case, memory = CASES[name](), {}
    beta = 0.1 * case.kink_free
    random = EPGradient(loss_type, beta, "random_sign", EXACT, 1e-9, seed=4)
    estimates = [random.estimate(case.circuit, case.params, case.x, case.labels, memory) for _ in range(40)]
    either = {e.beta: flat(e.gradient) for e in estimates}
    assert either.keys() == {beta, -beta}
    centred = case.gradient(EPGradient(loss_type, beta, "centred", EXACT, 1e-9))
    assert relative((either[beta] + either[-beta]) / 2, centred) < 1e-12
    assert relative(either[beta], centred) > 1e-6
    assert all(len(e.nudged) == 1 for e in estimates)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_coin_is_fair_and_follows_its_seed(seed):
    strategy, memory = EPGradient(phases="random_sign", seed=seed), {}
    signs = [math.copysign(1, strategy.nudges(0.1, memory)[0]) for _ in range(400)]
    assert abs(sum(signs)) < 100  # five standard deviations
    repeats = sum(a == b for a, b in itertools.pairwise(signs))
    assert abs(repeats - 199.5) < 50
    again = {}
    assert signs[:50] == [math.copysign(1, strategy.nudges(0.1, again)[0]) for _ in range(50)]


def test_memory_carries_the_coin_over_a_save():
    strategy = EPGradient(phases="random_sign", beta="auto")
    memory, file = {}, io.BytesIO()
    strategy.nudges(0.1, memory)
    torch.save(memory, file)
    straight = [strategy.nudges(0.1, memory) for _ in range(30)]
    file.seek(0)
    resumed = torch.load(file, weights_only=True)
    assert [strategy.nudges(0.1, resumed) for _ in range(30)] == straight


def normalised_net() -> FeedforwardCircuit:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    return FeedforwardCircuit(model.double())


@pytest.mark.parametrize(
    "strategy",
    [
        EPGradient(),
        EPGradient(phases="centred", beta=0.01),
        EPGradient(phases="one_sweep"),
        EPGradient(beta=0.01, independent_reads=True),
        LocalEPGradient(),
        NaturalGradient(),
        HolomorphicGradient(beta=0.01, points=4),
        ImplicitGradient(),
        BackpropGradient(),
    ],
    ids=lambda s: f"{type(s).__name__}-{getattr(s, 'phases', '')}",
)
def test_running_statistics_move_once_an_estimate(strategy):
    circuit, x = normalised_net(), torch.randn(16, 6, dtype=torch.float64)
    first, norm = circuit.model[0], circuit.model[1]
    expected = 0.9 * norm.running_mean + 0.1 * first(x).detach().mean(0)
    strategy.estimate(circuit, circuit.params, x, torch.zeros(16, dtype=torch.int64))
    assert norm.num_batches_tracked == 1
    assert torch.allclose(norm.running_mean, expected, rtol=1e-12)
    circuit.eval()
    strategy.estimate(circuit, circuit.params, x, torch.zeros(16, dtype=torch.int64))
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("strategy", "beta"),
    [
        (EPGradient(beta=0.02), 0.02),
        (EPGradient(beta=0.02, phases="centred"), 0.02),
        (EPGradient(beta=0.02, phases="one_sweep"), 0.02),
        (BackpropGradient(), math.nan),
        (ImplicitGradient(), math.nan),
    ],
)
def test_the_estimate_tells_the_beta_it_used(strategy, beta):
    case = CASES["feedforward-tanh-1"]()
    estimate = strategy.estimate(case.circuit, case.params, case.x, case.labels)
    assert estimate.beta == pytest.approx(beta, nan_ok=True)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf, "large", None])
def test_beta_out_of_range_is_refused(beta):
    with pytest.raises(ValueError, match="choose a finite beta > 0"):
        EPGradient(beta=beta)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phases": "two_sided"}, "unknown phases 'two_sided'"),
        ({"loss_type": "hinge"}, "unknown cost 'hinge'"),
        ({"nudged_tolerance": 0.0}, "tolerance = 0.0"),
        ({"settle_lr": 0.1}, "settle_lr = 0.1"),
        ({"settle_steps": 5, "solver": ODE()}, "replaces solver"),
        ({"seed": 3}, "seed = 3 without a coin"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EPGradient(**settings)


@pytest.mark.parametrize("loss_type", COSTS)
def test_a_centred_beta_without_a_minimum_is_refused_with_its_bound(loss_type):
    case = CASES["feedforward-linear-2"]()
    system = case.bind()
    limit = system.around(settle(system, solver=EXACT)).largest_beta(cost(loss_type))
    with pytest.raises(ValueError, match=f"beta < {limit:.3g}"):
        case.gradient(EPGradient(loss_type, 1.01 * limit, "centred", EXACT))
    case.gradient(EPGradient(loss_type, 0.99 * limit, "centred", Sweep(1e-5)))


def test_fixed_euler_steps_are_counted_and_reported_unsettled():
    case = CASES["hopfield-1"]()
    estimate = EPGradient(settle_steps=7, settle_lr=0.2).estimate(
        case.circuit, case.params, case.x, case.labels
    )
    assert estimate.free.evaluations == 8
    assert not estimate.free.converged.any()


def test_backprop_needs_a_forward_pass():
    case = CASES["hopfield-1"]()
    with pytest.raises(ValueError, match="use ImplicitGradient"):
        case.gradient(BackpropGradient())


def test_implicit_gradient_accepts_the_ode_path():
    case = CASES["hopfield-1"]()
    ode, sweep = (case.gradient(ImplicitGradient("mse", s, 1e-11)) for s in (ODE(1e-11), EXACT))
    assert relative(ode, sweep) < 1e-8


def test_implicit_gradient_says_that_its_adjoint_did_not_settle():
    with pytest.raises(SettlingError, match="in 3 iterations"):
        CASES["hopfield-2"]().gradient(ImplicitGradient("mse", EXACT, max_iterations=3))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("loss_type", COSTS)
def test_the_reported_loss_is_the_cost_of_the_free_output(name, loss_type):
    case = CASES[name]()
    estimates = [
        s.estimate(case.circuit, case.params, case.x, case.labels)
        for s in (EPGradient(loss_type, solver=EXACT), ImplicitGradient(loss_type, EXACT))
    ]
    if isinstance(case.circuit, FeedforwardCircuit):
        estimates.append(BackpropGradient(loss_type).estimate(case.circuit, case.params, case.x, case.labels))
    y = torch.nn.functional.one_hot(case.labels, estimates[0].output.shape[1])
    for e in estimates:
        of = {
            "mse": 0.5 * (e.output - y).square().sum(1).mean(),
            "cross_entropy": torch.nn.functional.cross_entropy(e.output, case.labels),
        }
        assert e.loss.item() == pytest.approx(of[loss_type].item(), rel=1e-12)
        assert e.loss.item() == pytest.approx(estimates[0].loss.item(), rel=1e-9)
