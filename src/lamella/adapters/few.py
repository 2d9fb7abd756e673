"""Branches of which each sample has few: where many adapters are held, those of a sample are computed and no others.

The dense form computes every branch for every sample, and multiplies what does not act by zero. Here the factors of
each sample's own branches are gathered, and one batched product computes them.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lamella.adapters.branches import Acting

__all__ = ["Few", "parted"]

LEAST = 4
"""So many branches on the same rows are always computed densely: they cost little beside the layer itself."""
SHARE = 4
"""Gathering pays where a sample has at most one in so many of the branches."""


class Few(NamedTuple):
    """Branches on the same rows, gathered by sample.

    Attributes:
        start: the first output row.
        A: (n, width, d_in), where `width` is the largest rank times the largest number of branches of a sample.
        B: (n, rows, width).
        factors: (n, width) coefficient times scale; 0 where a sample has fewer branches, or a branch a lower rank.
    """

    start: int
    A: Tensor
    B: Tensor
    factors: Tensor

    def add(self, y: Tensor, x: Tensor) -> None:
        """Add the branches to y in place.

        Args:
            y: (n, ..., d_out), the layer's output.
            x: (n, ..., d_in), the layer's input.
        """
        z = torch.bmm(self.A, x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2))
        z = (z * self.factors.unsqueeze(2)).to(y.dtype)
        of_rows = y.view(len(x), -1, y.shape[-1])[:, :, self.start : self.start + self.B.shape[1]]
        of_rows.baddbmm_(z.transpose(1, 2), self.B.transpose(1, 2).to(y.dtype))


def parted(acting: Sequence[Acting], samples: int) -> tuple[list[Acting], list[Few]]:
    """Split branches on all tokens into those for the dense form, and those that are gathered by sample.

    Gathering reads the coefficients, for which an accelerator is waited for, and gives no gradient to one that is zero.
    So everything is dense where gradients are recorded, and where a pass is traced or compiled.

    Args:
        acting: the active branches of a linear layer, sorted by rows.
        samples: the number of samples of the input.

    Returns:
        Those for the dense form, sorted by rows, and the gathered ones.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    if len(acting) <= LEAST or not samples or torch.is_grad_enabled() or traced:
        return list(acting), []
    dense: list[Acting] = []
    gathered: list[Few] = []
    for _, of_rows in groupby(acting, key=lambda a: a.rows):
        group = list(of_rows)
        by_sample = [a for a in group if _by_sample(a, samples)]
        few = _few(by_sample, samples) if len(by_sample) > LEAST else None
        gathered += [] if few is None else [few]
        dense += group if few is None else [a for a in group if not _by_sample(a, samples)]
    return dense, gathered


def _by_sample(acting: Acting, samples: int) -> bool:
    found = acting.coefficient
    return isinstance(found, Tensor) and found.ndim > 0 and len(found) == samples


def _few(acting: Sequence[Acting], samples: int) -> Few | None:
    """Gather branches on the same rows; None if a sample has so many of them that this would not pay."""
    rank = max(a.branch.rank for a in acting)
    factors = torch.stack([_factors(a, samples, rank) for a in acting], 1)  # (n, branches, rank)
    acts = (factors != 0).any(2)
    most = int(acts.sum(1).max())
    if SHARE * most > len(acting):
        return None
    chosen = acts.to(torch.uint8).topk(max(1, most), dim=1).indices  # (n, most)
    A = torch.stack([_wide(a.branch.A, 0, rank) for a in acting])[chosen].flatten(1, 2)
    B = torch.stack([_wide(a.B, 1, rank) for a in acting])[chosen].transpose(1, 2).flatten(2)
    own = factors.gather(1, chosen.unsqueeze(2).expand(-1, -1, rank))
    return Few(acting[0].rows[0], A, B, own.flatten(1))


def _factors(acting: Acting, samples: int, rank: int) -> Tensor:
    """Return coefficient times scale for each sample and row of A, (n, rank); 0 for rows that a branch lacks."""
    assert isinstance(acting.coefficient, Tensor)
    own = acting.coefficient.reshape(samples, -1) * acting.branch.scale
    return _wide(own.expand(samples, acting.branch.rank), 1, rank)


def _wide(tensor: Tensor, dim: int, width: int) -> Tensor:
    """Fill up one dimension of a matrix with zeros."""
    lacking = width - tensor.shape[dim]
    return F.pad(tensor, (0, lacking) if dim == 1 else (0, 0, 0, lacking)) if lacking else tensor
