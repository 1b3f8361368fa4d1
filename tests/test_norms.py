"""Operator norms against dense matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from circuits.norms import block_norm, conv_norm, spectral_norm
from tests.device_conformance import generator

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def normal(shape, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def operator_norm(weight: Tensor, size: tuple[int, int], groups: int = 1, **convolution) -> float:
    """The norm of a convolution at one size of input, from its dense matrix, a unit pixel at a time."""
    pixels = torch.eye(weight.shape[1] * groups * math.prod(size), dtype=weight.dtype)
    images = pixels.view(-1, weight.shape[1] * groups, *size)
    dense = nn.functional.conv2d(images, weight, groups=groups, **convolution).flatten(1)
    return torch.linalg.matrix_norm(dense, 2).item()


# -- convolutions ------------------------------------------------------------------------------------


@few
@given(
    seed=seeds,
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.integers(1, 2),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    size=st.tuples(st.integers(10, 12), st.integers(10, 12)),
)
def test_no_convolution_is_larger_than_its_bound(
    seed, channels, groups, kernel, stride, padding, dilation, size
):
    out, into = channels
    weight = normal((out * groups, into, *kernel), seed)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    bound = conv_norm(weight, stride, groups, dilation)
    assert operator_norm(weight, size, groups, **options) <= bound * (1 + 1e-12)


@pytest.mark.parametrize("dilation", [(1, 1), (3, 1)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5)])
def test_the_bound_is_tight_on_a_torus(kernel, stride, dilation):
    """The transfer matrices at the torus' 20 x 20 frequencies are the operator's own blocks."""
    weight, size = normal((2, 1, *kernel)), (20, 20)
    pixels = torch.eye(math.prod(size), dtype=weight.dtype).view(-1, 1, *size)
    wrap = (0, dilation[1] * (kernel[1] - 1), 0, dilation[0] * (kernel[0] - 1))
    pixels = nn.functional.pad(pixels, wrap, mode="circular")
    images = nn.functional.conv2d(pixels, weight, stride=stride, dilation=dilation)
    exact = torch.linalg.matrix_norm(images.flatten(1), 2).item()
    assert exact * (1 - 1e-12) <= conv_norm(weight, stride, 1, dilation) <= exact * 1.04


def test_dilation_matters_where_it_shares_a_factor_with_the_stride():
    """Stride 2 with dilation 2 looks at every second pixel only: it is stride 1 without dilation there."""
    weight = normal((2, 3, 3, 3))
    assert conv_norm(weight, (2, 2), 1, (2, 2)) == conv_norm(weight)
    assert conv_norm(weight, (2, 2), 1, (3, 3)) == conv_norm(weight, (2, 2)) < 0.8 * conv_norm(weight)
    assert conv_norm(weight, (4, 4), 1, (2, 2)) == conv_norm(weight, (2, 2))


@pytest.mark.parametrize(("kernel", "tight"), [((3, 3), 0.95), ((5, 5), 0.9)])
def test_the_bound_is_nearly_met_from_16_pixels_on(kernel, tight):
    """Zero padding costs the largest wave its edges; what is left comes up to the bound as the input grows."""
    weight = normal((4, 4, *kernel))
    ratios = [operator_norm(weight, (n, n), padding=kernel[0] // 2) / conv_norm(weight) for n in (6, 10, 16)]
    assert ratios == sorted(ratios)
    assert tight < ratios[-1] <= 1


def test_the_reshaped_kernel_underestimates_threefold():
    """A smooth kernel, 9 like taps: patches overlap 9-fold and sqrt(9) is lost by reshaping."""
    weight = 0.1 + 0.02 * normal((4, 4, 3, 3))
    reshaped = torch.linalg.matrix_norm(weight.flatten(1), 2).item()
    assert operator_norm(weight, (16, 16), padding=1) > 2.8 * reshaped
    assert conv_norm(weight) > 2.8 * reshaped


def test_a_known_transfer_function():
    """[1, -1]: |1 - exp(iw)| is 2 at w = pi, between no two samples; [1, 1, 1] is 3 at w = 0; a patch without
    overlap is its matrix."""
    slack = 1 / math.cos(math.pi / 32)
    assert conv_norm(torch.tensor([[[[1.0, -1.0]]]])) == pytest.approx(2 * slack, rel=1e-6)
    assert conv_norm(torch.ones(1, 1, 3, 1)) == pytest.approx(3 / math.cos(math.pi / 24), rel=1e-6)
    patches = normal((5, 2, 3, 3))
    exact = torch.linalg.matrix_norm(patches.flatten(1), 2).item()
    for stride in ((3, 3), (4, 7)):
        assert conv_norm(patches, stride) == pytest.approx(exact, rel=1e-12)


@few
@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_a_pointwise_convolution_is_its_matrix(seed, scale):
    weight = scale * normal((5, 3, 1, 1), seed)
    assert conv_norm(weight) == pytest.approx(spectral_norm(weight.flatten(1)), rel=1e-9)
    assert conv_norm(weight, (2, 2)) == pytest.approx(spectral_norm(weight.flatten(1)), rel=1e-9)


# -- matrices ----------------------------------------------------------------------------------------


@few
@given(seed=seeds, rows=st.integers(1, 20), columns=st.integers(1, 20))
def test_the_spectral_norm_is_the_largest_singular_value(seed, rows, columns):
    w = normal((rows, columns), seed)
    assert spectral_norm(w) == pytest.approx(torch.linalg.matrix_norm(w, 2).item(), rel=1e-9)


@few
@given(seed=seeds, sizes=st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_blocks_bound_the_whole_matrix(seed, sizes):
    blocks = normal((sum(sizes), sum(sizes)), seed).split(sizes)
    norms = np.array([[spectral_norm(b) for b in row.split(sizes, dim=1)] for row in blocks])
    assert torch.linalg.matrix_norm(torch.cat(blocks), 2).item() <= block_norm(norms) * (1 + 1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_has_no_finite_norm(bad):
    assert spectral_norm(torch.tensor([[1.0, bad]])) == math.inf
    assert conv_norm(torch.tensor([[[[1.0, bad]]]])) == math.inf
    assert block_norm(np.array([[1.0, math.inf], [0.0, 1.0]])) == math.inf
