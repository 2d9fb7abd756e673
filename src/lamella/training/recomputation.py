"""Recomputes the blocks of a network in the backward pass, in place of keeping what they computed in the forward pass.

Known as gradient checkpointing: Chen, Xu, Zhang & Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016,
arXiv 1604.06174. Only the input of each block is kept, and the block runs a second time when its gradient is needed:
less memory for longer training. The second run sees what the first one saw: the adapters that act, their coefficients,
the tokens that count, and the draws of dropout. So results are the same to the last bit.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lamella.adapters.branches import Adapted
from lamella.adapters.prefix import prefixes_act
from lamella.backbones.class_token import has_hooks
from lamella.training.compilation import repeated_blocks

__all__ = ["recomputed_blocks"]

MOVING = (nn.modules.batchnorm._BatchNorm,)  # pyright: ignore[reportPrivateUsage]
"""Layers whose state every run in training mode moves."""


@contextmanager
def recomputed_blocks(network: nn.Module) -> Generator[None]:
    """Run the repeated blocks of a network a second time in the backward pass, within the context.

    A block runs once, as usual, where a second run would be seen: while something watches its layers, while attentions
    see prefixes, and where it moves statistics of batches.

    Args:
        network: the network; its blocks are as before after the context.

    Raises:
        ValueError: the network has no repeated blocks.
    """
    blocks: list[Any] = list(repeated_blocks(network))
    if not blocks:
        raise ValueError("fit.recompute: the network has no sequence of equal blocks to compute twice; leave it out")
    for block in blocks:
        block.forward = MethodType(_twice(type(block).forward), block)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # back to that of the class


def _twice(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or prefixes_act() or any(map(_is_seen, block.modules())):
            return forward(block, *args, **kwargs)
        seen = _Seen([layer for layer in block.modules() if isinstance(layer, Adapted)])

        def again(*args: Any, **kwargs: Any) -> Any:
            with seen():
                return forward(block, *args, **kwargs)

        # A copy of the context, since that of the pass is over when the block runs again.
        found = copy_context()
        return checkpoint(lambda *a, **k: found.copy().run(again, *a, **k), *args, use_reentrant=False, **kwargs)

    return run


def _is_seen(module: nn.Module) -> bool:
    watched = isinstance(module, Adapted) and bool(module.watchers)
    return watched or has_hooks(module) or (module.training and isinstance(module, MOVING))


class _Seen:
    """What the adapted layers of a block depend on beside their inputs, as it was in the forward pass.

    Args:
        layers: the layers.
    """

    def __init__(self, layers: Sequence[Adapted]) -> None:
        self.layers = layers
        self.set = self._now()
        self.draws = {layer.draws: layer.draws.get_state() for layer in layers if layer.draws is not None}
        self.again = False

    @contextmanager
    def __call__(self) -> Generator[None]:
        """Within this context the layers act as they did, and draw the same numbers."""
        now = self._now()
        drawn = {draws: draws.get_state() for draws in self.draws} if self.again else {}
        self._put(self.set, self.draws)
        try:
            yield
        finally:
            self._put(now, drawn)  # the first run moves the draws on, a second one leaves them as they were
            self.again = True

    def _now(self) -> list[dict[str, Any]]:
        return [{name: getattr(layer, name) for name in layer.set_for_a_pass} for layer in self.layers]

    def _put(self, found: Sequence[dict[str, Any]], draws: dict[torch.Generator, torch.Tensor]) -> None:
        for layer, own in zip(self.layers, found, strict=True):
            for name, value in own.items():
                setattr(layer, name, value)
        for generator, state in draws.items():
            generator.set_state(state)
