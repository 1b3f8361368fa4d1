"""The presets are the compositions they claim to be; the predecessor's README runs as it was written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from circuits import FeedforwardCircuit
from mep_sim import ODE, Sweep, muon_backprop, sdmep, smep
from mep_sim.optimizers import (
    BackpropGradient,
    CompositeOptimizer,
    DionUpdate,
    EPGradient,
    ErrorFeedback,
    MuonUpdate,
    SpectralConstraint,
)
from mep_sim.optimizers.strategies.gradient import SETTLE_LR
from tests.device_conformance import generator


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Ten noisy prototypes."""
    rng = generator()
    y = torch.arange(60) % 10
    return torch.randn(10, 784, generator=rng)[y] + 0.3 * torch.randn(60, 784, generator=rng), y


def falls(optimizer: CompositeOptimizer, model: nn.Module, batch, steps: int = 20) -> bool:
    x, y = batch
    with torch.no_grad():
        before = nn.functional.cross_entropy(model(x), y).item()
        for _ in range(steps):
            optimizer.step(x=x, target=y)
        return nn.functional.cross_entropy(model(x), y).item() < 0.3 * before


# -- the predecessor's README, with the import changed -----------------------------------------------


def test_readme_basic_usage(model, batch):
    x, y = batch
    optimizer = smep(model.parameters(), model=model, mode="ep")
    optimizer.step(x=x, target=y)  # No .backward() needed!
    assert falls(optimizer, model, batch)

    optimizer = muon_backprop(model.parameters())
    before = loss = nn.functional.cross_entropy(model(x), y)
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert loss < before


def test_readme_recommended_configuration(model, batch):
    optimizer = smep(
        model.parameters(),
        model=model,
        lr=0.01,
        mode="ep",
        beta=0.3,  # Nudging strength
        settle_steps=15,  # Settling iterations
        settle_lr=0.1,  # Settling learning rate
        loss_type="cross_entropy",
        # use_error_feedback=False by default
    )
    assert falls(optimizer, model, batch)


def test_readme_continual_learning(model, batch):
    optimizer = smep(
        model.parameters(),
        model=model,
        lr=0.01,
        mode="ep",
        use_error_feedback=True,  # Enable for CL
        error_beta=0.95,  # High retention
    )
    assert optimizer.feedback == ErrorFeedback(0.95)
    assert falls(optimizer, model, batch)


def test_readme_custom_composition(model, batch):
    optimizer = CompositeOptimizer(
        model.parameters(),
        gradient=EPGradient(beta=0.3, settle_steps=15),
        update=MuonUpdate(ns_steps=5),
        constraint=SpectralConstraint(gamma=0.95),
        feedback=ErrorFeedback(beta=0.9),
        lr=0.01,
        model=model,
    )
    assert falls(optimizer, model, batch)
    assert torch.linalg.matrix_norm(model[0].weight, 2) < 0.95


def test_readme_large_models(model, batch):
    """784 x 256 = 200,704 entries: from 200,000 on, Dion's."""
    optimizer = sdmep(model.parameters(), model=model, dion_thresh=200000)
    assert optimizer.update.rule(model[0].weight) is optimizer.update
    assert falls(optimizer, model, batch)
    assert "dion_basis" in optimizer.state[model[0].weight]
    assert "dion_basis" not in optimizer.state[model[2].weight]


# -- what they are made of ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", [smep, sdmep, muon_backprop])
def test_each_preset_keeps_the_spectral_bound_and_its_settings(make, model):
    optimizer = make(model.parameters(), model, 0.03, gamma=1.5, ns_steps=4, loss_type="mse")
    assert optimizer.constraint == SpectralConstraint(1.5)
    assert optimizer.param_groups[0]["lr"] == 0.03
    assert optimizer.gradient.loss_type == "mse"
    muon = optimizer.update.small if make is sdmep else optimizer.update
    assert muon == MuonUpdate(ns_steps=4)
    assert isinstance(optimizer.circuit, FeedforwardCircuit)
    assert optimizer.circuit.model is model


def test_smep_is_muon_on_ep_with_momentum(model):
    optimizer = smep(model.parameters(), model=model, beta=0.2, phases="centred", momentum=0.8)
    assert optimizer.gradient == EPGradient(beta=0.2, phases="centred")
    assert optimizer.feedback == ErrorFeedback(0.8)


def test_sdmep_is_dion_on_ep_with_error_feedback(model):
    optimizer = sdmep(model.parameters(), model=model, rank=8, dion_thresh=5, error_beta=0.9)
    assert optimizer.gradient == EPGradient()
    assert optimizer.update == DionUpdate(8, 5)
    assert optimizer.feedback == ErrorFeedback(0.9)


@pytest.mark.parametrize("make", [smep, sdmep])
def test_the_mode_chooses_the_gradient(make, model):
    assert make(model.parameters(), model=model, mode="backprop").gradient == BackpropGradient()
    assert isinstance(make(model.parameters(), model=model, mode="ep").gradient, EPGradient)
    with pytest.raises(ValueError, match="unknown mode 'bp'; choose 'ep' or 'backprop'"):
        make(model.parameters(), model=model, mode="bp")


@pytest.mark.parametrize("make", [smep, sdmep])
def test_a_solver_of_ones_own(make, model):
    solver = ODE(tolerance=1e-4)
    assert make(model.parameters(), model=model, solver=solver).gradient.solver == solver
    assert make(model.parameters(), model=model).gradient.solver == Sweep(1e-5)


# -- fixed Euler steps -------------------------------------------------------------------------------


def test_settle_steps_are_euler_steps_of_settle_lr():
    gradient = EPGradient(settle_steps=15, settle_lr=0.1)
    assert gradient.solver == ODE(method="euler", step=0.1, max_evaluations=15)
    assert EPGradient(settle_steps=15).solver.step == SETTLE_LR == 0.15


@pytest.mark.parametrize(("steps", "lr"), [(3, 0.1), (15, 0.1), (15, 0.15)])
def test_they_take_so_many_steps_and_no_more(model, batch, steps, lr):
    """One linear layer relaxes by (1 - lr) a step: what is left of the output after `steps - 1` of them, the
    last evaluation being the look at where it got to."""
    linear = nn.Sequential(nn.Linear(784, 10))
    x, y = batch
    optimizer = smep(linear.parameters(), model=linear, settle_steps=steps, settle_lr=lr)
    estimate = optimizer.compute_gradient(x, y)
    assert estimate.free.evaluations == steps
    assert torch.allclose(estimate.output, (1 - (1 - lr) ** (steps - 1)) * linear(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settle_lr": 0.1}, "settle_lr = 0.1 without a number of steps; give settle_steps too"),
        ({"settle_steps": 15, "settle_lr": -0.1}, "step = -0.1 time constants; choose a step > 0"),
        ({"settle_steps": 0}, "max_evaluations = 0; allow at least 1"),
        ({"settle_steps": 15, "solver": ODE()}, r"settle_steps = 15 replaces solver = ODE\(.*give one"),
        ({"beta": 0.0}, "beta = 0.0; choose a finite beta > 0, such as 0.1"),
        ({"phases": "three"}, "unknown phases 'three'; choose one of one_sided, centred, one_sweep"),
        ({"loss_type": "hinge"}, "unknown cost 'hinge'; choose one of cross_entropy, mse"),
        ({"gamma": -1.0}, "gamma = -1.0; choose gamma > 0"),
        ({"ns_steps": 0}, "ns_steps = 0"),
    ],
)
@pytest.mark.parametrize("make", [smep, sdmep])
def test_a_setting_out_of_range_is_named_with_its_range(make, options, message, model):
    with pytest.raises(ValueError, match=message):
        make(model.parameters(), model=model, **options)


def test_a_keyword_that_does_not_exist_is_refused(model):
    with pytest.raises(TypeError, match="nudge"):
        smep(model.parameters(), model=model, nudge=0.1)
