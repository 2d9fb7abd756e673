"""Branches of the form "dora" as PEFT stores them: a pair and the length of each row of the weight.

What DoRA adds to a weight has no low rank. So it is exported as a DoRA, where it lies beside the weights that were
loaded. Branches on some rows only become one DoRA of the whole layer: the other rows keep the lengths that they have.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lamella.adapters.acting import ActingBranch
from lamella.learner.export.low_rank import DoraPair

__all__ = ["dora_pairs"]


@torch.no_grad()
def dora_pairs(
    acting: Mapping[str, Sequence[ActingBranch]], weights: Mapping[str, Tensor], loaded: Mapping[str, Tensor]
) -> dict[str, DoraPair] | None:
    """Return the branches of all layers as DoRA, by layer; None where none has the form, or where it cannot hold them.

    Args:
        acting: by layer, the branches that act.
        weights: by layer, the weight beneath them.
        loaded: by layer, the weight that was loaded.
    """
    there = {name: list(branches) for name, branches in acting.items() if branches}
    if not any(a.branch.magnitude is not None for branches in there.values() for a in branches):
        return None
    moved = any(not torch.equal(weights[name], loaded[name].to(weights[name])) for name in weights)
    if moved or not all(_is_one(branches) for branches in there.values()):
        return None
    return {name: _pair(branches, weights[name]) for name, branches in there.items()}


def _is_one(acting: Sequence[ActingBranch]) -> bool:
    """Whether branches on one layer are one DoRA: each that has the form acts alone on its rows, and wholly."""
    covered = sorted((a.branch.rows.start, a.branch.rows.stop) for a in acting)
    apart = all(before[1] <= after[0] for before, after in pairwise(covered))
    return apart and all(a.branch.A.ndim == 2 and (a.branch.magnitude is None or a.coefficient == 1) for a in acting)


def _pair(acting: Sequence[ActingBranch], weight: Tensor) -> DoraPair:
    W = weight.detach().cpu().double()
    A = torch.cat([a.branch.A.detach().cpu().double() for a in acting])
    B = W.new_zeros(len(W), len(A))
    start = 0
    for _, branch, coefficient in acting:
        block = slice(start, start := start + branch.rank)
        B[branch.rows, block] = coefficient * branch.scale * branch.expansion.detach().cpu().double()
    lengths = (W + B @ A).norm(dim=1)
    for _, branch, _ in acting:
        if branch.magnitude is not None:
            lengths[branch.rows] = branch.magnitude.detach().cpu().double()
    return DoraPair(*(tensor.float().contiguous() for tensor in (A, B, lengths)))
