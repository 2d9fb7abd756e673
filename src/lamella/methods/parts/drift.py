"""The drift of features while a task was learned, estimated on the task's images before and after."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lamella.common.checks import check_one_of
from lamella.common.randomness import generator
from lamella.memory.feature_sums import drift_sums, moved_moments
from lamella.memory.gaussians import ClassGaussians, standard_noise
from lamella.training.fit import Fit

__all__ = [
    "DRIFTS",
    "Drift",
    "LocalDrift",
    "affine_drift",
    "check_drift",
    "check_ridge",
    "drift_of",
    "drift_of_sums",
    "follow",
    "follow_task",
    "mean_drift",
]

DRIFTS = ("affine", "mean", "local")
BLOCK = 2**24
"""How many similarities are held at once."""
FOLLOWING, DRAWS = 0.9, 2000
"""HopDC's: the share of what moved draws say in the statistics, and how many draws there are at least."""


class Drift(NamedTuple):
    """The map f -> f + (f - source) W + shift of features.

    Attributes:
        W: (d, d).
        source: (d,).
        shift: (d,).
    """

    W: Tensor
    source: Tensor
    shift: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features (n, d) after the drift, of features (n, d) before it."""
        f = features.to(self.W)
        return f + (f - self.source) @ self.W + self.shift

    def scaled(self, share: float) -> "Drift":
        """The map that moves every feature by this share of the way."""
        return Drift(share * self.W, self.source, share * self.shift)


def check_ridge(ridge: float) -> None:
    """Refuse a ridge that is not positive.

    Raises:
        ValueError: `ridge` is not positive.
    """
    if not ridge > 0:
        raise ValueError(f"ridge {ridge} must be above 0; 0.03 to 3 works well")


def check_drift(kind: str, ridge: float, prior: float) -> None:
    """Refuse settings of a drift that statistics could not follow.

    Args:
        kind: one of DRIFTS, or "none".
        ridge: as for `affine_drift`.
        prior: as for `follow_task`.

    Raises:
        ValueError: a value is not allowed.
    """
    check_one_of("drift", kind, (*DRIFTS, "none"))
    check_ridge(ridge)
    if not 0 <= prior < math.inf:
        raise ValueError(f"drift_prior {prior} must be a finite number from 0; 100 suits days of 50 to 100 images")


def affine_drift(before: Tensor, after: Tensor, ridge: float) -> Drift:
    """Fit an affine map from features before to features after, ridge-regularised towards no change.

    W minimises |(Y - y) - (X - x)(I + W)|^2 + k |W|^2 with k = ridge x the mean diagonal of the centred Gram matrix:
    W = (Xc^T Xc + k I)^-1 Xc^T (Yc - Xc). With a single image W is zero, so the map is a shift.

    Args:
        before: X, (n, d).
        after: Y, (n, d), of the same images.
        ridge: the strength of the regularisation; above 0.

    Raises:
        ValueError: `ridge` is not positive.
    """
    check_ridge(ridge)
    X, Y = before.double(), after.double()
    x, y = X.mean(0), Y.mean(0)
    Xc, Yc = X - x, Y - y
    return _ridge_regression(Xc.T @ Xc, Xc.T @ (Yc - Xc), x, y, ridge)


def drift_of_sums(sums: Mapping[str, Tensor], kind: str, ridge: float) -> Drift:
    """Return the drift that images show, of whose features only sums are known; see `memory/feature_sums.py`.

    Args:
        sums: those of `drift_sums`.
        kind: "affine" or "mean".
        ridge: the strength of the regularisation of "affine"; above 0.

    Raises:
        ValueError: the kind needs the features of single images.
    """
    check_one_of("drift", kind, ("affine", "mean"))
    x, y, gram, cross = moved_moments(sums)
    if kind == "mean":
        return Drift(torch.zeros_like(gram), x, y - x)
    return _ridge_regression(gram, cross - gram, x, y, ridge)


def _ridge_regression(gram: Tensor, cross: Tensor, x: Tensor, y: Tensor, ridge: float) -> Drift:
    """Return the map of `affine_drift` from Xc^T Xc, Xc^T (Yc - Xc) and both means."""
    k = ridge * gram.diagonal().mean()
    if k <= 0:
        return Drift(torch.zeros_like(gram), x, y - x)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return Drift(torch.linalg.solve(gram + k * identity, cross), x, y - x)


def mean_drift(before: Tensor, after: Tensor) -> Drift:
    """Return the shift of the mean as a map.

    Args:
        before: (n, d).
        after: (n, d), of the same images.
    """
    x, y = before.double().mean(0), after.double().mean(0)
    return Drift(torch.zeros(len(x), len(x), dtype=x.dtype, device=x.device), x, y - x)


class LocalDrift(NamedTuple):
    """The map f -> f + sum_i p_i v_i of features, where v_i is how far image i moved (HopDC).

    Over the images whose features before are most similar to f, p is the softmax of the cosines / temperature.

    Attributes:
        keys: (n, d), features before, brought to length 1.
        shifts: (n, d), features after less features before.
        neighbours: how many images count; at least 1, and all of them where there are fewer.
        temperature: above 0; the smaller, the nearer the map is to the shift of the most similar image.
    """

    keys: Tensor
    shifts: Tensor
    neighbours: int = 400
    temperature: float = 0.05

    @classmethod
    def between(cls, before: Tensor, after: Tensor) -> "LocalDrift":
        """The drift of images from their features (n, d) before and after."""
        X, Y = before.double(), after.double()
        return cls(F.normalize(X, dim=1), Y - X)

    def __call__(self, features: Tensor) -> Tensor:
        """Features (n, d) after the drift, of features (n, d) before it."""
        f = features.to(self.keys)
        return torch.cat([block + self._shift(block) for block in f.split(max(BLOCK // len(self.keys), 1))])

    def scaled(self, share: float) -> "LocalDrift":
        """The map that moves every feature by this share of the way."""
        return self._replace(shifts=share * self.shifts)

    def _shift(self, f: Tensor) -> Tensor:
        cosines = F.normalize(f, dim=1) @ self.keys.T
        nearest, which = cosines.topk(min(self.neighbours, len(self.keys)))
        weights = torch.zeros_like(cosines).scatter(1, which, (nearest / self.temperature).softmax(1))
        return weights @ self.shifts


def drift_of(before: Tensor, after: Tensor, kind: str, ridge: float) -> Drift | LocalDrift:
    """Return the drift that images show.

    Args:
        before: (n, d), their features before the task.
        after: (n, d), their features after it.
        kind: one of DRIFTS.
        ridge: the strength of the regularisation of "affine"; above 0.
    """
    if kind == "local":
        return LocalDrift.between(before, after)
    return affine_drift(before, after, ridge) if kind == "affine" else mean_drift(before, after)


def follow(statistics: ClassGaussians, drift: Drift | LocalDrift, draws: torch.Generator) -> None:
    """Move class statistics as features drift: exactly by an affine map, by samples of the classes by a local one.

    Args:
        statistics: of features (d,) before the drift.
        drift: the drift.
        draws: draws the samples.
    """
    if isinstance(drift, Drift):
        statistics.move(*drift)
        return
    width = drift.keys.shape[1]
    noise = standard_noise(max(DRAWS, 2 * width), width, draws)
    statistics.follow(drift, noise.to(drift.keys), FOLLOWING)


def follow_task(
    statistics: ClassGaussians,
    fit: Fit,
    before: Tensor,
    after: Tensor,
    kind: str,
    ridge: float,
    prior: float,
    seed: int,
) -> None:
    """Move class statistics as the features of a task's samples drift, and tell the training loop of it.

    What old classes do is guessed from new ones. A map from few samples of few classes is more about these than about
    the old classes, and its errors add up over many small tasks.

    Args:
        statistics: of features (d,) before the task.
        fit: the loop, of whose samples only sums may be known.
        before: (n, d), their features before the task.
        after: (n, d), their features after it.
        kind: one of DRIFTS.
        ridge: the strength of the regularisation of "affine"; above 0.
        prior: how many samples without drift these are weighed against; at least 0.
        seed: the seed of the samples that "local" draws.
    """
    if fit.divided:
        sums = fit.pooled("align-drift", drift_sums, before, after)
        count = int(sums["count"])
        drift: Drift | LocalDrift = drift_of_sums(sums, kind, ridge)
    else:
        count = len(before)
        drift = drift_of(before, after, kind, ridge)
    drift = drift.scaled(count / (count + prior))
    follow(statistics, drift, generator(seed, "align", "local", len(statistics.classes)))
    fit.tell_drift(drift)
