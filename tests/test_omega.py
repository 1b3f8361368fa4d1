"""The root of a line plus an exponential: against scipy's Wright omega, its own equation and its derivatives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import wrightomega

from circuits.omega import exponential_root

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def many(numbers):
    """Lists of some length, so that also vectorised kernels see them."""
    return st.lists(numbers, min_size=1, max_size=40)


@PRECISIONS
@settings(deadline=None, max_examples=60)
@given(x=many(st.floats(-300, 100) | st.floats(0, 25).map(lambda power: 10**power)))
def test_with_a_slope_of_1_it_is_the_logarithm_of_omega(dtype, x):
    b = torch.tensor(x, dtype=dtype) - 1
    t = exponential_root(torch.ones((), dtype=dtype), b).double().numpy()
    expected = np.log(wrightomega(b.double().numpy() + 1))
    eps = torch.finfo(dtype).eps
    assert np.all(
        np.abs(t - expected) <= 4 * eps * (1 + np.abs(expected))
    )  # of omega itself: the relative error


@pytest.mark.parametrize("with_grad", [False, True])
@PRECISIONS
@settings(deadline=None, max_examples=100)
@given(
    power=st.floats(-8, 8),
    b=many(
        st.tuples(st.floats(-30, 12), st.sampled_from([-1, 1])).map(lambda pair: pair[1] * 10 ** pair[0])
        | st.floats(-3, 3).filter(lambda b: abs(b) > 1e-30)  # subnormal numbers have fewer digits
    ),
)
def test_it_solves_its_equation_to_rounding(dtype, with_grad, power, b):
    a, b = torch.tensor(10**power, dtype=dtype), torch.tensor(b, dtype=dtype)
    with torch.set_grad_enabled(with_grad):
        t = exponential_root(a, b)
    a, b, t = (v.numpy().astype(np.longdouble) for v in (a, b, t))
    slope = a + np.exp(t)
    # as far off as rounding of b or of t itself makes it: of a small b it keeps all digits
    allowed = 4 * float(torch.finfo(dtype).eps) * (np.abs(b) + slope * np.abs(t))
    assert np.all(np.abs(a * t + np.expm1(t) - b) <= allowed)


@PRECISIONS
def test_of_a_tiny_b_it_keeps_all_digits(dtype):
    powers = torch.arange(-30.0, -9.0, dtype=torch.float64)
    b = torch.cat([10**powers, -(10**powers)]).to(dtype)
    for a in (1e-8, 0.5, 3e4, 1e8):
        slope = torch.tensor(a, dtype=dtype)
        expected = b.double() / (1 + slope.double())
        expected = expected - expected**2 / (2 * (1 + slope.double()))  # the next term is beyond 1e-18 of it
        t = exponential_root(slope, b).double()
        torch.testing.assert_close(t, expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_its_first_derivatives_are_exact():
    a = torch.logspace(-4, 6, 11, dtype=torch.float64)[:, None].requires_grad_()
    t = torch.tensor([-3.0, -1e-3, -1e-9, 1e-9, 1e-3, 0.1, 2.0, 30.0], dtype=torch.float64)
    b = (a * t + torch.expm1(t)).detach().requires_grad_()
    by_a, by_b = torch.autograd.grad(exponential_root(a.expand_as(b), b).sum(), [a, b])
    slope = a + t.exp()
    torch.testing.assert_close(by_b, 1 / slope, rtol=1e-9, atol=0)
    torch.testing.assert_close(by_a, (-t / slope).sum(1, keepdim=True), rtol=1e-9, atol=0)


@PRECISIONS
def test_what_is_no_number_stays_none(dtype):
    b = torch.tensor([1.0, float("nan")], dtype=dtype)
    with torch.no_grad():
        assert exponential_root(torch.ones((), dtype=dtype), b).isnan().tolist() == [False, True]


@PRECISIONS
def test_slopes_by_node_and_by_sample_give_the_same(dtype):
    a, b = torch.rand(5, dtype=dtype) + 0.1, 10 * torch.randn(7, 5, dtype=dtype)
    by_node = exponential_root(a, b)
    torch.testing.assert_close(exponential_root(a.expand(7, 5).clone(), b), by_node, rtol=1e-6, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(exponential_root(a, b), by_node, rtol=1e-6, atol=0)
