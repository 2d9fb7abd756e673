"""The features of held-back samples, from which confidences are computed anew after every task.

Some samples of each task are held back: the method is not trained on them. Their features are kept, not the samples. A
method that knows how features have drifted tells it (`Fit.tell_drift`), and they are moved along, so that samples of
all tasks can be classified by the method as it is now. Where it does not know, those of earlier tasks are dropped.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from lamella.learner.store.rows import Rows
from lamella.methods import Method

__all__ = ["LIMIT", "HeldBack"]

LIMIT = 2000
"""About how many samples are kept in all. Every class keeps an equal number, and at least two."""


class HeldBack(Rows):
    """Features, classes and tasks of held-back samples.

    Attributes:
        features: (n, d) float32.
    """

    names = ("features", "labels", "tasks")
    prefix = "held_back/"

    def __init__(self, prefix: str | None = None) -> None:
        super().__init__(prefix)
        self.features = torch.zeros(0, 0)

    @classmethod
    def taken_from(cls, state: dict[str, Tensor], prefix: str | None = None) -> Self:
        found = super().taken_from(state, prefix)
        if found.features.ndim != 2:
            raise ValueError("the features of 'held-back' are no table; restore the file from a copy")
        return found

    def follow(self, method: Method, drift: Callable[[Tensor], Tensor] | None) -> None:
        """Move the features as those of the method have moved in its last task; drop them where that is not known.

        Args:
            method: the method after the task.
            drift: what the method told of the drift of features; None if it told nothing.
        """
        if not len(self):
            return
        if drift is not None and method.by_features:
            self.features = drift(self.features.to(next(method.parameters()).device)).float().cpu()
        elif not (method.by_features and method.features_stay):
            self.keep(torch.zeros(len(self), dtype=torch.bool))

    def add(self, features: Tensor, labels: Tensor, task: int) -> None:
        """Add the samples of a task, and drop those beyond the limit.

        Args:
            features: (n, d).
            labels: (n,) global class ids.
            task: the number of the task.
        """
        features = features.float().cpu()
        self.features = torch.cat([self.features, features]) if len(self) else features
        self.labels = torch.cat([self.labels, labels.cpu()])
        self.tasks = torch.cat([self.tasks, torch.full((len(labels),), task)])
        each = max(LIMIT // len(self.labels.unique()), 2)
        self.keep(_place_in_class(self.labels) < each)


def _place_in_class(labels: Tensor) -> Tensor:
    """Return how many earlier samples have the same class, (n,).

    >>> _place_in_class(torch.tensor([5, 3, 5, 5]))
    tensor([0, 0, 1, 2])
    """
    same = torch.zeros_like(labels)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        same[members] = torch.arange(len(members))
    return same
