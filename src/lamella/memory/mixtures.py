"""Class statistics with several means a class, for classes whose images come in kinds that look unlike each other."""

import torch
from torch import Tensor

from lamella.common.clusters import cluster_centres
from lamella.common.randomness import named_seed
from lamella.memory.gaussians import ClassGaussians

__all__ = ["ClassMixtures"]


class ClassMixtures(ClassGaussians):
    """Gaussians of which several may belong to one class: a class is as likely as the nearest of its own.

    Every time that images of a class come, their features are parted by k-means, and each part gets a Gaussian. So a
    class that comes back in another domain is not a mean between two domains.

    Args:
        width: d, the number of features.
        per_class: whether each Gaussian has its own scatter besides the shared one.
        directions: how many directions of its covariance each Gaussian keeps then; None keeps whole scatters.
        means: how many Gaussians a class gets each time that images of it come; at least 1. With fewer images than
            that, each image is one.
        seed: of k-means.

    Attributes:
        ids: (c,) int64 the class of each Gaussian; the other attributes have a row for each Gaussian too.
    """

    def __init__(
        self, width: int, *, per_class: bool = False, directions: int | None = None, means: int = 1, seed: int = 0
    ) -> None:
        super().__init__(width, per_class=per_class, directions=directions)
        self.count, self.seed = means, seed

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes, in the order in which they first came."""
        return tuple(dict.fromkeys(super().classes))

    def _add_class(self, label: int, x: Tensor) -> None:
        for part in self._parts(label, x):
            self._append(label, part)

    def _parts(self, label: int, x: Tensor) -> list[Tensor]:
        """Part features (n, d) by k-means."""
        if self.count == 1:
            return [x]
        centres = cluster_centres(x, min(self.count, len(x)), named_seed(self.seed, "means", label, len(self.ids)))
        nearest = torch.cdist(x, centres).argmin(1)
        return [x[nearest == i] for i in nearest.unique().tolist()]

    def linear_discriminant(self, features: Tensor, shrinkage: float) -> Tensor:
        return self._of_classes(super().linear_discriminant(features, shrinkage))

    def quadratic_discriminant(
        self, features: Tensor, shrinkage: float, own: float, prior: float | None = None
    ) -> Tensor:
        return self._of_classes(super().quadratic_discriminant(features, shrinkage, own, prior))

    def _of_classes(self, scores: Tensor) -> Tensor:
        """Return the highest score of each class, (n, classes), of scores (n, c) of all Gaussians."""
        columns, _ = self._kept(self._columns)
        lowest = scores.new_full((len(scores), len(self.classes)), float("-inf"))
        return lowest.scatter_reduce(1, columns.expand_as(scores), scores, "amax")

    def _columns(self) -> tuple[Tensor, Tensor]:
        """Return the column (c,) of each Gaussian's class, twice, since what is kept are pairs."""
        known = self.classes
        columns = torch.tensor([known.index(label) for label in self.known("ids")], device=self.ids.device)
        return columns, columns

    @torch.no_grad()
    def merge(self, source: int, target: int) -> None:
        """Give all Gaussians of one class to another one."""
        self._solved = {}
        self.ids[self.ids == source] = target

    def take_out(self, features: Tensor, labels: Tensor, right: Tensor | None = None) -> None:
        raise ValueError(
            "classes were parted by k-means of all their samples, so nothing can be taken out of the parts"
        )

    def _remove_class(self, label: int) -> None:
        self._keep((self.ids != label).nonzero()[:, 0])
