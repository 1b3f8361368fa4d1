"""Streams of tasks: what every view shows, in which order, how often, and what is refused."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.tasks import Joint, Task, check, permuted, rotated, split
from experiments.views import Rotation
from mep_sim.data import Dataset

few = settings(max_examples=40, deadline=None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def dataset(train=30, side=4, classes=6, dtype=torch.float64):
    """Images whose first pixel numbers them, all labels in turn; no two parts share a number."""

    def part(first, count):
        x = torch.rand(count, side**2, generator=generator(first), dtype=dtype)
        x[:, 0] = torch.arange(first, first + count)
        return x, torch.arange(count) % classes

    parts = (*part(0, train), *part(1000, 12), *part(2000, 18))
    return Dataset("made up", "made up", *parts, classes=classes)


def recorder(progress):
    """A view of nothing but the number of each image, that keeps the progress it was given."""

    def view(x, at):
        progress.append(at)
        return x[:, :1]

    return view


# -- tasks ----------------------------------------------------------------------------------------------


@few
@given(
    train=st.integers(1, 20), epochs=st.integers(1, 3), batch_size=st.integers(1, 8), seed=st.integers(0, 99)
)
def test_every_epoch_shows_each_image_once_while_progress_rises_evenly(train, epochs, batch_size, seed):
    progress, data = [], dataset(train)
    shown = list(Task("", data, recorder(progress)).batches(epochs, batch_size, generator(seed)))
    per_epoch = -(-train // batch_size)
    for epoch in range(epochs):
        batches = shown[epoch * per_epoch : (epoch + 1) * per_epoch]
        numbers = torch.cat([b.x[:, 0] for b in batches]).long()
        assert sorted(numbers.tolist()) == list(range(train))
        assert torch.equal(torch.cat([b.y for b in batches]), data.train_y[numbers])
    assert all(len(b.y) <= batch_size and b.classes is None for b in shown)
    expected = (torch.arange(epochs * train) + 0.5) / (epochs * train)
    assert torch.equal(torch.cat(progress), expected)


def test_epochs_differ_and_a_seed_repeats():
    task = Task("", dataset())

    def drawn(seed):
        return [b.x for b in task.batches(2, 30, generator(seed))]

    first, second = drawn(0)
    assert not torch.equal(first, second)
    assert torch.equal(torch.stack(drawn(0)), torch.stack(drawn(0)))


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_parts_are_shown_in_the_middle_of_the_task(name):
    progress, data = [], dataset()
    x, y = Task("", data, recorder(progress)).part(name)
    assert torch.equal(x, getattr(data, f"{name}_x")[:, :1])
    assert torch.equal(y, getattr(data, f"{name}_y"))
    assert torch.equal(progress[0], torch.full((len(y),), 0.5))


def test_a_validation_part_without_images_stays_empty():
    data = dataset()
    data = replace(data, validation_x=data.validation_x[:0], validation_y=data.validation_y[:0])
    for task in (*rotated(data, 2), *permuted(data, 2, generator())):
        x, y = task.part("validation")
        assert (x.shape, len(y)) == ((0, 16), 0)


# -- streams ----------------------------------------------------------------------------------------------


def test_permuted_tasks_share_the_images_and_reorder_all_pixels():
    data = dataset()
    first, *others = permuted(data, 4, generator())
    assert torch.equal(first.part("test")[0], data.test_x)
    orders = []
    for task in others:
        assert task.data is data
        x = torch.arange(16.0)[None]
        (order,) = task.view(x, torch.zeros(1)).long()
        assert sorted(order.tolist()) == list(range(16))
        for part in ("train", "test"):  # the same in every part and at any time
            assert torch.equal(task.part(part)[0], getattr(data, f"{part}_x")[:, order])
        assert torch.equal(task.view(x, torch.ones(1))[0].long(), order)
        orders.append(tuple(order.tolist()))
    assert len({tuple(range(16)), *orders}) == 4


@pytest.mark.parametrize("side", [4, 7])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3, -1])
def test_whole_quarter_turns_move_pixels_alone(side, quarters):
    x = torch.rand(3, side**2, generator=generator(), dtype=torch.float64)
    turned = Rotation(0, 180 * quarters, -1.0)(x, torch.full((3,), 0.5))
    expected = torch.rot90(x.view(3, side, side), quarters, (1, 2)).flatten(1)
    assert torch.allclose(turned, expected, atol=1e-5)  # float32's progress


def test_a_rotation_interpolates_bilinearly_and_brings_in_the_background():
    """A 2 x 2 image turned by 45 degrees: each pixel comes from sqrt(1/2) off the middle along an axis, where both
    neighbours count half, less the share of what lies outside."""
    a, b, c, d = 1.0, 2.0, 3.0, 5.0
    turned = Rotation(45, 45, -1.0)(torch.tensor([[a, b, c, d]], dtype=torch.float64), torch.zeros(1))
    inside = 1.5 - math.sqrt(0.5)  # of the pixels beside, the rest is background
    expected = [inside * (p + q) / 2 - (1 - inside) for p, q in ((a, b), (b, d), (a, c), (c, d))]
    # anticlockwise: the upper left comes from the top, the upper right from the right
    assert turned[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_each_image_turns_by_its_own_progress():
    x = torch.rand(1, 16, generator=generator(), dtype=torch.float64).expand(5, -1)
    progress = torch.linspace(0, 1, 5)
    together = Rotation(10, 130, 0.0)(x, progress)
    for row, at in zip(together, progress, strict=True):
        assert torch.allclose(
            row, Rotation(10 + 120 * at.item(), 0, 0.0)(x[:1], torch.zeros(1))[0], atol=1e-5
        )


def test_rotated_tasks_go_on_where_the_last_one_stopped():
    data = dataset()
    tasks = rotated(data, 4, 180.0)
    end, begin, x = torch.ones(18).double(), torch.zeros(18).double(), data.test_x
    for before, after in pairwise(tasks):
        assert torch.allclose(before.view(x, end), after.view(x, begin), atol=1e-4)
    assert torch.allclose(tasks[0].view(x, begin), x, atol=1e-5)
    assert torch.allclose(tasks[-1].view(x, end), x.flip(1), atol=1e-4)  # half a turn
    middle = Rotation(67.5, 67.5, data.train_x.min().item())(x, begin.float())
    assert torch.allclose(tasks[1].part("test")[0], middle, atol=1e-4)


def test_outside_of_a_rotated_image_is_the_least_training_value():
    data = dataset()
    data = replace(
        data, train_x=data.train_x - 0.5, test_x=torch.full_like(data.test_x, data.train_x.min() - 0.5)
    )
    (task,) = rotated(data, 1)
    assert torch.allclose(task.part("test")[0], data.test_x)  # background on background


@pytest.mark.parametrize("incremental", ["class", "task"])
@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_split_shares_every_image_once_by_its_class(tasks, incremental):
    data = dataset()
    stream = split(data, tasks, incremental)
    for part in ("train", "validation", "test"):
        numbers = torch.cat([task.part(part)[0][:, 0] for task in stream])
        assert sorted(numbers.tolist()) == getattr(data, f"{part}_x")[:, 0].tolist()
        for k, task in enumerate(stream):
            share = range(k * 6 // tasks, (k + 1) * 6 // tasks)
            assert set(task.part(part)[1].tolist()) == set(share)
            assert task.classes == (tuple(share) if incremental == "task" else None)
            assert task.data.classes == 6


# -- all at once ----------------------------------------------------------------------------------------


def test_joint_batches_mix_all_tasks_in_their_own_views():
    data, seen = dataset(), []
    views = [recorder(seen), lambda x, progress: -x[:, :1]]
    tasks = [Task("", data, views[0]), Task("", data.head(10), views[1])]
    batches = list(Joint(tasks).batches(3, 8, generator()))
    numbers = torch.cat([b.x[:, 0] for b in batches])
    assert [len(b.y) for b in batches].count(8) == 3 * (40 // 8)
    for epoch in numbers.split(40):
        assert sorted(epoch.tolist()) == sorted(
            [*(-data.train_x[:10, 0]).tolist(), *data.train_x[:, 0].tolist()]
        )
    for b in batches:
        assert torch.equal(b.y, data.train_y[b.x[:, 0].abs().long()])
        assert b.classes is None
    assert sum((b.x < 0).any() and (b.x > 0).any() for b in batches) > len(batches) / 2
    progress = torch.cat(seen)
    assert len(progress) == 90
    assert ((progress >= 0) & (progress < 1)).all()
    assert progress.mean().item() == pytest.approx(0.5, abs=4 / math.sqrt(12 * 90))


def test_joint_batches_of_known_tasks_hold_one_task_each_in_random_order():
    tasks = split(dataset(60), 3, "task")
    batches = list(Joint(tasks).batches(2, 4, generator()))
    assert sum(len(b.y) for b in batches) == 120
    for b in batches:
        assert set(b.y.tolist()) <= set(b.classes)
    order = [b.classes for b in batches]
    assert order != sorted(order)
    assert {classes: order.count(classes) for classes in order} == {task.classes: 10 for task in tasks}


# -- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stream",
    [lambda data, tasks: permuted(data, tasks, generator()), rotated, split],
    ids=["permuted", "rotated", "split"],
)
@pytest.mark.parametrize("tasks", [0, -1])
def test_streams_of_no_tasks(stream, tasks):
    with pytest.raises(ValueError, match=f"tasks = {tasks}; choose at least 1"):
        stream(dataset(), tasks)


def test_unequal_shares_name_the_divisors():
    with pytest.raises(
        ValueError, match=r"4 tasks cannot share 6 classes equally; choose one of \[1, 2, 3, 6\]"
    ):
        split(dataset(), 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: split(d, 2, "domain"), "incremental = 'domain'; choose 'class' or 'task'"),
        (lambda d: split(d, 6, "task"), r"class 0 allows \(0,\); choose at least two"),
        (lambda d: split(d.head(2), 3), "task classes 2 to 3 has no train samples"),
        (
            lambda d: split(replace(d, test_x=d.test_x[:2], test_y=d.test_y[:2]), 3),
            "classes 2 to 3 has no test",
        ),
        (lambda d: rotated(d.head(0), 2), "no training samples"),
        (lambda d: rotated(d, 2, math.inf), "degrees = inf; choose a finite angle"),
        (lambda d: rotated(replace(d, train_x=d.train_x[:, :15]), 2), "15 pixels are not square"),
        (lambda d: Task("odd", d, classes=(0, 1)), r"task odd allows \(0, 1\) and has labels \[2, 3, 4, 5\]"),
        (lambda d: Task("odd", d).part("train_x"), "part 'train_x'; choose 'train', 'validation' or 'test'"),
    ],
)
def test_what_is_no_task(make, message):
    with pytest.raises(ValueError, match=message):
        make(dataset())


@pytest.mark.parametrize("of", [lambda data: Task("", data), lambda data: Joint([Task("", data)])])
@pytest.mark.parametrize(
    ("epochs", "batch_size", "message"), [(0, 4, "epochs = 0"), (1, 0, "batch_size = 0")]
)
def test_passes_are_checked_at_the_call(of, epochs, batch_size, message):
    with pytest.raises(ValueError, match=f"{message}; choose at least 1"):
        of(dataset()).batches(epochs, batch_size, generator())


def test_tasks_of_different_networks():
    with pytest.raises(ValueError, match="no tasks; give at least one"):
        check([])
    first = Task("first", dataset())
    for other, message in (
        (dataset(side=3), "9 features and first 16"),
        (dataset(classes=3), "3 classes and first 6"),
    ):
        with pytest.raises(ValueError, match=f"task other has {message}"):
            Joint([first, Task("other", other)])
    check([first, Task("other", dataset(train=7))])
