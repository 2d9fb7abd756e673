"""Dropout on the inputs of low-rank branches, and within a network, with draws that an interruption does not change."""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from lamella.adapters.adapter import Adapted
from lamella.common.randomness import named_seed, seed_torch
from lamella.training import processes
from lamella.training.draws import Draws

__all__ = ["dropping", "without_dropout"]


@contextmanager
def dropping(module: nn.Module, device: torch.device) -> Generator[Callable[[int], object]]:
    """Apply dropout to the branches in a module, within the context, and make the module's own draws repeatable.

    Layers of a network that drop out, such as those of an encoder of texts, draw from torch's global generator. It is
    seeded, too, where a part of the module is in training mode, and is as it was after the context. Losses that draw
    have a generator of their own (`Draws`).

    Args:
        module: its adapted layers say which share of the inputs is dropped.
        device: where the random numbers are drawn.

    Yields:
        A function that sets the seed of the draws; call it before each step.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, Adapted) and layer.dropout]
    losses = [part for part in module.modules() if isinstance(part, Draws)]
    seeded: list[Callable[[int], object]] = []
    with ExitStack() as during:
        if layers:
            draws = torch.Generator(device)
            seeded.append(lambda seed: draws.manual_seed(processes.own_seed(seed)))
            for layer in layers:
                layer.draws = draws
        if losses:
            of_losses = torch.Generator(device)
            seeded.append(lambda seed: of_losses.manual_seed(named_seed(seed, "loss")))
            for part in losses:
                part.generator = of_losses
        if any(part.training for part in module.modules()):
            during.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            seeded.append(lambda seed: seed_torch(processes.own_seed(seed), device))
        try:
            yield lambda seed: [seed_of(seed) for seed_of in seeded]
        finally:
            for layer in layers:
                layer.draws = None
            for part in losses:
                part.generator = None


@contextmanager
def without_dropout(module: nn.Module) -> Generator[None]:
    """Compute without dropout, and with kept statistics of batch norm, within the context."""
    modes = [(part, part.training) for part in module.modules()]
    draws = [(layer, layer.draws) for layer in module.modules() if isinstance(layer, Adapted)]
    try:
        for part, _ in modes:
            part.training = False
        for layer, _ in draws:
            layer.draws = None
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for layer, generator in draws:
            layer.draws = generator
