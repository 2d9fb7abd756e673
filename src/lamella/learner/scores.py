"""How many test images of a task a method gets right: counts, from which every accuracy follows."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lamella.backbones.feature_cache import Recall
from lamella.learner.correctness import correct, correct_given_task, correct_task
from lamella.methods import Method
from lamella.training.fit import Examples, Fit

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
    method: Method, fit: Fit, data: Examples, task_classes: Sequence[int], *, shared_classes: bool, name: str,
    recall: Recall | None = None,
) -> dict[str, Score]:  # fmt: skip
    """One pass over a task's test images; a score for each readout of the method.

    Args:
        method: learned at least the task's classes. data: labelled with global class ids.
        task_classes: global ids of the task's classes.
        shared_classes: whether other tasks have these classes too, so that a choice of task has no meaning.
        recall: of these images alone, read by earlier calls; without one no features outlast their batch.

    Returns:
        By readout, "" being the method's own prediction.
    """
    recall = recall or Recall(lasting=False)
    parts: dict[str, list[Tensor]] = defaultdict(list)
    parts_given: list[Tensor] = []

    def observe(x: Tensor, y: Tensor) -> None:  # leaves logits on their device, so that nothing waits for it
        recall.turn_to(x)
        for key, logits in method.readouts(x).items():
            parts[key].append(logits.float())
        if method.routed:  # given the task, it takes that task's expert, which is another pass
            parts_given.append(method.predict(x, tuple(task_classes)).float())

    with recall.reading(method.backbone):
        fit.scan(data, observe, name=name)
    column = {c: i for i, c in enumerate(method.classes)}
    target = torch.tensor([column[label] for label in data.labels.tolist()])
    own = [column[c] for c in task_classes if c in column]
    scores: dict[str, Score] = {}
    for key, found in parts.items():
        logits = torch.cat(found).cpu()
        given = torch.cat(parts_given).cpu() if method.routed and key == "" else logits
        right = [correct(logits, target), correct_given_task(given, target, own), correct_task(logits, own)]
        scores[key] = Score(len(target), *(int(r.sum()) for r in right))
    return {key: s._replace(right_task=-1) for key, s in scores.items()} if shared_classes else scores
