"""Batch norm of several processes, whose statistics are those of the whole batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lamella.training import processes

__all__ = ["norms_of_whole_batches"]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def norms_of_whole_batches(module: nn.Module, device: torch.device, smallest: int) -> Iterator[None]:
    """Let batch norm in training mode take its statistics over all processes, within the context.

    Torch's SyncBatchNorm takes the place of such layers, with their very parameters and buffers. It is for GPUs.

    Args:
        module: the method.
        device: what computes.
        smallest: the number of samples of the smallest batch.

    Raises:
        ValueError: such layers are on a CPU, or a process would have no sample of the smallest batch.
    """
    places = [
        (parent, name, layer)
        for parent in module.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, NORMS) and layer.training
    ]
    if processes.count() == 1 or not places:
        yield
        return
    if device.type == "cpu":
        raise ValueError(
            "this method trains batch norm, whose statistics are those of a whole batch, and torch adds them up over "
            "processes on GPUs only; learn in one process, or on GPUs"
        )
    if smallest < processes.count():
        raise ValueError(
            f"a batch of {smallest} has no sample for each of {processes.count()} processes, and batch norm needs one; "
            "change the method's batch_size, or start fewer processes"
        )
    from timm.layers.norm_act import convert_sync_batchnorm  # that of torch would lose the activations of timm's layers

    for parent, name, layer in places:
        setattr(parent, name, convert_sync_batchnorm(layer))
    try:
        yield
    finally:
        for parent, name, layer in places:
            setattr(parent, name, layer)
