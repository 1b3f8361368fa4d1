"""The nudged phase of the feedforward energy: it settles at every depth and every beta within the bound."""

from __future__ import annotations

import pytest
import torch

from circuits import cost
from mep_sim.settling import ODE, Sweep, settle
from tests.conformance import COSTS, feedforward, gap, moved

SMOOTH = ("tanh", "softplus", "gelu")
KINKED = ("relu", "hard_sigmoid")


def around(hidden: str, layers: int, batch: int = 16):
    case = feedforward(hidden, 12, *[16] * layers, 5, scale=1.0, batch=batch)
    system = case.bind()
    return case, system.around(settle(system))


@pytest.mark.parametrize("loss_type", COSTS)
@pytest.mark.parametrize("layers", [1, 4, 12])
@pytest.mark.parametrize("hidden", [*SMOOTH, *KINKED])
def test_a_beta_within_the_bound_settles_every_sample(hidden, layers, loss_type):
    case, free = around(hidden, layers)
    for share in (0.1, 0.9):
        beta = share / (cost(loss_type).curvature * free.amplification())
        e = settle(free.nudged(cost(loss_type), case.labels, beta), solver=Sweep(1e-5))
        assert e.converged.all(), share


@pytest.mark.parametrize("loss_type", COSTS)
@pytest.mark.parametrize("hidden", ["softplus", "tanh"])
def test_two_hidden_layers_settle_far_beyond_it(hidden, loss_type):
    """Where plain sweeps expand several times, to the equilibrium that the dynamics find too."""
    case, free = around(hidden, 2, batch=4)
    beta = 5 / (cost(loss_type).curvature * free.amplification())
    nudged = free.nudged(cost(loss_type), case.labels, beta)
    sweep = settle(nudged, solver=Sweep(1e-9))
    assert sweep.converged.all()
    ode = settle(nudged, solver=ODE(1e-9, "euler"))
    assert gap(moved(sweep), moved(ode)) < 1e-6


@pytest.mark.parametrize("hidden", ["relu", "tanh"])
def test_large_networks_in_float32(hidden):
    """Two wide layers at He's initialisation, where units pressed against s = 0 flip under undamped sweeps."""
    case = feedforward(hidden, 100, 200, 200, 10, scale=1.0, batch=64)
    free = settle(case.bind(torch.float32), solver=Sweep(1e-5))
    nudged = case.bind(torch.float32).around(free).nudged(cost("cross_entropy"), case.labels, 0.1)
    e = settle(nudged, solver=Sweep(1e-3))
    assert e.converged.all()
    assert e.evaluations <= 10
