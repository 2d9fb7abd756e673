"""A batch of texts in parts of like lengths, so that a training step computes little for padding.

Padding is no input of any layer, so the features and their gradients are those of the whole batch up to rounding.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lamella.adapters.branches import Adapted, Branch
from lamella.adapters.prefix import prefixes_act
from lamella.backbones.class_token import has_hooks
from lamella.data.lengths import in_order, of_like_length
from lamella.data.samples import Batch
from lamella.data.tokens import IDS, MASK

__all__ = ["PASS", "divisible", "in_parts"]

PASS = 64
"""What a part of a training step costs in itself, as a number of tokens; measured with a network of six blocks."""
ADDED = (Branch, nn.ModuleDict, nn.ModuleList)
"""What adapted layers hold, which is the same in training."""


def divisible(network: nn.Module, batch: Batch) -> bool:
    """Whether parts of a batch can be computed one after the other and nobody would see it.

    That is so in training on a CPU; an accelerator computes a whole batch in the time of its parts. It is not where
    something belongs to the batch as a whole: what watches layers, hooks, draws of dropout, prefixes of attentions,
    and a coefficient for each sample.

    Args:
        network: what runs the batch.
        batch: padded at the right.
    """
    if not torch.is_grad_enabled() or batch.device.type != "cpu" or batch.tensors.keys() != {IDS, MASK}:
        return False
    return not prefixes_act() and not any(map(_sees_the_batch, network.modules()))


def _sees_the_batch(module: nn.Module) -> bool:
    if has_hooks(module) or (module.training and not isinstance(module, ADDED)):
        return True
    return isinstance(module, Adapted) and (module.observed or module.draws is not None or _told_apart(module))


def _told_apart(layer: Adapted) -> bool:
    """Whether a branch has a coefficient for each sample."""
    return any(isinstance(value, Tensor) and value.numel() > 1 for value in layer.chosen.values())


def in_parts(run: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """(n, width), what a function makes of n texts, given those of like lengths at a time.

    Args:
        run: makes (k, width) of k texts, each of them as it would alone.
        batch: n texts, padded at the right.
    """
    lengths = batch[MASK].sum(1)
    longest = batch[MASK].shape[1]
    parts = of_like_length(lengths.tolist(), samples=len(batch), size=len(batch) * longest, pass_costs=PASS)
    if len(parts) == 1:
        return run(batch)
    order = torch.tensor([place for part in parts for place in part])
    return in_order(torch.cat([run(part) for part in _cut(batch, lengths, parts)]), order)


def _cut(batch: Batch, lengths: Tensor, parts: list[list[int]]) -> Iterator[Batch]:
    for part in parts:
        longest = int(lengths[part].max())
        yield batch[torch.tensor(part)].map(lambda tensor, longest=longest: tensor[:, :longest])
