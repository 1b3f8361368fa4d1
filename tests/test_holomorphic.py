"""Holomorphic EP: the order of its error in the radius, its symmetry, and what has no complex continuation."""

import cmath
import itertools
import math

import pytest
import torch
from torch import nn

from circuits import FeedforwardCircuit, cost
from mep_sim.optimizers import BackpropGradient, EPGradient, HolomorphicGradient
from mep_sim.settling import Sweep, settle
from tests.conformance import CASES, COSTS, EXACT, feedforward, flat, relative, slope

ANALYTIC = ["feedforward-tanh-2", "feedforward-softplus-2", "feedforward-linear-2", "residual-tanh"]


def contour(loss_type: str, beta: float, points: int) -> HolomorphicGradient:
    return HolomorphicGradient(loss_type, beta, EXACT, 1e-11, points=points)


@pytest.mark.parametrize("name", ANALYTIC)
@pytest.mark.parametrize("loss_type", COSTS)
@pytest.mark.parametrize("points", [2, 3, 4, 5])
def test_the_error_is_of_order_points_in_the_radius(name, loss_type, points):
    """Of c(beta) = sum c_m beta^m the mean over N points keeps c_0 and c_N beta^N: all between cancel."""
    case = CASES[name]()
    exact = case.gradient(BackpropGradient(loss_type))
    system = case.bind()
    limit = system.around(settle(system, solver=EXACT)).largest_beta(cost(loss_type))
    betas = [limit * share for share in (0.08, 0.12, 0.18)]
    errors = [relative(case.gradient(contour(loss_type, beta, points)), exact) for beta in betas]
    assert slope(betas, errors) == pytest.approx(points, abs=0.1), errors


@pytest.mark.parametrize("name", ANALYTIC)
@pytest.mark.parametrize("loss_type", COSTS)
def test_two_points_are_the_centred_estimate(name, loss_type):
    case = CASES[name]()
    centred = EPGradient(loss_type, 0.02, "centred", EXACT, 1e-11)
    two = contour(loss_type, 0.02, 2)
    a, b = (s.estimate(case.circuit, case.params, case.x, case.labels) for s in (centred, two))
    assert all(torch.equal(a.gradient[name], b.gradient[name]) for name in a.gradient)
    assert torch.equal(a.energy_gap, b.energy_gap)
    assert a.beta == b.beta == 0.02


@pytest.mark.parametrize("points", [3, 4, 5, 6])
def test_half_the_circle_stands_for_all_of_it(points):
    """Every point settled in complex numbers, and summed, gives the same: contrast(conj beta) = its conjugate."""
    case, loss_type, beta = CASES["feedforward-tanh-2"](), "cross_entropy", 0.1
    params = {name: p.to(torch.complex128) for name, p in case.params().items()}
    system = case.circuit.bind(params, case.x.to(torch.complex128))
    free = settle(system, solver=EXACT)
    whole = 0.0
    for k in range(points):
        nudged = system.nudged(cost(loss_type), case.labels, cmath.rect(beta, 2 * math.pi * k / points))
        contrast = nudged.contrast(free, settle(nudged, free.state, EXACT))
        whole = whole + torch.cat([contrast[name].flatten() for name in sorted(contrast)]) / points
    assert whole.imag.abs().max() < 1e-10 * whole.real.abs().max()
    assert relative(case.gradient(contour(loss_type, beta, points)), whole.real) < 1e-10


@pytest.mark.parametrize("loss_type", COSTS)
def test_float32_settles_in_complex64(loss_type):
    case = feedforward("tanh", 8, 12, 10, 4)
    x = case.x.float()
    strategy = HolomorphicGradient(loss_type, 0.05, Sweep(1e-6), points=4)
    estimate = strategy.estimate(case.circuit, lambda: case.params(torch.float32), x, case.labels)
    assert [e.state.dtype for e in estimate.nudged] == [torch.float32, torch.complex64, torch.float32]
    assert all(e.converged.all() for e in estimate.nudged)
    assert {g.dtype for g in estimate.gradient.values()} == {torch.float32}
    assert relative(flat(estimate.gradient), case.gradient(BackpropGradient(loss_type))) < 1e-3


def test_the_energies_see_the_cost_to_the_same_order():
    case = CASES["feedforward-softplus-2"]()
    estimate = contour("mse", 0.05, 5).estimate(case.circuit, case.params, case.x, case.labels)
    assert estimate.energy_gap.item() == pytest.approx(estimate.loss.item(), rel=1e-4)
    one_sided = EPGradient("mse", 0.05).estimate(case.circuit, case.params, case.x, case.labels)
    assert one_sided.energy_gap.item() != pytest.approx(one_sided.loss.item(), rel=1e-2)


@pytest.mark.parametrize("loss_type", COSTS)
def test_at_a_chosen_radius_points_buy_digits(loss_type):
    """Half-way to the nearest singularity every point should halve the error."""
    case = CASES["feedforward-linear-2"]()
    exact = case.gradient(BackpropGradient(loss_type))
    errors = [relative(case.gradient(contour(loss_type, "auto", points)), exact) for points in (2, 4, 6, 8)]
    assert all(finer < coarser / 3 for coarser, finer in itertools.pairwise(errors)), errors


def test_dropout_masks_are_those_of_the_real_phases():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Dropout(0.5), nn.Linear(20, 3)).double()
    circuit = FeedforwardCircuit(model, dropout=torch.Generator().manual_seed(0))
    x, y = torch.randn(4, 6, dtype=torch.float64), torch.randint(3, (4,))
    betas, gradients = [0.01, 0.02, 0.04], []
    for beta in (*betas, 1e-5):
        circuit.dropout.manual_seed(0)
        strategy = contour("mse", beta, 4 if beta > 1e-4 else 2)
        gradients.append(flat(strategy.estimate(circuit, circuit.params, x, y).gradient))
    errors = [relative(g, gradients[-1]) for g in gradients[:-1]]
    assert slope(betas, errors) == pytest.approx(4, abs=0.2), errors
    assert (
        relative(
            gradients[-1], flat(BackpropGradient("mse").estimate(circuit, circuit.params, x, y).gradient)
        )
        > 0.1
    )


@pytest.mark.parametrize(
    ("name", "culprit"),
    [
        ("feedforward-relu-2", "ReLU"),
        ("feedforward-gelu-2", "GELU"),
        ("hopfield-1", "box"),
        ("conv-tanh", "Conv2d"),
    ],
)
def test_what_has_no_complex_continuation_is_refused_by_name(name, culprit):
    case = CASES[name]()
    with pytest.raises(ValueError, match=culprit) as caught:
        case.gradient(HolomorphicGradient())
    assert "\n" not in str(caught.value)


def test_a_circle_beyond_the_last_minimum_is_refused():
    with pytest.raises(ValueError, match="beta = 50 is too large"):
        CASES["feedforward-tanh-2"]().gradient(HolomorphicGradient(beta=50))


@pytest.mark.parametrize("points", [1, 0, -3])
def test_a_circle_takes_two_points(points):
    with pytest.raises(ValueError, match=f"points = {points}"):
        HolomorphicGradient(points=points)
