"""Maps against torch's own modules: value, exact difference, the Jacobian's products, gradients, bounds."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import functional as autograd

from circuits.activations import as_module
from circuits.blocks import Site
from circuits.convolution import MaxPool, Select
from circuits.maps import Lookup, Map, Mask
from tests.conformance import gap

few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
sizes, flags, seeds = st.integers(1, 4), st.booleans(), st.integers(0, 2**31)

# -- modules of any shape, with the shape of one sample they take ----------------------------------------


@st.composite
def linear(draw) -> tuple[nn.Module, tuple[int, ...]]:
    into = draw(sizes)
    return nn.Linear(into, draw(sizes), bias=draw(flags)), (*draw(st.sampled_from([(), (3,), (2, 3)])), into)


@st.composite
def convolution(draw) -> tuple[nn.Module, tuple[int, ...]]:
    groups, (h, w) = draw(st.integers(1, 2)), draw(st.tuples(st.integers(5, 7), st.integers(5, 7)))
    pair = st.tuples(st.integers(1, 2), st.integers(1, 2))
    into, out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel, padding = (
        draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        (draw(sizes) - 1, draw(sizes) - 1),
    )
    module = nn.Conv2d(into, out, kernel, draw(pair), padding, draw(pair), groups, bias=draw(flags))
    return module, (into, h, w)


@st.composite
def pool(draw, kind) -> tuple[nn.Module, tuple[int, ...]]:
    kernel = draw(st.tuples(st.integers(2, 3), st.integers(2, 3)))
    options = {"stride": draw(st.none() | st.integers(1, 3)), "padding": draw(st.integers(0, 1))}
    if kind is nn.MaxPool2d:
        options["dilation"] = draw(st.integers(1, 2))
    return kind(kernel, **options), (draw(sizes), draw(st.integers(5, 7)), draw(st.integers(5, 7)))


@st.composite
def batch_norm(draw) -> tuple[nn.Module, tuple[int, ...]]:
    kind, rest = draw(
        st.sampled_from([(nn.BatchNorm1d, ()), (nn.BatchNorm1d, (3,)), (nn.BatchNorm2d, (3, 2))])
    )
    channels = draw(sizes)
    return kind(channels, affine=draw(flags)), (channels, *rest)


@st.composite
def layer_norm(draw) -> tuple[nn.Module, tuple[int, ...]]:
    shape = tuple(draw(st.lists(st.integers(2, 4), min_size=1, max_size=2)))
    module = nn.LayerNorm(
        shape, elementwise_affine=draw(flags), bias=draw(flags), eps=draw(st.sampled_from([1e-5, 1.0]))
    )
    return module, (*draw(st.sampled_from([(), (3,)])), *shape)


@st.composite
def elementwise(draw, name: str) -> tuple[nn.Module, tuple[int, ...]]:
    return as_module(name), tuple(draw(st.lists(sizes, min_size=1, max_size=3)))


ACTIVATIONS = ("relu", "tanh", "sigmoid", "softplus", "gelu", "hard_sigmoid")
KINDS = {
    "linear": linear(),
    "convolution": convolution(),
    "average pool": pool(nn.AvgPool2d),
    "global average pool": st.tuples(st.just(nn.AdaptiveAvgPool2d(1)), st.tuples(sizes, sizes, sizes)),
    "max pool": pool(nn.MaxPool2d),
    "batch norm": batch_norm(),
    "layer norm": layer_norm(),
    "flatten": st.tuples(st.just(nn.Flatten()), st.lists(sizes, min_size=1, max_size=3).map(tuple)),
    **{name: elementwise(name) for name in ACTIVATIONS},
}
any_kind = pytest.mark.parametrize("kind", KINDS)


def filled(module: nn.Module, seed: int) -> nn.Module:
    """In float64 and eval mode, parameters and statistics at random."""
    rng, module = torch.Generator().manual_seed(seed), module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(generator=rng)
        for b in module.buffers():
            if b.is_floating_point():
                b.uniform_(0.3, 2.0, generator=rng)
    return module


def bind(module: nn.Module, dtype: torch.dtype | None = None) -> Map:
    params = {f"m.{n}": p.to(dtype or p.dtype) for n, p in module.named_parameters()}
    return Site("m", module).bind(params)


def normal(shape, seed: int, dtype=torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def drawn(data, kind: str, largest_batch: int = 3) -> tuple[nn.Module, Map, Tensor, int]:
    """A module, its map, an input and a seed for whatever else."""
    (module, shape), seed = data.draw(KINDS[kind]), data.draw(seeds)
    module = filled(module, seed)
    x = normal((data.draw(st.integers(1, largest_batch)), *shape), seed + 1)
    try:
        module(x)
    except RuntimeError:  # windows larger than the image
        assume(False)
    return module, bind(module), x, seed + 2


# -- every map -----------------------------------------------------------------------------------------


@any_kind
@few
@given(data=st.data())
def test_value_is_the_modules_in_eval_mode(kind, data):
    module, m, x, _ = drawn(data, kind)
    assert torch.allclose(m.value(x), module(x), rtol=1e-12, atol=1e-13)


@any_kind
@few
@given(data=st.data())
def test_push_and_pull_are_the_jacobians_products(kind, data):
    _, m, x, seed = drawn(data, kind)
    d = normal(x.shape, seed)
    y, pushed = autograd.jvp(m.value, x, d)
    e = normal(y.shape, seed + 1)
    _, pulled = autograd.vjp(m.value, x, e)
    assert torch.allclose(m.push(x, d), pushed, rtol=1e-11, atol=1e-13)
    assert torch.allclose(m.pull(x, e), pulled, rtol=1e-11, atol=1e-13)
    if m.affine:
        elsewhere = x + normal(x.shape, seed + 2)
        assert torch.allclose(m.pull(elsewhere, e), pulled, rtol=1e-11, atol=1e-13)


@any_kind
@few
@given(data=st.data(), exponent=st.floats(-3, 1))
def test_difference_is_the_subtraction(kind, data, exponent):
    _, m, x, seed = drawn(data, kind)
    m = m.around(x)
    d = 10**exponent * normal(x.shape, seed)
    assert torch.allclose(m.difference(x, d), m.value(x + d) - m.value(x), rtol=1e-9, atol=1e-13)


@any_kind
@few
@given(data=st.data(), exponent=st.floats(-12, -5))
def test_difference_keeps_its_digits_in_float32(kind, data, exponent):
    """However small the step; a subtraction would round at 1e-7 of the value."""
    module, _, x, seed = drawn(data, kind)
    low = copy.deepcopy(module).float()
    x32, d32 = x.float(), 10**exponent * normal(x.shape, seed, torch.float32)
    m32, m64 = bind(low).around(x32), bind(copy.deepcopy(low).double()).around(x32.double())
    expected = m64.difference(x32.double(), d32.double())
    size = m64.norm(x32.double()) * d32.abs().max()
    assert (m32.difference(x32, d32) - expected).abs().max() <= 3e-6 * size


@any_kind
@few
@given(data=st.data())
def test_local_is_the_gradient_of_the_modules_parameters(kind, data):
    module, m, x, seed = drawn(data, kind)
    y = module(x)
    e = normal(y.shape, seed)
    names = [f"m.{n}" for n, _ in module.named_parameters()]
    assert m.parameters == tuple(names)
    if not names:
        assert m.local(x, e) == {}
        return
    expected = torch.autograd.grad((y * e).sum(), list(module.parameters()))
    local = m.local(x, e)
    assert list(local) == names
    for name, gradient in zip(names, expected, strict=True):
        assert torch.allclose(local[name], gradient, rtol=1e-11, atol=1e-12), name


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@few
@given(data=st.data())
def test_rows_multiply_to_the_weights_gradient(kind, data):
    module, m, x, seed = drawn(data, kind)
    e = normal(module(x).shape, seed)
    if kind == "convolution" and module.groups != 1:
        with pytest.raises(ValueError, match="weight: a grouped convolution is no single matrix"):
            m.rows(x, e)
        return
    post, pre = m.rows(x, e)
    assert post.shape == (len(pre), len(module.weight))
    assert len(post) == e.numel() // len(module.weight)
    product = (post.T @ pre).view_as(module.weight)
    assert torch.allclose(product, m.local(x, e)["m.weight"], rtol=1e-11, atol=1e-12)


@any_kind
@few
@given(data=st.data())
def test_norm_bounds_the_jacobian(kind, data):
    _, m, x, _ = drawn(data, kind, largest_batch=1)
    jacobian = autograd.jacobian(m.value, x).reshape(-1, x.numel())
    assert torch.linalg.matrix_norm(jacobian, 2).item() <= m.norm(x) * (1 + 1e-9)


@pytest.mark.parametrize(
    "kind", ["linear", "batch norm", "layer norm", "flatten", "tanh", "sigmoid", "softplus"]
)
@few
@given(data=st.data(), angle=st.floats(0, math.pi))
def test_analytic_maps_continue_into_the_complex_plane(kind, data, angle):
    """dm/dz along any direction of the plane is J d, and pull is its transpose: no conjugate anywhere."""
    module, m, x, seed = drawn(data, kind)
    m = bind(module, torch.complex128)
    z = torch.complex(x, 0.2 * normal(x.shape, seed))
    d = torch.complex(normal(x.shape, seed + 1), normal(x.shape, seed + 2))
    h = 1e-6 * complex(math.cos(angle), math.sin(angle))
    difference = (m.value(z + h * d) - m.value(z - h * d)) / (2 * h)
    pushed = m.push(z, d)
    assert torch.allclose(pushed, difference, rtol=1e-6, atol=1e-9 + 1e-6 * pushed.abs().max().item())
    e = normal(pushed.shape, seed + 3).to(z)
    assert torch.allclose((e * pushed).sum(), (m.pull(z, e) * d).sum(), rtol=1e-9)
    assert torch.allclose(m.value(x.to(z)), module(x).to(z), rtol=1e-12, atol=1e-13)


# -- max pooling ---------------------------------------------------------------------------------------


@few
@given(data=st.data(), exponent=st.floats(-6, 0))
def test_around_a_state_max_pooling_keeps_its_winners(data, exponent):
    """It is max pooling as long as they win, and linear whatever happens."""
    module, m, x, seed = drawn(data, "max pool")
    around, d = m.around(x), 10**exponent * normal(x.shape, seed)
    assert isinstance(m, MaxPool)
    assert isinstance(around, Select)
    assert around.affine
    assert torch.equal(around.value(x), module(x))
    far = 10 * d
    assert torch.allclose(around.difference(x, far), 10 * around.difference(x, d), rtol=1e-12)
    _, winners = F.max_pool2d(x + d, *m.window, return_indices=True)
    kept = winners == around.winners
    assert torch.equal(around.value(x + d)[kept], module(x + d)[kept])
    assert (around.value(x + d) <= module(x + d)).all()


def test_of_equal_units_the_one_that_torch_would_choose_wins():
    """The windows of an inactive ReLU layer are all zero: the pull goes where backprop sends it."""
    x = torch.zeros(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    module = nn.MaxPool2d(2)
    e = normal((2, 3, 3, 3), 0)
    (expected,) = torch.autograd.grad((module(x) * e).sum(), x)
    m = bind(module)
    for pooling in (m, m.around(x)):
        assert torch.equal(pooling.pull(x, e), expected)


def test_a_unit_that_wins_four_windows_pulls_twice_as_hard():
    x = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    x[..., 1, 1] = 1.0
    assert bind(nn.MaxPool2d(2, stride=1)).norm(x) == 2.0


# -- batch normalisation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0, None])
@few
@given(seed=seeds, data=st.data(), affine=flags)
def test_observing_moves_statistics_as_torch_in_training_does(momentum, seed, data, affine):
    kind, shape = data.draw(st.sampled_from([(nn.BatchNorm1d, ()), (nn.BatchNorm2d, (2, 3))]))
    ours = filled(kind(3, momentum=momentum, affine=affine), seed).train()
    theirs = copy.deepcopy(ours)
    for step in range(3):
        x = normal((4, 3, *shape), seed + step)
        m = bind(ours)
        y = m.value(x)
        m.observe(x.requires_grad_())
        theirs(x)
        assert torch.equal(m.value(x), y)  # a bound map does not notice
        assert not ours.running_mean.requires_grad
        for name, buffer in theirs.named_buffers():
            assert torch.allclose(getattr(ours, name), buffer, rtol=1e-12), name
    before = copy.deepcopy(ours.state_dict())
    bind(ours.eval()).observe(x)
    assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())


def test_a_single_value_has_no_variance_to_learn():
    module = nn.BatchNorm1d(3).train()
    with pytest.raises(ValueError, match="larger batches"):
        bind(module).observe(torch.zeros(1, 3))
    assert torch.equal(module.running_var, torch.ones(3))


def test_statistics_take_the_type_of_what_is_normalised():
    """Weights as read may be float32 or complex where the module is not."""
    module, x = filled(nn.BatchNorm2d(3), 0), normal((2, 3, 2, 2), 1)
    for dtype in (torch.float32, torch.complex128):
        y = bind(module, dtype).value(x.to(dtype))
        assert y.dtype == dtype
        assert gap(y.real, module(x)) < 1e-6


# -- dropout and embedding -------------------------------------------------------------------------------


@few
@given(seed=seeds, p=st.floats(0.05, 0.95))
def test_a_mask_is_a_diagonal(seed, p):
    rng = torch.Generator().manual_seed(seed)
    mask = torch.empty(2, 5, dtype=torch.float64).bernoulli_(1 - p, generator=rng) / (1 - p)
    x, d = normal((2, 5), seed), normal((2, 5), seed + 1)
    m = Site("m", nn.Dropout(p)).bind({"m.mask": mask})
    assert isinstance(m, Mask)
    for result, operand in ((m.value(x), x), (m.push(x, d), d), (m.pull(x, d), d), (m.difference(x, d), d)):
        assert torch.equal(result, mask * operand)
    assert m.norm(x) == mask.max()


def test_dropout_without_a_mask_is_left_out():
    assert Site("m", nn.Dropout()).bind({}) is None


@few
@given(
    data=st.data(), padding=st.none() | st.integers(0, 4), dtype=st.sampled_from([torch.int64, torch.int32])
)
def test_a_lookup_is_the_embedding_and_its_gradient(data, padding, dtype):
    """Rows looked up twice learn twice; the padding row is what it is and learns nothing."""
    module = filled(nn.Embedding(5, 3, padding_idx=padding), data.draw(seeds))
    shape = data.draw(st.sampled_from([(2, 1), (2, 6), (2, 2, 3)]))
    x = torch.randint(5, shape, dtype=dtype, generator=torch.Generator().manual_seed(data.draw(seeds)))
    m, y = bind(module), module(x)
    assert isinstance(m, Lookup)
    assert torch.equal(m.value(x), y)
    e = normal(y.shape, 3)
    (expected,) = torch.autograd.grad((y * e).sum(), module.weight)
    assert torch.allclose(m.local(x, e)["m.weight"], expected, rtol=1e-13, atol=1e-14)
    with pytest.raises(NotImplementedError, match="indices do not deviate"):
        m.push(x, e)
