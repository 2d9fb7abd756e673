"""One pass over a task that collects the second moments of the inputs of adapted layers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lamella.adapters.adapter import Site, watch
from lamella.backbones import Backbone
from lamella.data.loading import Examples
from lamella.memory.subspace import SecondMoment
from lamella.methods.method import Method
from lamella.training.fit import Fit

__all__ = ["at_most", "second_moments"]


def second_moments(
    fit: Fit,
    data: Examples,
    model: Backbone | Method | Callable[[Any], Tensor],
    sites: Sequence[Site],
    reads_as: Mapping[str, str],
    *,
    name: str,
    dtype: torch.dtype = torch.float32,
) -> dict[str, SecondMoment]:
    """Return by layer the second moment of its inputs x (d,) over all tokens of augmented samples.

    Args:
        fit: the passes of this task.
        data: the samples.
        model: the backbone with its branches as they act now, or a method with those that act in its predictions, or
            what passes inputs of n samples through it. A pass by one of the first two ends at the last of these layers.
        sites: the sites whose layers are observed.
        reads_as: by layer, the first one that reads the same inputs; only first ones are observed. See
            `Backbone.first_readers`.
        name: the name of the pass within the task.
        dtype: the precision of the sums; float64 where a moment is inverted.
    """
    firsts = [site for site in sites if reads_as[site.name] == site.name]

    def show(x: Any) -> None:
        if isinstance(model, Method):
            with model.acting(x):
                model.backbone.show(x, firsts)
        elif isinstance(model, Backbone):
            model.show(x, firsts)
        else:
            model(x)

    with watch(firsts, lambda layer: SecondMoment(layer.weight.shape[1], dtype)) as moments:
        fit.scan(data, lambda x, y: show(x), augment=True, keep=moments, any_order=True, name=name)
    return moments


def at_most(data: Examples, count: int | None, draws: torch.Generator) -> Examples:
    """Return so many samples of a set, drawn at random, or the set itself.

    Args:
        data: the set.
        count: how many; None keeps all.
        draws: draws their order.
    """
    return data if count is None else data.subset(torch.randperm(len(data), generator=draws)[:count])
