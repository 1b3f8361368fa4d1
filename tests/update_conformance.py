"""Checks that every update rule must pass, and what tests of update rules share.

@pytest.mark.parametrize("check", ALL_CHECKS)
def test_my_rule(check):
    check(MyUpdate(...), seed=0)
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mep_sim.optimizers import UpdateStrategy
from tests.device_conformance import generator

SHAPES = [(12, 12), (30, 12), (12, 30)]
KERNEL = (5, 3, 2, 2)


def gradients(shape, steps: int = 1, seed: int = 0, dtype=torch.float64) -> list[Tensor]:
    rng = generator(seed)
    return [torch.randn(shape, generator=rng, dtype=dtype) for _ in range(steps)]


def matrix(shape, sigma: Tensor, seed: int = 0) -> Tensor:
    """A float64 matrix with these singular values."""
    u, _, vh = torch.linalg.svd(gradients(shape, seed=seed)[0], full_matrices=False)
    return u * sigma @ vh


def polar(m: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(m, full_matrices=False)
    return u @ vh


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def learn(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    given_gradients: list[Tensor],
    start: Tensor | None = None,
) -> list[Tensor]:
    """The weight, from `start` (zero), after each step of the optimizer `make` makes on these gradients."""
    p = nn.Parameter(torch.zeros_like(given_gradients[0]) if start is None else start.clone())
    optimizer, path = make([p]), []
    for g in given_gradients:
        p.grad = g.clone()
        optimizer.step()
        path.append(p.detach().clone())
    return path


def directions(
    rule: UpdateStrategy, given_gradients: list[Tensor], state: dict, weight: Tensor
) -> list[Tensor]:
    return [rule.direction(g, state, weight)[0].clone() for g in given_gradients]


# -- the checks ----------------------------------------------------------------------------------------


def check_shapes(rule: UpdateStrategy, seed: int) -> None:
    """Direction and kept are finite, of the signal's shape and dtype; signal and weight stay as they are."""
    for shape in (*SHAPES, KERNEL):
        for dtype in (torch.float32, torch.float64):
            signal, weight = gradients(shape, 2, seed, dtype)
            before, state = (signal.clone(), weight.clone()), {}
            for _ in range(3):
                for result in rule.direction(signal, state, weight):
                    assert result.shape == signal.shape
                    assert result.dtype == dtype
                    assert result.isfinite().all()
            assert torch.equal(signal, before[0])
            assert torch.equal(weight, before[1])


def check_first_step_descends(rule: UpdateStrategy, seed: int) -> None:
    """Without weight decay the first direction has a positive product with the gradient."""
    rule = dataclasses.replace(rule, weight_decay=0.0)
    for shape in (*SHAPES, KERNEL):
        signal, weight = gradients(shape, 2, seed)
        direction, _ = rule.direction(signal, {}, weight)
        assert (direction * signal).sum() > 0


def check_no_signal_no_step(rule: UpdateStrategy, seed: int) -> None:
    """Not even by a rounding error, and the next signal finds the rule in order."""
    rule = dataclasses.replace(rule, weight_decay=0.0)
    for signal in gradients(SHAPES[1], 1, seed) + gradients(KERNEL, 1, seed):
        state: dict = {}
        still, _ = rule.direction(torch.zeros_like(signal), state, signal)
        assert torch.equal(still, torch.zeros_like(signal))
        direction, _ = rule.direction(signal, state, signal)
        assert direction.isfinite().all()
        assert (direction * signal).sum() > 0


def check_weight_decay(rule: UpdateStrategy, seed: int) -> None:
    """It adds weight_decay times the weight to the first direction."""
    signal, weight = gradients(SHAPES[1], 2, seed)
    plain, _ = dataclasses.replace(rule, weight_decay=0.0).direction(signal, {}, weight)
    with_decay, _ = dataclasses.replace(rule, weight_decay=0.3).direction(signal, {}, weight)
    assert torch.allclose(with_decay, plain + 0.3 * weight, rtol=1e-12, atol=1e-12)


def check_kernels_are_matrices(rule: UpdateStrategy, seed: int) -> None:
    """A kernel (out, ...) moves as the matrix (out, rest) does."""
    g, weight, states = gradients(KERNEL, 4, seed), gradients(KERNEL, 1, seed + 1)[0], ({}, {})
    as_kernels = directions(rule, g, states[0], weight)
    as_matrices = directions(rule, [x.flatten(1) for x in g], states[1], weight.flatten(1))
    for a, b in zip(as_kernels, as_matrices, strict=True):
        assert torch.allclose(a, b.reshape(KERNEL), rtol=1e-12, atol=1e-12)


def check_state_resumes(rule: UpdateStrategy, seed: int) -> None:
    """A copy of the state goes on bit for bit; it holds tensors and numbers only."""
    *g, weight = gradients(SHAPES[2], 7, seed)
    state: dict = {}
    directions(rule, g[:3], state, weight)
    assert all(isinstance(value, Tensor | int | float) for value in state.values())
    saved = copy.deepcopy(state)
    for a, b in zip(
        directions(rule, g[3:], state, weight), directions(rule, g[3:], saved, weight), strict=True
    ):
        assert torch.equal(a, b)


ALL_CHECKS = [
    check_shapes,
    check_first_step_descends,
    check_no_signal_no_step,
    check_weight_decay,
    check_kernels_are_matrices,
    check_state_resumes,
]
