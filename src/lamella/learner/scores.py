"""How many test samples of a task a method gets right: counts, from which every accuracy follows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lamella.backbones.feature_cache import FeatureCache
from lamella.data.samples import Samples
from lamella.methods import Method
from lamella.methods.shared.heads import only_columns
from lamella.training.fit import Examples, Fit

__all__ = ["Score", "correct", "correct_given_task", "correct_task", "score_task"]


@dataclass(frozen=True)
class Score:
    """Counts over one task's test samples.

    Attributes:
        images: how many test images there are.
        right: how many are classified correctly among all classes seen.
        right_given_task: how many are classified correctly among the classes of their own task.
        right_task: for how many the predicted class belongs to their task; -1 if classes belong to several tasks.
    """

    images: int
    right: int
    right_given_task: int
    right_task: int

    @property
    def accuracy(self) -> float:
        """Share of samples whose class is right among all classes seen, 0..1."""
        return self.right / self.images

    @property
    def task_aware_accuracy(self) -> float:
        """The share of images classified correctly among the classes of their own task, 0..1."""
        return self.right_given_task / self.images


def score_task(
    method: Method,
    fit: Fit,
    data: Examples,
    task_classes: Sequence[int],
    *,
    shared_classes: bool,
    name: str,
    recall: FeatureCache | None = None,
    right: dict[str, Tensor] | None = None,
) -> dict[str, Score]:
    """One pass over a task's test samples; a score for each readout of the method.

    Args:
        method: has learned at least the classes of the task.
        fit: the loop whose pass reads the samples.
        data: the samples, labelled with global class ids.
        task_classes: the global ids of the task's classes.
        shared_classes: whether other tasks have these classes too, so that a choice of task has no meaning.
        name: the name of the pass.
        recall: keeps the features of these samples from earlier calls. Without it, no feature is kept.
        right: receives by readout which samples are classified correctly: (2, n) bool in the order of the data, among
            all classes seen, and among those of their own task.

    Returns:
        The score of each readout by name. The name of the method's own prediction is "".
    """
    recall = recall or FeatureCache(lasting=False)
    given_task = "the task given"

    def compute(x: Samples) -> dict[str, Tensor]:  # leaves logits on their device, so that nothing waits for it
        recall.turn_to(x)
        found = {key: logits.float() for key, logits in method.readouts(x).items()}
        # With a given task, a routed method uses the expert of that task, which needs another pass.
        return found | ({given_task: method.predict(x, tuple(task_classes)).float()} if method.routed else {})

    with recall.reading(method.backbone):
        found = {key: logits.cpu() for key, logits in fit.outputs(data, compute, name=name).items()}
    aware = found.pop(given_task, None)
    column = {c: i for i, c in enumerate(method.classes)}
    target = torch.tensor([column[label] for label in data.labels.tolist()])
    own = [column[c] for c in task_classes if c in column]
    scores: dict[str, Score] = {}
    for key, logits in found.items():
        given = logits if aware is None or key else aware
        counted = [correct(logits, target), correct_given_task(given, target, own), correct_task(logits, own)]
        scores[key] = Score(len(target), *(int(r.sum()) for r in counted))
        if right is not None:
            right[key] = torch.stack(counted[:2])
    return {key: replace(s, right_task=-1) for key, s in scores.items()} if shared_classes else scores


def correct(logits: Tensor, target: Tensor) -> Tensor:
    """Tell for each sample whether the highest logit is that of its class.

    Args:
        logits: `(n, columns)`.
        target: `(n,)` int64, the column of each sample's class.

    Returns:
        `(n,)` bool.

    Raises:
        ValueError: the shapes do not match.

    >>> correct(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])).tolist()
    [True, False]
    """
    _check_rows(logits, target)
    return logits.argmax(dim=1) == target


def correct_given_task(logits: Tensor, target: Tensor, task_columns: Sequence[int]) -> Tensor:
    """Tell for each sample whether the highest logit among the columns of its own task is that of its class.

    Compared with plain accuracy, this separates confusion between tasks from confusion within a task.

    Args:
        logits: `(n, columns)`.
        target: `(n,)` int64, the column of each sample's class.
        task_columns: the columns of the task that all samples are from.

    Returns:
        `(n,)` bool.

    Raises:
        ValueError: the shapes do not match, or a sample's class is not among the columns of its task.

    >>> logits = torch.tensor([[9.0, 1.0, 2.0], [9.0, 2.0, 1.0]])
    >>> correct_given_task(logits, torch.tensor([2, 2]), [1, 2]).tolist()
    [True, False]
    """
    _check_rows(logits, target)
    if strangers := set(target.tolist()) - set(task_columns):
        raise ValueError(f"columns {sorted(strangers)} of some samples are not among their task's {list(task_columns)}")
    return only_columns(logits, range(logits.shape[1]), task_columns).argmax(dim=1) == target


def correct_task(logits: Tensor, task_columns: Sequence[int]) -> Tensor:
    """Tell for each sample whether the column with the highest logit belongs to the task.

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
