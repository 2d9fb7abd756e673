"""Bytes on their way to a device."""

import torch
from torch import Tensor

__all__ = ["send"]


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on this device. A copy to an accelerator is queued there, and nobody waits for it."""
    # Queued on the thread's current stream. Every thread starts on the default one, so what the loader's thread
    # queues is in order with the training that uses it, and needs no events.
    if device.type == "cpu":  # a copy from a GPU that nobody waits for could be read before it is there
        return tensor.to(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.contiguous().pin_memory()  # of other memory, CUDA would make a copy first, and wait for it
    return tensor.to(device, non_blocking=True)
