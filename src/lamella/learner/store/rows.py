"""Tensors with a row for each sample that a model knows of, beside the label and the task of each."""

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor

from lamella.learner.store.state import taken

__all__ = ["Rows"]


class Rows:
    """Tensors of equal length, one row for each sample.

    Args:
        prefix: how the names of the tensors begin in a stored state; None for that of the class.

    Attributes:
        labels: (n,) int64 global class ids.
        tasks: (n,) int64 numbers of the tasks.
    """

    names: ClassVar[tuple[str, ...]]
    """The attributes that hold the tensors, "labels" and "tasks" among them."""
    prefix: str

    labels: Tensor
    tasks: Tensor

    def __init__(self, prefix: str | None = None) -> None:
        if prefix is not None:
            self.prefix = prefix
        self.labels, self.tasks = (torch.zeros(0, dtype=torch.int64) for _ in range(2))

    def __len__(self) -> int:
        return len(self.labels)

    def forget(self, task: int) -> None:
        """Drop the samples of a task, and count later tasks one less."""
        self.keep(self.tasks != task)
        self.tasks = self.tasks - (self.tasks > task).long()

    def relabel(self, new_labels: Callable[[Tensor], Tensor]) -> None:
        """Replace the labels.

        Args:
            new_labels: labels (n,) -> new ones (n,). A sample whose new label is negative is dropped.
        """
        self.labels = new_labels(self.labels)
        self.keep(self.labels >= 0)

    def keep(self, which: Tensor) -> None:
        """Keep some samples only.

        Args:
            which: (n,) bool.
        """
        for name in self.names:
            setattr(self, name, getattr(self, name)[which])

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as a model's folder stores them; none if there are no samples."""
        return {self.prefix + name: getattr(self, name) for name in self.names} if len(self) else {}

    @classmethod
    def taken_from(cls, state: dict[str, Tensor], prefix: str | None = None) -> Self:
        """Take the tensors of `tensors` out of a stored state.

        Args:
            state: tensors by name; those of these rows are removed from it.
            prefix: as for the class.

        Raises:
            ValueError: they do not fit together.
        """
        rows = cls(prefix)
        for name, tensor in zip(rows.names, taken(state, rows.prefix, rows.names), strict=False):
            setattr(rows, name, tensor)
        return rows
