"""A batch of texts in parts of like lengths, so that a training step computes little for padding.

Padding is no input of any layer, so the features and their gradients are those of the whole batch up to rounding.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lamella.adapters.branches import Adapted, Branch
from lamella.adapters.prefix import prefixes_act
from lamella.backbones.class_token import has_hooks
from lamella.data.lengths import in_order, of_like_length
from lamella.data.samples import Batch
from lamella.data.tokens import IDS, MASK

__all__ = ["PASS", "divisible", "in_parts", "parts_of"]

PASS = 64
"""What a part of a training step costs in itself, as a number of tokens; measured with a network of six blocks."""
ADDED = (Branch, nn.ModuleDict, nn.ModuleList)
"""Modules that adapted layers hold. They compute the same in training mode, which they are in from their start."""


def divisible(network: nn.Module, batch: Batch) -> bool:
    """Whether a training step may compute parts of a batch one after the other, with the same result up to rounding.

    It may not where something depends on the batch as a whole: watchers of layers, hooks, the draws of dropout,
    prefixes of attentions, and a coefficient for each sample. On an accelerator, whose time for a part was not
    measured, and without gradients, where passes have batches of like lengths already, a batch stays whole, too.

    Args:
        network: what runs the batch.
        batch: of n texts; one that is not padded at the right stays whole.
    """
    if not torch.is_grad_enabled() or batch.device.type != "cpu" or batch.tensors.keys() != {IDS, MASK}:
        return False
    return _padded_at_the_right(batch) and not prefixes_act() and not any(map(_sees_the_batch, network.modules()))


def _padded_at_the_right(batch: Batch) -> bool:
    mask = batch[MASK].bool()
    return torch.equal(mask, torch.arange(mask.shape[1]) < mask.sum(1, keepdim=True))


def _sees_the_batch(module: nn.Module) -> bool:
    if has_hooks(module) or (module.training and not isinstance(module, ADDED)):
        return True
    return isinstance(module, Adapted) and (module.observed or module.draws is not None or _told_apart(module))


def _told_apart(layer: Adapted) -> bool:
    """Whether a branch has a coefficient for each sample."""
    return any(isinstance(value, Tensor) and value.numel() > 1 for value in layer.chosen.values())


def parts_of(lengths: list[int]) -> list[list[int]]:
    """The positions of a batch's texts in the parts that cost least to compute, the shortest texts first.

    Args:
        lengths: the number of tokens of each text, at least one.
    """
    return of_like_length(lengths, samples=len(lengths), size=len(lengths) * max(lengths), pass_costs=PASS)


def in_parts(run: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """(n, width), what a function makes of n texts, given those of like lengths at a time.

    Args:
        run: makes (k, width) of k texts, each of them as it would alone.
        batch: n texts, padded at the right.
    """
    lengths = batch[MASK].sum(1).tolist()
    parts = parts_of(lengths)
    if len(parts) == 1:
        return run(batch)
    found = [run(_cut(batch, part, max(lengths[i] for i in part))) for part in parts]
    return in_order(torch.cat(found), torch.tensor([place for part in parts for place in part]))


def _cut(batch: Batch, part: list[int], longest: int) -> Batch:
    return batch[torch.tensor(part)].map(lambda tensor: tensor[:, :longest])
