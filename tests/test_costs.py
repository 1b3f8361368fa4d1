"""Costs: gradients against autograd, the nudged output's own equilibrium, precision, complex numbers, targets."""

import cmath
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits import (
    CrossEntropy,
    FeedforwardCircuit,
    HopfieldCircuit,
    MaskedCrossEntropy,
    SquaredError,
    cost,
)
from mep_sim.optimizers import EPGradient, ImplicitGradient
from mep_sim.settling import Sweep

CLASSES = (0, 2, 3)  # of the masked cross-entropy
NAMES = ("mse", "cross_entropy", pytest.param(MaskedCrossEntropy(CLASSES), id="masked"))
few = settings(max_examples=60, deadline=None)


def outputs(rng, batch=6, classes=4, spread=2.0):
    return spread * torch.randn(batch, classes, generator=rng, dtype=torch.float64)


def targets(rng, kind, output, c=None):
    """Of the classes that the cost allows."""
    classes = torch.tensor(getattr(c, "classes", range(output.shape[1])))
    if kind == "values":
        return torch.rand(output.shape, generator=rng, dtype=torch.float64)  # sums to anything
    if kind == "distribution":
        logits = torch.randn(len(output), len(classes), generator=rng, dtype=torch.float64)
        return torch.zeros_like(output).index_copy(1, classes, torch.softmax(logits, 1))
    return classes[torch.randint(len(classes), output.shape[:1], generator=rng)]


def relaxed(c, pull, origin, target, beta):
    """`relax` repeated from the pull until it has got there."""
    d = pull
    for _ in range(20):
        before, d = d, c.relax(pull, origin, target, beta, d)
        if (d - before).abs().max() <= 1e-15 * d.abs().max():
            break
    return d


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["classes", "distribution"])
def test_gradient_and_curvature_against_autograd(name, kind, rng):
    c, output = cost(name), outputs(rng)
    target = c.target(targets(rng, kind, output, c), output)
    o = output.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(c.value(o, target).sum(), o)
    assert torch.allclose(c.gradient(output, target), gradient, rtol=1e-12, atol=1e-14)
    for row, y in zip(output, target, strict=True):
        hessian = torch.autograd.functional.hessian(lambda o, y=y: c.value(o[None], y[None]).sum(), row)
        assert torch.linalg.eigvalsh(hessian)[-1] <= c.curvature * (1 + 1e-12)


def test_values_are_torchs_own(rng):
    output = outputs(rng)
    labels, values = targets(rng, "classes", output), targets(rng, "values", output)
    c = cost("cross_entropy")
    expected = F.cross_entropy(output, labels, reduction="none")
    assert torch.allclose(c.value(output, c.target(labels, output)), expected, rtol=1e-13)
    expected = 0.5 * F.mse_loss(output, values, reduction="none").sum(1)
    assert torch.allclose(cost("mse").value(output, values), expected, rtol=1e-13)


def test_curvature_of_the_cross_entropy_is_reached():
    """diag(p) - p p' has the eigenvalue 1/2 at p = (1/2, 1/2)."""
    c, y = cost("cross_entropy"), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    o = torch.zeros(2, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda o: c.value(o[None], y).sum(), o)
    assert torch.linalg.eigvalsh(hessian)[-1].item() == pytest.approx(c.curvature)


@pytest.mark.parametrize("name", NAMES)
@few
@given(
    seed=st.integers(0, 2**16),
    share=st.floats(-0.8, 2.0),
    spread=st.sampled_from((0.1, 1.0, 5.0, 40.0)),
    kind=st.sampled_from(("classes", "distribution")),
    centred=st.booleans(),
)
def test_relax_solves_its_equation(name, seed, share, spread, kind, centred):
    """d = pull - beta C'(origin + d), for beta C'' anywhere in (-.8, 2)."""
    rng, c = torch.Generator().manual_seed(seed), cost(name)
    pull, origin = outputs(rng, spread=spread), outputs(rng, spread=spread)
    if not centred:
        origin = 0.0
    beta = share / c.curvature
    target = c.target(targets(rng, kind, pull, c), pull)
    d = relaxed(c, pull, origin, target, beta)
    miss = d - pull + beta * c.gradient(origin + d, target)
    assert miss.abs().max() <= 1e-10 * (1 + pull.abs().max())


@pytest.mark.parametrize("share", [0.1, 0.9, -0.4])
def test_the_squared_error_relaxes_at_once(share, rng):
    """d = pull - beta (origin + d - y) is linear in d, whatever the guess."""
    c = cost("mse")
    pull, origin, target, guess = (outputs(rng) for _ in range(4))
    d = c.relax(pull, origin, target, share, guess)
    assert torch.allclose(d, pull - share * (origin + d - target), rtol=1e-13)


@pytest.mark.parametrize("beta", [0.02, 0.3, -0.3])
def test_a_step_at_a_gentle_beta_contracts_by_the_curvature(beta, rng):
    """A fixed-point step shrinks what is missing by |beta| C'' at least."""
    c, pull = cost("cross_entropy"), outputs(rng)
    target = c.target(targets(rng, "classes", pull), pull)
    exact, d = relaxed(c, pull, 0.0, target, beta), pull
    for _ in range(5):
        before, d = d, c.relax(pull, 0.0, target, beta, d)
        assert (
            (d - exact).norm(dim=1) <= abs(beta) * c.curvature * (before - exact).norm(dim=1) + 1e-14
        ).all()


def test_relax_where_beta_minus_one_meets_certainty():
    """1 + beta p vanishes there; the solution is still unique, as |beta| C'' = 1/2."""
    c = cost("cross_entropy")
    for dtype, allowed in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        pull = torch.tensor([[60.0, 0.0, 0.0], [0.0, 60.0, 0.0], [1.0, 2.0, 3.0]], dtype=dtype)
        y = c.target(torch.tensor([0, 0, 0]), pull)
        d = relaxed(c, pull, 0.0, y, -1.0)
        assert (d - pull - c.gradient(d, y)).abs().max() < allowed


@pytest.mark.parametrize("gap", [5.0, 12.0, 20.0, 40.0, 80.0])
def test_cross_entropy_gradient_near_certainty_keeps_its_digits_in_float32(gap):
    """1 - p of the right class would round to zero; every entry keeps float32's relative precision."""
    c = cost("cross_entropy")
    output = torch.tensor([[gap, 0.0, 0.5, -1.0]])
    target = c.target(torch.tensor([0]), output)
    others = torch.exp(output[:, 1:].double() - gap)
    others = others / (1 + others.sum())
    expected = torch.cat([-others.sum(1, keepdim=True), others], 1)
    error = (c.gradient(output, target).double() - expected).abs() / expected.abs()
    assert error.max() < 2e-6


@pytest.mark.parametrize("name", NAMES)
def test_relax_around_an_origin_resolves_a_tiny_nudge_in_float32(name, rng):
    """beta = 1e-6: the deviation has float32's relative precision; a difference of states would not."""
    c, beta = cost(name), 1e-6
    origin = outputs(rng)
    target = c.target(targets(rng, "classes", origin, c), origin)
    expected = relaxed(c, torch.zeros_like(origin), origin, target, beta)
    origin32 = origin.float()
    target32 = target.to(origin32) if target.is_floating_point() else target
    d = relaxed(c, torch.zeros_like(origin32), origin32, target32, beta)
    assert ((d - expected).abs().amax(1) / expected.abs().amax(1)).max() < 1e-5


# -- complex numbers ------------------------------------------------------------------------------------


def complex_outputs(rng, spread=2.0):
    """Imaginary parts within the strip |Im| < pi / 2 in which the softmax has no pole."""
    return torch.complex(outputs(rng, spread=spread), 0.3 * torch.tanh(outputs(rng)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["classes", "distribution"])
@few
@given(seed=st.integers(0, 2**16), angle=st.floats(0, 2 * math.pi))
def test_value_and_gradient_are_holomorphic(name, kind, seed, angle):
    """dC along any direction of the complex plane is C'(o) d, real on the real axis, without a conjugate."""
    rng, c = torch.Generator().manual_seed(seed), cost(name)
    o, h = complex_outputs(rng), 1e-5 * cmath.exp(1j * angle)
    target = c.target(targets(rng, kind, o.real, c), o)
    d = complex_outputs(rng)
    difference = (c.value(o + h * d, target) - c.value(o - h * d, target)) / (2 * h)
    assert torch.allclose((c.gradient(o, target) * d).sum(1), difference, rtol=1e-6, atol=1e-8)
    assert torch.allclose(c.value(o.conj(), target), c.value(o, target).conj(), rtol=1e-12)
    for method in (c.value, c.gradient):
        assert torch.allclose(method(o.real.to(o), target), method(o.real, target.real).to(o), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@settings(few, max_examples=25)
@given(
    seed=st.integers(0, 2**16),
    share=st.floats(0.05, 0.6),
    angle=st.floats(0, 2 * math.pi),
    centred=st.booleans(),
)
def test_relax_solves_its_equation_at_a_complex_beta(name, seed, share, angle, centred):
    rng, c = torch.Generator().manual_seed(seed), cost(name)
    beta = share / c.curvature * cmath.exp(1j * angle)
    pull, origin = complex_outputs(rng, 1.0), complex_outputs(rng, 1.0) if centred else 0.0
    target = c.target(targets(rng, "classes", pull.real, c), pull)
    d = relaxed(c, pull, origin, target, beta)
    miss = d - pull + beta * c.gradient(origin + d, target)
    assert miss.abs().max() <= 1e-10 * (1 + pull.abs().max())
    conjugate = relaxed(c, pull.conj(), origin.conj() if centred else 0.0, target, beta.conjugate())
    assert torch.allclose(conjugate, d.conj(), rtol=1e-10)


# -- targets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_targets(name):
    c, output = cost(name), torch.zeros(3, 4)
    one_hot = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.float32)
    assert torch.equal(c.target(torch.tensor([2, 0, 3]), output).float(), one_hot)
    assert torch.equal(c.target(one_hot.double(), output), one_hot)
    for wrong in (
        torch.zeros(3),
        torch.zeros(3, 5),
        torch.zeros(4, 4),
        torch.zeros(3, 4, 1),
        torch.zeros(()),
    ):
        with pytest.raises(ValueError, match="give int64 class indices"):
            c.target(wrong, output)
    with pytest.raises(ValueError, match="2 targets for 3 inputs"):
        c.target(torch.tensor([0, 1]), output)
    for beyond in (4, -1):
        with pytest.raises(ValueError, match="is none of 0 to 3"):
            c.target(torch.tensor([0, beyond, 1]), output)


def test_unknown_cost_lists_the_known():
    with pytest.raises(ValueError, match=r"unknown cost 'hinge'.*cross_entropy, mse"):
        cost("hinge")


def test_a_cost_is_its_own_name():
    c = MaskedCrossEntropy((0, 1))
    assert cost(c) is c
    assert (cost("mse"), cost("cross_entropy")) == (SquaredError(), CrossEntropy())


# -- some outputs alone -----------------------------------------------------------------------------------


@few
@given(
    seed=st.integers(0, 2**16),
    classes=st.lists(st.integers(0, 5), min_size=2, unique=True),
    kind=st.sampled_from(("classes", "distribution")),
    is_complex=st.booleans(),
    beta=st.sampled_from((0.1, -0.5, 2.0)),
)
def test_a_masked_cost_is_the_cost_of_the_outputs_it_leaves(seed, classes, kind, is_complex, beta):
    rng, c, whole = torch.Generator().manual_seed(seed), MaskedCrossEntropy(tuple(classes)), CrossEntropy()
    others = [k for k in range(6) if k not in classes]

    def draw():
        return torch.complex(outputs(rng, classes=6), 0.1 * outputs(rng, classes=6))

    output, pull, origin = (draw() if is_complex else draw().real for _ in range(3))
    given_ = targets(rng, kind, output.real, c)
    target = c.target(given_, output)
    left = (
        torch.tensor([classes.index(k) for k in given_.tolist()]) if kind == "classes" else given_[:, classes]
    )
    left = whole.target(left, output[:, classes])
    assert torch.equal(target[:, classes], left)
    assert torch.allclose(c.value(output, target), whole.value(output[:, classes], left), rtol=1e-13)
    gradient = c.gradient(output, target)
    assert torch.allclose(gradient[:, classes], whole.gradient(output[:, classes], left), rtol=1e-13)
    assert not gradient[:, others].any()
    d = relaxed(c, pull, origin, target, beta)
    expected = relaxed(whole, pull[:, classes], origin[:, classes], left, beta)
    assert torch.allclose(d[:, classes], expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(d[:, others], pull[:, others], rtol=1e-12)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((), r"classes \(\); choose at least two"),
        ((3,), r"classes \(3,\); choose at least two"),
        ((1, 1), "two different outputs"),
        ((-1, 2), ">= 0"),
    ],
)
def test_classes_that_are_no_choice_of_outputs(classes, message):
    with pytest.raises(ValueError, match=message):
        MaskedCrossEntropy(classes)


def test_targets_outside_the_classes():
    c, output = MaskedCrossEntropy((0, 2)), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"class 1 of a target is none of \(0, 2\)"):
        c.target(torch.tensor([2, 1]), output)
    with pytest.raises(ValueError, match=r"class 3 of a target is none of \(0, 2\)"):
        c.target(torch.tensor([[0.5, 0, 0.5, 0], [0.5, 0, 0.4, 0.1]]), output)
    with pytest.raises(ValueError, match=r"class 4 of \(0, 4\) is none of 0 to 3"):
        MaskedCrossEntropy((0, 4)).target(torch.tensor([0, 0]), output)


def test_ep_with_a_mask_is_ep_on_a_network_without_the_other_outputs(rng):
    classes, sizes = (1, 4), (5, 7, 6)
    whole = FeedforwardCircuit.from_sizes(sizes, "tanh", rng=rng).double()
    cut = FeedforwardCircuit.from_sizes((5, 7, 2), "tanh", rng=rng).double()
    last = [name for name, p in whole.params().items() if len(p) == 6]
    params = {name: p.detach() for name, p in whole.params().items()}
    cut_params = {name: p[list(classes)] if name in last else p for name, p in params.items()}
    x, index = torch.randn(4, 5, generator=rng, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    settled = {"beta": 0.1, "phases": "centred", "solver": Sweep(1e-13), "nudged_tolerance": 1e-11}
    masked = EPGradient(MaskedCrossEntropy(classes), **settled)
    found = masked.estimate(whole, lambda: params, x, torch.tensor(classes)[index])
    expected = EPGradient(**settled).estimate(cut, lambda: cut_params, x, index)
    assert torch.allclose(found.loss, expected.loss, rtol=1e-12)
    assert len(last) == 2  # weight and bias
    for name, g in found.gradient.items():
        if name in last:
            assert g.index_fill(0, torch.tensor(classes), 0).abs().max() < 1e-12
            g = g[list(classes)]
        assert torch.allclose(g, expected.gradient[name], rtol=1e-8, atol=1e-10)


def test_ep_of_a_hopfield_network_with_a_mask_tends_to_the_exact_gradient(rng):
    """Outputs left out stay in the energy and act on the hidden units, without a nudge."""
    circuit = HopfieldCircuit((5, 7, 6), (-math.inf, math.inf), 0.4, rng=rng).double()
    params = {name: p.detach() for name, p in circuit.params().items()}
    x, y = torch.randn(4, 5, generator=rng, dtype=torch.float64), torch.tensor([1, 4, 4, 1])
    c = MaskedCrossEntropy((1, 4))
    ep = EPGradient(c, beta=1e-3, phases="centred", solver=Sweep(1e-13), nudged_tolerance=1e-11)
    found = ep.estimate(circuit, lambda: params, x, y).gradient
    exact = ImplicitGradient(c, Sweep(1e-13), 1e-10).estimate(circuit, lambda: params, x, y).gradient
    for name, g in exact.items():
        assert torch.allclose(found[name], g, rtol=1e-4, atol=1e-6)


def test_a_masked_cost_evaluated_in_inference_mode_still_trains():
    c, o = MaskedCrossEntropy((0, 2)), torch.zeros(1, 3, requires_grad=True)
    target = torch.tensor([[0.0, 0.0, 1.0]])
    with torch.inference_mode():
        c.value(o, target)
    c.value(o, target).sum().backward()
    assert o.grad.tolist() == [[0.5, 0.0, -0.5]]
