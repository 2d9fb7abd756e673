"""One growing classifier, all heads trained side by side: what the methods share that have one."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from lamella.heads import Head, Heads

__all__ = ["align_new_rows", "new_or_old", "widened"]


@torch.no_grad()
def align_new_rows(heads: Heads) -> float:
    """Scale the last head's rows so that they are on average as long as the rows of all other classes.

    Weight alignment: Zhao et al., CVPR 2020, arXiv 1911.07053. Biases stay. Without other classes nothing changes.

    Returns:
        The factor, gamma = mean |w_old| / mean |w_new|.
    """
    new = heads[-1]
    every = [cast(Head, head) for head in heads.heads]
    lengths = {c: n for head in every for c, n in zip(head.ids.tolist(), head.weight.norm(dim=1), strict=True)}
    old = [length for c, length in lengths.items() if c not in new.ids.tolist()]
    if not old:
        return 1.0
    gamma = torch.stack(old).mean() / new.weight.norm(dim=1).mean()
    new.weight.mul_(gamma)
    return float(gamma)


def widened(heads: Heads, width: int, generator: torch.Generator | None = None) -> Heads:
    """The same heads for features that have gone on growing: old columns are kept, new ones drawn.

    Args:
        width: of the features, at least that of `heads`. generator: draws the new columns as torch does; zeros
            without it.
    """
    wide = Heads(width).to(heads.here.device)
    for head in heads.heads:
        old = cast(Head, head)
        new = wide.grow(old.ids.tolist(), generator)
        new.weight.data[:, : heads.width] = old.weight
        new.bias.data.copy_(old.bias)
    return wide


def new_or_old(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Targets (n,) of an auxiliary classifier: 1 + position among the new `classes`, and 0 for every other label."""
    match = labels[:, None] == torch.tensor(list(classes), device=labels.device)
    return torch.where(match.any(1), match.long().argmax(1) + 1, 0)
