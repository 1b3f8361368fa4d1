"""Update rules: what all of them obey; plain, Adam and Fisher against torch's optimizers and closed forms."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mep_sim.optimizers import (
    AdamUpdate,
    CompositeOptimizer,
    DionUpdate,
    ErrorFeedback,
    FisherUpdate,
    MuonUpdate,
    NoFeedback,
    PlainUpdate,
)
from mep_sim.optimizers.strategies.update import ROLES, log_fallback
from tests.update_conformance import ALL_CHECKS, directions, gradients, learn

few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**31)
fractions = st.floats(0, 0.99)
decays = st.sampled_from([0.0, 0.1, 1.0])

RULES = {
    "plain": PlainUpdate(weight_decay=0.1),
    "plain with momentum": PlainUpdate(momentum=0.9),
    "adam": AdamUpdate(0.8, 0.95, scale=0.3, weight_decay=0.1),
    "fisher": FisherUpdate(0.9, 0.01, nesterov=True),
    "muon": MuonUpdate(weight_decay=0.1),
    "muon, cubic": MuonUpdate(8, "cubic", scale="match_rms"),
    "muon, polar express, nesterov": MuonUpdate(polynomial="polar_express", momentum=0.9, nesterov=True),
    "dion": DionUpdate(3, weight_decay=0.1),
    "dion, full rank": DionUpdate(100),
}


@pytest.mark.parametrize("check", ALL_CHECKS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_every_rule(rule, check, seed):
    check(rule, seed)


# -- plain -------------------------------------------------------------------------------------------


@few
@given(seed=seeds, mu=st.floats(0.01, 0.99), nesterov=st.booleans(), decay=decays, lr=st.floats(1e-4, 1))
def test_a_plain_update_with_momentum_is_torchs_sgd(seed, mu, nesterov, decay, lr):
    *g, start = gradients((5, 3), 7, seed)
    update = PlainUpdate(momentum=mu, nesterov=nesterov, weight_decay=decay)
    ours = learn(lambda p: CompositeOptimizer(p, update=update, lr=lr), g, start)
    torchs = learn(
        lambda p: torch.optim.SGD(p, lr=lr, momentum=mu, nesterov=nesterov, weight_decay=decay), g, start
    )
    for a, b in zip(ours, torchs, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@few
@given(seed=seeds, mu=fractions, lr=st.floats(1e-4, 1))
def test_a_plain_update_with_a_carry_is_torchs_sgd(seed, mu, lr):
    g = gradients((5, 3), 6, seed)
    ours = learn(lambda p: CompositeOptimizer(p, feedback=ErrorFeedback(mu), lr=lr), g)
    torchs = learn(lambda p: torch.optim.SGD(p, lr=lr, momentum=mu), g)
    for a, b in zip(ours, torchs, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@few
@given(seed=seeds, decay=decays)
def test_without_feedback_a_plain_update_is_gradient_descent(seed, decay):
    *g, start = gradients((5, 3), 5, seed)
    update = PlainUpdate(weight_decay=decay)
    ours = learn(lambda p: CompositeOptimizer(p, update=update, feedback=NoFeedback(), lr=0.1), g, start)
    torchs = learn(lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=decay), g, start)
    assert torch.allclose(ours[-1], torchs[-1], rtol=1e-10, atol=1e-12)


def test_beside_a_carry_weight_decay_acts_on_the_step_alone():
    """Under zero gradients: w <- (1 - lr weight_decay) w, without the momentum that averages it in SGD."""
    (start,) = gradients((5, 3))
    path = learn(
        lambda p: CompositeOptimizer(
            p, update=PlainUpdate(weight_decay=0.5), feedback=ErrorFeedback(0.9), lr=0.1
        ),
        [torch.zeros_like(start)] * 5,
        start,
    )
    assert torch.allclose(path[-1], 0.95**5 * start, rtol=1e-12, atol=0)


# -- Adam --------------------------------------------------------------------------------------------


@few
@given(seed=seeds, beta1=fractions, beta2=st.floats(0, 0.9999), scale=st.floats(0.01, 10), decay=decays)
def test_adam_is_torchs_adamw(seed, beta1, beta2, scale, decay):
    """`scale` trades with the learning rate, but for the decay, which knows nothing of it."""
    *g, start = gradients((5, 3), 7, seed)
    update = AdamUpdate(beta1, beta2, scale=scale, weight_decay=decay * scale)
    ours = learn(lambda p: CompositeOptimizer(p, update=update, lr=0.1 / scale), g, start)
    torchs = learn(lambda p: torch.optim.AdamW(p, lr=0.1, betas=(beta1, beta2), weight_decay=decay), g, start)
    for a, b in zip(ours, torchs, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


# -- Fisher ------------------------------------------------------------------------------------------


@few
@given(seed=seeds, decay=fractions, damping=st.floats(1e-3, 10))
def test_a_constant_gradient_has_fisher_g_squared_from_the_first_step_on(seed, decay, damping):
    """F = g^2 (1 - decay^t), whose factor cancels: g / (g^2 / mean g^2 + damping) at every t."""
    g, weight = gradients((5, 3), 2, seed)
    expected = g / (g.square() / g.square().mean() + damping)
    for direction in directions(FisherUpdate(decay, damping, momentum=0.0), [g] * 4, {}, weight):
        assert torch.allclose(direction, expected, rtol=1e-10, atol=0)


@few
@given(seed=seeds, damping=st.floats(1e-4, 1))
def test_on_a_quadratic_whose_noise_is_its_curvature_the_step_is_newtons(seed, damping):
    """1/2 sum h w^2 with gradient noise of variance h, as in a well-specified model near its optimum: F = h,
    so that the direction at w is (damped) the Newton step w in units of mean h."""
    h, w, sign = gradients((4, 3), 3, seed)
    h = h.exp()
    noise = [h.sqrt() * sign.sign() * (-1) ** t for t in range(60)]
    state: dict = {}
    update = FisherUpdate(0.5, damping, momentum=0.0)
    directions(update, noise, state, w)
    direction, _ = update.direction(1e-9 * h * w, state, w)  # too small to move F itself
    assert torch.allclose(state["fisher"] / state["fisher"].mean(), h / h.mean(), rtol=1e-8, atol=0)
    assert torch.allclose(direction, 1e-9 * h.mean() * w / (1 + damping * h.mean() / h), rtol=1e-8, atol=0)


@few
@given(seed=seeds, scale=st.floats(1e-12, 1e12), decay=fractions, mu=fractions)
def test_fishers_metric_ignores_the_scale_of_the_gradient(seed, scale, decay, mu):
    *g, weight = gradients((5, 3), 5, seed)
    update = FisherUpdate(decay, momentum=mu)
    scaled = directions(update, [scale * x for x in g], {}, weight)
    for a, b in zip(scaled, directions(update, g, {}, weight), strict=True):
        assert torch.allclose(a, scale * b, rtol=1e-9, atol=0)


@few
@given(seed=seeds, damping=st.floats(1e-3, 10))
def test_damping_bounds_fishers_gain(seed, damping):
    """Between the plain gradient's (all entries alike) and 1 / damping times the gradient (F = 0)."""
    *g, weight = gradients((5, 3), 5, seed)
    for x, direction in zip(
        g, directions(FisherUpdate(0.9, damping, momentum=0.0), g, {}, weight), strict=True
    ):
        assert (direction.abs() <= x.abs() / damping).all()
    alike = torch.full_like(weight, 3.0)
    direction, _ = FisherUpdate(0.9, damping).direction(alike, {}, weight)
    assert torch.allclose(direction, alike / (1 + damping), rtol=1e-12, atol=0)


# -- which rule for which parameter ------------------------------------------------------------------

MUON, DION = MuonUpdate(), DionUpdate(dion_thresh=1000)
HEADLESS = MuonUpdate(heads="fallback")
LOW_RANK = DionUpdate(dion_thresh=0, small=HEADLESS)


@pytest.mark.parametrize(
    ("update", "shape", "role", "rule"),
    [
        *((update, shape, role, update) for update in (PlainUpdate(), AdamUpdate(), FisherUpdate())
          for shape, role in (((7,), "vector"), ((7, 3), "embedding"), ((7, 3), "head"))),
        (MUON, (7,), "vector", MUON.fallback),
        (MUON, (7,), "hidden", MUON.fallback),
        (MUON, (), "vector", MUON.fallback),
        (MUON, (7, 1), "hidden", MUON),
        (MUON, (2, 3, 4), "hidden", MUON),
        (MUON, (7, 3), "head", MUON),
        (MUON, (7, 3), "embedding", MUON.fallback),
        (HEADLESS, (7, 3), "head", HEADLESS.fallback),
        (HEADLESS, (7, 3), "hidden", HEADLESS),
        (DION, (2000,), "vector", DION.small.fallback),
        (DION, (200, 10), "embedding", DION.small.fallback),
        (DION, (999, 1), "hidden", DION.small),
        (DION, (40, 25), "hidden", DION),
        (DION, (40, 25), "head", DION),
        (DION, (10, 5, 5, 4), "hidden", DION),
        (LOW_RANK, (40, 25), "head", HEADLESS.fallback),
        (DionUpdate(dion_thresh=0, small=PlainUpdate()), (40, 25), "embedding", PlainUpdate()),
    ],
)  # fmt: skip
def test_each_parameter_gets_the_rule_of_its_role(update, shape, role, rule):
    assert update.rule(torch.zeros(shape), role) == rule


def test_a_fallback_is_stated_once(caplog):
    log_fallback.cache_clear()
    with caplog.at_level(logging.INFO, "mep_sim"):
        for shape, role in [
            ((7,), "vector"),
            ((3,), "hidden"),
            ((7, 3), "embedding"),
            ((7, 3), "hidden"),
        ] * 2:
            MUON.rule(torch.zeros(shape), role)
    assert caplog.messages == [
        "MuonUpdate leaves vector parameters to AdamUpdate",
        "MuonUpdate leaves embedding parameters to AdamUpdate",
    ]


def test_a_bias_under_muon_is_moved_by_adam_on_raw_gradients():
    g = gradients((7,), 5)
    ours = learn(
        lambda p: CompositeOptimizer(p, update=MuonUpdate(), feedback=ErrorFeedback(0.9), lr=0.02), g
    )
    torchs = learn(lambda p: torch.optim.Adam(p, lr=0.02 * 0.05), g)
    assert torch.allclose(ours[-1], torchs[-1], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlainUpdate(momentum=1.0), r"momentum = 1.0; choose 0 <= momentum < 1"),
        (lambda: PlainUpdate(nesterov=True), r"nesterov = True with momentum = 0; give it .* such as 0.9"),
        (
            lambda: PlainUpdate(weight_decay=-1e-4),
            r"weight_decay = -0.0001; choose a finite weight_decay >= 0",
        ),
        (lambda: AdamUpdate(beta1=1.0), r"beta1 = 1.0; choose 0 <= beta1 < 1"),
        (lambda: AdamUpdate(beta2=-0.1), r"beta2 = -0.1; choose"),
        (lambda: AdamUpdate(eps=0.0), r"eps = 0.0; choose a finite eps > 0"),
        (lambda: AdamUpdate(scale=float("nan")), r"scale = nan; choose a finite scale > 0"),
        (lambda: AdamUpdate(weight_decay=float("inf")), r"weight_decay = inf; choose"),
        (lambda: FisherUpdate(decay=1.0), r"decay = 1.0; choose 0 <= decay < 1"),
        (lambda: FisherUpdate(damping=0.0), r"damping = 0.0; choose a finite damping > 0, such as 0.1"),
        (lambda: FisherUpdate(momentum=-0.1), r"momentum = -0.1; choose 0 <= momentum < 1"),
        (lambda: MUON.rule(torch.zeros(2, 2), "output"), f"role 'output'; choose one of {', '.join(ROLES)}"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
