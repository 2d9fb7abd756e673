"""Class statistics of features: counts, means and scatters, and the discriminants that they give."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from lamella.memory.feature_sums import share_of
from lamella.memory.low_rank import LowRankCovariances, Quadratic, quadratic_of
from lamella.memory.random_projections import NOT_IN_THEM
from lamella.memory.resizable import Resizable

__all__ = ["ClassGaussians", "shrunk", "standard_noise"]

T = TypeVar("T")

FAR = 0.25
"""The weight of the distance itself in `strangeness`, chosen on frozen features of four streams; see docs/log.md."""
ROUNDING = 0.01  # how far features that are computed again may be off, as a share; bfloat16 has 8 bits
ROUNDED_BEFORE = 1e-12  # how far float64 sums over all features may be off, as a share


class ClassGaussians(Resizable):
    """Counts, means and within-class scatter of features, which do not depend on the split into batches.

    Args:
        width: d, the number of features.
        per_class: whether each class has its own scatter besides the shared one.
        directions: how many directions of its covariance each class keeps then; at least 1. None keeps whole scatters.

    Attributes:
        ids: (c,) int64 global class ids, in the order in which they were first added.
        counts: (c,) int64, the number of images of each class.
        means: (c, d) float64.
        scatter: (d, d) float64, within-class scatter summed over all classes.
        scatters: (c, d, d) float32, the scatter of each class; (0, d, d) without `per_class`, or with `directions`.
        low_rank: the directions of each class; None without them.
    """

    resizable = ("ids", "counts", "means", "scatters")

    ids: Tensor
    counts: Tensor
    means: Tensor
    scatter: Tensor
    scatters: Tensor

    def __init__(self, width: int, *, per_class: bool = False, directions: int | None = None) -> None:
        super().__init__()
        self.whole = per_class and directions is None
        kept = LowRankCovariances(width, directions) if per_class and directions is not None else None
        self.low_rank: LowRankCovariances | None = kept
        # In float64, because sums over many tasks must not lose the directions of small variance.
        self.register_buffer("ids", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("means", torch.zeros(0, width, dtype=torch.float64))
        self.register_buffer("scatter", torch.zeros(width, width, dtype=torch.float64))
        self.register_buffer("scatters", torch.zeros(0, width, width))
        self._solved: dict[tuple[object, ...], object] = {}

    @property
    def classes(self) -> tuple[int, ...]:
        return self.known("ids")

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, classes: Sequence[int]) -> None:
        """Add the features of images to the statistics.

        Args:
            features: (n, d).
            labels: (n,) global class ids.
            classes: the classes whose images are added, known or new; new ones are appended in this order.

        Raises:
            ValueError: a class has no image.
        """
        if self.means.device != features.device:
            self.to(features.device)
        self._solved = {}
        x, labels = features.double(), labels.to(features.device)
        parts = {label: x[labels == label] for label in classes}
        if empty := [label for label, part in parts.items() if len(part) == 0]:
            raise ValueError(f"class {empty[0]} has no sample to learn from")
        for label, part in parts.items():
            self._add_class(label, part)

    @torch.no_grad()
    def add_sums(self, sums: Mapping[str, Tensor], classes: Sequence[int]) -> None:
        """Add the features of images to the statistics, of which only sums are known; see `feature_sums.class_sums`.

        Args:
            sums: "count" (c,), "sum" (c, d) and "square" (d, d) over all images that are added.
            classes: the c classes, known or new; new ones are appended in this order.

        Raises:
            ValueError: a class has no image, or classes have covariances of their own, which no sum over all has.
        """
        if self.whole or self.low_rank is not None:
            raise ValueError("covariances of single classes do not follow from sums over all of them; leave them out")
        counts, totals = sums["count"].to(self.counts), sums["sum"].to(self.means)
        if empty := [label for label, n in zip(classes, counts.tolist(), strict=True) if not n]:
            raise ValueError(f"class {empty[0]} has no sample to learn from")
        self._solved = {}
        means = totals / counts[:, None]
        self.scatter = self.scatter + sums["square"].to(self.scatter) - means.T @ totals
        for label, n, mean in zip(classes, counts.tolist(), means, strict=True):
            if label in self.classes:
                self.scatter = self.scatter + self._take_in(self.classes.index(label), n, mean)[2]
            else:
                self._append_mean(label, n, mean)

    def _add_class(self, label: int, x: Tensor) -> None:
        """Add the features (n, d) of images of a class, in float64."""
        if label not in self.classes:
            self._append(label, x)
            return
        i, mean = self.classes.index(label), x.mean(0)
        old, shift, between = self._take_in(i, len(x), mean)
        scatter = (x - mean).T @ (x - mean) + between
        self.scatter += scatter
        if self.whole:
            self.scatters[i] += scatter.to(self.scatters)
        if self.low_rank is not None:
            self.low_rank.add(i, old, x - mean, shift)

    def _append(self, label: int, x: Tensor) -> None:
        """Add a Gaussian of a class, from features (n, d) in float64."""
        mean = x.mean(0)
        scatter = (x - mean).T @ (x - mean)
        self._append_mean(label, len(x), mean)
        self.scatter += scatter
        if self.whole:
            self.scatters = torch.cat([self.scatters, scatter[None].to(self.scatters)])
        if self.low_rank is not None:
            self.low_rank.append(x - mean)

    def _append_mean(self, label: int, n: int, mean: Tensor) -> None:
        """Add a row for a class: the number and the mean (d,) of its images."""
        self.ids = torch.cat([self.ids, self.ids.new_tensor([label])])
        self.counts = torch.cat([self.counts, self.counts.new_tensor([n])])
        self.means = torch.cat([self.means, mean[None]])

    def _take_in(self, i: int, n: int, mean: Tensor) -> tuple[int, Tensor, Tensor]:
        """Add the number and the mean (d,) of images to those of the class in row i.

        Returns:
            How many images there were; how far the mean of the new ones is from theirs, (d,); and what the scatter of
            all is above the sum of both scatters, (d, d) (Chan, Golub & LeVeque 1983).
        """
        old, shift = int(self.counts[i]), mean - self.means[i]
        self.means[i] += shift * (n / (old + n))
        self.counts[i] += n
        return old, shift, torch.outer(shift, shift) * (old * n / (old + n))

    @torch.no_grad()
    def move(self, W: Tensor, source: Tensor, shift: Tensor) -> None:
        """Move the statistics with the features: m -> m + (m - source) W + shift, S -> (I + W)^T S (I + W).

        Args:
            W: (d, d); zero if all features moved by the same shift.
            source: (d,), the point where the map is anchored.
            shift: (d,), how far this point moved.
        """
        self._solved = {}
        W, source, shift = (t.to(self.means) for t in (W, source, shift))
        self.means = self.means + (self.means - source) @ W + shift
        map_ = torch.eye(len(W), dtype=W.dtype, device=W.device) + W
        self.scatter = map_.T @ self.scatter @ map_
        self.scatters = map_.T.to(self.scatters) @ self.scatters @ map_.to(self.scatters)
        if self.low_rank is not None:
            self.low_rank.move(map_)

    @torch.no_grad()
    def follow(self, move: Callable[[Tensor], Tensor], noise: Tensor, share: float) -> None:
        """Move the statistics as samples of the Gaussians move, by any map of features.

        Means and covariances become share x those of the moved samples + (1 - share) x what they were. The samples of a
        class have its whole own covariance, where it has one, else the shared one. Directions of its own move by
        samples of theirs.

        Args:
            move: features (n, d) -> where they are now.
            noise: (m, d), the same for every class, with mean 0 and second moment I; see `standard_noise`.
            share: 0..1.
        """
        self._solved = {}
        root, scatter = _root(self.covariance), torch.zeros_like(self.scatter)
        means = self.means.clone()
        for i, (old, count) in enumerate(zip(self.means, self.counts, strict=True)):
            own = _root(self.scatters[i].to(root) / count) if self.whole else root
            moved = move(old + noise @ own).to(old)
            centre = moved.mean(0)
            covariance = (moved - centre).T @ (moved - centre) / len(noise)
            means[i] = share * centre + (1 - share) * old
            scatter += count * covariance
            if self.whole:
                self.scatters[i] = (share * count * covariance + (1 - share) * self.scatters[i]).to(self.scatters)
            if self.low_rank is not None:
                moved = move(old + noise @ _root(self.low_rank.covariance(i))).to(old)
                self.low_rank.resemble(i, moved - moved.mean(0), share)
        self.means, self.scatter = means, share * scatter + (1 - share) * self.scatter

    @torch.no_grad()
    def merge(self, source: int, target: int) -> None:
        """Make one class of two, as if all their features had been added as the second.

        Args:
            source: the id of the class that ends.
            target: the id of the class that takes it in.
        """
        self._solved = {}
        i, j = self.classes.index(source), self.classes.index(target)
        m = int(self.counts[i])
        n, shift, between = self._take_in(j, m, self.means[i])
        self.scatter = self.scatter + between
        if self.whole:
            self.scatters[j] += self.scatters[i] + between.to(self.scatters)
        if self.low_rank is not None:
            self.low_rank.merge(j, n, i, m, shift)
        self._remove_class(source)

    @torch.no_grad()
    def drop(self, label: int) -> None:
        """Remove a class, as if it had never been added.

        The shared scatter is then the sum of what is kept of the others: of their scatters in float32, or of their
        directions and the rest of each. It stays where classes have nothing of their own.
        """
        self._solved = {}
        self._remove_class(label)
        if self.whole:
            self.scatter = self.scatters.to(self.scatter).sum(0)
        if self.low_rank is not None:
            self.scatter = self.low_rank.scatter(self.counts)

    @torch.no_grad()
    def take_out(self, features: Tensor, labels: Tensor, right: Tensor | None = None) -> None:
        """Take features out of the statistics, as if they had never been added. A class of which none is left ends.

        Args:
            features: (n, d), as they were added.
            labels: (n,) the global ids of the classes that they were added to.
            right: (n,) known global class ids: they are added to these instead, as if that had been done at first; None
                for no class.

        Raises:
            ValueError: these cannot be features that were added, or classes keep a few `directions` only. Nothing has
                changed then.
        """
        if self.low_rank is not None:
            raise ValueError("what classes keep of their own covariances is cut off, so nothing can be taken out of it")
        x, labels = features.to(self.means), labels.to(self.ids)
        rows = {label: self.classes.index(label) for label in set(labels.tolist())}
        taken = {i: share_of(x[labels == label], int(self.counts[i]), self.means[i]) for label, i in rows.items()}
        rest = self.scatter - torch.stack([scatter for *_, scatter in taken.values()]).sum(0)
        second = (self.counts[:, None] * self.means.square()).sum(0)
        # A feature that only samples had that were taken out before is a zero, which their sums may be a hair below.
        rounding = (ROUNDING * (self.scatter.diagonal() + second * ROUNDING)).clamp_min(ROUNDED_BEFORE * second.sum())
        if (rest.diagonal() < -rounding).any() or any(n > self.counts[i] for i, (n, *_) in taken.items()):
            raise ValueError(NOT_IN_THEM)
        self._solved = {}
        self.scatter = rest
        for i, (n, away, scatter) in taken.items():
            left = int(self.counts[i]) - n
            self.means[i] -= away * (n / max(left, 1))
            self.counts[i] = left
            if self.whole:
                self.scatters[i] = (self.scatters[i] - scatter.to(self.scatters)) * (left > 1)
        if right is not None:
            self.add(x, right, sorted(set(right.tolist())))
        self._keep(self.counts.nonzero()[:, 0])
        self.scatter = self.scatter * (self.counts > 1).any()  # a class with one image has none, not even by rounding

    def _remove_class(self, label: int) -> None:
        i = self.classes.index(label)
        self._keep(torch.tensor([j for j in range(len(self.ids)) if j != i], dtype=torch.int64))

    def _keep(self, rows: Tensor) -> None:
        rows = rows.to(self.ids.device)
        self.ids, self.counts, self.means = self.ids[rows], self.counts[rows], self.means[rows]
        if self.whole:
            self.scatters = self.scatters[rows]
        if self.low_rank is not None:
            self.low_rank.keep(rows)

    @property
    def covariance(self) -> Tensor:
        """(d, d), the within-class scatter divided by the number of images; zero if no class has two images."""
        return self.scatter / self.counts.sum().clamp_min(1)

    def linear_discriminant(self, features: Tensor, shrinkage: float) -> Tensor:
        """Return the scores (n, c) of Fisher's linear discriminant with equal priors and the shrunk shared covariance.

        score_c(f) = mu_c^T S^-1 f - mu_c^T S^-1 mu_c / 2; streaming form: Hayes & Kanan, "Lifelong Machine Learning
        with Deep Streaming Linear Discriminant Analysis", CVPR-W 2020, arXiv 1909.01520.

        Args:
            features: (n, d).
            shrinkage: as in `shrunk`.
        """
        weight, offset = self._kept(self._hyperplanes, shrinkage)
        # At least float32: the scores have a large common offset, whose rounding could otherwise decide the class.
        return (features.to(weight) @ weight - offset).to(torch.promote_types(features.dtype, torch.float32))

    def hyperplanes(self, shrinkage: float) -> tuple[Tensor, Tensor]:
        """Return the weight (c, d) and the bias (c,), float64, of `linear_discriminant` as a linear layer."""
        weight, offset = self._kept(self._hyperplanes, shrinkage)
        return weight.T, -offset

    def quadratic_discriminant(
        self, features: Tensor, shrinkage: float, own: float, prior: float | None = None
    ) -> Tensor:
        """Return the scores (n, c): log-likelihoods under a Gaussian for each class, up to a constant, equal priors.

        The covariance of a class is (1 - a) x the shrunk shared one + a x its own (regularised discriminant analysis:
        Friedman, JASA 1989). This needs `per_class`.

        Args:
            features: (n, d).
            shrinkage: as in `shrunk`.
            own: a, the same for every class; 0..1.
            prior: nu, a number of images; above 0. If given, `own` is ignored and a = n_c / (n_c + nu). So the
                covariance of a class with few images, whose own one is narrow by chance, is mostly the shared one.
        """
        if self.low_rank is not None:
            discriminant = self.low_rank_discriminant(shrinkage, own, prior)
            scores = discriminant(features.to(discriminant.weight))
        else:
            roots, volumes = self._kept(self._whitened, shrinkage, own, prior)
            wide = features.to(roots)
            distances = [((wide - m) @ R.T).square().sum(1) for m, R in zip(self.means, roots, strict=True)]
            scores = -(torch.stack(distances, 1) + volumes) / 2
        return scores.to(torch.promote_types(features.dtype, torch.float32))

    def low_rank_discriminant(self, shrinkage: float, own: float, prior: float | None = None) -> Quadratic:
        """Return `quadratic_discriminant` as a few products, where classes keep `directions`; float64.

        Args:
            shrinkage: as there.
            own: as there.
            prior: as there.

        Raises:
            ValueError: the statistics have no `directions`.
        """
        return self._kept(self._of_low_rank, shrinkage, own, prior)

    def strangeness(self, features: Tensor, shrinkage: float) -> Tensor:
        """Return (n,) how strange features are among those of all classes, higher for stranger ones; at any scale.

            (1 + g) log d(f)^2 - log d_0(f)^2    with g = FAR

        d is the Mahalanobis distance to the nearest class mean, by the shrunk shared covariance (Lee et al., NeurIPS
        2018, arXiv 1807.03888), and d_0 that to the mean of all features. New classes of the same kind of image are
        nearly as close as known ones, but not closer to a class than to the mean of all: distances relative to a
        background separate them better (Ren et al., arXiv 2106.09022, who subtract it). Far from everything, as noise
        is, both distances are alike, and g lets the distance itself count. With a single class only g is left.

        Args:
            features: (n, d).
            shrinkage: as in `shrunk`.
        """
        root, _ = self._kept(self._shared_root, shrinkage)
        middle = (self.counts[:, None] * self.means).sum(0, keepdim=True) / self.counts.sum()
        wide = features.to(root) @ root.T
        nearest, own = (
            torch.cdist(wide, centres @ root.T).amin(1).clamp_min(torch.finfo(root.dtype).tiny ** 0.5).square().log()
            for centres in (self.means, middle)
        )
        return (1 + FAR) * nearest - own

    def _shared_root(self, shrinkage: float) -> tuple[Tensor, Tensor]:
        """Return the inverse Cholesky factor (d, d) of the shrunk shared covariance, and the factor."""
        L = torch.linalg.cholesky(shrunk(self.covariance, shrinkage))
        identity = torch.eye(len(L), dtype=L.dtype, device=L.device)
        return torch.linalg.solve_triangular(L, identity, upper=False), L

    def _kept(self, solve: Callable[..., T], *settings: float | None) -> T:
        """Return the result of `solve`, which is cached until the statistics change or move to another device."""
        key = solve.__name__, *settings, self.means.device
        if key not in self._solved:
            self._solved[key] = solve(*settings)
        return cast(T, self._solved[key])

    def _hyperplanes(self, shrinkage: float) -> tuple[Tensor, Tensor]:
        """Return S^-1 mu_c (d, c) and mu_c^T S^-1 mu_c / 2 (c,)."""
        weight = torch.linalg.solve(shrunk(self.covariance, shrinkage), self.means.T)
        return weight, (self.means * weight.T).sum(1) / 2

    def _whitened(self, shrinkage: float, own: float, prior: float | None) -> tuple[Tensor, Tensor]:
        """Return inverse Cholesky factors (c, d, d) of the classes' covariances, and their log-determinants (c,)."""
        shared = shrunk(self.covariance, shrinkage)
        identity = torch.eye(len(shared), dtype=shared.dtype, device=shared.device)
        roots, volumes = [], []
        for scatter, count, share in zip(self.scatters, self.counts, self._shares(own, prior), strict=True):
            L = torch.linalg.cholesky((1 - share) * shared + share * scatter.to(shared) / count)
            roots.append(torch.linalg.solve_triangular(L, identity, upper=False))
            volumes.append(2 * L.diagonal().log().sum())
        return torch.stack(roots), torch.stack(volumes)

    def _of_low_rank(self, shrinkage: float, own: float, prior: float | None) -> Quadratic:
        if self.low_rank is None:
            raise ValueError("these classes keep no directions of their own; build the statistics with `directions`")
        return quadratic_of(self.means, shrunk(self.covariance, shrinkage), self._shares(own, prior), self.low_rank)

    def _shares(self, own: float, prior: float | None) -> Tensor:
        """Return the share (c,) of each class's own covariance, float64."""
        counts = self.counts.double()
        return torch.full_like(counts, own) if prior is None else counts / (counts + prior)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._solved = {}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def standard_noise(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Return (count, width) normal draws in float64, standardised to mean 0 and second moment I.

    Args:
        count: more than `width`.
        width: the number of features.
        generator: draws them.
    """
    draws = torch.randn(count, width, generator=generator, dtype=torch.float64)
    draws -= draws.mean(0)
    L = torch.linalg.cholesky(draws.T @ draws / count)
    return torch.linalg.solve_triangular(L, draws.T, upper=False).T


def _root(covariance: Tensor) -> Tensor:
    """Return the symmetric square root of a covariance (d, d), which may be singular."""
    e, U = torch.linalg.eigh(covariance)
    return U * e.clamp_min(0).sqrt() @ U.T


def shrunk(covariance: Tensor, amount: float) -> Tensor:
    """Return (1 - amount) S + amount * mean(diag S) I; the identity if S is zero.

    Args:
        covariance: S, (d, d).
        amount: the share of the multiple of the identity; above 0, at most 1.

    Raises:
        ValueError: `amount` is not within (0, 1].
    """
    if not 0 < amount <= 1:
        raise ValueError(f"shrinkage {amount} is outside (0, 1]; 0.05 to 0.3 works well")
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    level = covariance.diagonal().mean()
    # NaN stays NaN, so that later computations fail.
    return torch.where(level <= 0, identity, (1 - amount) * covariance + amount * level * identity)
