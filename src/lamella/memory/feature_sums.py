"""Sums over features from which class statistics and a map of their drift follow exactly.

Sums of parts add up to the sums of the whole, so what owners of data keep apart can be added without any feature being
shown. In float64, since a scatter is a difference of large sums.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["class_sums", "drift_sums", "moved_moments"]


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
