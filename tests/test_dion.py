"""Dion against its published recursion and the SVD."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mep_sim.optimizers import CompositeOptimizer, DionUpdate, ErrorFeedback
from tests.update_conformance import SHAPES, gradients, learn, matrix, relative

few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**31)


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


@pytest.mark.parametrize("shape", [*SHAPES, (12, 3, 2, 2)])
@pytest.mark.parametrize(("rank", "mu"), [(1, 0.9), (4, 0.95), (4, 0.0), (12, 0.9)])
def test_dion_is_the_published_recursion(shape, rank, mu):
    g = gradients(shape, 6)
    update = DionUpdate(rank, dion_thresh=0)
    ours = learn(lambda p: CompositeOptimizer(p, update=update, feedback=ErrorFeedback(mu), lr=0.1), g)
    flat = [x.flatten(1) for x in g]
    start = torch.linalg.svd(flat[0], full_matrices=False).Vh[:rank].T
    for a, b in zip(ours, dion(start, flat, mu, 0.1), strict=True):
        assert torch.allclose(a, b.reshape(shape), rtol=0, atol=1e-12)


@few
@given(seed=seeds, mu=st.floats(0, 0.99), rank=st.integers(1, 12), shape=st.sampled_from(SHAPES))
def test_what_dion_does_not_keep_is_carried_in_full(seed, mu, rank, shape):
    """carry = M - (1 - mu) P P'M with P an orthonormal basis of the step; at full rank that is momentum."""
    state, feedback, update = {}, ErrorFeedback(mu), DionUpdate(rank)
    for g in gradients(shape, 3, seed):
        m = feedback.signal(g, state)
        direction, kept = update.direction(m, state, g)
        feedback.keep(m, kept, state)
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
        direction, _ = DionUpdate(rank).direction(m, {}, m)
        expected = math.sqrt(shape[0] / shape[1]) * u[:, :rank] @ vh[:rank]
        assert torch.allclose(direction, expected, rtol=0, atol=1e-10)


@few
@given(seed=seeds, scale=st.floats(1e-12, 1e12), shape=st.sampled_from(SHAPES))
def test_dions_direction_ignores_the_scale_of_the_signal_and_what_it_keeps_follows_it(seed, scale, shape):
    (m,) = gradients(shape, seed=seed)
    direction, kept = DionUpdate(3).direction(m, {}, m)
    scaled, scaled_kept = DionUpdate(3).direction(scale * m, {}, m)
    assert torch.allclose(scaled, direction, rtol=0, atol=1e-9)
    assert torch.allclose(scaled_kept, scale * kept, rtol=0, atol=1e-9 * scale)


def test_dion_follows_a_steady_signal_to_its_leading_subspace():
    """The warm power iteration converges from a wrong start by (sigma_4 / sigma_3)^2 a step."""
    m = matrix((20, 30), torch.tensor([9.0, 8, 7] + [1.0] * 17, dtype=torch.float64))
    u, _, vh = torch.linalg.svd(m)
    state = {"dion_basis": gradients((30, 3), seed=1)[0]}
    update = DionUpdate(3)
    for _ in range(12):
        direction, kept = update.direction(m, state, m)
    assert torch.allclose(kept, u[:, :3] * torch.tensor([9.0, 8, 7]).double() @ vh[:3], rtol=0, atol=1e-10)
    assert relative(direction @ direction.T, 20 / 30 * u[:, :3] @ u[:, :3].T) < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dion_does_not_step_along_rounding_errors(dtype):
    """A signal of rank 4 under a rank of 16: four directions of size 1, and the rest is noise."""
    m = (gradients((200, 4), seed=1)[0] @ gradients((4, 300), seed=2)[0]).to(dtype)
    direction, _ = DionUpdate(16).direction(m, {}, m)
    sigma = torch.linalg.svdvals(direction / math.sqrt(200 / 300))
    assert torch.allclose(sigma[:4], torch.ones(4, dtype=dtype), atol=1e-3)
    assert sigma[4:].max() < 0.01


def test_dion_recovers_from_a_step_without_a_signal():
    (m,) = gradients((12, 30))
    state: dict = {}
    update = DionUpdate(4)
    still, _ = update.direction(torch.zeros_like(m), state, m)
    assert torch.equal(still, torch.zeros_like(m))
    for _ in range(400):
        _, kept = update.direction(m, state, m)
    u = torch.linalg.svd(m).U[:, :4]
    assert relative(kept, u @ u.T @ m) < 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DionUpdate(rank=0), r"rank = 0; choose a whole number of 1 or more"),
        (lambda: DionUpdate(dion_thresh=-1), r"dion_thresh = -1; choose a number of entries >= 0"),
        (lambda: DionUpdate(weight_decay=-0.1), r"weight_decay = -0.1; choose"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
