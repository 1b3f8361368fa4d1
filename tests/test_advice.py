"""Warnings of `EPMonitor`: that they are given, once, and that their advice works."""

from __future__ import annotations

import dataclasses
import re
import warnings

import pytest
from torch import nn

from circuits import HopfieldCircuit
from mep_sim import EPMonitor, Sweep
from mep_sim.metrics import margin_of, norms_of
from mep_sim.optimizers import EPGradient, NaturalGradient
from mep_sim.settling import ODE, EPWarning
from tests import monitored
from tests.device_conformance import generator
from tests.monitored import Turned, batch, epoch_of, feedforward, hopfield, optimizer_of


def advised(circuit: nn.Module, gradient, monitor: EPMonitor | None = None) -> dict[str, str]:
    """The warnings of an epoch by what they are about."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        epoch_of(monitor or EPMonitor(), circuit, gradient)
    caught = [w for w in caught if "of a batch" not in str(w.message)]  # a step's own
    assert all(w.category is EPWarning and w.filename == monitored.__file__ for w in caught)
    topics = ("settled", "cosine", "margin", "noise")
    return {next(t for t in topics if t in str(w.message)): str(w.message) for w in caught}


def number(name: str, message: str) -> float:
    return float(re.search(rf"{name} ([\d.e+-]*\d)", message)[1])


def test_a_healthy_epoch_warns_of_nothing():
    for circuit in (feedforward(), hopfield()):
        assert advised(circuit, EPGradient(), EPMonitor(exact_every=1)) == {}


def test_each_trouble_is_told_once():
    monitor, gradient = EPMonitor(), EPGradient(settle_steps=2, settle_lr=0.1)
    assert set(advised(feedforward(), gradient, monitor)) == {"settled", "noise"}
    assert advised(feedforward(), gradient, monitor) == {}


def test_too_small_a_budget():
    cramped = EPGradient(beta=0.5, solver=Sweep(1e-5, max_sweeps=1), nudged_tolerance=1e-6)
    told = advised(feedforward(), cramped)["settled"]
    assert "(free 100.0%, nudged 0.0%): raise max_sweeps = 1, or lower beta = 0.5" in told
    assert advised(feedforward(), dataclasses.replace(cramped, solver=Sweep(1e-5))) == {}
    told = advised(feedforward(), EPGradient(solver=ODE(1e-5, max_evaluations=3)))["settled"]
    assert "raise max_evaluations = 3" in told
    told = advised(feedforward(), EPGradient(settle_steps=2))
    assert all("raise settle_steps = 2" in told[topic] for topic in ("settled", "noise"))


def test_a_tolerance_that_float32_does_not_resolve():
    circuit = feedforward((5, 12, 12, 3)).float()
    tight = EPGradient(beta=0.3, nudged_tolerance=1e-9)
    (told,) = advised(circuit, tight).values()
    assert "loosen nudged_tolerance = 1e-09 to 1e-06, as torch.float32 resolves no less" in told
    assert "loosen tolerance" not in told
    assert advised(circuit, dataclasses.replace(tight, nudged_tolerance=1e-6)) == {}
    assert advised(circuit.double(), tight) == {}


def test_a_nudge_lost_between_two_states():
    """Settled apart, the states differ by beta; too small a beta drowns in what each of them left."""
    lost = EPGradient(beta=1e-5, solver=ODE(1e-4), independent_reads=True)
    told = advised(hopfield(), lost)
    assert "raise beta = 1e-05, or lower the free tolerance = 0.0001" in told["noise"]
    assert "raise beta = 1e-05, or lower the free tolerance = 0.0001" in told["settled"]
    assert advised(hopfield(), dataclasses.replace(lost, beta=0.5, solver=ODE(1e-7))) == {}
    assert advised(hopfield(), dataclasses.replace(lost, solver=ODE(1e-12))) == {}
    assert advised(hopfield(), dataclasses.replace(lost, independent_reads=False)) == {}


def test_a_nudge_too_weak_to_reach_the_first_layer():
    """Settled to a share of the largest nudge, the output's, which a small weight hardly hands on."""
    circuit = feedforward()
    circuit.get_parameter("model.2.weight").data.mul_(1e-3)
    rough = EPGradient(solver=ODE(1e-4), nudged_tolerance=1e-2)
    told = advised(circuit, rough)["noise"]
    assert "layer 1 of 2" in told
    assert "settle the nudged phase more closely than nudged_tolerance = 0.01" in told
    assert advised(circuit, dataclasses.replace(rough, nudged_tolerance=1e-6)) == {}


@pytest.mark.parametrize("make", [hopfield, feedforward])
def test_a_margin_that_is_gone(make):
    """Either piece of advice, followed, brings the margin back; and not by much more than it takes."""
    circuit, gradient = make(), EPGradient(beta=0.8)
    weight = circuit.get_parameter(circuit.weights[1])
    weight.data.mul_(2 / norms_of(circuit)[circuit.weights[1]])
    if isinstance(circuit, HopfieldCircuit):
        weight.data.mul_(0.45)  # free alone it is certified, nudged it is not
    told = advised(circuit, gradient)["margin"]
    x = batch(0)[0]
    optimizer, enough = optimizer_of(circuit, gradient), number("lower beta = 0.8 to", told)
    assert 0 < margin_of(optimizer, x, enough) < 0.06
    gamma = number("tighten gamma to", told)
    sigma = norms_of(circuit)
    assert f"where sigma(W) is {max(sigma.values()):.3g} now" in told
    within = {n: circuit.get_parameter(n).data * min(1, gamma / s) for n, s in sigma.items()}
    assert margin_of(optimizer, x, 0.8, within) > 0
    beyond = {n: circuit.get_parameter(n).data * min(1, 1.05 * gamma / s) for n, s in sigma.items()}
    assert margin_of(optimizer, x, 0.8, beyond) < margin_of(optimizer, x, 0.8, within) < 0.1


def test_no_smaller_beta_helps_a_circuit_that_is_not_unique_when_free():
    circuit = hopfield()
    weight = circuit.get_parameter(circuit.weights[1])
    weight.data.mul_(1.5 / norms_of(circuit)[circuit.weights[1]])
    told = advised(circuit, EPGradient())["margin"]
    assert "lower beta" not in told
    assert 0.9 < number("tighten gamma to", told) < 1


@pytest.mark.filterwarnings("ignore:the certified margin")
def test_a_gradient_that_points_elsewhere():
    told = advised(feedforward(), Turned(), EPMonitor(exact_every=1))["cosine"]
    assert "least in model.0 (-1)" in told
    coarse = HopfieldCircuit((5, 12, 3), gain=1.0, rng=generator(1)).double()
    monitor = EPMonitor(cosine_threshold=0.999, exact_every=1)
    with pytest.warns(EPWarning, match="lower beta = 1.9, nudge both ways"):
        m = epoch_of(monitor, coarse, EPGradient(beta=1.9))
    assert epoch_of(monitor, coarse, EPGradient(beta=0.01)).cosine.overall > 0.999 > m.cosine.overall


def test_a_natural_gradient_may_point_elsewhere():
    monitor = EPMonitor(cosine_threshold=0.999999, exact_every=1)
    assert advised(feedforward(), NaturalGradient(), monitor) == {}
    assert monitor.epochs[0].cosine.overall < 0.999999
