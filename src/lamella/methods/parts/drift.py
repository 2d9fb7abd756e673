"""How features moved while a task was learned, seen on that task's own images before and after."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Drift", "affine_drift", "check_ridge", "mean_drift"]


class Drift(NamedTuple):
    """f -> f + (f - source) W + shift. W: (d, d). source, shift: (d,)."""

    W: Tensor
    source: Tensor
    shift: Tensor


def check_ridge(ridge: float) -> None:
    """Refuse a ridge that is not positive, before anything is learned."""
    if not ridge > 0:
        raise ValueError(f"ridge {ridge} must be above 0; 0.03 to 3 works well")


def affine_drift(before: Tensor, after: Tensor, ridge: float) -> Drift:
    """The affine map from features before (n, d) to after (n, d), ridge-regularised towards no change.

    W minimises |(Y - y) - (X - x)(I + W)|^2 + k |W|^2 with k = ridge x the mean diagonal of the centred Gram matrix:
    W = (Xc^T Xc + k I)^-1 Xc^T (Yc - Xc). One image leaves W zero: a pure shift.

    Raises:
        ValueError: `ridge` is not positive.
    """
    check_ridge(ridge)
    X, Y = before.double(), after.double()
    x, y = X.mean(0), Y.mean(0)
    Xc, Yc = X - x, Y - y
    gram = Xc.T @ Xc
    k = ridge * gram.diagonal().mean()
    if k <= 0:
        return Drift(torch.zeros_like(gram), x, y - x)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return Drift(torch.linalg.solve(gram + k * identity, Xc.T @ (Yc - Xc)), x, y - x)


def mean_drift(before: Tensor, after: Tensor) -> Drift:
    """Only the shift of the mean."""
    x, y = before.double().mean(0), after.double().mean(0)
    return Drift(torch.zeros(len(x), len(x), dtype=x.dtype, device=x.device), x, y - x)
