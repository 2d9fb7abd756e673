"""Metrics against hand-made values, their definitions, and properties that hold for any accuracy matrix."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lamella.experiments import metrics
from lamella.experiments.metrics import (
    accuracy_curve,
    average_accuracy,
    backward_transfer,
    final_accuracy,
    forgetting,
    forward_transfer,
)

NAN = float("nan")
# Three tasks; every expected number below is worked out by hand from this matrix.
R = np.array([[0.9, NAN, NAN], [0.5, 0.8, NAN], [0.6, 0.4, 0.7]])
JOINT = np.array([[NAN, NAN, NAN], [NAN, NAN, NAN], [0.9, 0.8, 0.7]])

fractions = st.floats(0, 1)


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    tasks = draw(st.integers(1, 6))
    full = draw(arrays(np.float64, (tasks, tasks), elements=fractions))
    return np.where(np.tri(tasks, dtype=bool), full, NAN)


def test_doctests_hold():
    result = doctest.testmod(metrics)
    assert result.attempted > 10
    assert result.failed == 0


def test_numbers_worked_out_by_hand():
    assert accuracy_curve(R) == pytest.approx([0.9, 0.65, 1.7 / 3])
    assert final_accuracy(R) == pytest.approx(1.7 / 3)
    assert average_accuracy(R) == pytest.approx((0.9 + 0.65 + 1.7 / 3) / 3)
    assert forgetting(R) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.4)) / 2)
    assert backward_transfer(R) == pytest.approx(((0.6 - 0.9) + (0.4 - 0.8)) / 2)


def test_weights_give_the_share_of_all_test_images():
    sizes = [10, 30, 60]
    assert final_accuracy(R, sizes) == pytest.approx((6 + 12 + 42) / 100)
    assert accuracy_curve(R, sizes)[1] == pytest.approx((5 + 24) / 40)
    assert final_accuracy([[0.5, NAN], [0.5, NAN]], [10, 0]) == 0.5


def test_forgetting_looks_at_the_best_not_at_the_first():
    rising = [[0.5, NAN, NAN], [0.9, 0.8, NAN], [0.7, 0.8, 0.9]]
    assert forgetting(rising) == pytest.approx(0.1)
    assert backward_transfer(rising) == pytest.approx(0.1)


def test_forward_transfer_needs_entries_above_the_diagonal():
    assert math.isnan(forward_transfer(R, 0.1))
    shared = [[0.9, 0.5, 0.3], [0.8, 0.9, 0.4], [0.8, 0.8, 0.9]]
    assert forward_transfer(shared, 0.1) == pytest.approx(((0.5 - 0.1) + (0.4 - 0.1)) / 2)
    assert forward_transfer(shared, [0.0, 0.5, 0.4]) == pytest.approx(0.0)


def test_joint_training_has_a_final_accuracy_only():
    assert final_accuracy(JOINT) == pytest.approx(0.8)
    for metric in (average_accuracy, forgetting, backward_transfer):
        assert math.isnan(metric(JOINT))


def test_a_single_task_forgets_nothing_and_transfers_nothing():
    single = [[0.7]]
    assert final_accuracy(single) == average_accuracy(single) == 0.7
    assert math.isnan(forgetting(single))
    assert math.isnan(backward_transfer(single))
    assert math.isnan(forward_transfer(single, 0.1))


@pytest.mark.parametrize(
    ("matrix", "weights", "match"),
    [
        ([[0.1, 0.2]], None, r"\(1, 2\)"),
        ([], None, "at least one task"),
        ([[72.0]], None, "divide percent by 100"),
        ([[0.5]], [1, 2], "one number per task"),
        ([[0.5]], [-1], "0 or more"),
    ],
)
def test_what_is_no_accuracy_matrix_is_refused(matrix, weights, match):
    with pytest.raises(ValueError, match=match):
        final_accuracy(matrix, weights)


def test_chance_of_another_length_is_refused():
    with pytest.raises(ValueError, match="one per task"):
        forward_transfer(R, [0.1, 0.2])


@given(matrices(), st.data())
@settings(max_examples=60, deadline=None)
def test_bounds(matrix: np.ndarray, data: st.DataObject):
    tasks = len(matrix)
    weights = data.draw(st.lists(st.integers(1, 50), min_size=tasks, max_size=tasks))
    low, high = np.nanmin(matrix) - 1e-12, np.nanmax(matrix) + 1e-12
    for value in (final_accuracy(matrix, weights), average_accuracy(matrix, weights), final_accuracy(matrix)):
        assert low <= value <= high
    if tasks > 1:
        assert -1 <= forgetting(matrix) <= 1
        # The best earlier accuracy is at least the one just after learning.
        assert forgetting(matrix) >= -backward_transfer(matrix) - 1e-12


@given(fractions, st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_a_constant_matrix_has_no_forgetting(value: float, tasks: int):
    constant = np.where(np.tri(tasks, dtype=bool), value, NAN)
    assert forgetting(constant) == pytest.approx(0, abs=1e-12)
    assert backward_transfer(constant) == pytest.approx(0, abs=1e-12)
    assert average_accuracy(constant) == pytest.approx(value)


@given(matrices(), st.data())
@settings(max_examples=40, deadline=None)
def test_final_accuracy_ignores_the_order_of_tasks(matrix: np.ndarray, data: st.DataObject):
    tasks = len(matrix)
    order = data.draw(st.permutations(range(tasks)))
    weights = np.array(data.draw(st.lists(st.integers(1, 50), min_size=tasks, max_size=tasks)))
    moved = matrix.copy()
    moved[-1] = matrix[-1, order]
    assert final_accuracy(moved, weights[order]) == pytest.approx(final_accuracy(matrix, weights))


@given(matrices(), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_equal_weights_are_no_weights(matrix: np.ndarray, size: int):
    assert average_accuracy(matrix, [size] * len(matrix)) == pytest.approx(average_accuracy(matrix))
