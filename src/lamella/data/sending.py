"""Bytes on their way to a device."""

from typing import overload

import torch
from torch import Tensor

from lamella.data.samples import Batch, Samples

__all__ = ["send"]


@overload
def send(samples: Tensor, device: torch.device) -> Tensor: ...


@overload
def send(samples: Samples, device: torch.device) -> Samples: ...


def send(samples: Samples, device: torch.device) -> Samples:
    """The samples on this device. A copy to an accelerator is queued there, and nobody waits for it."""
    return samples.map(lambda tensor: _sent(tensor, device)) if isinstance(samples, Batch) else _sent(samples, device)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    # Queued on the thread's current stream. Every thread starts on the default one, so what the loader's thread
    # queues is in order with the training that uses it, and needs no events.
    if device.type == "cpu":  # a copy from a GPU that nobody waits for could be read before it is there
        return tensor.to(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.contiguous().pin_memory()  # of other memory, CUDA would make a copy first, and wait for it
    return tensor.to(device, non_blocking=True)
