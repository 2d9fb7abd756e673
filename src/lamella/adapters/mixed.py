"""An adapter that begins as the sum of others, each with a coefficient: `training/mixing.py` finds such."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lamella.adapters.adapter import grow
from lamella.adapters.branches import Branch
from lamella.adapters.pairs import Pair, truncated, weighted_sum
from lamella.adapters.sites import Site

__all__ = ["grow_sum"]


@torch.no_grad()
def grow_sum(
    sites: Sequence[Site],
    name: str,
    coefficients: Mapping[str, float],
    *,
    rank: int | None = None,
    scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> float:
    """Add an adapter whose update is the sum of coefficient times update of other adapters, which stay as they are.

    While it acts alone, the outputs are those of the others with their coefficients. So a new task starts from there.

    Args:
        sites: the sites; each gets a branch of the new adapter.
        name: the name of the new adapter.
        coefficients: by adapter its coefficient, a finite number; at least one.
        rank: the rank of every new branch. The sum is truncated to it; where its rank is lower, the further rows of A
            are drawn and the columns of B are zero. None for the rank of each sum, at least 1, which is exact.
        scale: the constant factor of the new branches, not zero; the update does not depend on it.
        generator: draws the further rows of A, as `grow` does. None leaves them zero.

    Returns:
        The smallest share of the squared norm of a site's sum that is kept; 1.0 without truncation.

    Raises:
        ValueError: there is no such adapter, a coefficient or the scale is no such number, the name is taken, or a
            branch is no plain pair on the rows of its site.
    """
    if not coefficients or not all(math.isfinite(c) for c in coefficients.values()):
        raise ValueError(f"coefficients {dict(coefficients)} must be finite numbers, one for each of some adapters")
    if not math.isfinite(scale) or not scale:
        raise ValueError(f"scale {scale} must be a finite number other than 0")
    known = {held for site in sites for held in site.layer.branches}
    if missing := [held for held in coefficients if held not in known]:
        raise ValueError(f"no adapter '{missing[0]}'; there are: {', '.join(sorted(known)) or 'none'}")
    sums = [_sum(site, coefficients) for site in sites]
    cut = [truncated(pair, rank or min(pair.shape)) for pair in sums]
    ranks = [max(1, len(pair.A)) if rank is None else rank for pair, _ in cut]
    for branch, (pair, _) in zip(grow(sites, name, ranks, scale=scale, generator=generator), cut, strict=True):
        own = len(pair.A)
        branch.A[:own] = pair.A.reshape(own, *branch.A.shape[1:]).to(branch.A)
        branch.B[:, :own] = (pair.B / scale).reshape(len(branch.B), own, *branch.B.shape[2:]).to(branch.B)
    return min((kept for _, kept in cut), default=1.0)


def _sum(site: Site, coefficients: Mapping[str, float]) -> Pair:
    """Return the sum at one site, on its rows; adapters without a branch there add nothing."""
    found = [
        (_pair(branch, site, name), coefficient)
        for name, coefficient in coefficients.items()
        for branch in site.layer.of(name)
        if branch.rows.start < site.rows.stop and site.rows.start < branch.rows.stop
    ]
    if not found:
        A, B = site.layer.new_factors(1, site.rows, "conv")
        return Pair(A.flatten(1).double(), B.flatten(1).double())
    pairs, own = zip(*found, strict=True)
    return weighted_sum(pairs, own)


def _pair(branch: Branch, site: Site, name: str) -> Pair:
    A: Tensor = branch.A
    kernel = site.layer.weight.ndim == 4 and A.ndim == 2
    plain = branch.magnitude is None and branch.gate is None and branch.tokens == "all" and not kernel
    if not plain:
        raise ValueError(
            f"adapter '{name}' has a branch on layer '{site.name}' that is a DoRA, has a gate, acts on class tokens, "
            "or has the factorisation 'kernel', so sums of it are no such branch; leave it out"
        )
    if branch.rows != site.rows:
        raise ValueError(
            f"adapter '{name}' changes the rows {branch.rows.start} to {branch.rows.stop} of layer '{site.name}', and "
            f"this site has {site.rows.start} to {site.rows.stop}; give the sites that it was grown on"
        )
    return Pair(A.flatten(1).double(), branch.scale * branch.expansion.flatten(1).double())
