"""Starts of branches: what A and B are before they are trained.

    start          A                                       B                       the layer's weight W
    "kaiming"      U(-1, 1) / sqrt(fan in)                 0                       stays; see `grow`
    "orthonormal"  random orthonormal rows                 0                       stays
    "eva"          leading eigenvectors of the inputs'     0                       stays
                   second moment, of length 1
    given basis    given directions, of length 1/sqrt 3    0                       stays
    "pissa"        sqrt(S) V^T of the r largest singular   U sqrt(S) of the same   less scale B A, so that W with the
                   values U S V^T of W / scale                                     branch is what it was
    "milora"       the same of the r smallest              the same                the same

"pissa": Meng et al., NeurIPS 2024, arXiv 2404.02948. "milora": Wang et al., NAACL 2025, arXiv 2406.09044. "eva":
Paischer et al., "One Initialization to Rule them All", arXiv 2410.07170.
"""

import torch
from torch import Tensor

from lamella.adapters.branches import Branch

__all__ = ["STARTS", "explained_rank", "read_directions", "start_orthonormal", "start_with_weight"]

STARTS = ("kaiming", "orthonormal", "pissa", "milora", "eva")


@torch.no_grad()
def read_directions(branch: Branch, directions: Tensor, divisor: float = 3**0.5) -> None:
    """Let a branch read given directions of its input: they become the rows of A.

    Args:
        branch: the branch, of the rank k.
        directions: (d, k) orthonormal columns.
        divisor: what the directions are divided by; rows of length 1 / sqrt 3 are as long as those of LoRA's usual
            start are in expectation.
    """
    branch.A.copy_((directions.T / divisor).reshape(branch.A.shape))


@torch.no_grad()
def start_orthonormal(branch: Branch, generator: torch.Generator) -> None:
    """Give A random orthonormal rows.

    Args:
        branch: the branch, whose rank is at most the number of inputs.
        generator: draws them.

    Raises:
        ValueError: the rank is larger than the number of inputs.
    """
    rank, width = branch.A.flatten(1).shape
    if rank > width:
        raise ValueError(f"start 'orthonormal' has no {rank} orthonormal rows of {width} inputs; use a smaller rank")
    Q, R = torch.linalg.qr(torch.randn(width, rank, dtype=torch.float64, generator=generator))
    read_directions(branch, Q * R.diagonal().sign(), 1)  # the sign makes the draw even over all directions


@torch.no_grad()
def start_with_weight(branch: Branch, weight: Tensor, *, largest: bool) -> None:
    """Move a part of the weight into the branch: A and B are a part of its singular value decomposition.

    Args:
        branch: the branch.
        weight: the whole weight of the layer, which loses what the branch gets.
        largest: whether the branch gets the largest singular values, else the smallest.

    Raises:
        ValueError: the weight has fewer singular values than the branch has ranks.
    """
    rows = weight[branch.rows]
    wide = rows.flatten(1).to(torch.promote_types(rows.dtype, torch.float32))
    if branch.rank > min(wide.shape):
        raise ValueError(
            f"a weight of {tuple(wide.shape)} has {min(wide.shape)} singular values for a branch to start with, "
            f"and the rank is {branch.rank}; use a smaller rank, or start 'kaiming'"
        )
    U, s, Vh = torch.linalg.svd(wide, full_matrices=False)
    part = slice(branch.rank) if largest else slice(len(s) - branch.rank, len(s))
    root = (s[part] / branch.scale).sqrt()
    branch.A.copy_((root[:, None] * Vh[part]).reshape(branch.A.shape))
    branch.B.copy_((U[:, part] * root).reshape(branch.B.shape))
    rows.copy_((wide - branch.delta(rows.shape).flatten(1)).reshape(rows.shape))


def explained_rank(values: Tensor, share: float, most: int) -> int:
    """Return how many leading directions explain a share of the inputs' energy.

    >>> explained_rank(torch.tensor([6.0, 3.0, 1.0]), 0.8, 10)
    2

    Args:
        values: (d,) the eigenvalues of the inputs' second moment, in falling order.
        share: the share of their sum; above 0, at most 1.
        most: the largest rank.
    """
    positive = values.double().clamp_min(0)
    reached = positive.cumsum(0) >= share * positive.sum() * (1 - 1e-12)
    count = int(reached.long().argmax()) + 1 if bool(reached.any()) else len(values)
    return max(1, min(count, most))
