"""The nudged phase of the feedforward energy: it settles at every depth and every beta within the bound."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from circuits import cost
from mep_sim import eqprop
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


def normalised(activation: type[nn.Module]) -> nn.Sequential:
    layers = [
        nn.Linear(8, 32),
        activation(),
        nn.LayerNorm(32),
        nn.Linear(32, 32),
        activation(),
        nn.LayerNorm(32),
    ]
    return nn.Sequential(*layers, nn.Linear(32, 3))


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Hardsigmoid, nn.GELU, nn.ReLU])
def test_normalised_layers_settle_at_the_default_beta_beyond_the_bound(activation):
    """Slopes change much with the nudge there; all samples of a few steps of training settle."""
    torch.manual_seed(0)
    model = normalised(activation)
    optimizer = eqprop(model.parameters(), model=model)
    rng = torch.Generator().manual_seed(1)
    for _ in range(4):
        x, y = torch.randn(32, 8, generator=rng), torch.randint(3, (32,), generator=rng)
        optimizer.step(x=x, target=y)
        (nudged,) = optimizer.estimate.nudged
        assert nudged.converged.all()
        assert nudged.evaluations < 200


def test_sixteen_layers_settle_far_beyond_the_bound():
    """To an equilibrium: no state nearby has less energy."""
    case = feedforward("relu", 32, *[64] * 16, 10, scale=1.0, batch=16)
    free = settle(case.bind())
    system = case.bind().around(free)
    nudged = system.nudged(cost("mse"), case.labels, 0.1)
    assert 3 / system.amplification() < 0.1
    e = settle(nudged, solver=Sweep(1e-7))
    assert e.converged.all()
    energy = nudged.energy(e.deviation)
    for seed in range(5):
        step = torch.randn(e.state.shape, generator=torch.Generator().manual_seed(seed), dtype=e.state.dtype)
        moved = nudged.state(e.deviation + 1e-5 * step).clamp(nudged.lower, nudged.upper)
        assert (nudged.energy(moved - free.state) >= energy).all()
