"""Activations: exact differences against direct subtraction in float64, slopes against autograd, complex numbers."""

import cmath
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from circuits.activations import activation, as_module, from_module

NAMES = ("linear", "relu", "hard_sigmoid", "tanh", "sigmoid", "softplus", "gelu")
RANGES = {"relu": (0.0, math.inf), "hard_sigmoid": (0.0, 1.0)}  # of those with kinks


class Shifted(nn.Softplus):
    """A subclass may compute anything."""

    def forward(self, a):
        return super().forward(a) - math.log(2)


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
    """To float32's precision of the step, however small: against the slope's integral in float64, and
    where there are kinks against fractions."""
    phi = activation(name)
    a32 = torch.tensor(a, dtype=torch.float32)
    delta32 = torch.tensor(sign * 10**exponent, dtype=torch.float32)
    a64, delta64 = a32.double(), delta32.double()
    if name in RANGES:
        expected = exact_difference(name, a32.item(), delta32.item())
    else:
        t = torch.linspace(0, 1, 201, dtype=torch.float64)
        weights = torch.ones(201, dtype=torch.float64)
        weights[1:-1:2], weights[2:-1:2] = 4, 2
        expected = delta64 * (weights * phi.slope(a64 + t * delta64)).sum() / 600
    assert abs(phi.difference(a32, delta32).double() - expected) <= 1e-6 * abs(delta64)


def exact_difference(name: str, a: float, delta: float) -> float:
    def value(a: Fraction) -> Fraction:
        return max(a, 0) if name == "relu" else min(max(a / 6 + Fraction(1, 2), 0), 1)

    return float(value(Fraction(a) + Fraction(delta)) - value(Fraction(a)))


@pytest.mark.parametrize(("name", "kink"), [("relu", 0.0), ("hard_sigmoid", -3.0), ("hard_sigmoid", 3.0)])
@few
@given(off=st.floats(-7, 1), side=sign, exponent=st.floats(-7, 1.3), way=sign)
def test_steps_into_out_of_and_across_kinks_keep_their_digits_in_float32(
    name, kink, off, side, exponent, way
):
    """A step of 1e-6 that passes a kink 1e-7 away counts on both sides of it; one of 20 passes both kinks."""
    a = torch.tensor(kink + side * 10**off, dtype=torch.float32)
    delta = torch.tensor(way * 10**exponent, dtype=torch.float32)
    exact = exact_difference(name, a.item(), delta.item())
    assert activation(name).difference(a, delta).item() == pytest.approx(exact, rel=1e-6, abs=0)


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
    assert (phi.lower, phi.upper) == RANGES.get(name, (-math.inf, math.inf))
    assert phi.is_kinked == (name in RANGES)
    assert phi.value(a).min() >= phi.lower
    assert phi.value(a).max() <= phi.upper
    for end in (phi.lower, phi.upper):
        assert math.isinf(end) or (phi.value(a) == end).any()


@pytest.mark.parametrize("name", NAMES)
def test_modules_and_names_are_two_spellings(name):
    phi, module = activation(name), as_module(name)
    a = torch.linspace(-30, 30, 1001, dtype=torch.float64)
    assert torch.allclose(module(a), phi.value(a), rtol=1e-14, atol=0)
    assert from_module(module) is phi


# -- complex numbers ------------------------------------------------------------------------------------

ANALYTIC = [name for name in NAMES if activation(name).analytic]


def test_activations_without_a_continuation_say_so():
    assert set(NAMES) - set(ANALYTIC) == {"relu", "hard_sigmoid", "gelu"}


@pytest.mark.parametrize("name", ANALYTIC)
@few
@given(a=st.floats(-6, 6), b=st.floats(-1.4, 1.4), angle=st.floats(0, 2 * math.pi))
def test_value_and_slope_are_holomorphic(name, a, b, angle):
    """The same derivative along every direction of the plane, and real on the real axis (all within the
    strip |Im| < pi / 2 that is free of poles)."""
    phi, z, h = activation(name), torch.tensor(complex(a, b)), 1e-5 * cmath.exp(1j * angle)
    z = z.to(torch.complex128)
    derivative = (phi.value(z + h) - phi.value(z - h)) / (2 * h)
    slope = phi.slope(z)
    assert abs(derivative - slope) <= 1e-6 * (1 + abs(slope)) ** 3
    assert torch.allclose(phi.value(z.conj()), phi.value(z).conj(), rtol=1e-12)
    real = torch.tensor(a, dtype=torch.float64)
    assert torch.allclose(phi.value(real.to(z)), phi.value(real).to(z), rtol=1e-12)
    assert torch.allclose(phi.slope(real.to(z)), phi.slope(real).to(z), rtol=1e-12)


@pytest.mark.parametrize("name", ANALYTIC)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_far_out_nothing_overflows(name, dtype):
    """Off the real axis the far values are those on it, but for a turn of what is left there."""
    phi, far = activation(name), torch.tensor([-2000.0, -200.0, 200.0, 2000.0], dtype=dtype.to_real())
    z = torch.complex(far, torch.full_like(far, 0.5))
    value, slope = phi.value(z), phi.slope(z)
    assert torch.allclose(value.real, phi.value(far), rtol=1e-6, atol=1e-30)
    assert torch.allclose(slope, phi.slope(far).to(z), rtol=1e-6, atol=1e-30)


# -- modules --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        nn.LeakyReLU(),
        nn.Softplus(beta=2),
        nn.GELU("tanh"),
        nn.Linear(2, 2),
        nn.ReLU6(),
        nn.Dropout(),
        Shifted(),
    ],
)
def test_other_modules_are_not_taken_for_one(module):
    assert from_module(module) is None


def test_unknown_activation_lists_the_known():
    with pytest.raises(ValueError, match=r"unknown activation 'swish'.*gelu.*tanh"):
        activation("swish")
