"""Activations: exact differences against direct subtraction in float64, slopes against autograd, parsing."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from circuits.activations import activation, as_module, from_module

NAMES = ("linear", "relu", "tanh", "sigmoid", "softplus", "gelu")
few = settings(max_examples=60, deadline=None)
sign = st.sampled_from((-1, 1))


def float64(*values):
    return [torch.tensor(v, dtype=torch.float64) for v in values]


@pytest.mark.parametrize("name", NAMES)
@few
@given(a=st.floats(-12, 12), exponent=st.floats(-6, 1.3), sign=sign)
def test_difference_is_the_subtraction_where_that_is_exact_enough(name, a, exponent, sign):
    """In float64 a subtraction is good to 1e-15 or so; the difference agrees to that, whatever its size."""
    phi = activation(name)
    a, delta = float64(a, sign * 10**exponent)
    subtracted = phi.value(a + delta) - phi.value(a)
    assert phi.difference(a, delta).item() == pytest.approx(subtracted.item(), rel=1e-12, abs=2e-14)


@pytest.mark.parametrize("name", NAMES)
@few
@given(a=st.floats(-8, 8, width=32), exponent=st.floats(-12, -1.6), sign=sign)
def test_difference_keeps_its_digits_in_float32(name, a, exponent, sign):
    """To float32's precision of the step, however small: against the slope's integral in float64."""
    phi = activation(name)
    a32 = torch.tensor(a, dtype=torch.float32)
    delta32 = torch.tensor(sign * 10**exponent, dtype=torch.float32)
    a64, delta64 = a32.double(), delta32.double()
    if name == "relu":
        exact = max(Fraction(a64.item()) + Fraction(delta64.item()), 0) - max(Fraction(a64.item()), 0)
        expected = torch.tensor(float(exact), dtype=torch.float64)
    else:
        t = torch.linspace(0, 1, 201, dtype=torch.float64)
        weights = torch.ones(201, dtype=torch.float64)
        weights[1:-1:2], weights[2:-1:2] = 4, 2
        expected = delta64 * (weights * phi.slope(a64 + t * delta64)).sum() / 600
    assert abs(phi.difference(a32, delta32).double() - expected) <= 1e-6 * abs(delta64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_difference_from_one_end_to_the_other(name, dtype):
    phi = activation(name)
    a = torch.tensor([-100.0, -20.0, -10.0, 10.0, 20.0, 100.0], dtype=dtype)
    assert torch.allclose(phi.difference(a, -2 * a), phi.value(-a) - phi.value(a), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_difference_of_no_step_is_zero(name):
    a = torch.linspace(-30, 30, 61, dtype=torch.float64)
    assert torch.equal(activation(name).difference(a, torch.zeros_like(a)), torch.zeros_like(a))


@pytest.mark.parametrize("name", NAMES)
def test_slope_is_the_derivative_of_value_and_of_difference(name):
    phi = activation(name)
    a = torch.linspace(-6, 6, 240, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(phi.value(a).sum(), a)
    assert torch.allclose(phi.slope(a.detach()), slope, rtol=1e-12, atol=1e-15)
    at = torch.full_like(a, 0.3)
    (through,) = torch.autograd.grad(phi.difference(at, a).sum(), a)
    assert torch.allclose(through, phi.slope(0.3 + a.detach()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_declared_bounds_hold_and_are_tight(name):
    phi = activation(name)
    a = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    steepest = phi.slope(a).abs().max().item()
    assert 0.99 * phi.max_slope <= steepest <= phi.max_slope
    assert phi.value(a).min() >= phi.lower
    assert phi.lower == (0.0 if name == "relu" else -math.inf)


@pytest.mark.parametrize("name", NAMES)
def test_modules_and_names_are_two_spellings(name):
    phi, module = activation(name), as_module(name)
    a = torch.linspace(-30, 30, 1001, dtype=torch.float64)
    assert torch.allclose(module(a), phi.value(a), rtol=1e-14, atol=0)
    assert from_module(module) is phi


@pytest.mark.parametrize(
    "module",
    [nn.LeakyReLU(), nn.Softplus(beta=2), nn.GELU("tanh"), nn.Linear(2, 2), nn.ReLU6(), nn.Dropout()],
)
def test_other_modules_are_not_taken_for_one(module):
    assert from_module(module) is None


def test_unknown_activation_lists_the_known():
    with pytest.raises(ValueError, match=r"unknown activation 'swish'.*gelu.*tanh"):
        activation("swish")
