"""The spectral constraint against the SVD."""

from __future__ import annotations

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
)
def test_the_spectral_norm_ends_up_at_most_gamma(seed, rows, columns, scale, gamma):
    w = scale * normal((rows, columns), seed)
    # eigenvalues of the Gram matrix are exact to eps sigma_1^2
    rounding = 100 * torch.finfo(w.dtype).eps * max(norm(w) / gamma, 1) ** 2
    assert norm(SpectralConstraint(gamma).project(w, {})) <= gamma * (1 + rounding)


@few
@given(seed=seeds, shape=st.sampled_from([(8, 8), (20, 8), (8, 20)]))
def test_a_weight_below_gamma_is_left_as_it_is_to_the_bit(seed, shape):
    w = normal(shape, seed)
    assert torch.equal(SpectralConstraint(1.1 * norm(w)).project(w, {}), w)


@pytest.mark.parametrize("shape", [(8, 8), (20, 8), (8, 20)])
def test_it_clips_the_leading_values_and_leaves_the_vectors(shape):
    w = with_sigma(shape, [5, 3, 2, 0.9, 0.8, 0.5, 0.2, 0.1])
    expected = with_sigma(shape, [1] * 3 + [0.9, 0.8, 0.5, 0.2, 0.1])
    assert torch.allclose(SpectralConstraint(1.0).project(w, {}), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bound_holds_while_muon_raises_every_singular_value(dtype):
    """The case that a tracked bound loses: 100 orthogonal steps of 0.05 against gamma = 0.95."""
    constraint, carry = SpectralConstraint(0.95), torch.zeros(32, 64, dtype=dtype)
    w, steady = normal((32, 64), dtype=dtype) / 8, normal((32, 64), 1, dtype=dtype)
    for step in range(100):
        carry = 0.9 * carry + steady + normal((32, 64), 2 + step, dtype=dtype)
        w = constraint.project(w - 0.05 * orthogonalise(carry), {})
        assert norm(w.double()) <= 0.95
    assert norm(w) > 0.94


def test_the_optimizer_applies_it():
    p = nn.Parameter(normal((6, 9)))
    o = CompositeOptimizer([p], constraint=SpectralConstraint(0.95), feedback=NoFeedback(), lr=0.001)
    for seed in range(5):
        p.grad = normal((6, 9), seed)
        o.step()
        assert norm(p.detach()) <= 0.95


def test_vectors_pass_and_no_constraint_is_none():
    b, w = 100 * normal((5,)), 100 * normal((5, 4))
    assert SpectralConstraint(0.5).project(b, {}) is b
    assert NoConstraint().project(w, {}) is w


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"gamma": 0.0}, "gamma = 0.0; choose gamma > 0"),
        ({"gamma": float("nan")}, "gamma = nan"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_range(settings_, message):
    with pytest.raises(ValueError, match=message):
        SpectralConstraint(**settings_)
