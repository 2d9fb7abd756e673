"""Truncation of an adapter for PEFT: what smaller factors keep, and how far their predictions are from the model's."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from statistics import mean

import torch

from lamella.adapters.pairs import Pair, rank_of_energy, truncated
from lamella.backbones import Backbone
from lamella.learner.export.check import Logits, random_samples
from lamella.learner.export.low_rank import Stored
from lamella.learner.export.network import Fixed
from lamella.learner.export.peft_parts import Adapter
from lamella.methods.shared.plain_classifier import PlainClassifier

__all__ = ["Truncation"]

SAMPLES = 16
"""How many random samples the predictions are compared on."""


@dataclass(frozen=True)
class Truncation:
    """How far the change of each layer is truncated: to a rank, or to the smallest rank that keeps a share.

    Attributes:
        rank: the largest rank of a layer, at least 1; None where the share decides.
        energy: the share of the squared norm of each layer's change that is kept at least, above 0 and up to 1; None
            where the rank decides.

    Raises:
        ValueError: a number is out of its range, or not exactly one of both is given.
    """

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise ValueError("truncate either to a rank (--rank) or to a share of the squared norm (--energy)")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank {self.rank} is too small; give at least 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"energy {self.energy} must be above 0 and at most 1, such as 0.99")

    def of(self, adapter: Adapter, backbone: Backbone) -> Adapter:
        """Return the truncated adapter, whose export is compared with the truncated network.

        Its notes say which shares are kept, and how far its predictions are from those of the model.

        Args:
            adapter: the adapter as it is.
            backbone: the backbone as it was loaded.

        Raises:
            ValueError: the adapter is a DoRA, whose change has no low rank.
        """
        cut = {name: self._cut(name, pair) for name, pair in adapter.pairs.items()}
        pairs = {name: pair for name, (pair, _) in cut.items()}
        shares = [kept for _, kept in cut.values()]
        before = max(len(pair.A) for pair in adapter.pairs.values())
        kept = (
            f"truncated from ranks up to {before}: keeps at least {_percent(min(shares))} of the squared norm of a "
            f"layer's change, {_percent(mean(shares))} in the mean"
        )
        own = _network(backbone, pairs, adapter.classifier)
        described = adapter.described | {"truncated": kept}
        notes = (kept, _distance(adapter.own, own, backbone))
        return replace(adapter, pairs=pairs, described=described, own=own, notes=notes)

    def _cut(self, name: str, pair: Stored) -> tuple[Pair, float]:
        if not isinstance(pair, Pair):
            raise ValueError(
                f"the change of layer '{name}' is a DoRA, which scales whole rows of the weight, so truncation would "
                "not say what is kept; leave out --rank and --energy"
            )
        rank = self.rank if self.energy is None else rank_of_energy(pair, self.energy)
        (A, B), kept = truncated(pair, rank or 1)
        return Pair(A.float().contiguous(), B.float().contiguous()), kept


def _percent(share: float) -> str:
    """Write a share as a percentage that is never rounded up.

    >>> _percent(0.99999), _percent(1.0), _percent(0.8765)
    ('99.99 %', '100.00 %', '87.65 %')
    """
    return f"{int(share * 10000 + 1e-6) / 100:.2f} %"


@torch.no_grad()
def _network(backbone: Backbone, pairs: Mapping[str, Pair], classifier: PlainClassifier | None) -> Fixed:
    """Return the network that was loaded with the changes added to its weights, and the classifier."""
    changed = deepcopy(backbone)
    for name, pair in pairs.items():
        weight = changed.model.get_parameter(f"{name}.weight")
        weight.copy_(weight.double() + pair.delta())
    return Fixed(changed, classifier).eval().requires_grad_(False)


@torch.no_grad()
def _distance(model: Logits, truncated: Logits, backbone: Backbone) -> str:
    """Say how far the predictions of two networks are from each other on random samples."""
    x = random_samples(backbone, SAMPLES)
    wanted, found = model(x).float().cpu(), truncated(x).float().cpu()
    same, noun = int((wanted.argmax(1) == found.argmax(1)).sum()), backbone.transform.noun
    alike = (
        f"gives the highest logit to the same token {same} of {len(wanted)} times in {SAMPLES} random {noun}s"
        if noun == "answer"
        else f"names the same class for {same} of {SAMPLES} random {noun}s"
    )
    return (
        f"the truncated network differs from the model by up to {float((wanted - found).abs().max()):.1e} in its "
        f"logits, which go up to {float(wanted.abs().max()):.3g}, and {alike}"
    )
