"""Which samples are right, against values worked out by hand and properties that hold for any logits."""

import doctest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.learner import scores as correctness
from lamella.learner.scores import correct, correct_given_task, correct_task

# Columns 0 and 1 are task 0, columns 2 and 3 task 1.
LOGITS = torch.tensor([[5.0, 1.0, 0.0, 9.0], [5.0, 1.0, 0.0, 0.0], [0.0, 1.0, 7.0, 8.0], [0.0, 1.0, 7.0, 0.0]])


def test_doctests_hold() -> None:
    assert doctest.testmod(correctness).attempted > 2


def test_values_worked_out_by_hand() -> None:
    assert correct(LOGITS, torch.tensor([0, 0, 2, 2])).tolist() == [False, True, False, True]
    assert correct_given_task(LOGITS[:2], torch.tensor([0, 0]), [0, 1]).tolist() == [True, True]
    assert correct_given_task(LOGITS[2:], torch.tensor([2, 2]), [2, 3]).tolist() == [False, True]
    assert correct_task(LOGITS, [0, 1]).tolist() == [False, True, False, False]
    assert correct_task(LOGITS, [2, 3]).tolist() == [True, False, True, True]


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=25, deadline=None)
def test_what_is_right_is_right_given_the_task_and_of_the_right_task(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits, target = torch.randn(20, 6, generator=draw), torch.randint(2, 4, (20,), generator=draw)
    right, given_task, of_task = (
        correct(logits, target),
        correct_given_task(logits, target, [2, 3]),
        correct_task(logits, [2, 3]),
    )
    assert torch.equal(right, given_task & of_task)


def test_wrong_shapes_and_foreign_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="target"):
        correct(torch.zeros(2, 3), torch.tensor([0]))
    with pytest.raises(ValueError, match="not among their task"):
        correct_given_task(torch.zeros(2, 3), torch.tensor([0, 1]), [1, 2])
