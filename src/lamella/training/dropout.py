"""Dropout on the inputs of low-rank branches, with draws that are the same after an interruption."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import nn

from lamella.adapters.adapter import Adapted

__all__ = ["dropping"]


@contextmanager
def dropping(module: nn.Module, device: torch.device) -> Generator[Callable[[int], object]]:
    """Apply dropout to the branches in a module, within the context.

    Args:
        module: its adapted layers say which share of the inputs is dropped.
        device: where the random numbers are drawn.

    Yields:
        A function that sets the seed of the draws; call it before each step.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, Adapted) and layer.dropout]
    draws = torch.Generator(device) if layers else None
    for layer in layers:
        layer.draws = draws
    try:
        yield draws.manual_seed if draws is not None else _nothing
    finally:
        for layer in layers:
            layer.draws = None


def _nothing(seed: int) -> None:
    pass
