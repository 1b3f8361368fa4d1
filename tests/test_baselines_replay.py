"""Replay: how the buffer is divided, what is drawn, and what a step learns from it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits import CrossEntropy, SquaredError
from mep_sim.baselines import Autograd, Replay
from mep_sim.baselines.replay import equal_shares
from tests.test_baselines_gradients import assert_same, network, task

sizes_of_tasks = st.lists(st.integers(3, 30), min_size=1, max_size=5)


@given(total=st.integers(0, 100), sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_shares_are_as_equal_as_can_be(total, sizes):
    shares = equal_shares(total, sizes)
    assert sum(shares) == min(total, sum(sizes))
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    cut = [share for share, size in zip(shares, sizes, strict=True) if share < size]
    if cut:  # nobody has more than what a cut one got, but for what did not divide
        assert max(shares) <= min(cut) + 1


def filled(capacity: int, sizes: list[int], seed: int = 0, classes: int = 3) -> Replay:
    replay = Replay(Autograd(network()), capacity, 1, torch.Generator().manual_seed(seed))
    for t, n in enumerate(sizes):
        x, y = task(n, seed=t)
        y[:classes], x[:, 0], x[:, 1] = torch.arange(classes), t, torch.arange(n)  # every sample tells which
        replay.end_task(x, y)
    return replay


@settings(max_examples=25, deadline=None)
@given(sizes=sizes_of_tasks, spare=st.integers(0, 40), seed=st.integers(0, 99))
def test_the_buffer_is_divided_over_tasks_and_their_classes(sizes, spare, seed):
    capacity = 3 * len(sizes) + spare
    replay = filled(capacity, sizes, seed)
    assert sorted(map(len, replay.memory)) == sorted(equal_shares(capacity, sizes))
    for t, (stored, n) in enumerate(zip(replay.memory, sizes, strict=True)):
        y = task(n, seed=t)[1]
        y[:3] = torch.arange(3)
        index = stored.x[:, 1].long()
        assert bool((stored.x[:, 0] == t).all())
        assert len(index.unique()) == len(stored)  # none twice
        assert torch.equal(stored.y, y[index])  # with its own label
        expected = equal_shares(len(stored), y.bincount(minlength=3).tolist())
        assert sorted(stored.y.bincount(minlength=3)) == sorted(expected)


def test_samples_are_kept_with_equal_chance():
    """Of 12 alike samples, a task of one class, 4 are kept: 1/3 each, within 5 standard deviations of 600 draws."""
    counts = torch.zeros(12)
    for seed in range(300):
        replay = Replay(Autograd(network()), 8, 1, torch.Generator().manual_seed(seed))
        for _ in range(2):  # the second task thins the first
            x, _ = task(12)
            x[:, 1] = torch.arange(12)
            replay.end_task(x, torch.zeros(12, dtype=torch.int64))
        for stored in replay.memory:
            counts[stored.x[:, 1].long()] += 1
    assert ((counts - 200).abs() < 5 * (600 * 2 / 9) ** 0.5).all()


def test_a_step_mixes_its_gradient_with_the_memorys(rng):
    """All stored samples drawn: (1 - share) g + share times the mean over them, each task under its own cost."""
    gradients = Autograd(network())
    replay = Replay(gradients, 100, 100, rng, share=0.3)
    means = []
    for t, (n, c) in enumerate(((7, SquaredError()), (5, CrossEntropy()), (3, SquaredError()))):
        gradients.cost = c
        x, y = task(n, seed=t)
        replay.end_task(x, y)
        means.append((n, gradients.gradient(x, y)))
    gradients.cost = CrossEntropy()
    own = gradients.gradient(*task(seed=9))
    for name, g in own.items():
        gradients.parameters[name].grad = g.clone()
    replay.before_step()
    mixed = {n: 0.7 * g + 0.3 * sum(k * m[n] for k, m in means) / 15 for n, g in own.items()}
    assert_same({n: p.grad for n, p in gradients.parameters.items()}, mixed)
    assert gradients.cost == CrossEntropy()


def test_a_drawn_batch_is_unbiased(rng):
    """The mean gradient of all batches of 2 of 4 stored samples is that of the 4; within 5 standard errors."""
    gradients = Autograd(network())
    replay = Replay(gradients, 4, 2, rng)
    replay.end_task(*task(4, classes=1))
    batches = torch.stack([replay._drawn_gradient(2)["2.bias"] for _ in range(400)])
    expected = gradients.gradient(replay.memory[0].x, replay.memory[0].y)["2.bias"]
    assert ((batches.mean(0) - expected).abs() <= 5 * batches.std(0) / 20 + 1e-12).all()


def test_before_the_first_task_the_gradient_is_left_alone(rng):
    replay = Replay(Autograd(network()), 4, 2, rng)
    grads = [torch.ones_like(p) for p in replay.gradients.parameters.values()]
    for p, g in zip(replay.gradients.parameters.values(), grads, strict=True):
        p.grad = g
    replay.before_step()
    assert all(p.grad is g for p, g in zip(replay.gradients.parameters.values(), grads, strict=True))


def test_a_capacity_that_leaves_a_class_out_is_refused_and_the_named_one_does():
    with pytest.raises(
        ValueError,
        match="capacity = 8 for 3 tasks of up to 3 classes leaves a class without a sample; choose capacity >= 9",
    ):
        filled(8, [20, 20, 20])
    assert [sorted(stored.y.tolist()) for stored in filled(9, [20, 20, 20]).memory] == [[0, 1, 2]] * 3
    replay = filled(8, [20, 20])
    with pytest.raises(ValueError, match="capacity = 8"):
        replay.end_task(torch.zeros(9, 4), torch.arange(9) % 3)
    assert [len(stored) for stored in replay.memory] == [4, 4]  # nothing is lost


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacity": 0}, "capacity = 0; choose a whole number of 1 or more"),
        ({"batch_size": 0}, "batch_size = 0; choose"),
        ({"batch_size": 11}, "batch_size = 11 of a capacity of 10; draw at most as many"),
        ({"share": 0.0}, "share = 0.0; choose 0 < share < 1"),
        ({"share": 1.0}, "share = 1.0; choose"),
        ({"rng": None}, "rng = None; samples are drawn"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_range(settings, message, rng):
    with pytest.raises(ValueError, match=message):
        Replay(Autograd(network()), **{"capacity": 10, "batch_size": 5, "rng": rng, **settings})
