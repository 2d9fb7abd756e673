"""Deterministic, stratified splits that depend on nothing but a seed and each image's key.

An image's place is decided by a hash of its key, so a split does not change with the order of files or the machine.
"""

from collections.abc import Sequence
from hashlib import sha256

import torch
from torch import Tensor

__all__ = ["stratified_split", "in_drawn_order"]


def stratified_split(
    groups: Tensor, keys: Sequence[str], *, fraction: float, seed: int, name: str
) -> tuple[Tensor, Tensor]:
    """Split every group in two, by the hashes of the keys.

    A group of two or more gives at least one sample to either side; the only sample of a group is kept.

    Args:
        groups: (n,) int64, the class (or class and domain) of each sample.
        keys: the identity of each sample.
        fraction: of each group that is held out, in (0, 1).
        seed: another seed, another split.
        name: of the split, so that two splits under one seed are independent.

    Returns:
        The positions kept and the positions held out, each in ascending order.
    """
    held: list[int] = []
    for group in groups.unique().tolist():
        members = (groups == group).nonzero()[:, 0].tolist()
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held += in_drawn_order(members, keys, seed=seed, name=name)[:count]
    mask = torch.zeros(len(groups), dtype=torch.bool)
    mask[held] = True
    return (~mask).nonzero()[:, 0], mask.nonzero()[:, 0]


def in_drawn_order(members: Sequence[int], keys: Sequence[str], *, seed: int, name: str) -> list[int]:
    """These positions, shuffled by the hashes of their keys."""
    return sorted(members, key=lambda i: sha256(f"{seed}\x1f{name}\x1f{keys[i]}".encode()).digest())
