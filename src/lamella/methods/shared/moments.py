"""Second moments of what layers read, over the samples of a task."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lamella.adapters.adapter import Site, watch
from lamella.backbones import Backbone
from lamella.data.loading import Examples
from lamella.memory.subspace import SecondMoment
from lamella.training.fit import Fit

__all__ = ["second_moments"]


def second_moments(
    backbone: Backbone,
    sites: Sequence[Site],
    images: Examples,
    fit: Fit,
    name: str,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Return by layer the mean (d, d) of x x^T over all tokens x that it reads of augmented samples.

    Args:
        backbone: the network, with whatever branches act.
        sites: where the layers are.
        images: the samples.
        fit: the training loop, which makes the pass.
        name: the name of the pass within the task.
        dtype: the precision of the sums.
    """
    with watch(sites, lambda layer: SecondMoment(layer.weight.shape[1], dtype)) as observers:
        fit.scan(
            images,
            lambda x, y: backbone.show(x, sites),
            augment=True,
            keep=observers,
            any_order=True,
            name=name,
        )
    return {layer: observer.mean for layer, observer in observers.items()}
