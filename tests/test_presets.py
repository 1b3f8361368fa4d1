"""The presets are the compositions they claim to be; the predecessor's README runs as it was written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from circuits import FeedforwardCircuit
from mep_sim import ODE, Sweep, eqprop, local_ep, muon_backprop, natural_ep, sdmep, smep
from mep_sim.optimizers import (
    BackpropGradient,
    CompositeOptimizer,
    DionUpdate,
    EPGradient,
    ErrorFeedback,
    LocalEPGradient,
    MuonUpdate,
    NaturalGradient,
    NoConstraint,
    PlainUpdate,
    SpectralConstraint,
)
from mep_sim.optimizers.strategies.ep import SETTLE_LR
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


# -- the predecessor's README, word for word but for the import (EPMonitor's part: test_monitor) -------

BASIC_USAGE = """
import torch.nn as nn
from mep import smep, sdmep, muon_backprop

model = nn.Sequential(
    nn.Linear(784, 256),
    nn.ReLU(),
    nn.Linear(256, 10)
)

# Option 1: EP mode (biologically plausible)
optimizer = smep(model.parameters(), model=model, mode='ep')
optimizer.step(x=x, target=y)  # No .backward() needed!
"""

BACKPROP_MODE = """
# Option 2: Backprop mode (drop-in SGD replacement)
optimizer = muon_backprop(model.parameters())
loss.backward()
optimizer.step()
"""

RECOMMENDED = """
from mep import smep

# Default settings work well for most classification tasks
optimizer = smep(
    model.parameters(),
    model=model,
    lr=0.01,
    mode='ep',
    beta=0.3,               # Nudging strength
    settle_steps=15,        # Settling iterations
    settle_lr=0.1,          # Settling learning rate
    loss_type='cross_entropy',
    # use_error_feedback=False by default
)
"""

CONTINUAL_LEARNING = """
# For continual learning (with error feedback)
optimizer = smep(
    model.parameters(),
    model=model,
    lr=0.01,
    mode='ep',
    use_error_feedback=True,  # Enable for CL
    error_beta=0.95,          # High retention
)
"""

CUSTOM_COMPOSITION = """
from mep.optimizers import (
    CompositeOptimizer,
    EPGradient, MuonUpdate, SpectralConstraint, ErrorFeedback
)

# Custom optimizer with error feedback
optimizer = CompositeOptimizer(
    model.parameters(),
    gradient=EPGradient(beta=0.3, settle_steps=15),
    update=MuonUpdate(ns_steps=5),
    constraint=SpectralConstraint(gamma=0.95),
    feedback=ErrorFeedback(beta=0.9),
    lr=0.01,
    model=model,
)
"""


def run(snippet: str, names: dict | None = None, **more) -> dict:
    """The names that a snippet leaves behind, in addition to those it is given."""
    names = {**(names or {}), **more}
    exec(snippet.replace("from mep", "from mep_sim"), names)
    return names


def test_readme_basic_usage(batch):
    torch.manual_seed(0)
    x, y = batch
    names = run(BASIC_USAGE, x=x, y=y)
    model, optimizer = names["model"], names["optimizer"]
    loss = nn.functional.cross_entropy(model(x), y)
    run(BACKPROP_MODE, names, loss=loss)
    assert nn.functional.cross_entropy(model(x), y) < loss
    assert falls(optimizer, model, batch)


def test_readme_recommended_configuration(model, batch):
    optimizer = run(RECOMMENDED, model=model)["optimizer"]
    assert optimizer.gradient == EPGradient(beta=0.3, settle_steps=15, settle_lr=0.1)
    assert falls(optimizer, model, batch)
    optimizer = run(RECOMMENDED + CONTINUAL_LEARNING, model=model)["optimizer"]
    assert optimizer.feedback == ErrorFeedback(0.95)
    assert falls(optimizer, model, batch)


def test_readme_custom_composition(model, batch):
    assert falls(run(CUSTOM_COMPOSITION, model=model)["optimizer"], model, batch)
    assert torch.linalg.matrix_norm(model[0].weight, 2) < 0.95


def test_readme_large_models(model, batch):
    """784 x 256 = 200,704 entries: from 200,000 on, Dion's."""
    optimizer = sdmep(model.parameters(), model=model, dion_thresh=200000)
    assert optimizer.update.rule(model[0].weight) is optimizer.update
    assert falls(optimizer, model, batch)
    assert "dion_basis" in optimizer.state[model[0].weight]
    assert "dion_basis" not in optimizer.state[model[2].weight]


# -- what they are made of ---------------------------------------------------------------------------

BY_EP = [smep, sdmep, eqprop, local_ep, natural_ep]


@pytest.mark.parametrize("make", [smep, sdmep, muon_backprop])
def test_the_spectral_presets_keep_the_bound_and_their_settings(make, model):
    options = {"gamma": 1.5, "ns_steps": 4, "polynomial": "polar_express", "weight_decay": 0.01}
    optimizer = make(model.parameters(), model, 0.03, loss_type="mse", clip_norm=5.0, **options)
    assert optimizer.constraint == SpectralConstraint(1.5)
    assert optimizer.param_groups[0]["lr"] == 0.03
    assert optimizer.gradient.loss_type == "mse"
    assert optimizer.clip_norm == 5.0
    muon = MuonUpdate(ns_steps=4, polynomial="polar_express", weight_decay=0.01)
    dion = DionUpdate(small=muon, weight_decay=0.01)
    assert optimizer.update == (dion if make is sdmep else muon)
    assert isinstance(optimizer.circuit, FeedforwardCircuit)
    assert optimizer.circuit.model is model


@pytest.mark.parametrize(
    ("options", "carry"),
    [
        ({}, 0.9),
        ({"momentum": 0.8}, 0.8),
        ({"momentum": 0.0}, 0.0),
        ({"use_error_feedback": True}, 0.95),
        ({"use_error_feedback": True, "error_beta": 0.0}, 0.0),
    ],
)
def test_smep_is_muon_on_ep_with_one_carry(model, options, carry):
    optimizer = smep(model.parameters(), model=model, beta=0.2, phases="centred", **options)
    assert optimizer.gradient == EPGradient(beta=0.2, phases="centred")
    assert optimizer.update == MuonUpdate()
    assert optimizer.feedback == ErrorFeedback(carry)


def test_sdmep_is_dion_on_ep_with_error_feedback(model):
    optimizer = sdmep(model.parameters(), model=model, rank=8, dion_thresh=5, error_beta=0.9)
    assert optimizer.gradient == EPGradient()
    assert optimizer.update == DionUpdate(8, 5)
    assert optimizer.feedback == ErrorFeedback(0.9)


@pytest.mark.parametrize(
    ("make", "gradient", "carry"),
    [
        (eqprop, EPGradient(beta=0.2, phases="centred"), 0.9),
        (local_ep, LocalEPGradient(beta=0.2, phases="centred"), 0.0),
        (natural_ep, NaturalGradient(beta=0.2, phases="centred", damping=0.1, radius=2.0), 0.9),
    ],
)
def test_the_plain_presets_descend_their_gradient(make, gradient, carry, model):
    natural = {"damping": 0.1, "radius": 2.0} if make is natural_ep else {}
    options = {"beta": 0.2, "phases": "centred", "weight_decay": 0.01, **natural}
    optimizer = make(model.parameters(), model, **options)
    assert optimizer.gradient == gradient
    assert optimizer.update == PlainUpdate(weight_decay=0.01)
    assert optimizer.constraint == NoConstraint()
    assert optimizer.feedback == ErrorFeedback(carry)
    assert make(model.parameters(), model, momentum=0.5).feedback == ErrorFeedback(0.5)


@pytest.mark.parametrize("make", BY_EP)
def test_every_preset_by_ep_learns_at_its_defaults(make, model, batch):
    assert falls(make(model.parameters(), model=model), model, batch)


@pytest.mark.parametrize("make", [smep, sdmep])
def test_the_mode_chooses_the_gradient(make, model):
    assert make(model.parameters(), model=model, mode="backprop").gradient == BackpropGradient()
    assert isinstance(make(model.parameters(), model=model, mode="ep").gradient, EPGradient)
    with pytest.raises(ValueError, match="unknown mode 'bp'; choose 'ep' or 'backprop'"):
        make(model.parameters(), model=model, mode="bp")


@pytest.mark.parametrize("make", [smep, sdmep])
def test_backprop_has_no_phases_to_set(make, model):
    for options, named in (
        ({"settle_steps": 15, "beta": 0.3}, "beta, settle_steps"),
        ({"solver": Sweep()}, "solver"),
    ):
        with pytest.raises(ValueError, match=f"backprop has no phases to set {named} of"):
            make(model.parameters(), model=model, mode="backprop", **options)
    with pytest.raises(ValueError, match="backprop has no phases to set beta of"):
        muon_backprop(model.parameters(), beta=0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"momentum": 0.9, "use_error_feedback": True},
            r"momentum = 0.9 beside use_error_feedback.*error_beta",
        ),
        ({"error_beta": 0.9}, "error_beta = 0.9 without use_error_feedback = True; give both, or momentum"),
    ],
)
def test_two_names_of_one_carry_are_not_mixed(options, message, model):
    with pytest.raises(ValueError, match=message):
        smep(model.parameters(), model=model, **options)


@pytest.mark.parametrize("make", BY_EP)
def test_ep_asks_for_the_network_at_once(make, model):
    with pytest.raises(ValueError, match="EP has to settle the network: pass model="):
        make(model.parameters())


@pytest.mark.parametrize("make", [smep, sdmep])
def test_a_solver_of_ones_own(make, model):
    solver = ODE(tolerance=1e-4)
    assert make(model.parameters(), model=model, solver=solver).gradient.solver == solver
    assert make(model.parameters(), model=model).gradient.solver == Sweep(1e-5)


# -- fixed Euler steps -------------------------------------------------------------------------------


def test_settle_steps_are_euler_steps_of_settle_lr():
    gradient = EPGradient(settle_steps=15, settle_lr=0.1)
    assert gradient.solver == ODE(1e-5, "euler", 0.1, max_evaluations=16)
    assert EPGradient(settle_steps=15).solver.step == SETTLE_LR == 0.15


@pytest.mark.parametrize(("steps", "lr"), [(1, 0.5), (3, 0.1), (15, 0.1), (15, 0.15)])
def test_they_take_so_many_steps_and_no_more(model, batch, steps, lr):
    """One linear layer relaxes by (1 - lr) a step: what is left of the output after `steps` of them; the last
    evaluation is the look at where it got to."""
    linear = nn.Sequential(nn.Linear(784, 10))
    x, y = batch
    optimizer = smep(linear.parameters(), model=linear, settle_steps=steps, settle_lr=lr)
    estimate = optimizer.compute_gradient(x, y)
    assert estimate.free.evaluations == steps + 1
    assert torch.allclose(estimate.output, (1 - (1 - lr) ** steps) * linear(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settle_lr": 0.1}, "settle_lr = 0.1 without a number of steps; give settle_steps too"),
        ({"settle_steps": 15, "settle_lr": -0.1}, "step = -0.1 time constants; choose a step > 0"),
        ({"settle_steps": 0}, "settle_steps = 0; choose a whole number of 1 or more"),
        ({"settle_steps": 2.5}, "settle_steps = 2.5; choose a whole number"),
        ({"settle_steps": 15, "solver": ODE()}, r"settle_steps = 15 replaces solver = ODE\(.*give one"),
        ({"beta": 0.0}, "beta = 0.0; choose a finite beta > 0"),
        ({"beta": 1e-40}, r"beta = 1e-40; choose a finite beta > 0 \(at least 1e-30\)"),
        ({"phases": "three"}, "unknown phases 'three' of EPGradient; choose one of one_sided, centred"),
        ({"loss_type": "hinge"}, "unknown cost 'hinge'; choose one of cross_entropy, mse"),
        ({"gamma": -1.0}, "gamma = -1.0; choose gamma > 0"),
        ({"ns_steps": 0}, "ns_steps = 0"),
    ],
)
@pytest.mark.parametrize("make", [smep, sdmep])
def test_a_setting_out_of_range_is_named_with_its_range(make, options, message, model):
    with pytest.raises(ValueError, match=message):
        make(model.parameters(), model=model, **options)


@pytest.mark.parametrize("make", [*BY_EP, muon_backprop])
def test_a_keyword_that_does_not_exist_is_refused(make, model):
    with pytest.raises(TypeError, match=r"this preset has no setting nudge; see its help\(\)"):
        make(model.parameters(), model=model, nudge=0.1)
