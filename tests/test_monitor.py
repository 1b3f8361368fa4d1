"""`EPMonitor`: the predecessor's README as written, the energy gap against the cost, and the counts."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from circuits import FeedforwardCircuit, HopfieldCircuit
from mep_sim import EPMonitor, Sweep, smep
from mep_sim.monitor import StepMetrics, metrics_of
from mep_sim.optimizers import BackpropGradient, CompositeOptimizer, EPGradient
from tests.device_conformance import generator


def feedforward() -> FeedforwardCircuit:
    return FeedforwardCircuit.from_sizes((5, 12, 3), "tanh", rng=generator()).double()


def hopfield() -> HopfieldCircuit:
    return HopfieldCircuit((5, 12, 3), gain=0.5, rng=generator()).double()


def batch(seed: int = 4) -> tuple[Tensor, Tensor]:
    rng = generator(seed)
    return torch.randn(20, 5, generator=rng, dtype=torch.float64), torch.randint(0, 3, (20,), generator=rng)


def metrics(circuit: nn.Module, gradient, x: Tensor, y: Tensor) -> StepMetrics:
    optimizer = CompositeOptimizer(circuit.parameters(), gradient, model=circuit)
    optimizer.compute_gradient(x, y)
    return metrics_of(optimizer)


def test_readme_snippet(capsys):
    """As the predecessor's README has it: the monitor is told of no step, so an epoch's last one counts."""
    torch.manual_seed(0)
    model, epochs = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)), 3
    train_loader = [tuple(v.float() if v.is_floating_point() else v for v in batch(i)) for i in range(4)]

    monitor = EPMonitor()
    optimizer = smep(model.parameters(), model=model, mode="ep")

    for epoch in range(epochs):
        monitor.start_epoch()

        for x, y in train_loader:
            optimizer.step(x=x, target=y)

        metrics = monitor.end_epoch(model, optimizer)
        print(f"Epoch {epoch}: Energy gap = {metrics.energy_gap:.4f}")

        if not monitor.check_convergence():
            print("Warning: Settling may not have converged!")

    print(monitor.summary())

    out = capsys.readouterr().out
    assert "Warning" not in out
    assert len(monitor.epochs) == epochs
    assert monitor.epochs[-1] == metrics_of(optimizer)
    lines = monitor.summary().splitlines()
    assert lines[0].split()[:2] == ["epoch", "loss"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]
    assert f"{metrics.loss:6.4f}" in lines[3]
    assert "100.0%" in lines[3]


@pytest.mark.parametrize("loss_type", ["mse", "cross_entropy"])
@pytest.mark.parametrize("make", [feedforward, hopfield])
def test_the_energy_gap_is_the_cost_to_first_order_in_beta(make, loss_type):
    """(E_nudged - E_free) / beta = C + beta/2 dC/dbeta + ...: the miss is below zero and halves with beta,
    and centred it falls by four."""
    x, y = batch()
    for phases, order in (("one_sided", 1), ("centred", 2)):
        misses = []
        for beta in (0.04, 0.02, 0.01):
            m = metrics(make(), EPGradient(loss_type, beta=beta, phases=phases, nudged_tolerance=1e-6), x, y)
            misses.append(m.energy_gap - m.loss)
        assert abs(misses[-1]) < 0.05 * m.loss
        for coarse, fine in itertools.pairwise(misses):
            assert coarse / fine == pytest.approx(2**order, rel=0.1)
        if order == 1:
            assert misses[0] < 0


def test_the_energy_gap_of_one_linear_layer_in_closed_form():
    """1/2 (s - f)^2 + beta/2 (s - y)^2 rests at s = (f + beta y) / (1 + beta): E / beta = C / (1 + beta)."""
    linear = FeedforwardCircuit.from_sizes((5, 3), rng=generator()).double()
    x, y = batch()
    for beta in (0.1, 1.0, 5.0):
        m = metrics(linear, EPGradient("mse", beta=beta, nudged_tolerance=1e-9), x, y)
        assert m.energy_gap == pytest.approx(m.loss / (1 + beta), rel=1e-6)


def test_an_epoch_is_the_mean_of_its_observed_steps():
    circuit, monitor = feedforward(), EPMonitor()
    optimizer = smep(circuit.parameters(), model=circuit)
    for _ in range(2):  # a second epoch starts afresh
        monitor.start_epoch()
        losses = []
        for i in range(3):
            losses.append(optimizer.step(x=batch(i)[0], target=batch(i)[1]).item())
            assert monitor.observe(optimizer).loss == losses[-1]
        assert monitor.end_epoch(circuit, optimizer).loss == pytest.approx(sum(losses) / 3)


def test_too_few_steps_are_called_unsettled():
    """15 Euler steps of 0.1 leave e^-1.5 of the way to go; sweeps arrive."""
    circuit, monitor = feedforward(), EPMonitor()
    for options, arrives in (({"settle_steps": 15, "settle_lr": 0.1}, False), ({}, True)):
        optimizer = smep(circuit.parameters(), model=circuit, **options)
        optimizer.step(x=batch()[0], target=batch()[1])
        m = monitor.end_epoch(circuit, optimizer)
        assert monitor.check_convergence() is arrives
        assert m.settled == float(arrives)
        assert (m.free_residual < 1e-5) is arrives
        assert (m.nudged_residual < 1e-3) is arrives
        monitor.start_epoch()


def test_a_sample_is_settled_only_if_all_its_phases_are():
    """One sweep is enough for the free phase, the forward pass, and not for the nudged one."""
    circuit = feedforward()
    gradient = EPGradient(beta=0.5, solver=Sweep(1e-5, max_sweeps=1), nudged_tolerance=1e-6)
    optimizer = CompositeOptimizer(circuit.parameters(), gradient, model=circuit)
    estimate = optimizer.compute_gradient(*batch())
    assert estimate.free.converged.all()
    assert not estimate.nudged[0].converged.any()
    assert metrics_of(optimizer).settled == 0


def test_euler_steps_are_counted_and_timed():
    m = metrics(feedforward(), EPGradient(settle_steps=15, settle_lr=0.1), *batch())
    assert m.evaluations == 15
    assert m.time == pytest.approx(14 * 0.1, rel=1e-5)  # 15 evaluations see the state at 0, ..., 14 steps


@pytest.mark.parametrize(("threshold", "passes"), [(0.5, True), (0.75, True), (0.8, False)])
def test_the_share_of_settled_samples_is_held_against_the_threshold(threshold, passes):
    monitor = EPMonitor(threshold)
    monitor.epochs.append(StepMetrics(1, 1, 0, 0, settled=0.75, evaluations=5, time=0))
    assert monitor.check_convergence() is passes


def test_backprop_has_no_phases_to_settle():
    m = metrics(feedforward(), BackpropGradient(), *batch())
    assert m.loss > 0
    assert all(math.isnan(v) for v in (m.energy_gap, m.free_residual, m.nudged_residual, m.settled))


def test_one_sweep_has_no_nudged_equilibrium():
    m = metrics(feedforward(), EPGradient(phases="one_sweep"), *batch())
    assert m.free_residual < 1e-15
    assert all(math.isnan(v) for v in (m.energy_gap, m.nudged_residual, m.settled))


def test_what_cannot_be_told_yet_is_said_so():
    circuit, monitor = feedforward(), EPMonitor()
    optimizer = smep(circuit.parameters(), model=circuit)
    with pytest.raises(ValueError, match="no epoch to check yet: call end_epoch"):
        monitor.check_convergence()
    with pytest.raises(ValueError, match=r"no estimate yet: call optimizer\.step"):
        monitor.end_epoch(circuit, optimizer)


@pytest.mark.parametrize("threshold", [0.0, 1.5, -1.0])
def test_the_threshold_is_a_share(threshold):
    with pytest.raises(ValueError, match=rf"settled_threshold = {threshold}; choose a share in \(0, 1\]"):
        EPMonitor(threshold)
