"""The features of held-back samples, from which confidences are computed anew after every task.

Some samples of each task are held back: the method is not trained on them. Their features are kept, not the samples. A
method that knows how features have drifted tells it (`Fit.tell_drift`), and they are moved along, so that samples of
all tasks can be classified by the method as it is now. Where it does not know, those of earlier tasks are dropped.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lamella.learner.store.state import taken
from lamella.methods import Method

__all__ = ["LIMIT", "HeldBack"]

LIMIT = 2000
"""About how many samples are kept in all. Every class keeps an equal number, and at least two."""
PREFIX = "held_back/"
NAMES = ("features", "labels", "tasks")


class HeldBack:
    """Features, classes and tasks of held-back samples.

    Args:
        prefix: how the names of its tensors begin in a stored state.

    Attributes:
        features: (n, d) float32.
        labels: (n,) int64 global class ids.
        tasks: (n,) int64 numbers of the tasks that they were held back from.
    """

    def __init__(self, prefix: str = PREFIX) -> None:
        self.prefix = prefix
        self.features = torch.zeros(0, 0)
        self.labels = torch.zeros(0, dtype=torch.int64)
        self.tasks = torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

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
            self._keep(torch.zeros(len(self), dtype=torch.bool))

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
        self._keep(_place_in_class(self.labels) < each)

    def forget(self, task: int) -> None:
        """Drop the samples of a task, and count later tasks one less."""
        self._keep(self.tasks != task)
        self.tasks = self.tasks - (self.tasks > task).long()

    def relabel(self, new_labels: Callable[[Tensor], Tensor]) -> None:
        """Replace the labels.

        Args:
            new_labels: labels (n,) -> new ones (n,). A sample whose new label is negative is dropped.
        """
        self.labels = new_labels(self.labels)
        self._keep(self.labels >= 0)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as a model's folder stores them; none if there are no samples."""
        own = (self.features, self.labels, self.tasks)
        return {self.prefix + name: tensor for name, tensor in zip(NAMES, own, strict=True)} if len(self) else {}

    @classmethod
    def taken_from(cls, state: dict[str, Tensor], prefix: str = PREFIX) -> "HeldBack":
        """Take the tensors of `tensors` out of a stored state.

        Args:
            state: tensors by name; those of held-back samples are removed from it.
            prefix: how their names begin.

        Raises:
            ValueError: they do not fit together.
        """
        found = cls(prefix)
        own = taken(state, prefix, NAMES)
        if own:
            found.features, found.labels, found.tasks = own
        if found.features.ndim != 2:
            raise ValueError("the features of 'held-back' are no table; restore the file from a copy")
        return found

    def _keep(self, which: Tensor) -> None:
        self.features, self.labels, self.tasks = self.features[which], self.labels[which], self.tasks[which]


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
