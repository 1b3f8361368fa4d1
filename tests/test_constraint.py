"""The spectral constraint against the SVD."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mep_sim.optimizers import CompositeOptimizer, NoConstraint, NoFeedback, SpectralConstraint, orthogonalise
from tests.device_conformance import generator

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def normal(shape, seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def with_sigma(shape, sigma: list[float], seed: int = 0) -> Tensor:
    u, _, vh = torch.linalg.svd(normal(shape, seed), full_matrices=False)
    return u * torch.tensor(sigma, dtype=torch.float64) @ vh


def norm(w: Tensor) -> float:
    return torch.linalg.svdvals(w)[0].item()


@few
@given(
    seed=seeds,
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    scale=st.floats(1e-3, 1e3),
    gamma=st.floats(0.1, 10),
    rank=st.integers(1, 6),
)
def test_the_spectral_norm_ends_up_at_most_gamma(seed, rows, columns, scale, gamma, rank):
    """However many singular values exceed gamma, and whatever the constraint's rank."""
    w = scale * normal((rows, columns), seed)
    assert norm(SpectralConstraint(gamma, rank).project(w, {})) <= gamma


@few
@given(seed=seeds, shape=st.sampled_from([(8, 8), (20, 8), (8, 20)]))
def test_a_weight_below_gamma_is_left_as_it_is_to_the_bit(seed, shape):
    w = normal(shape, seed)
    assert torch.equal(SpectralConstraint(1.1 * norm(w)).project(w, {}), w)


@pytest.mark.parametrize("shape", [(8, 8), (20, 8), (8, 20)])
@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_it_clips_the_leading_values_and_leaves_the_vectors(shape, margin):
    w = with_sigma(shape, [5, 3, 2, 0.9, 0.8, 0.5, 0.2, 0.1])
    expected = with_sigma(shape, [1 - margin] * 3 + [0.9, 0.8, 0.5, 0.2, 0.1])
    assert torch.allclose(SpectralConstraint(1.0, 4, margin).project(w, {}), expected, rtol=0, atol=1e-12)


def test_what_exceeds_beyond_the_tracked_values_is_scaled_away():
    """Rank 2: 5 and 3 are clipped to 1, then all is scaled by 1/3, which covers any third value up to 3."""
    w = with_sigma((8, 8), [5, 3, 2.9, 2, 1, 0.5, 0.2, 0.1])
    sigma = torch.linalg.svdvals(SpectralConstraint(1.0, 2, 0.0).project(w, {}))
    assert torch.allclose(
        sigma.sort().values.flip(0) * 3, torch.tensor([2.9, 2, 1, 1, 1, 0.5, 0.2, 0.1]).double()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_warm_basis_keeps_up_with_growth_in_its_rank(dtype):
    """200 steps of 0.02 along two directions that turn by 1 degree a step, in four dimensions."""
    constraint, state, w = SpectralConstraint(1.5, 4), {}, 0.02 * normal((40, 60), dtype=dtype)
    u, v = normal((40, 4), 1, dtype=dtype), normal((60, 4), 2, dtype=dtype)
    u, v = torch.linalg.qr(u).Q, torch.linalg.qr(v).Q
    for step in range(200):
        angle = torch.tensor(math.radians(step))
        turned = angle.cos() * u[:, :2] @ v[:, :2].T + angle.sin() * u[:, 2:] @ v[:, 2:].T
        w = constraint.project(w + 0.02 * turned, state)
        assert norm(w) <= 1.5
    assert norm(w) > 1.4


def test_where_all_values_grow_at_once_it_lags_by_less_than_a_quarter():
    """The known limit of a warm basis: under Muon, whose steps raise every singular value alike, sigma runs
    past gamma between calls (here by up to 22 %). Held still, the weight comes back below gamma."""
    constraint, state, carry = SpectralConstraint(0.95), {}, torch.zeros(32, 64).double()
    w, steady, worst = normal((32, 64)) / 8, normal((32, 64), 1), 0.0
    for step in range(100):
        carry = 0.9 * carry + steady + normal((32, 64), 2 + step)
        w = constraint.project(w - 0.05 * orthogonalise(carry), state)
        worst = max(worst, norm(w))
    assert 0.95 < worst < 1.25 * 0.95
    for _ in range(100):
        w = constraint.project(w, state)
    assert norm(w) <= 0.95


def test_the_basis_persists_and_sharpens_from_call_to_call():
    """From a wrong start it nears the leading right singular vectors, by (sigma_5 / sigma_4)^2 a call."""
    w = with_sigma((12, 10), [3, 2.5, 2, 1.8] + [0.5] * 6)
    state = {"spectral_basis": torch.linalg.qr(normal((10, 4), 3)).Q}
    constraint = SpectralConstraint(10.0, 4)
    leading = torch.linalg.svd(w).Vh[:4]
    misses = []
    for _ in range(12):
        constraint.project(w, state)
        basis = state["spectral_basis"]
        misses.append((leading.T @ leading - basis @ basis.T).norm().item())
    assert misses[11] / misses[10] == pytest.approx((0.5 / 1.8) ** 2, rel=0.05)
    assert misses[11] < 1e-10


def test_the_optimizer_keeps_the_basis_and_the_bound():
    p = nn.Parameter(normal((6, 9)))
    o = CompositeOptimizer([p], constraint=SpectralConstraint(0.95), feedback=NoFeedback(), lr=0.001)
    for seed in range(5):
        p.grad = normal((6, 9), seed)
        o.step()
        assert norm(p.detach()) <= 0.95
        assert o.state[p]["spectral_basis"].shape == (9, 4)


def test_vectors_pass_and_no_constraint_is_none():
    b, w = 100 * normal((5,)), 100 * normal((5, 4))
    assert SpectralConstraint(0.5).project(b, {}) is b
    assert NoConstraint().project(w, {}) is w


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"gamma": 0.0}, "gamma = 0.0; choose gamma > 0"),
        ({"gamma": float("nan")}, "gamma = nan"),
        ({"rank": 0}, "rank = 0; track at least 1"),
        ({"margin": 1.0}, "margin = 1.0; choose 0 <= margin < 1"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_range(settings_, message):
    with pytest.raises(ValueError, match=message):
        SpectralConstraint(**settings_)
