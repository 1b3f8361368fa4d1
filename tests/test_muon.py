"""Orthogonalisation against the SVD and the optimality of its polynomials; Muon against torch's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mep_sim.optimizers import CompositeOptimizer, ErrorFeedback, MuonUpdate, NoFeedback, orthogonalise
from mep_sim.optimizers.strategies.muon import POLYNOMIALS
from tests.update_conformance import SHAPES, directions, gradients, learn, matrix, polar, relative

few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**31)
polynomials = st.sampled_from(sorted(POLYNOMIALS))


def odd(x, a: float, b: float, c: float):
    return a * x + b * x**3 + c * x**5


# -- orthogonalise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("polynomial", "steps"), [("cubic", 30), ("polar_express", 10)])
def test_converges_to_the_polar_factor(shape, polynomial, steps):
    m = matrix(shape, torch.linspace(0.2, 3.0, 12, dtype=torch.float64))
    assert torch.allclose(orthogonalise(m, polynomial, steps), polar(m), rtol=0, atol=1e-12)


@few
@given(
    seed=seeds, rows=st.integers(1, 12), columns=st.integers(1, 40), name=polynomials, steps=st.integers(1, 9)
)
def test_each_step_is_the_polynomial_of_the_singular_values(seed, rows, columns, name, steps):
    """Newton-Schulz acts on every singular value alone, sigma <- a sigma + b sigma^3 + c sigma^5."""
    m = matrix((rows, columns), torch.linspace(0.05, 2.0, min(rows, columns), dtype=torch.float64), seed)
    u, sigma, vh = torch.linalg.svd(m, full_matrices=False)
    sigma = sigma / m.norm()
    for step in range(steps):
        a, b, c = POLYNOMIALS[name][min(step, len(POLYNOMIALS[name]) - 1)]
        sigma = odd(sigma, a, b, c)
    assert torch.allclose(orthogonalise(m, name, steps), u * sigma @ vh, rtol=0, atol=1e-11)


def test_polar_express_is_the_best_composition():
    """Each polynomial, less its safety factor, keeps the image of [1e-3, 1] centred on 1; and from the fourth on
    its error alternates over the ends and both extrema, which makes it the best of its degree (Chebyshev)."""
    low, high = 1e-3, 1.0
    for step, coefficients in enumerate(POLYNOMIALS["polar_express"][:-1]):
        a, b, c = (x * 1.01**power for x, power in zip(coefficients, (1, 3, 5), strict=True))
        image = odd(torch.linspace(low, high, 100_001, dtype=torch.float64), a, b, c)
        error = 1 - image.min().item()
        assert image.max().item() - 1 == pytest.approx(error, rel=1e-3, abs=1e-8)
        if step >= 3 and error > 1e-6:
            root = math.sqrt(9 * b * b - 20 * a * c)
            first, second = (math.sqrt((-3 * b + sign * root) / (10 * c)) for sign in (-1, 1))
            for x, sign in ((low, -1), (first, 1), (second, -1), (high, 1)):
                assert odd(x, a, b, c) == pytest.approx(1 + sign * error, abs=1e-4 * error + 1e-8)
        low, high = 1 - error, 1 + error


@pytest.mark.parametrize(
    ("polynomial", "steps", "error"),
    [("quintic", 5, 0.160), ("polar_express", 5, 0.085), ("cubic", 5, 0.59), ("cubic", 10, 0.0086)],
)
def test_error_on_a_gaussian_matrix(polynomial, steps, error):
    (m,) = gradients((256, 784), dtype=torch.float32)
    assert relative(orthogonalise(m, polynomial, steps), polar(m)) == pytest.approx(error, rel=0.05)


@pytest.mark.parametrize("polynomial", POLYNOMIALS)
@pytest.mark.parametrize("rank", [1, 16, 64])
def test_float32_is_good_enough_for_a_gradient_of_low_rank(polynomial, rank):
    """Singular values of zero come back as rounding errors, whose growth the product of steps must not add to."""
    m = gradients((64, rank), seed=1)[0] @ gradients((rank, 200), seed=2)[0]
    assert relative(orthogonalise(m.float(), polynomial).double(), orthogonalise(m, polynomial)) < 2e-3


@few
@given(seed=seeds, rows=st.integers(1, 40), columns=st.integers(1, 40), weakest=st.floats(0.02, 1))
def test_five_quintic_steps_land_near_one(seed, rows, columns, weakest):
    """From any singular values within 50 of each other; 0.68 to 1.21 is the published band."""
    n = min(rows, columns)
    m = matrix((rows, columns), torch.linspace(weakest, 1.0, n, dtype=torch.float64), seed)
    sigma = torch.linalg.svdvals(orthogonalise(m))
    assert sigma.min() > 0.6
    assert sigma.max() < 1.3


@few
@given(seed=seeds, scale=st.floats(1e-12, 1e12), shape=st.sampled_from(SHAPES), polynomial=polynomials)
def test_orthogonalise_ignores_scale_and_commutes_with_transposition_and_rotation(
    seed, scale, shape, polynomial
):
    (m,) = gradients(shape, seed=seed)
    o = orthogonalise(m, polynomial)
    rotation = polar(gradients((shape[0], shape[0]), seed=seed + 1)[0])
    assert torch.allclose(orthogonalise(scale * m, polynomial), o, rtol=0, atol=1e-10)
    assert torch.allclose(orthogonalise(m.T, polynomial), o.T, rtol=0, atol=1e-10)
    assert torch.allclose(orthogonalise(rotation @ m, polynomial), rotation @ o, rtol=0, atol=1e-10)


@pytest.mark.parametrize("polynomial", POLYNOMIALS)
def test_a_vanishing_signal_is_never_blown_up(polynomial):
    """Below 1e-19 the squares of float32 underflow, and with them the norm to divide by."""
    assert torch.equal(orthogonalise(torch.zeros(3, 5), polynomial), torch.zeros(3, 5))
    (m,) = gradients((12, 30), dtype=torch.float32)
    for exponent in range(-44, 0):
        assert torch.linalg.svdvals(orthogonalise(m * 10.0**exponent, polynomial)).max() < 1.3


# -- the whole step ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32), (64, 24), (24, 64)])
@pytest.mark.parametrize("scale", ["spectral", "match_rms"])
@pytest.mark.parametrize(
    ("mu", "nesterov", "own"),
    [(0.0, False, False), (0.9, False, False), (0.9, False, True), (0.9, True, True)],
)
def test_muon_is_torchs_muon(shape, scale, mu, nesterov, own):
    """torch orthogonalises in bfloat16 (3 significant digits) and averages m = (1 - mu) b, the same direction."""
    *g, start = gradients(shape, 7, dtype=torch.float32)
    update = MuonUpdate(scale=scale, momentum=mu if own else 0.0, nesterov=nesterov, weight_decay=0.2)
    feedback = NoFeedback() if own else ErrorFeedback(mu)
    ours = learn(lambda p: CompositeOptimizer(p, update=update, feedback=feedback, lr=0.1), g, start)
    adjust = {"spectral": "original", "match_rms": "match_rms_adamw"}[scale]
    torchs = learn(
        lambda p: torch.optim.Muon(
            p, lr=0.1, momentum=mu, nesterov=nesterov, weight_decay=0.2, adjust_lr_fn=adjust
        ),
        g,
        start,
    )
    for a, b in zip(ours, torchs, strict=True):
        assert relative(a - start, b - start) < 0.02


@few
@given(seed=seeds, mu=st.floats(0, 0.99))
def test_the_carry_is_torchs_momentum_up_to_scale(seed, mu):
    """Muon of torch: m <- mu m + (1 - mu) g. Ours: b = g + carry, so that m = (1 - mu) b and carry = mu b."""
    state, momentum, feedback = {}, torch.zeros(4, 3, dtype=torch.float64), ErrorFeedback(mu)
    for g in gradients((4, 3), 5, seed):
        momentum.lerp_(g, 1 - mu)
        b = feedback.signal(g, state)
        feedback.keep(b, b, state)
        assert torch.allclose((1 - mu) * b, momentum, rtol=1e-10, atol=1e-12)
        assert torch.allclose(state["carry"], mu * b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("scale", "size"),
    [
        ("spectral", lambda m, n: math.sqrt(max(1, m / n))),
        ("match_rms", lambda m, n: 0.2 * math.sqrt(max(m, n))),
    ],
)
def test_muons_steps_have_the_size_of_their_shape(scale, size):
    """Converged, a multiple of the polar factor; match_rms gives entries of root mean square 0.2, as Adam's are."""
    for shape in SHAPES:
        (m,) = gradients(shape)
        direction, kept = MuonUpdate(12, "polar_express", scale=scale).direction(m, {}, m)
        assert torch.allclose(direction, size(*shape) * polar(m), rtol=0, atol=1e-8)
        assert kept is m
        if scale == "match_rms":
            assert direction.square().mean().sqrt().item() == pytest.approx(0.2)


@few
@given(seed=seeds, mu=st.floats(0.01, 0.99))
def test_nesterov_looks_one_step_ahead(seed, mu):
    """v <- mu v + g, then g + mu v in place of v."""
    g, velocity = gradients((4, 3), 4, seed), 0.0
    for x, direction in zip(g, directions(MuonUpdate(momentum=mu, nesterov=True), g, {}, g[0]), strict=True):
        velocity = mu * velocity + x
        expected = math.sqrt(4 / 3) * orthogonalise(x + mu * velocity)
        assert torch.allclose(direction, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MuonUpdate(ns_steps=0), r"ns_steps = 0; choose a whole number of 1 or more"),
        (lambda: MuonUpdate(ns_steps=2.5), r"ns_steps = 2.5; choose a whole number"),
        (
            lambda: MuonUpdate(polynomial="septic"),
            r"polynomial 'septic'; choose one of cubic, quintic, polar_express",
        ),
        (lambda: MuonUpdate(scale="frobenius"), r"scale 'frobenius'; choose one of spectral, match_rms"),
        (lambda: MuonUpdate(heads="adam"), r"heads 'adam'; choose one of muon, fallback"),
        (lambda: MuonUpdate(nesterov=True), r"nesterov = True with momentum = 0"),
        (lambda: orthogonalise(torch.eye(2), "septic"), r"polynomial 'septic'; choose one of"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
