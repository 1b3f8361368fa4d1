"""GEM and A-GEM: the projection against an oracle and its optimality conditions, the averages by formula."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mep_sim.baselines import AGEM, GEM, Autograd
from mep_sim.baselines.gem import project
from tests.test_baselines_gradients import network, task

seeds = st.integers(0, 2**31)


def drawn(seed: int, tasks: int, weights: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-2, 2, tasks, dtype=torch.float64)[:, None]
    memories = scale * torch.randn(tasks, weights, generator=rng, dtype=torch.float64)
    return torch.randn(weights, generator=rng, dtype=torch.float64), memories


def nearest_by_force(g, memories, margin):
    """Of all sets of active constraints (v_i > margin), the KKT point of the dual: v free on the set, margin off it."""
    best, least = None, float("inf")
    for size in range(len(memories) + 1):
        for free in itertools.combinations(range(len(memories)), size):
            v = torch.full((len(memories),), margin, dtype=g.dtype)
            free = list(free)
            if free:
                gram, fixed = memories[free] @ memories[free].T, v.clone()
                fixed[free] = 0
                v[free] = -torch.linalg.lstsq(gram, memories[free] @ (g + memories.T @ fixed)).solution
            if (v >= margin - 1e-12).all():
                value = (g + memories.T @ v).norm().item()
                if value < least:
                    best, least = g + memories.T @ v, value
    return best


@settings(max_examples=60, deadline=None)
@given(seed=seeds, tasks=st.integers(1, 4), weights=st.integers(4, 9), margin=st.sampled_from((0.0, 0.5)))
def test_the_projection_is_the_one_found_by_force(seed, tasks, weights, margin):
    g, memories = drawn(seed, tasks, weights)
    found = project(g, memories, margin)
    if (memories @ g >= 0).all():
        assert found is g
        return
    assert torch.allclose(found, nearest_by_force(g, memories, margin), rtol=1e-7, atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, tasks=st.integers(1, 6), weights=st.integers(1, 9), twice=st.booleans())
def test_the_projection_is_feasible_and_nearest(seed, tasks, weights, twice):
    """More constraints than weights, repeated ones and zero ones too. Of a convex cone the projection p is known by
    p in it, (g - p) perpendicular to p and no nearer to any other of its points: (g - p)'z <= 0."""
    g, memories = drawn(seed, tasks, weights)
    if twice:
        memories = torch.cat([memories, memories, torch.zeros_like(memories[:1])])
    found = project(g, memories)
    unit = memories / memories.norm(dim=1, keepdim=True).clamp(min=1e-300)
    assert (unit @ found >= -1e-9 * g.norm()).all()
    assert abs(torch.dot(g - found, found)) <= 1e-9 * g.square().sum()
    others, _ = drawn(seed + 1, 1, weights)
    inside = project(others, memories)
    assert torch.dot(g - found, inside) <= 1e-8 * g.norm() * others.norm()


def test_one_memory_is_projected_on_its_half_space():
    g, r = torch.tensor([1.0, 1.0]), torch.tensor([[-2.0, 0.0]])
    assert torch.allclose(project(g, r), torch.tensor([0.0, 1.0]), atol=1e-7)
    assert project(g, -r) is g
    assert torch.allclose(project(g, r, 1.0), torch.tensor([-1.0, 1.0]))  # v = max(1/2, margin)


def prepared(make, tasks: int = 2, n: int = 7):
    model = network()
    baseline = make(Autograd(model))
    for t in range(tasks):
        baseline.end_task(*task(n, seed=t))
    x, y = task(seed=9)
    for name, g in baseline.gradients.gradient(x, y).items():
        baseline.gradients.parameters[name].grad = -g  # uphill, so that memories disagree
    return baseline, torch.cat([p.grad.flatten() for p in model.parameters()])


def flat(gradients: dict) -> torch.Tensor:
    return torch.cat([g.flatten() for g in gradients.values()])


def grad_of(baseline) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in baseline.gradients.parameters.values()])


def test_agem_with_all_samples_is_its_formula(rng):
    agem, g = prepared(lambda gradients: AGEM(gradients, 7, 100, rng))
    x, y = (torch.cat(part) for part in zip(task(7, 0), task(7, 1), strict=True))
    r = flat(agem.gradients.gradient(x, y))
    assert torch.dot(g, r) < 0
    agem.before_step()
    expected = g - torch.dot(g, r) / torch.dot(r, r) * r
    assert torch.allclose(grad_of(agem), expected, rtol=1e-9, atol=1e-12)
    agem.before_step()  # orthogonal by now: left as it is
    assert torch.allclose(grad_of(agem), expected, rtol=1e-9, atol=1e-12)


def test_gem_turns_grad_by_each_tasks_memory_under_its_own_cost(rng):
    model = network()
    gradients = Autograd(model)
    gem = GEM(gradients, 7, rng=rng)
    rows = []
    for t, name in enumerate(("mse", "cross_entropy")):
        gradients.cost = Autograd(model, name).cost
        x, y = task(7, seed=t)
        gem.end_task(x, y)
        rows.append(flat(gradients.gradient(x, y)))
    g = -rows[0] - 0.3 * rows[1]
    for p, piece in zip(model.parameters(), g.split([p.numel() for p in model.parameters()]), strict=True):
        p.grad = piece.view_as(p)
    gem.before_step()
    assert torch.allclose(grad_of(gem), project(g, torch.stack(rows)), rtol=1e-8, atol=1e-10)
    assert gradients.cost == Autograd(model).cost
    assert gem.stored_samples == 14
    assert gem.numbers_per_weight == 0


def test_before_the_first_task_the_gradient_is_left_alone(rng):
    for make in (lambda g: AGEM(g, 3, 2, rng), lambda g: GEM(g, 3, rng=rng)):
        baseline, g = prepared(make, tasks=0)
        baseline.before_step()
        baseline.after_step(0.1)
        assert torch.equal(grad_of(baseline), g)
        assert baseline.stored_samples == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda g, rng: GEM(g, 0, rng=rng), "samples_per_task = 0; choose a whole number of 1 or more"),
        (lambda g, rng: GEM(g, 3, -0.1, rng=rng), "margin = -0.1; choose a finite margin >= 0"),
        (lambda g, rng: AGEM(g, 3, 0, rng), "batch_size = 0; choose"),
        (lambda g, rng: AGEM(g, 3, 2, None), "rng = None; samples are drawn: give a torch.Generator"),
        (lambda g, rng: GEM(g, 8, rng=rng).end_task(*task(7)), "samples_per_task = 8 of a task of 7"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_range(make, message, rng):
    with pytest.raises(ValueError, match=message):
        make(Autograd(network()), rng)
