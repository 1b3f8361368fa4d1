"""The diagonal Fisher information against closed forms of a linear softmax model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mep_sim.baselines import EWC, Autograd, diagonal_fisher
from tests.test_baselines_gradients import assert_same, network, task

few = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**31)


def linear_softmax(seed: int) -> nn.Linear:
    model = nn.Linear(4, 3).double()
    for p in model.parameters():
        nn.init.normal_(p, generator=torch.Generator().manual_seed(seed))
    return model


@few
@given(seed=seeds)
def test_exact_is_p_times_1_minus_p_times_x_squared(seed):
    """diag(p) - p p' is the covariance of the labels' one-hots, and logit c moves by x_j with weight cj."""
    model, (x, y) = linear_softmax(seed), task(seed=seed)
    p = torch.softmax(model(x), 1).detach()
    variance = p - p.square()
    expected = {"weight": variance.T @ x.square() / len(x), "bias": variance.mean(0)}
    for batch_size in (3, 100):
        assert_same(diagonal_fisher(Autograd(model), x, y, "exact", batch_size), expected)


@few
@given(seed=seeds)
def test_empirical_is_the_error_squared_times_x_squared(seed):
    model, (x, y) = linear_softmax(seed), task(seed=seed)
    error = (torch.softmax(model(x), 1) - F.one_hot(y, 3)).detach().square()
    expected = {"weight": error.T @ x.square() / len(x), "bias": error.mean(0)}
    for batch_size in (3, 100):
        assert_same(diagonal_fisher(Autograd(model), x, y, "empirical", batch_size), expected)


def test_sampled_is_exact_in_the_mean(rng):
    """Over n copies of the task, within 4 standard errors (each entry's variance from the copies themselves)."""
    gradients, (x, y) = Autograd(linear_softmax(0)), task()
    exact = diagonal_fisher(gradients, x, y, "exact")
    draws = [diagonal_fisher(gradients, x, y, "sampled", rng=rng) for _ in range(200)]
    for name, expected in exact.items():
        found = torch.stack([draw[name] for draw in draws])
        error = found.std(0) / len(draws) ** 0.5
        assert ((found.mean(0) - expected).abs() <= 4 * error).all()


def test_batched_with_one_sample_is_empirical():
    gradients, (x, y) = Autograd(network()), task()
    batched = diagonal_fisher(gradients, x, y, "batched", 1)
    assert_same(batched, diagonal_fisher(gradients, x, y, "empirical"))


def test_batched_is_the_batch_size_times_the_squared_mean_gradient():
    """By hand, with a smaller last batch: (3 (3 g1^2) + 3 (3 g2^2) + 1 g3^2) / 7."""
    gradients, (x, y) = Autograd(network()), task(7)
    parts = [gradients.gradient(x[i : i + 3], y[i : i + 3]) for i in (0, 3, 6)]
    sizes = (3, 3, 1)
    expected = {
        n: sum(size**2 * g[n].square() for size, g in zip(sizes, parts, strict=True)) / 7 for n in parts[0]
    }
    assert_same(diagonal_fisher(gradients, x, y, "batched", 3), expected)


def test_exact_is_the_hessian_of_a_linear_softmax_model(rng):
    """The Fisher information of a generalised linear model is the Hessian of its loss, at any labels."""
    model, (x, y) = linear_softmax(0), task()
    found = diagonal_fisher(Autograd(model), x, y, "exact")["bias"]

    def loss(bias):
        return F.cross_entropy(F.linear(x, model.weight, bias), y)

    hessian = torch.autograd.functional.hessian(loss, model.bias.detach())
    assert torch.allclose(found, hessian.diagonal(), rtol=1e-10)


@pytest.mark.parametrize("kind", ["sampled", "exact"])
def test_a_cost_that_is_no_likelihood_of_labels_is_refused(kind, rng):
    x, y = task()
    ewc = EWC(Autograd(network(), "mse"), fisher=kind, rng=rng)
    with pytest.raises(ValueError, match=r"SquaredError\(\) the outputs are no distribution .* 'empirical'"):
        ewc.end_task(x, y)
