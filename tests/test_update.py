"""Update rules against torch's own optimizers, the SVD and a plain Dion recursion."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mep_sim.optimizers import (
    AdamUpdate,
    CompositeOptimizer,
    DionUpdate,
    ErrorFeedback,
    MuonUpdate,
    NoFeedback,
    PlainUpdate,
    orthogonalise,
)
from tests.device_conformance import generator

SHAPES = [(12, 12), (30, 12), (12, 30)]
few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**31)


def gradients(shape, steps: int = 1, seed: int = 0, dtype=torch.float64) -> list[Tensor]:
    rng = generator(seed)
    return [torch.randn(shape, generator=rng, dtype=dtype) for _ in range(steps)]


def matrix(shape, sigma: Tensor, seed: int = 0) -> Tensor:
    """A float64 matrix with these singular values."""
    u, _, vh = torch.linalg.svd(gradients(shape, seed=seed)[0], full_matrices=False)
    return u * sigma @ vh


def polar(m: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(m, full_matrices=False)
    return u @ vh


def learn(make, given_gradients: list[Tensor]) -> list[Tensor]:
    """The weight, from zero, after each step of the optimizer `make` makes on these gradients."""
    p = nn.Parameter(torch.zeros_like(given_gradients[0]))
    optimizer, path = make([p]), []
    for g in given_gradients:
        p.grad = g.clone()
        optimizer.step()
        path.append(p.detach().clone())
    return path


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


# -- orthogonalise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_cubic_converges_to_the_polar_factor(shape):
    m = matrix(shape, torch.linspace(0.2, 3.0, 12, dtype=torch.float64))
    assert torch.allclose(orthogonalise(m, "cubic", 30), polar(m), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("polynomial", "coefficients"), [("cubic", (1.5, -0.5, 0.0)), ("quintic", (3.4445, -4.7750, 2.0315))]
)
def test_each_step_is_the_polynomial_of_the_singular_values(shape, polynomial, coefficients):
    """Newton-Schulz acts on every singular value alone, sigma <- a sigma + b sigma^3 + c sigma^5."""
    m = matrix(shape, torch.linspace(0.05, 2.0, 12, dtype=torch.float64))
    u, sigma, vh = torch.linalg.svd(m, full_matrices=False)
    a, b, c = coefficients
    sigma = sigma / m.norm()
    for _ in range(5):
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    assert torch.allclose(orthogonalise(m, polynomial, 5), u * sigma @ vh, rtol=0, atol=1e-12)


@few
@given(seed=seeds, rows=st.integers(1, 40), columns=st.integers(1, 40), weakest=st.floats(0.02, 1))
def test_five_quintic_steps_land_near_one(seed, rows, columns, weakest):
    """From any singular values within 50 of each other; 0.68 to 1.21 is the published band."""
    n = min(rows, columns)
    m = matrix((rows, columns), torch.linspace(weakest, 1.0, n, dtype=torch.float64), seed)
    sigma = torch.linalg.svdvals(orthogonalise(m))
    assert sigma.min() > 0.6
    assert sigma.max() < 1.3


@few
@given(seed=seeds, scale=st.floats(1e-12, 1e12), shape=st.sampled_from(SHAPES))
def test_orthogonalise_ignores_scale_and_commutes_with_transposition_and_rotation(seed, scale, shape):
    (m,) = gradients(shape, seed=seed)
    o = orthogonalise(m)
    rotation = polar(gradients((shape[0], shape[0]), seed=seed + 1)[0])
    assert torch.allclose(orthogonalise(scale * m), o, rtol=0, atol=1e-10)
    assert torch.allclose(orthogonalise(m.T), o.T, rtol=0, atol=1e-10)
    assert torch.allclose(orthogonalise(rotation @ m), rotation @ o, rtol=0, atol=1e-10)


def test_nothing_to_orthogonalise_stays_nothing():
    assert torch.equal(orthogonalise(torch.zeros(3, 5)), torch.zeros(3, 5))


# -- Muon --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32), (64, 24), (24, 64)])
@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_muon_is_torchs_muon(shape, mu):
    """torch orthogonalises in bfloat16 (3 significant digits) and averages b (1 - mu), the same direction."""
    g = gradients(shape, 6, dtype=torch.float32)
    ours = learn(lambda p: CompositeOptimizer(p, update=MuonUpdate(), feedback=ErrorFeedback(mu), lr=0.1), g)
    torchs = learn(lambda p: torch.optim.Muon(p, lr=0.1, momentum=mu, nesterov=False, weight_decay=0), g)
    assert relative(ours[0], torchs[0]) < 0.02
    assert relative(ours[-1], torchs[-1]) < 0.02


@few
@given(seed=seeds, mu=st.floats(0, 0.99))
def test_the_carry_is_torchs_momentum_up_to_scale(seed, mu):
    """Muon of torch: m <- mu m + (1 - mu) g. Ours: b = g + carry, so that m = (1 - mu) b and carry = mu b."""
    state, momentum, feedback = {}, torch.zeros(4, 3, dtype=torch.float64), ErrorFeedback(mu)
    for g in gradients((4, 3), 5, seed):
        momentum.lerp_(g, 1 - mu)
        b = feedback.signal(g, state)
        feedback.keep(g, b, state)
        assert torch.allclose((1 - mu) * b, momentum, rtol=1e-10, atol=1e-12)
        assert torch.allclose(state["carry"], mu * b, rtol=1e-10, atol=1e-12)


def test_muons_steps_have_the_size_of_their_shape():
    """Cubic and many steps: spectral norm sqrt(max(1, out / in)) exactly."""
    for shape in SHAPES:
        direction, kept = MuonUpdate(40, "cubic").direction(m := gradients(shape)[0], {})
        size = math.sqrt(max(1, shape[0] / shape[1]))
        assert torch.allclose(direction, size * polar(m), rtol=0, atol=1e-8)
        assert kept is m


# -- Dion --------------------------------------------------------------------------------------------


def dion(q: Tensor, given_gradients: list[Tensor], mu: float, lr: float) -> list[Tensor]:
    """Ahn et al. 2025, algorithm 1, written out: weights from zero after each step."""
    m, w, path = torch.zeros_like(given_gradients[0]), torch.zeros_like(given_gradients[0]), []
    for g in given_gradients:
        m = m + g
        p = torch.linalg.qr(m @ q).Q
        r = m.T @ p
        m = m - (1 - mu) * p @ r.T
        q = r / r.norm(dim=0)
        w = w - lr * math.sqrt(w.shape[0] / w.shape[1]) * p @ q.T
        path.append(w)
    return path


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rank", "mu"), [(1, 0.9), (4, 0.95), (4, 0.0), (12, 0.9)])
def test_dion_is_the_published_recursion(shape, rank, mu):
    g = gradients(shape, 6)
    update = DionUpdate(rank, dion_thresh=0)
    ours = learn(lambda p: CompositeOptimizer(p, update=update, feedback=ErrorFeedback(mu), lr=0.1), g)
    start = torch.linalg.svd(g[0], full_matrices=False).Vh[:rank].T
    for a, b in zip(ours, dion(start, g, mu, 0.1), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


@few
@given(seed=seeds, mu=st.floats(0, 0.99), rank=st.integers(1, 12), shape=st.sampled_from(SHAPES))
def test_what_dion_does_not_keep_is_carried_in_full(seed, mu, rank, shape):
    """carry = M - (1 - mu) P P'M with P an orthonormal basis of the step; at full rank that is momentum."""
    state, feedback, update = {}, ErrorFeedback(mu), DionUpdate(rank)
    for g in gradients(shape, 3, seed):
        m = feedback.signal(g, state)
        direction, kept = update.direction(m, state)
        feedback.keep(g, kept, state)
        projector = torch.linalg.svd(direction, full_matrices=False).U[:, :rank]
        projector = projector @ projector.T
        assert torch.allclose(kept, projector @ m, rtol=0, atol=1e-6 * m.norm())
        assert torch.allclose(state["carry"], m - (1 - mu) * kept, rtol=0, atol=1e-10 * m.norm())
        if rank == 12:
            assert torch.allclose(state["carry"], mu * m, rtol=0, atol=1e-10 * m.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_dions_first_step_orthogonalises_the_leading_subspace(shape):
    (m,) = gradients(shape)
    u, _, vh = torch.linalg.svd(m, full_matrices=False)
    for rank in (3, 12):
        direction, _ = DionUpdate(rank).direction(m, {})
        expected = math.sqrt(shape[0] / shape[1]) * u[:, :rank] @ vh[:rank]
        assert torch.allclose(direction, expected, rtol=0, atol=1e-10)


def test_dion_follows_a_steady_signal_to_its_leading_subspace():
    """The warm power iteration converges from a wrong start by (sigma_4 / sigma_3)^2 a step."""
    m = matrix((20, 30), torch.tensor([9.0, 8, 7] + [1.0] * 17, dtype=torch.float64))
    u, _, vh = torch.linalg.svd(m)
    state = {"dion_basis": gradients((30, 3), seed=1)[0]}
    update = DionUpdate(3)
    for _ in range(12):
        direction, kept = update.direction(m, state)
    assert torch.allclose(kept, u[:, :3] * torch.tensor([9.0, 8, 7]).double() @ vh[:3], rtol=0, atol=1e-10)
    assert relative(direction @ direction.T, 20 / 30 * u[:, :3] @ u[:, :3].T) < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dion_does_not_step_along_rounding_errors(dtype):
    """A signal of rank 4 under a rank of 16: four directions of size 1, and the rest is noise."""
    m = (gradients((200, 4), seed=1)[0] @ gradients((4, 300), seed=2)[0]).to(dtype)
    direction, _ = DionUpdate(16).direction(m, {})
    sigma = torch.linalg.svdvals(direction / math.sqrt(200 / 300))
    assert torch.allclose(sigma[:4], torch.ones(4, dtype=dtype), atol=1e-3)
    assert sigma[4:].max() < 0.01


def test_dion_recovers_from_a_step_without_a_signal():
    (m,) = gradients((12, 30))
    state: dict = {}
    update = DionUpdate(4)
    still, _ = update.direction(torch.zeros_like(m), state)
    assert torch.equal(still, torch.zeros_like(m))
    for _ in range(400):
        _, kept = update.direction(m, state)
    u = torch.linalg.svd(m).U[:, :4]
    assert relative(kept, u @ u.T @ m) < 1e-3


# -- Adam and plain ----------------------------------------------------------------------------------


@few
@given(seed=seeds, beta1=st.floats(0, 0.99), beta2=st.floats(0, 0.9999), scale=st.floats(0.01, 10))
def test_adam_is_torchs_adam(seed, beta1, beta2, scale):
    g = gradients((5, 3), 6, seed)
    update = AdamUpdate(beta1, beta2, scale=scale)
    ours = learn(lambda p: CompositeOptimizer(p, update=update, lr=0.1 / scale), g)
    torchs = learn(lambda p: torch.optim.Adam(p, lr=0.1, betas=(beta1, beta2)), g)
    for a, b in zip(ours, torchs, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@few
@given(seed=seeds, mu=st.floats(0, 0.99), lr=st.floats(1e-4, 1))
def test_a_plain_update_with_a_carry_is_sgd_with_momentum(seed, mu, lr):
    g = gradients((5, 3), 6, seed)
    ours = learn(lambda p: CompositeOptimizer(p, feedback=ErrorFeedback(mu), lr=lr), g)
    torchs = learn(lambda p: torch.optim.SGD(p, lr=lr, momentum=mu), g)
    for a, b in zip(ours, torchs, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_without_feedback_a_plain_update_is_gradient_descent():
    g = gradients((5, 3), 4)
    ours = learn(lambda p: CompositeOptimizer(p, feedback=NoFeedback(), lr=0.1), g)
    assert torch.allclose(ours[-1], -0.1 * sum(g), rtol=0, atol=1e-14)


# -- which rule for which parameter ------------------------------------------------------------------

MUON, DION = MuonUpdate(), DionUpdate(dion_thresh=1000)


@pytest.mark.parametrize(
    ("update", "shape", "rule"),
    [
        (PlainUpdate(), (7,), PlainUpdate()),
        (MUON, (7,), MUON.fallback),
        (MUON, (7, 1), MUON),
        (MUON, (2, 3, 4), MUON.fallback),
        (DION, (2000,), DION.small.fallback),
        (DION, (999, 1), DION.small),
        (DION, (40, 25), DION),
    ],
)
def test_vectors_and_small_matrices_get_another_rule(update, shape, rule):
    assert update.rule(torch.zeros(shape)) == rule


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
        (lambda: AdamUpdate(beta1=1.0), r"beta1 = 1.0; choose 0 <= beta1 < 1"),
        (lambda: AdamUpdate(beta2=-0.1), r"beta2 = -0.1; choose"),
        (lambda: MuonUpdate(ns_steps=0), r"ns_steps = 0; take at least 1"),
        (lambda: MuonUpdate(polynomial="septic"), r"'septic'; choose one of cubic, quintic"),
        (lambda: DionUpdate(rank=0), r"rank = 0; choose a rank of at least 1"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
