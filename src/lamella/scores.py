"""How many test images of a task a method gets right: counts, from which every accuracy follows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lamella.fit import Examples, Fit
from lamella.heads import only_columns

__all__ = ["Score", "score_task"]


class Score(NamedTuple):
    """Counts over one task's test images.

    Attributes:
        images: how many. right: top-1 over all classes seen.
        right_given_task: top-1 among the task's own classes only.
        right_task: top-1 class belongs to the task; -1 where classes belong to several tasks.
    """

    images: int
    right: int
    right_given_task: int
    right_task: int

    @property
    def accuracy(self) -> float:
        """Share of images whose class is right among all classes seen, 0..1."""
        return self.right / self.images

    @property
    def task_aware_accuracy(self) -> float:
        """The same when the task is given."""
        return self.right_given_task / self.images


def score_task(
    method: Any, fit: Fit, data: Examples, task_classes: Sequence[int], *, shared_classes: bool, name: str
) -> dict[str, Score]:
    """One pass over a task's test images; a score for each readout of the method.

    Args:
        method: learned at least the task's classes. data: labelled with global class ids.
        task_classes: global ids of the task's classes.
        shared_classes: whether other tasks have these classes too, so that a choice of task has no meaning.

    Returns:
        By readout, "" being the method's own prediction.
    """
    readouts: Callable[[Tensor], Mapping[str, Tensor]] = getattr(method, "readouts", None) or (
        lambda x: {"": method.predict(x)}
    )
    column = {c: i for i, c in enumerate(method.classes)}
    lookup = torch.full((max(column) + 1,), -1)
    lookup[list(column)] = torch.tensor(list(column.values()))
    own = torch.tensor([c in set(task_classes) for c in method.classes])
    totals: dict[str, Tensor] = {}

    def observe(x: Tensor, y: Tensor) -> None:
        target = lookup[y.cpu()]
        for key, logits in readouts(x).items():
            logits = logits.float().cpu()
            top = logits.argmax(1)
            given = only_columns(logits, method.classes, task_classes).argmax(1)
            counts = torch.tensor(
                [len(y), int((top == target).sum()), int((given == target).sum()), int(own[top].sum())]
            )
            totals[key] = totals.get(key, torch.zeros(4, dtype=torch.int64)) + counts

    fit.scan(data, observe, name=name)
    scores = {key: Score(*(int(c) for c in counts)) for key, counts in totals.items()}
    return {key: s._replace(right_task=-1) for key, s in scores.items()} if shared_classes else scores
