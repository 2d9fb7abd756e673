"""What a model would know without training: class means and a linear discriminant of the untouched backbone's features.

Both take in every task beside the method, from the same samples, and are measured on the same held-back samples. So a
user sees after each task whether training has paid.
"""

from dataclasses import dataclass

from torch import Tensor

from lamella.learner.held_back import HeldBack
from lamella.learner.store.state import taken
from lamella.memory.gaussians import ClassGaussians
from lamella.methods.shared.heads import cosine_scores

__all__ = ["Beside", "Reference"]

PREFIX, HELD = "reference/", "reference_held_back/"
SHRINKAGE = 0.1
NAMES = ("ids", "counts", "means")


@dataclass(frozen=True)
class Beside:
    """How many of the held-back samples of all tasks are classified correctly.

    Attributes:
        images: how many there are.
        learned: how many the model classifies correctly.
        class_means: how many the nearest class mean classifies correctly, by the cosine of untouched features.
        discriminant: the same for a linear discriminant with one shared covariance.
    """

    images: int
    learned: int
    class_means: int
    discriminant: int

    @property
    def pays(self) -> bool:
        """Whether the model is better than both."""
        return self.learned > max(self.class_means, self.discriminant)


class Reference:
    """Class statistics and held-back samples in the features of the untouched backbone.

    Attributes:
        statistics: those of the training samples of all tasks; None before the first.
        held_back: the features of held-back samples of all tasks.
    """

    def __init__(self) -> None:
        self.statistics: ClassGaussians | None = None
        self.held_back = HeldBack(HELD)

    def add(self, features: Tensor, labels: Tensor, classes: tuple[int, ...]) -> None:
        """Take in the training samples of a task.

        Args:
            features: (n, d) untouched features.
            labels: (n,) global class ids.
            classes: the global ids of the task's classes.
        """
        if self.statistics is None:
            self.statistics = ClassGaussians(features.shape[1])
        self.statistics.add(features.cpu(), labels.cpu(), classes)

    def count(self) -> tuple[int, int]:
        """Return how many held-back samples the class means and the discriminant classify correctly."""
        x, y = self.held_back.features, self.held_back.labels
        if self.statistics is None or not len(y):
            return 0, 0
        scores = (
            cosine_scores(x, self.statistics.means.float()),
            self.statistics.linear_discriminant(x, SHRINKAGE),
        )
        means, discriminant = (int((self.statistics.ids[own.argmax(1)] == y).sum()) for own in scores)
        return means, discriminant

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as a model's folder stores them; none before the first task."""
        if self.statistics is None:
            return {}
        own = {PREFIX + name: getattr(self.statistics, name) for name in NAMES}
        return own | {f"{PREFIX}scatter": self.statistics.scatter} | self.held_back.tensors()

    @classmethod
    def taken_from(cls, state: dict[str, Tensor]) -> "Reference":
        """Take the tensors of `tensors` out of a stored state.

        Args:
            state: tensors by name; those of this class are removed from it.

        Raises:
            ValueError: they do not fit together.
        """
        found = cls()
        scatter = state.pop(f"{PREFIX}scatter", None)
        rows = taken(state, PREFIX, NAMES)
        found.held_back = HeldBack.taken_from(state, HELD)
        if scatter is None or not rows:
            return found
        if rows[2].ndim != 2 or scatter.shape != (rows[2].shape[1],) * 2:
            raise ValueError("the tensors of 'reference' have sizes that do not fit; restore the file from a copy")
        found.statistics = ClassGaussians(rows[2].shape[1])
        found.statistics.ids, found.statistics.counts, found.statistics.means = rows
        found.statistics.scatter = scatter
        return found
