"""Accuracies of continual learning: worked by hand, and what must hold of every matrix."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mep_sim.continual import AccuracyMatrix

few = settings(max_examples=60, deadline=None)
shares = st.floats(0, 1)
matrices = st.integers(2, 6).flatmap(
    lambda tasks: st.builds(
        AccuracyMatrix,
        arrays(float, (tasks, tasks), elements=shares),
        arrays(float, (tasks,), elements=shares),
    )
)


def test_three_tasks_by_hand():
    found = AccuracyMatrix([[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.5, 0.4, 0.7]], [0.1, 0.15, 0.05])
    assert found.tasks == 3
    assert found.average == pytest.approx((0.5 + 0.4 + 0.7) / 3)
    assert found.learning == pytest.approx((0.9 + 0.8 + 0.7) / 3)
    assert [found.average_after(i) for i in range(3)] == pytest.approx([0.9, 0.7, 1.6 / 3])
    assert found.forgetting == pytest.approx(((0.9 - 0.5) + (0.8 - 0.4)) / 2)
    assert found.backward == pytest.approx(((0.5 - 0.9) + (0.4 - 0.8)) / 2)
    assert found.forward == pytest.approx(((0.2 - 0.15) + (0.3 - 0.05)) / 2)


def test_forgetting_counts_from_the_best_and_not_from_the_diagonal():
    """Task 0 gains .1 while task 1 is learned and loses .3 after: forgotten .3, backward transfer -.2."""
    found = AccuracyMatrix([[0.6, 0, 0], [0.7, 0.5, 0], [0.4, 0.5, 0.5]], [0, 0, 0])
    assert found.forgetting == pytest.approx((0.3 + 0) / 2)
    assert found.backward == pytest.approx((-0.2 + 0) / 2)


def test_one_task_leaves_transfer_and_forgetting_undefined():
    found = AccuracyMatrix([[0.8]], [0.1])
    assert (found.average, found.learning, found.average_after(0)) == (0.8, 0.8, 0.8)
    assert all(math.isnan(value) for value in (found.forgetting, found.backward, found.forward))


@few
@given(tasks=st.integers(2, 6), share=shares)
def test_a_constant_matrix_forgets_and_transfers_nothing(tasks, share):
    found = AccuracyMatrix(np.full((tasks, tasks), share), np.full(tasks, share))
    assert (found.forgetting, found.backward, found.forward) == (0, 0, 0)
    assert found.average == pytest.approx(share)
    assert found.learning == pytest.approx(share)


@few
@given(matrices)
def test_what_is_forgotten_is_at_least_what_backward_transfer_lost(found):
    assert found.forgetting >= -found.backward - 1e-12


@few
@given(matrices)
def test_backward_transfer_is_minus_forgetting_where_the_diagonal_is_best(found):
    accuracy = found.accuracy.copy()
    np.fill_diagonal(accuracy, accuracy.max(0))
    best = AccuracyMatrix(accuracy, found.before)
    assert best.backward == pytest.approx(-best.forgetting, abs=1e-12)


@few
@given(matrices)
def test_the_end_is_what_was_learned_and_what_came_after(found):
    """T average = T learning + (T - 1) backward, the last task having no after."""
    tasks = found.tasks
    assert tasks * found.average == pytest.approx(
        tasks * found.learning + (tasks - 1) * found.backward, abs=1e-12
    )


def test_the_numbers_are_kept_from_change():
    given_ = np.eye(2)
    found = AccuracyMatrix(given_, [0, 0])
    given_[0, 0] = 0.5
    assert found.accuracy[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        found.accuracy[0, 0] = 0


@pytest.mark.parametrize(
    ("accuracy", "before", "message"),
    [
        ([[0.5, 0.5]], [0.1], r"shape \(1, 2\); give \(T, T\)"),
        ([0.5, 0.5], [0.1, 0.1], r"shape \(2,\); give \(T, T\)"),
        (np.zeros((0, 0)), [], r"T >= 1"),
        (np.eye(3), [0.1, 0.1], "one accuracy for each of 3 tasks"),
        ([[0.5, 97.0], [0, 0]], [0.1, 0.1], "accuracy 97; give shares from 0 to 1"),
        ([[0.5, math.nan], [0, 0]], [0.1, 0.1], "accuracy nan"),
        (np.eye(2), [0.1, -0.1], "before -0.1"),
    ],
)
def test_what_is_no_accuracy_matrix_is_refused(accuracy, before, message):
    with pytest.raises(ValueError, match=message):
        AccuracyMatrix(accuracy, before)


@pytest.mark.parametrize("task", [-1, 2])
def test_average_after_a_task_there_is_not(task):
    with pytest.raises(ValueError, match=f"task {task}; choose 0 to 1"):
        AccuracyMatrix(np.eye(2), [0, 0]).average_after(task)
