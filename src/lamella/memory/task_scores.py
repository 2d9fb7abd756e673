"""What is kept of the features of each task, to tell later which task a sample is from.

    kept of a task                          score of task t for features f
    TaskCentres     cluster centres         minus the distance to its nearest centre
    TaskGaussians   class means, and one    log P(t | f): the sum of P(class | f) over its classes, all with the same
                    covariance for all      prior and the shrunk shared covariance
    TaskRegression  sums of products        the largest output among its classes of a ridge regression on h = relu(f W)

The regression: every class of every task has a column of targets, 1 for its samples and 0 for all others. With
G = sum_c E_c[h h^T] and Q = [E_1[h], E_2[h], ...] the outputs are h^T (G + l I)^-1 Q. E_c is the mean over the samples
of column c, so that a class with few samples counts as much as others, and l = ridge x the mean of G's diagonal. G and
Q are sums, so learning one task after the other gives what all data at once would give: this is recursive least squares
in its information form, which keeps G in place of the inverse and so does not add up rounding. The idea of such a
router is from NoFA-BC (arXiv 2605.29592, known to us by its abstract); all details are ours.

A class that comes back in a later task has its own centres, mean or column there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lamella.common.clusters import cluster_centres
from lamella.common.randomness import named_seed
from lamella.memory.gaussians import ClassGaussians
from lamella.memory.random_projections import RandomProjections, ridge_solution
from lamella.memory.resizable import Resizable

__all__ = ["TaskCentres", "TaskGaussians", "TaskRegression"]

SHRINKAGE = 0.1
RIDGE = 0.01
"""Both were chosen on held-back images of two sets of digits; see benchmarks/task_scores.py and docs/log.md."""


class _ByTask(Resizable):
    """What has entries, each of which belongs to a task.

    Attributes:
        tasks: (k,) int64, the task of each entry. Tasks are numbered from 0 in the order in which they are added.
    """

    tasks: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tasks", torch.zeros(0, dtype=torch.int64))

    @property
    def count(self) -> int:
        """The number of tasks."""
        return max(self.known("tasks"), default=-1) + 1

    def entries(self, task: int) -> list[int]:
        """Return the places of the entries of a task."""
        return [place for place, owner in enumerate(self.known("tasks")) if owner == task]

    def _extend(self, entries: int, device: torch.device) -> None:
        """Note that the next task has so many entries."""
        self.tasks = torch.cat([self.tasks, self.tasks.new_full((entries,), self.count)]).to(device)


class TaskCentres(_ByTask):
    """The cluster centres of every task.

    Args:
        width: d, the number of features.
        clusters: how many centres are kept of each task; at least 1. If left out, two for each of its classes.
        seed: the seed of the clusters.

    Attributes:
        centres: (k, d), the centres of all tasks.
        tasks: (k,) int64, the task that each centre belongs to.
    """

    resizable = ("centres", "tasks")

    centres: Tensor

    def __init__(self, width: int, clusters: int | None = None, seed: int = 0) -> None:
        super().__init__()
        self.clusters, self.seed = clusters, seed
        self.register_buffer("centres", torch.zeros(0, width))

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add the next task.

        Args:
            features: (n, d).
            labels: (n,) class ids.
        """
        count = self.clusters or 2 * len(labels.unique())
        self.append(cluster_centres(features, count, named_seed(self.seed, "clusters", self.count)))

    def append(self, centres: Tensor) -> None:
        """Append the centres (k, d) of the next task."""
        self._extend(len(centres), centres.device)
        self.centres = torch.cat([self.centres.to(centres), centres])

    def drop(self, number: int) -> None:
        """Remove the centres of a task; the numbers of later tasks fall by one."""
        kept = self.tasks != number
        self.centres, tasks = self.centres[kept], self.tasks[kept]
        self.tasks = tasks - (tasks > number).long()

    def clear(self) -> None:
        """Forget all tasks, so that they can be added again with new features."""
        self.centres, self.tasks = self.centres[:0], self.tasks[:0]

    def distances(self, features: Tensor) -> Tensor:
        """Return the (n, tasks) float64 distances of features (n, d) to the nearest centre of each task."""
        # In float64 and without a matrix product, since centres may be much nearer to each other than to the origin.
        far = torch.cdist(features.double(), self.centres.double(), compute_mode="donot_use_mm_for_euclid_dist")
        nearest = far.new_full((len(far), self.count), torch.inf)
        return nearest.scatter_reduce(1, self.tasks.expand(len(far), -1), far, "amin")

    def scores(self, features: Tensor) -> Tensor:
        """Return (n, tasks) float64 scores of features (n, d): the negative distances."""
        return -self.distances(features)


class TaskGaussians(_ByTask):
    """A Gaussian for each class of each task, all with one covariance.

    Args:
        width: d, the number of features.
        shrinkage: the share of the covariance that is replaced by a multiple of the identity; above 0, at most 1.

    Attributes:
        tasks: (c,) int64, the task of each Gaussian.
        gaussians: counts, means and the shared scatter; the ids are the places in `tasks`.
    """

    resizable = ("tasks",)

    def __init__(self, width: int, shrinkage: float = SHRINKAGE) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.gaussians = ClassGaussians(width)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add the next task.

        Args:
            features: (n, d).
            labels: (n,) class ids.
        """
        first = len(self.tasks)
        own, places = labels.to(features.device).unique(return_inverse=True)
        self.gaussians.add(features, places + first, range(first, first + len(own)))
        self._extend(len(own), features.device)

    def clear(self) -> None:
        """Forget all tasks, so that they can be added again with new features."""
        self.tasks = self.tasks[:0]
        self.gaussians = ClassGaussians(self.gaussians.means.shape[1]).to(self.tasks.device)

    def scores(self, features: Tensor) -> Tensor:
        """Return (n, tasks) scores log P(task), in float64, of features (n, d)."""
        log_p = self.gaussians.linear_discriminant(features.double(), self.shrinkage).log_softmax(1)
        return torch.stack([log_p[:, self.entries(t)].logsumexp(1) for t in range(self.count)], 1)


class TaskRegression(RandomProjections, _ByTask):
    """A ridge regression on random non-linear projections of features, with a column for each class of each task.

    Args:
        width: d, the number of features.
        projections: M, the number of random projections; at least 0. With 0 the regression is on the features
            themselves and a constant.
        generator: draws the projections.
        ridge: l as a share of the mean of G's diagonal; above 0.

    Attributes:
        tasks: (c,) int64, the task of each column.
        G: (M, M) float64, or (d + 1, d + 1) without projections.
        Q: (M, c) float64.
        solution: (M, c) float64, (G + l I)^-1 Q.
    """

    resizable = ("tasks", "Q", "solution")

    G: Tensor
    Q: Tensor
    solution: Tensor

    def __init__(self, width: int, projections: int, generator: torch.Generator, ridge: float = RIDGE) -> None:
        super().__init__()
        self.ridge = ridge
        self.draw_projections(width, projections, generator)
        size = projections or width + 1
        self.register_buffer("G", torch.zeros(size, size, dtype=torch.float64))
        for name in ("Q", "solution"):
            self.register_buffer(name, torch.zeros(size, 0, dtype=torch.float64))

    def project(self, features: Tensor) -> Tensor:
        """Return h, (n, M) float64 or (n, d + 1), for features (n, d)."""
        return self.projected(features) if len(self.check) else F.pad(features.double(), (0, 1), value=1.0)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add the next task.

        Args:
            features: (n, d).
            labels: (n,) class ids.
        """
        own, places = labels.to(features.device).unique(return_inverse=True)
        parts = F.one_hot(places).double()
        parts = parts / parts.sum(0)  # (n, own classes): the mean over each class
        h = self.project(features)
        self.G = self.G + (h * parts.sum(1, keepdim=True)).T @ h
        self.Q = torch.cat([self.Q, h.T @ parts], 1)
        self._extend(len(own), features.device)
        self.solution = ridge_solution(self.G, self.Q, self.ridge * self.G.diagonal().mean())

    def clear(self) -> None:
        """Forget all tasks, so that they can be added again with new features."""
        self.tasks, self.Q, self.solution = self.tasks[:0], self.Q[:, :0], self.solution[:, :0]
        self.G = torch.zeros_like(self.G)

    def scores(self, features: Tensor) -> Tensor:
        """Return (n, tasks) float64 scores of features (n, d): about 1 for the right task, 0 for others."""
        outputs = self.project(features) @ self.solution
        return torch.stack([outputs[:, self.entries(t)].amax(1) for t in range(self.count)], 1)
