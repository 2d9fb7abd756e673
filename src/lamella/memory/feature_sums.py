"""Sums over features from which class statistics and a map of their drift follow exactly.

Sums of parts add up to the sums of the whole, so what owners of data keep apart can be added without any feature being
shown. In float64, since a scatter is a difference of large sums.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["class_sums", "drift_sums", "moved_moments", "share_of"]


def class_sums(features: Tensor, labels: Tensor, classes: Sequence[int]) -> dict[str, Tensor]:
    """Return the sums that `ClassGaussians.add_sums` takes.

    Args:
        features: f, (n, d).
        labels: (n,) global class ids, all among `classes`.
        classes: the classes.

    Returns:
        "count" (c,) int64, the samples of each class; "sum" (c, d), the sum of f; "square" (d, d), the sum of f f^T
        over all classes.
    """
    x, columns = features.double(), labels.to(features.device)
    hot = torch.stack([columns == label for label in classes])
    return {"count": hot.sum(1), "sum": hot.double() @ x, "square": x.T @ x}


def drift_sums(before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """Return the sums that an affine map from features before to features after follows from.

    Args:
        before: X, (n, d).
        after: Y, (n, d), of the same samples.

    Returns:
        "count" (), n; "x" and "y" (d,), sums; "xx" (d, d), X^T X; "xy" (d, d), X^T Y.
    """
    X, Y = before.double(), after.double()
    return {"count": torch.tensor(len(X)), "x": X.sum(0), "y": Y.sum(0), "xx": X.T @ X, "xy": X.T @ Y}


def moved_moments(sums: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the means x and y (d,), Xc^T Xc and Xc^T Yc (d, d) of centred features, from `drift_sums`.

    Raises:
        ValueError: the sums are of no sample.
    """
    n = int(sums["count"])
    if not n:
        raise ValueError("there is no sample whose features could show a drift")
    x, y = sums["x"] / n, sums["y"] / n
    return x, y, sums["xx"] - n * torch.outer(x, x), sums["xy"] - n * torch.outer(x, y)


def share_of(x: Tensor, count: int, mean: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return the share of some features in the statistics of their class.

    Args:
        x: (n, d) float64, the features.
        count: how many features the class has.
        mean: (d,), their mean.

    Returns:
        n; how far the mean of x is from that of the class, (d,); and by how much the scatter of the class is above that
        of the others, (d, d): the scatter of x, and the one between x and the others (Chan, Golub & LeVeque 1983).
    """
    n, own = len(x), x.mean(0)
    away = own - mean
    between = n * count / (count - n) if count > n else n
    return n, away, (x - own).T @ (x - own) + between * torch.outer(away, away)
