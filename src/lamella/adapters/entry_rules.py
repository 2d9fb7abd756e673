"""Rules that merge updates entry by entry. They look at the updates themselves, since no entry is seen in a factor."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lamella.common.randomness import generator

__all__ = ["dare", "elect", "ties", "trimmed"]


def elect(updates: Sequence[Tensor]) -> Tensor:
    """Return of each entry the largest value among those that have the sign of the mean; 0 where the mean is 0.

    The merged adapter of TUNA (Wang et al., ICCV 2025), which is the unified vector of EMR-Merging (Huang et al.,
    NeurIPS 2024, arXiv 2405.17461).

    Args:
        updates: (d_out, d_in) each; at least one.
    """
    stacked = torch.stack(list(updates))
    sign = stacked.mean(0).sign()
    return sign * (stacked * sign).clamp(min=0).amax(0)


def trimmed(updates: Sequence[Tensor], keep: float) -> list[Tensor]:
    """Set all but the largest entries of an adapter to zero; entries of all its layers are compared with each other.

    Of entries that are equally large all stay.

    Args:
        updates: the updates of all layers of one adapter.
        keep: the share of the entries that stay, above 0 and at most 1.
    """
    sizes = torch.cat([update.abs().flatten() for update in updates])
    least = sizes.kthvalue(len(sizes) - max(1, round(keep * len(sizes))) + 1).values
    return [torch.where(update.abs() >= least, update, 0.0) for update in updates]


def ties(updates: Sequence[Tensor]) -> Tensor:
    """Return of each entry the mean of the values, zeros left out, that have the sign of the sum; 0 where that is 0.

    The second and third step of TIES (Yadav et al., NeurIPS 2023, arXiv 2306.01708); `trimmed` is the first.

    Args:
        updates: (d_out, d_in) each, trimmed; at least one.
    """
    stacked = torch.stack(list(updates))
    agreeing = stacked * stacked.sum(0).sign() > 0
    return (stacked * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)


def dare(update: Tensor, drop: float, seed: int, *names: str | int) -> Tensor:
    """Set a random share of the entries to zero, and scale the others up so that the expectation stays.

    DARE: Yu et al., ICML 2024, arXiv 2311.03099.

    Args:
        update: (d_out, d_in).
        drop: the probability of an entry to be dropped, from 0 to below 1.
        seed: the number from which the draw is made, together with its names.
        names: the names of the draw, such as the layer and the number of the adapter.
    """
    kept = torch.rand(update.shape, generator=generator(seed, "dare", *names)) >= drop
    return update * kept.to(update.device) / (1 - drop)
