"""Acceleration: secants on fixed points that are known, Lanczos against dense eigenvalues."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuits.acceleration import Anderson, Secant, UnitSecant, dot, largest_eigenvalue

few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31)


def normal(shape, seed: int, dtype=torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@few
@given(
    slopes=st.lists(st.floats(-50, 0.9) | st.floats(1.1, 50), min_size=1, max_size=5),
    n=st.integers(1, 4),
    seed=seeds,
)
def test_a_secant_solves_a_line_for_each_sample(slopes, n, seed):
    """x -> a x + b, a number a per sample: b / (1 - a) from two points, also where iterating it would diverge."""
    a = torch.tensor(slopes, dtype=torch.float64)[:, None]
    b, x = normal((len(a), n), seed), normal((len(a), n), seed + 1)
    secant = Secant()
    once = secant.next(x, a * x + b)
    assert torch.equal(once, a * x + b)
    assert torch.allclose(secant.next(once, a * once + b), b / (1 - a), rtol=1e-8, atol=1e-9)


@settings(few, max_examples=15)
@given(stiffness=st.floats(0.1, 60), batch=st.integers(1, 3), n=st.integers(2, 8), seed=seeds)
def test_a_secant_settles_what_iterating_would_throw_far(stiffness, batch, n, seed):
    """x -> b - J J' x, of eigenvalues down to -`stiffness`: what one sweep does where beta is too large."""
    j = normal((batch, n, n), seed)
    j = j * (stiffness**0.5 / torch.linalg.matrix_norm(j, 2))[:, None, None]
    b, secant = normal((batch, n), seed + 1), Secant()
    x = b
    for _ in range(200):
        x = secant.next(x, b - (j @ (j.mT @ x[..., None]))[..., 0])
    exact = torch.linalg.solve(torch.eye(n, dtype=b.dtype) + j @ j.mT, b)
    assert torch.allclose(x, exact, rtol=1e-6, atol=1e-7)


@few
@given(falls=st.lists(st.floats(0, 9), min_size=1, max_size=6), seed=seeds)
def test_a_unit_secant_solves_a_line_for_each_unit(falls, seed):
    """x -> b - q x, a number q per unit: begins with the image, goes 0.4 of the way, then is there."""
    q = torch.tensor(falls, dtype=torch.float64)
    b, x, bend = normal((2, len(q)), seed), normal((2, len(q)), seed + 1), UnitSecant()
    once = bend.next(b - q * x)
    assert torch.equal(once, b - q * x)
    twice = bend.next(b - q * once)
    assert torch.allclose(twice, 0.6 * once + 0.4 * (b - q * once), rtol=1e-12)
    there = bend.next(b - q * twice)
    assert torch.allclose(there, b / (1 + q), rtol=1e-9, atol=1e-11)


@settings(few, max_examples=15)
@given(slopes=st.lists(st.floats(-17, 0.8), min_size=1, max_size=6), seed=seeds)
def test_unit_secants_contract_beyond_the_lines_they_solve(slopes, seed):
    """Rising images are iterated, steeply falling ones damped by no more than 1 / 10."""
    a = torch.tensor(slopes, dtype=torch.float64)
    b, bend = normal((2, len(a)), seed), UnitSecant()
    x = bend.next(b)
    for _ in range(200):
        x = bend.next(a * x + b)
    assert torch.allclose(x, b / (1 - a), rtol=1e-8, atol=1e-9)


@settings(few, max_examples=8)
@given(
    stiffness=st.floats(0.1, 60),
    batch=st.integers(1, 3),
    n=st.integers(1, 12),
    seed=seeds,
    turned=st.booleans(),
)
def test_anderson_settles_what_iterating_would_throw_far(stiffness, batch, n, seed, turned):
    """x -> b - M x with M = J J' or with a rotation beside it, rows on their own, also complex ones."""
    j = normal((batch, n, n), seed)
    m = j @ j.mT + (j - j.mT if turned else 0)
    m = m * (stiffness / torch.linalg.matrix_norm(m, 2).clamp(min=1e-9))[:, None, None]
    exact = torch.linalg.solve(torch.eye(n, dtype=m.dtype) + m, normal((batch, n), seed + 1))
    for b, solution in (
        (normal((batch, n), seed + 1), exact),
        (1j * normal((batch, n), seed + 1), 1j * exact),
    ):
        anderson, x = Anderson(), b
        for _ in range(400):
            image = b - (m.to(b) @ x[..., None])[..., 0]
            if (image - x).abs().max() < 1e-12:  # of all rows: the first ones there went on beside the others
                break
            x = anderson.next(x, image)
        assert torch.allclose(x, solution, rtol=1e-6, atol=1e-7)


def test_anderson_shortens_the_steps_of_rows_that_get_nowhere_and_begins_anew():
    """One stays, one halves with every step, one has its single best step in every window."""
    anderson, shares = Anderson(), []
    for count in range(1, 6 * Anderson.window + 1):
        dip = 0.3 ** (count // Anderson.window) if count % Anderson.window == 3 else 1.0
        size = torch.tensor([[1.0], [0.5**count], [dip]], dtype=torch.float64)
        anderson.next(torch.zeros_like(size), size)
        if count % Anderson.window == 0:
            shares.append((anderson.share * torch.ones_like(size)).flatten().tolist())
    assert [row[0] for row in shares] == [0.5, 0.25, 0.125, 0.5, 0.25, 0.125]
    assert all(row[1:] == [0.5, 0.5] for row in shares)


def test_complex_numbers_count_as_pairs_of_real_ones():
    a, b = torch.complex(*normal((2, 3, 4), 0)), torch.complex(*normal((2, 3, 4), 1))
    pairs = torch.view_as_real(a).flatten(1), torch.view_as_real(b).flatten(1)
    assert torch.allclose(dot(a, b), (pairs[0] * pairs[1]).sum(1, keepdim=True), rtol=1e-13)
    assert not dot(a, b).is_complex()


# -- eigenvalues ----------------------------------------------------------------------------------------


def positive(batch: int, n: int, rank: int, seed: int) -> Tensor:
    """I + J J', J (n, rank): what one sweep does to an output's error; I alone for a single layer."""
    j = normal((batch, n, rank), seed)
    return torch.eye(n, dtype=torch.float64) + j @ j.mT


def largest(matrices: Tensor, dtype=torch.float64) -> float:
    matrices = matrices.to(dtype)
    like = torch.zeros(matrices.shape[:2], dtype=dtype)
    return largest_eigenvalue(lambda v: torch.einsum("bij,bj->bi", matrices, v), like)


@few
@example(seed=0, batch=1, n=8, rank=0)
@given(seed=seeds, batch=st.integers(1, 4), n=st.integers(1, 12), rank=st.integers(0, 12))
def test_lanczos_is_exact_on_small_outputs(seed, batch, n, rank):
    """Also where the eigenvalues are few, and it runs out of directions."""
    matrices = positive(batch, n, rank, seed)
    exact = torch.linalg.eigvalsh(matrices).max().item()
    assert largest(matrices) == pytest.approx(exact, rel=1e-10)
    assert largest(matrices, torch.float32) == pytest.approx(exact, rel=1e-5)


@few
@given(seed=seeds, n=st.integers(13, 120), rank=st.integers(1, 150))
def test_lanczos_comes_from_below_and_close_on_large_ones(seed, n, rank):
    matrices = positive(2, n, rank, seed)
    exact = torch.linalg.eigvalsh(matrices).max().item()
    assert 0.9 * exact <= largest(matrices) <= exact * (1 + 1e-10)
