"""Dropout on the inputs of low-rank branches, drawn by name: the same in a training that was interrupted."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import nn

from lamella.adapters.adapter import Adapted

__all__ = ["dropping"]


@contextmanager
def dropping(module: nn.Module, device: torch.device) -> Generator[Callable[[int], object]]:
    """Within this context the branches in `module` drop the share of their inputs that their layers name.

    Yields:
        What the draws start from: it is called with a seed before each step.
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
