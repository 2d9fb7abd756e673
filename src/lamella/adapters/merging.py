"""Merging: several adapters of one network become one, by a rule.

An adapter is a mapping from the names of layers to pairs; a layer that it lacks, it does not change. All of it is
computed in float64. Rules that look at singular vectors see the space that the updates span and no more; see
core_rules.py. Rules that look at entries need the updates as whole matrices, and their result has no low rank.

    rule        the merged update of a layer
    sum         D_1 + ... + D_T: task arithmetic, with `scale`
    mean        their mean
    weighted    w_1 D_1 + ... + w_T D_T, where weights may be negative, which subtracts
    ties        of each entry the mean of the large values of the elected sign
    dare        the mean of the updates after a random share of their entries was dropped
    elect       of each entry the largest value of the elected sign
    iso-c       the sum, with all singular values equal
    iso-cts     directions in common and of single updates, all equally strong
    tsv         the sum of updates whose singular vectors were made orthogonal to each other
    opcm        one update after the other, without what lies in strong directions of the merge so far
    regmean     the matrix whose outputs are nearest to those of each update on its own inputs: needs second moments
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lamella.adapters.core_rules import core_of, iso_c, iso_cts, opcm, tsv
from lamella.adapters.entry_rules import dare, elect, ties, trimmed
from lamella.adapters.pairs import Pair, compact, spectrum, weighted_sum
from lamella.common.checks import check_one_of

__all__ = ["RULES", "Merging", "Pairs", "merged", "over_inputs", "regmean"]

Pairs = Mapping[str, Pair]
"""An adapter: the pair of each layer that it changes."""

RULES = (
    "sum",
    "mean",
    "weighted",
    "ties",
    "dare",
    "elect",
    "iso-c",
    "iso-cts",
    "tsv",
    "opcm",
    "regmean",
)
NUMBERS = {"keep": "ties", "drop": "dare", "common": "iso-cts", "strong": "opcm"}
"""By the name of a number, the one rule that reads it."""


@dataclass(frozen=True)
class Merging:
    """How adapters are merged.

    Args:
        rule: "sum", "mean", "weighted", "ties", "dare", "elect", "iso-c", "iso-cts", "tsv", "opcm" or "regmean".
        scale: what the merged update is multiplied by; a finite number.
        keep: for "ties", the share of the largest entries of an adapter that stay; above 0, at most 1.
        drop: for "dare", the probability of an entry to be dropped; from 0 to below 1.
        common: for "iso-cts", the share of directions in common; from 0 to 1.
        strong: for "opcm", the share of the singular values' sum that the protected directions have; from 0 to 1.

    Raises:
        ValueError: the rule is unknown, or a number is out of its range or that of another rule.
    """

    rule: str = "tsv"
    scale: float = 1.0
    keep: float = 0.2
    drop: float = 0.9
    common: float = 0.8
    strong: float = 0.5

    def __post_init__(self) -> None:
        check_one_of("rule", self.rule, RULES)
        if not math.isfinite(self.scale):
            raise ValueError(f"scale is {self.scale}; it must be a finite number, and 1 leaves the result as it is")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is {self.keep}; it must be above 0 and at most 1, and 0.2 is usual")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop is {self.drop}; it must be from 0 to below 1, and 0.9 is usual")
        for name in ("common", "strong"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        for name, rule in NUMBERS.items():
            if rule != self.rule and getattr(self, name) != getattr(Merging, name):
                raise ValueError(f"{name} is a number of rule '{rule}', and the rule is '{self.rule}'; leave it out")


@torch.no_grad()
def merged(
    adapters: Sequence[Pairs],
    merging: Merging = Merging(),
    *,
    weights: Sequence[float] | None = None,
    moments: Sequence[Mapping[str, Tensor]] | None = None,
    seed: int = 0,
) -> dict[str, Pair]:
    """Merge adapters of one network into one.

    Args:
        adapters: the adapters, in the order of learning; at least one. A layer may be missing in some of them.
        merging: the rule and its numbers.
        weights: for "weighted", one finite factor for each adapter; negative ones subtract. Other rules take none.
        moments: for "regmean", by layer the second moment (d_in, d_in) of the inputs that each adapter was trained on.
            Other rules take none.
        seed: the seed of the draws of "dare", which depend on the place of an adapter and the name of a layer.

    Returns:
        The pair of each layer that an adapter changes, float64. Rules on entries give a rank of min(d_out, d_in).

    Raises:
        ValueError: there is no adapter, adapters differ in the shapes of a layer, factors do not fit each other or are
            not finite, or weights or moments do not fit the rule or the adapters.
    """
    layers = _checked(adapters)
    factors = _factors(merging.rule, len(adapters), weights)
    _check_moments(merging.rule, layers, moments)
    rule = merging.rule
    if factors is not None:
        found = {name: _linear(pairs, factors) for name, pairs in layers.items()}
    elif moments is not None:
        found = {name: regmean(pairs, [own[name] for own in moments]) for name, pairs in layers.items()}
    elif rule in ("ties", "dare", "elect"):
        found = _by_entries(layers, merging, seed)
    else:
        cores = {name: core_of(pairs) for name, pairs in layers.items()}
        if rule == "opcm":
            found = dict(zip(cores, opcm(list(cores.values()), merging.strong), strict=True))
        elif rule == "iso-cts":
            found = {name: iso_cts(core, merging.common) for name, core in cores.items()}
        else:
            found = {name: (iso_c if rule == "iso-c" else tsv)(core) for name, core in cores.items()}
    return {name: Pair(A, merging.scale * B) for name, (A, B) in found.items()}


def regmean(pairs: Sequence[Pair], moments: Sequence[Tensor]) -> Pair:
    """Return the sum over tasks of B_i [A_i G_i (G_1 + ... + G_T)^-1], as one pair.

    RegMean (Jin et al., ICLR 2023, arXiv 2212.09849): it minimises the sum over tasks of |D X_i - D_i X_i|^2. Where the
    sum of the moments has no inverse, it is inverted in the space that the inputs span, and inputs outside of it get 0.

    Args:
        pairs: the updates of one weight, one for each task.
        moments: G_i = X_i X_i^T (d_in, d_in), the second moments of the tasks' inputs, all as sums or all as means.
    """
    total = torch.stack([G.double() for G in moments]).sum(0)
    read = torch.cat([pair.A.double() @ G.double() for pair, G in zip(pairs, moments, strict=True)])
    return compact(Pair(over_inputs(read, total), torch.cat([pair.B.double() for pair in pairs], 1)))


def over_inputs(product: Tensor, moment: Tensor) -> Tensor:
    """Return P G^-1, which is (D_1 G_1 + ... + D_T G_T) (G_1 + ... + G_T)^-1 where both are sums over tasks.

    Where G has no inverse, it is inverted in the space that the inputs span, and inputs outside of it get 0.

    Args:
        product: P (rows, d_in), in float64.
        moment: G (d_in, d_in), in float64, symmetric and positive semi-definite.
    """
    return product @ torch.linalg.pinv(moment, hermitian=True)


def _linear(pairs: Sequence[Pair], factors: Sequence[float]) -> Pair:
    """Return the weighted sum in its numerical rank, which is 0 where the updates cancel out."""
    spectra = [spectrum(pair, 0.0).S for pair in pairs]
    largest = max((abs(w) * float(S[0]) for w, S in zip(factors, spectra, strict=True) if len(S)), default=0.0)
    return compact(weighted_sum(pairs, factors), largest)


def _by_entries(layers: Mapping[str, list[Pair]], merging: Merging, seed: int) -> dict[str, Pair]:
    """Merge whole updates entry by entry."""
    if merging.rule != "ties":
        return {
            name: _as_pair(
                elect([pair.delta() for pair in pairs])
                if merging.rule == "elect"
                else torch.stack([dare(p.delta(), merging.drop, seed, name, i) for i, p in enumerate(pairs)]).mean(0)
            )
            for name, pairs in layers.items()
        }
    by_adapter = zip(*layers.values(), strict=True)
    kept = [trimmed([pair.delta() for pair in pairs], merging.keep) for pairs in by_adapter]
    return {name: _as_pair(ties([own[k] for own in kept])) for k, name in enumerate(layers)}


def _as_pair(delta: Tensor) -> Pair:
    """Return a whole matrix as a pair, one of whose factors is the identity."""
    d_out, d_in = delta.shape
    one = torch.eye(min(d_out, d_in), dtype=delta.dtype, device=delta.device)
    return Pair(one, delta) if d_in <= d_out else Pair(delta, one)


def _factors(rule: str, count: int, weights: Sequence[float] | None) -> list[float] | None:
    """Return the factors of a linear rule; None for another rule."""
    if rule != "weighted":
        if weights is not None:
            raise ValueError(f"rule '{rule}' takes no weights; leave them out, or use rule 'weighted'")
        return {"sum": [1.0] * count, "mean": [1.0 / count] * count}.get(rule)
    if weights is None:
        raise ValueError("rule 'weighted' needs weights, one for each adapter; rule 'mean' weighs all alike")
    if len(weights) != count:
        raise ValueError(f"{len(weights)} weights were given for {count} adapters; give one for each")
    if strange := [w for w in weights if not math.isfinite(w)]:
        raise ValueError(f"the weight {strange[0]} is not finite; weights are numbers, and negative ones subtract")
    return list(weights)


def _check_moments(rule: str, layers: Mapping[str, list[Pair]], moments: Sequence[Mapping[str, Tensor]] | None) -> None:
    if rule != "regmean":
        if moments is not None:
            raise ValueError(f"rule '{rule}' takes no second moments; leave them out, or use rule 'regmean'")
        return
    if moments is None:
        raise ValueError("rule 'regmean' needs the second moments of each adapter's inputs; other rules need none")
    for name, pairs in layers.items():
        width = pairs[0].shape[1]
        if len(moments) != len(pairs):
            raise ValueError(f"{len(moments)} sets of second moments were given for {len(pairs)} adapters")
        for own in moments:
            if name not in own or own[name].shape != (width, width) or not own[name].isfinite().all():
                raise ValueError(f"layer '{name}' needs a finite second moment ({width}, {width}) from every adapter")


def _checked(adapters: Sequence[Pairs]) -> dict[str, list[Pair]]:
    """Return by layer the pairs of all adapters; where one lacks a layer, its pair there has the rank 0."""
    if not adapters:
        raise ValueError("there is no adapter to merge; give at least one")
    shapes: dict[str, tuple[int, int]] = {}
    for number, adapter in enumerate(adapters):
        for name, pair in adapter.items():
            _check_pair(number, name, pair)
            if shapes.setdefault(name, pair.shape) != pair.shape:
                raise ValueError(
                    f"adapter {number} changes layer '{name}' of the shape {pair.shape}, and another one has "
                    f"{shapes[name]} there; adapters of one network can be merged"
                )
    if not shapes:
        raise ValueError("these adapters change no layer, so there is nothing to merge")
    like = next(pair.A for adapter in adapters for pair in adapter.values())
    return {
        name: [adapter.get(name) or Pair(like.new_zeros(0, d_in), like.new_zeros(d_out, 0)) for adapter in adapters]
        for name, (d_out, d_in) in shapes.items()
    }


def _check_pair(number: int, name: str, pair: Pair) -> None:
    A, B = pair
    if A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1]:
        raise ValueError(
            f"adapter {number} has A {tuple(A.shape)} and B {tuple(B.shape)} on layer '{name}'; they must be "
            "(rank, inputs) and (outputs, rank)"
        )
    if not (A.isfinite().all() and B.isfinite().all()):
        raise ValueError(f"adapter {number} has numbers on layer '{name}' that are not finite; train it again")
