"""What the two parts of DLC's second phase minimise. The base is frozen, and no gradient reaches it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lamella.data.samples import Samples
from lamella.methods.dlc.plugins import Tails
from lamella.methods.dlc.routed import RoutedUnit
from lamella.methods.dlc.weighting import WeightingUnit, aggregated
from lamella.methods.shared.classifier import new_or_old
from lamella.methods.shared.heads import Head, Heads
from lamella.training.fit import Loss

__all__ = ["loss_alone", "loss_together"]


def loss_alone(tails: Tails, plugin: str, auxiliary: Head, classes: Sequence[int]) -> Loss:
    """Return the loss of a plugin by itself: the cross-entropy of an auxiliary classifier of its features.

    Args:
        tails: where the plugin sits.
        plugin: its name.
        auxiliary: tells the classes apart, and all others as one from them.
        classes: those of the task.
    """

    def loss(x: Samples, y: Tensor) -> Tensor:
        with torch.no_grad():
            z = tails.trunk(x)
        return F.cross_entropy(auxiliary(tails(z, [plugin])[:, 0]), new_or_old(y, classes))

    return loss


def loss_together(
    tails: Tails,
    plugins: Sequence[str],
    unit: WeightingUnit | RoutedUnit,
    heads: Heads,
    weight: Tensor | None,
    auxiliary: tuple[float, Head, Sequence[int]],
) -> Loss:
    """Return the loss of the newest plugin, the weighting unit and the classifiers.

    Args:
        tails: where the plugins sit.
        plugins: their names, the newest last; the others stay as they are.
        unit: computes the gates.
        heads: the classifier of all aggregated features.
        weight: (classes,), the weight of each class; all alike where it is left out.
        auxiliary: the factor of the auxiliary classifier's loss, that classifier, and the classes of the task.
    """
    *frozen, new = plugins
    factor, other, classes = auxiliary

    def loss(x: Samples, y: Tensor) -> Tensor:
        with torch.no_grad():
            z = tails.trunk(x)
            fixed = tails(z, ["", *frozen])
        features = torch.cat([fixed, tails(z, [new])], 1)
        logits = heads(aggregated(features, unit(features)))
        value = F.cross_entropy(logits, heads.columns(y), weight)
        if factor:
            value = value + factor * F.cross_entropy(other(features[:, -1]), new_or_old(y, classes))
        return value

    return loss
