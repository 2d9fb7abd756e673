"""Which samples a model has learned from or held back: a digest of the content of each, not the samples themselves.

So samples that come again, under whatever file name, are noticed before they count twice, and an evaluation can leave
out those that the model was trained on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lamella.learner.store.rows import Rows

__all__ = ["Seen"]


class Seen(Rows):
    """The digests of the samples of all tasks.

    Attributes:
        digests: (n,) int64; see `data.keeping.Readable`.
        trained: (n,) bool, whether the model was trained on the sample; the others were held back.
    """

    names = ("digests", "labels", "tasks", "trained")
    prefix = "seen/"

    def __init__(self, prefix: str | None = None) -> None:
        super().__init__(prefix)
        self.digests = torch.zeros(0, dtype=torch.int64)
        self.trained = torch.zeros(0, dtype=torch.bool)

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

    def held_back(self) -> set[int]:
        """Return the digests of all samples that were held back."""
        return set(self.digests[~self.trained].tolist())

    def trained_on(self) -> set[int]:
        """Return the digests of all samples that the model was trained on."""
        return set(self.digests[self.trained].tolist())
