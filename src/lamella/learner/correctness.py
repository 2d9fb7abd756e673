"""Which samples a method gets right: pure functions of its logits, whose means are the accuracies of `metrics.py`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lamella.methods.shared.heads import only_columns

__all__ = ["correct", "correct_given_task", "correct_task"]


def correct(logits: Tensor, target: Tensor) -> Tensor:
    """Whether the highest logit is the target's.

    Args:
        logits: `(n, columns)`.
        target: `(n,)` int64, the column of each sample's class.

    Returns:
        `(n,)` bool.

    Raises:
        ValueError: the shapes do not fit.

    >>> correct(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])).tolist()
    [True, False]
    """
    _check_rows(logits, target)
    return logits.argmax(dim=1) == target


def correct_given_task(logits: Tensor, target: Tensor, task_columns: Sequence[int]) -> Tensor:
    """The same when the task is given: only the columns of the samples' own task compete.

    Beside plain accuracy it tells confusion between tasks from confusion within one.

    Args:
        logits: `(n, columns)`.
        target: `(n,)` int64, the column of each sample's class.
        task_columns: the columns of the task that all samples are from.

    Returns:
        `(n,)` bool.

    Raises:
        ValueError: the shapes do not fit, or a sample's class is not among the columns of its task.

    >>> logits = torch.tensor([[9.0, 1.0, 2.0], [9.0, 2.0, 1.0]])
    >>> correct_given_task(logits, torch.tensor([2, 2]), [1, 2]).tolist()
    [True, False]
    """
    _check_rows(logits, target)
    if strangers := set(target.tolist()) - set(task_columns):
        raise ValueError(f"columns {sorted(strangers)} of some samples are not among their task's {list(task_columns)}")
    return only_columns(logits, range(logits.shape[1]), task_columns).argmax(dim=1) == target


def correct_task(logits: Tensor, task_columns: Sequence[int]) -> Tensor:
    """Whether the top class belongs to the task, be it the right class or not.

    Args:
        logits: `(n, columns)`.
        task_columns: the columns of the task that all samples are from.

    Returns:
        `(n,)` bool.

    >>> correct_task(torch.tensor([[0.0, 5.0, 1.0], [0.0, 5.0, 9.0]]), [0, 1]).tolist()
    [True, False]
    """
    return torch.isin(logits.argmax(dim=1), torch.tensor(list(task_columns), device=logits.device))


def _check_rows(logits: Tensor, target: Tensor) -> None:
    if logits.ndim != 2 or target.shape != logits.shape[:1]:
        shapes = f"{tuple(logits.shape)} and {tuple(target.shape)}"
        raise ValueError(f"logits are (n, columns) and target is (n,), but the shapes are {shapes}")
