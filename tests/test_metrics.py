"""Each metric of EP steps and their weights against a closed form or linear algebra."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from circuits import FeedforwardCircuit, HopfieldCircuit
from mep_sim import EPMonitor, Sweep
from mep_sim.metrics import cosine_of, margin_of, norms_of, phases_of
from mep_sim.monitor import StepMetrics, metrics_of
from mep_sim.optimizers import (
    BackpropGradient,
    CompositeOptimizer,
    EPGradient,
    HolomorphicGradient,
    ImplicitGradient,
    NaturalGradient,
)
from mep_sim.settling import ODE, EPWarning
from tests.device_conformance import generator
from tests.monitored import Turned, batch, epoch_of, estimated, feedforward, hopfield, optimizer_of


def metrics(circuit: nn.Module, gradient) -> StepMetrics:
    return metrics_of(estimated(circuit, gradient))


@pytest.mark.parametrize("loss_type", ["mse", "cross_entropy"])
@pytest.mark.parametrize("make", [feedforward, hopfield])
def test_the_energy_gap_is_the_cost_to_first_order_in_beta(make, loss_type):
    """(E_nudged - E_free) / beta = C + beta/2 dC/dbeta + ...: the miss is below zero and halves with beta,
    and centred it falls by four."""
    for phases, order in (("one_sided", 1), ("centred", 2)):
        misses = []
        for beta in (0.04, 0.02, 0.01):
            m = metrics(make(), EPGradient(loss_type, beta=beta, phases=phases, nudged_tolerance=1e-6))
            misses.append(m.energy_gap - m.loss)
        assert abs(misses[-1]) < 0.05 * m.loss
        for coarse, fine in itertools.pairwise(misses):
            assert coarse / fine == pytest.approx(2**order, rel=0.1)
        if order == 1:
            assert misses[0] < 0


def test_the_energy_gap_of_one_linear_layer_in_closed_form():
    """1/2 (s - f)^2 + beta/2 (s - y)^2 rests at s = (f + beta y) / (1 + beta): E / beta = C / (1 + beta)."""
    for beta in (0.1, 1.0, 5.0):
        m = metrics(feedforward((5, 3)), EPGradient("mse", beta=beta, nudged_tolerance=1e-9))
        assert m.energy_gap == pytest.approx(m.loss / (1 + beta), rel=1e-6)


def test_a_sample_is_settled_only_if_all_its_phases_are():
    """One sweep is enough for the free phase, the forward pass, and not for the nudged one."""
    gradient = EPGradient(beta=0.5, solver=Sweep(1e-5, max_sweeps=1), nudged_tolerance=1e-6)
    optimizer = estimated(feedforward(), gradient)
    assert optimizer.estimate.free.converged.all()
    assert not optimizer.estimate.nudged[0].converged.any()
    assert metrics_of(optimizer).settled == 0
    assert phases_of(optimizer.estimate, optimizer.circuit.layout)[:2].tolist() == [1, 0]


def test_euler_steps_are_counted_and_timed():
    m = metrics(feedforward(), EPGradient(settle_steps=15, settle_lr=0.1))
    assert m.evaluations == 16
    assert m.time == pytest.approx(15 * 0.1, rel=1e-5)  # 16 evaluations see the state at 0, ..., 15 steps


def test_backprop_has_no_phases_to_settle():
    m = metrics(feedforward(), BackpropGradient())
    assert m.loss > 0
    assert all(math.isnan(v) for v in (m.energy_gap, m.free_residual, m.nudged_residual, m.settled))


def test_one_sweep_has_no_nudged_equilibrium():
    m = metrics(feedforward(), EPGradient(phases="one_sweep"))
    assert m.free_residual < 1e-15
    assert all(math.isnan(v) for v in (m.energy_gap, m.nudged_residual, m.settled))


class NoWaiting(TorchDispatchMode):
    """Refuses to turn a tensor into a number, which makes a GPU's queue run dry."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gradient", [EPGradient(phases="centred"), EPGradient(phases="one_sweep")])
def test_measuring_a_step_waits_for_no_number(gradient):
    """`metrics_of` converts all of its tensor at once, and `phases_of` hands its tensor on."""
    optimizer = estimated(feedforward(), gradient)
    with NoWaiting():
        metrics_of(optimizer)
        phases_of(optimizer.estimate, optimizer.circuit.layout)
    with pytest.raises(AssertionError), NoWaiting():
        optimizer.estimate.loss.item()


# -- signal to noise -----------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    beta=st.floats(0.05, 5.0),
    steps=st.integers(3, 12),
    rate=st.floats(0.1, 0.9),
    apart=st.booleans(),
)
def test_the_signal_to_noise_of_one_linear_layer_in_closed_form(beta, steps, rate, apart):
    """Euler steps shrink the way to go by q = 1 - h (1 + beta): after k of them the nudge is d (1 - q^k) and the force
    (1 + beta) q^k d for every unit, whatever the sample. Free, the layer is at rest: it adds nothing but rounding."""
    step = rate / (1 + beta)
    gradient = EPGradient("mse", beta=beta, settle_steps=steps, settle_lr=step, independent_reads=apart)
    monitor, circuit = EPMonitor(), feedforward((5, 3))
    optimizer = optimizer_of(circuit, dataclasses.replace(gradient, solver=gradient.solver), lr=1e-9)
    x = torch.zeros_like(batch()[0])  # and zero biases: the free state is where settling starts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EPWarning)
        optimizer.compute_gradient(x, batch()[1])
        (snr,) = monitor.end_epoch(circuit, optimizer).snr
    (nudged,) = optimizer.estimate.nudged
    assert (nudged.deviation is None) is apart
    q = (1 - rate) ** (nudged.evaluations - 1)
    assert snr == pytest.approx((1 - q) / ((1 + beta) * q), rel=1e-6)


def test_the_signal_to_noise_of_two_linear_layers_by_linear_algebra():
    """(I + beta P + (J - I)'(J - I)) d = beta P (y - f): each layer's largest unit, averaged over samples and phases,
    over the residual and the rounding of d."""
    circuit, beta = feedforward((5, 4, 3), "linear"), 0.3
    x, y = batch()
    gradient = EPGradient("mse", beta=beta, phases="centred", nudged_tolerance=1e-3, solver=ODE(1e-9))
    optimizer = optimizer_of(circuit, gradient)
    estimate = optimizer.compute_gradient(x, y)
    w = circuit.params()[circuit.weights[1]].detach()
    j = torch.eye(7, dtype=x.dtype)
    j[4:, :4] = -w
    pull = torch.zeros(20, 7, dtype=x.dtype)
    pull[:, 4:] = nn.functional.one_hot(y, 3) - estimate.output
    expected = []
    for b in (beta, -beta):
        hessian = j.T @ j
        hessian[4:, 4:] += b * torch.eye(3)
        d = torch.linalg.solve(hessian, b * pull.T).T.abs()
        expected.append(torch.stack([d[:, :4].amax(1).mean(), d[:, 4:].amax(1).mean()]))
    row = phases_of(estimate, circuit.layout)
    assert torch.allclose(row[3:], sum(expected) / 2, rtol=2e-2)
    noise = [p.residual + 2**-52 * p.deviation.abs().amax(1) for p in estimate.nudged]
    assert row[2].item() == pytest.approx(torch.stack(noise).mean().item(), rel=1e-12)


def test_states_settled_apart_have_both_residuals_and_their_rounding_in_the_noise():
    """Complex phases of a contour hold their states, not deviations."""
    optimizer = estimated(feedforward(), HolomorphicGradient(points=3, solver=ODE(1e-4)))
    estimate = optimizer.estimate
    real, above = estimate.nudged
    assert real.deviation is not None
    assert above.deviation is None
    row = phases_of(estimate, optimizer.circuit.layout)
    noise = above.residual + estimate.free.residual + 2**-52 * above.state.abs().amax(1)
    noise = noise.mean() + real.residual.mean() + 2**-52 * real.deviation.abs().amax(1).mean()
    assert row[2].item() == pytest.approx(noise.item() / 2, rel=1e-12)
    moved = [d.abs()[:, 12:].amax(1).mean() for d in (real.deviation, above.state - estimate.free.state)]
    assert row[-1].item() == pytest.approx(sum(moved).item() / 2, rel=1e-12)


def test_rounding_is_left_where_nothing_else_is():
    """A residual of exactly zero is known to eps of the numbers that hold the nudge."""
    optimizer = estimated(feedforward(), EPGradient())
    (at,) = optimizer.estimate.nudged
    exact = dataclasses.replace(at, residual=torch.zeros_like(at.residual))
    row = phases_of(dataclasses.replace(optimizer.estimate, nudged=(exact,)), optimizer.circuit.layout)
    assert (row[2] / at.deviation.abs().amax(1).mean()).item() == pytest.approx(2**-52, rel=1e-12, abs=0)


def test_a_nudge_that_a_layer_never_gets():
    """Zero output weights hand nothing down: the signal below them is 0, whatever the noise."""
    circuit = feedforward()
    circuit.params()["model.2.weight"].data.zero_()
    gradient = EPGradient(solver=ODE(1e-6))
    with pytest.warns(EPWarning, match="the nudge of layer 1 of 2 is 0 times its noise"):
        m = epoch_of(EPMonitor(), circuit, gradient, lr=1e-30)
    assert m.snr[0] == 0
    assert m.snr[1] > 1e2


# -- cosine to the exact gradient ----------------------------------------------------------------


@pytest.mark.parametrize(
    "gradient", [BackpropGradient(), EPGradient(phases="one_sweep"), BackpropGradient("mse")]
)
def test_the_cosine_of_an_exact_gradient_is_one(gradient):
    overall, layers = cosine_of(optimizer_of(feedforward(), gradient), *batch())
    assert overall == pytest.approx(1, abs=1e-12)
    assert layers == pytest.approx({"model.0": 1, "model.2": 1}, abs=1e-12)


def test_the_cosine_overall_weighs_layers_by_their_gradients():
    optimizer = optimizer_of(feedforward(), Turned())
    gradient = optimizer.compute_gradient(*batch()).gradient
    squares = {k: sum(g.square().sum().item() for n, g in gradient.items() if k in n) for k in "02"}
    overall, layers = cosine_of(optimizer, *batch())
    assert layers == pytest.approx({"model.0": -1, "model.2": 1}, abs=1e-12)
    assert overall == pytest.approx((squares["2"] - squares["0"]) / (squares["2"] + squares["0"]), abs=1e-12)


def smooth_hopfield() -> HopfieldCircuit:
    """In a box whose walls nothing reaches: a unit that reaches one is a kink."""
    return HopfieldCircuit((5, 12, 3), box=(-10, 10), gain=0.3, rng=generator()).double()


@pytest.mark.parametrize("make", [feedforward, smooth_hopfield])
def test_the_cosine_misses_one_by_a_square_of_beta(make):
    """EP's error is of first order in beta, and a cosine falls with the square of an angle."""
    misses = []
    for beta in (0.08, 0.04, 0.02):
        gradient = EPGradient(beta=beta, solver=Sweep(1e-9), nudged_tolerance=1e-7)
        misses.append(1 - cosine_of(optimizer_of(make(), gradient), *batch()).overall)
    assert 0 < misses[-1] < 1e-3
    for coarse, fine in itertools.pairwise(misses):
        assert coarse / fine == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize(
    "gradient", [EPGradient(beta="auto", phases="random_sign", seed=1), NaturalGradient(phases="random_sign")]
)
def test_looking_at_the_cosine_leaves_training_as_it_is(gradient):
    """To the bit: memory, running statistics, modes and tosses are those of a run that nobody looked at."""
    runs = []
    for exact_every in (None, 1):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))
        model[3].eval()  # a mode of its own
        monitor, optimizer = (
            EPMonitor(exact_every=exact_every),
            CompositeOptimizer(model.parameters(), gradient, model=model),
        )
        monitor.start_epoch()
        for i in range(4):
            optimizer.step(x=batch(i)[0].float(), target=batch(i)[1])
        monitor.end_epoch(model, optimizer)
        runs.append((copy.deepcopy(model.state_dict()), optimizer.memory, [m.training for m in model]))
    (plain, plain_memory, modes), (watched, watched_memory, watched_modes) = runs
    assert modes == watched_modes == [True, True, True, False, True]
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    assert plain_memory.keys() == watched_memory.keys()
    assert all(
        torch.equal(torch.as_tensor(v), torch.as_tensor(watched_memory[k])) for k, v in plain_memory.items()
    )


# -- weights -------------------------------------------------------------------------------------


def orthogonal(circuit: nn.Module, gain: float, name: str) -> None:
    with torch.no_grad():
        circuit.get_parameter(name).copy_(gain * nn.init.orthogonal_(torch.empty(3, 3)).double())


def test_the_norms_of_known_weights():
    model = nn.Sequential(
        nn.Conv2d(2, 3, 1, stride=2), nn.Tanh(), nn.Conv2d(3, 3, 2, groups=3), nn.Flatten(), nn.Linear(3, 3)
    ).double()
    circuit = FeedforwardCircuit(model, input_shape=(2, 4, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([2.0, 0.5, 1.0]))[:, :2, None, None])
        model[2].weight.zero_()[:, :, 0, 0] = torch.tensor([[1.0], [3.0], [2.0]])
    orthogonal(circuit, 1.5, "model.4.weight")
    norms = norms_of(circuit)
    assert list(norms) == ["model.0.weight", "model.2.weight", "model.4.weight"]
    assert norms["model.0.weight"] == pytest.approx(2)
    assert 3 <= norms["model.2.weight"] < 3 * 1.05  # an upper bound, tight to 4 %
    assert norms["model.4.weight"] == pytest.approx(1.5)


@pytest.mark.parametrize(("loss_type", "curvature"), [("mse", 1.0), ("cross_entropy", 0.5)])
def test_the_margin_of_two_coupled_layers_in_closed_form(loss_type, curvature):
    """Hopfield, sigma = g: 1 - lambda_max [[0, g], [g, beta C'']]. MEP: 1 - beta C'' (1 + g^2)."""
    g, beta = 0.6, 0.3
    pull = beta * curvature
    hopfield, mep = HopfieldCircuit((5, 3, 3)).double(), feedforward((5, 3, 3), "linear")
    for circuit, expected in (
        (hopfield, 1 - (pull + math.sqrt(pull**2 + 4 * g**2)) / 2),
        (mep, 1 - pull * (1 + g**2)),
    ):
        orthogonal(circuit, g, circuit.weights[1])
        m = epoch_of(EPMonitor(), circuit, EPGradient(loss_type, beta=beta))
        assert m.margin == pytest.approx(expected, abs=1e-6)
        assert m.beta == beta
        assert m.sigma[circuit.weights[1]] == pytest.approx(g, rel=1e-6)
    assert epoch_of(EPMonitor(), hopfield, ImplicitGradient(loss_type)).margin == pytest.approx(
        1 - g, abs=1e-6
    )


def test_the_margin_needs_a_batch_and_an_equilibrium():
    circuit, monitor = feedforward(), EPMonitor()
    optimizer = estimated(circuit, EPGradient())
    assert math.isnan(monitor.end_epoch(circuit, optimizer).margin)
    monitor.observe(optimizer, *batch())
    assert monitor.end_epoch(circuit, optimizer).margin == margin_of(optimizer, batch()[0], 0.1)
    assert math.isnan(epoch_of(monitor, circuit, BackpropGradient()).margin)
