"""Which samples a model has learned from or held back: a digest of the content of each, not the samples themselves.

So samples that come again, under whatever file name, are noticed before they count twice, and an evaluation can leave
out those that the model was trained on.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lamella.learner.store.state import taken

__all__ = ["Seen"]

PREFIX = "seen/"
NAMES = ("digests", "labels", "tasks", "trained")


class Seen:
    """The digests of the samples of all tasks.

    Attributes:
        digests: (n,) int64; see `data.keeping.Readable`.
        labels: (n,) int64 global class ids.
        tasks: (n,) int64 numbers of the tasks.
        trained: (n,) bool, whether the model was trained on the sample; the others were held back.
    """

    def __init__(self) -> None:
        self.digests, self.labels, self.tasks = (torch.zeros(0, dtype=torch.int64) for _ in range(3))
        self.trained = torch.zeros(0, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.digests)

    def add(self, digests: Sequence[int], labels: Tensor, task: int, *, trained: bool) -> None:
        """Add samples of a task.

        Args:
            digests: one for each of n samples.
            labels: (n,) global class ids.
            task: the number of the task.
            trained: whether the model was trained on them.
        """
        n = len(digests)
        self.digests = torch.cat([self.digests, torch.tensor(digests, dtype=torch.int64)])
        self.labels = torch.cat([self.labels, labels.cpu().long()])
        self.tasks = torch.cat([self.tasks, torch.full((n,), task)])
        self.trained = torch.cat([self.trained, torch.full((n,), trained)])

    def newest_tasks(self) -> dict[tuple[int, int], int]:
        """Return the number of the newest task with each pair of a digest and a global class id."""
        columns = (self.digests.tolist(), self.labels.tolist(), self.tasks.tolist())
        return {(digest, label): task for digest, label, task in zip(*columns, strict=True)}

    def trained_on(self) -> set[int]:
        """Return the digests of all samples that the model was trained on."""
        return set(self.digests[self.trained].tolist())

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
        return {PREFIX + name: own for name, own in zip(NAMES, self._all(), strict=True)} if len(self) else {}

    @classmethod
    def taken_from(cls, state: dict[str, Tensor]) -> "Seen":
        """Take the tensors of `tensors` out of a stored state.

        Args:
            state: tensors by name; those of this class are removed from it.

        Raises:
            ValueError: they do not fit together.
        """
        seen = cls()
        own = taken(state, PREFIX, NAMES)
        if own:
            seen.digests, seen.labels, seen.tasks, seen.trained = own
        return seen

    def _keep(self, which: Tensor) -> None:
        self.digests, self.labels, self.tasks, self.trained = (own[which] for own in self._all())

    def _all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.digests, self.labels, self.tasks, self.trained
