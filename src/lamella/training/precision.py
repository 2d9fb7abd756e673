"""The device, the precision and the kind of attention that a model computes with."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lamella.common.launched import launched
from lamella.training import processes

__all__ = ["PRECISIONS", "attending", "computing", "move", "resolve_device", "slow_in_bf16", "wait_for"]

PRECISIONS = ("float32", "bf16")


def resolve_device(name: str) -> torch.device:
    """Return a device by name.

    Args:
        name: "auto" (a GPU if there is one, else the CPU), "cpu", "cuda", or a GPU by number such as "cuda:1". Of
            several processes on one machine, each has a GPU of its own by "auto" and "cuda".

    Raises:
        ValueError: the device is not available, or a process has no GPU of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda") or (name != "cpu" and not torch.cuda.is_available()):
        raise ValueError(f"device '{name}' is not available here; use 'cpu' or 'auto'")
    if processes.count() == 1 or name == "cpu":
        return torch.device(name)
    local, there = launched().local, torch.cuda.device_count()
    if name != "cuda" or local >= there:
        raise ValueError(
            f"each process needs a GPU of its own, and here are {there}; start as many processes on a machine as it "
            "has GPUs, with fit.device=auto, or learn with fit.device=cpu"
        )
    return torch.device("cuda", local)


def move(module: nn.Module, device: torch.device) -> None:
    """Move the tensors of a module to a device, if some are elsewhere.

    `Module.to` takes milliseconds where there is nothing to move, a few times as long as looking at all tensors. That
    is a good part of a pass over a few short samples.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if any(tensor.device != device for tensor in chain(module.parameters(), module.buffers())):
        module.to(device)


def slow_in_bf16(device: torch.device) -> bool:
    """Return whether a device computes bf16 without instructions for it; only of a CPU this is known."""
    if device.type != "cpu":
        return False
    return not any(there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)


def wait_for(device: torch.device) -> None:
    """Wait until the queued work of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """Run forward passes within the context in a precision.

    Args:
        device: the device that computes.
        precision: "float32" or "bf16" (autocast; statistics stay in float32).
    """
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"), attending(device, precision):
        yield


def attending(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return a context with the kind of attention of `computing` alone.

    Backward passes run in it, outside of autocast, since blocks that are computed twice attend a second time there.
    """
    return _attention_as_products() if device.type == "cpu" and precision == "bf16" else nullcontext()


@contextmanager
def _attention_as_products() -> Iterator[None]:
    """Compute attention as two matrix products, since torch's fused kernel is slow in bfloat16 on a CPU.

    This matters most in the backward pass; `benchmarks/ratios.py precision` measures it. The flag keeps the products in
    bfloat16. It is named after CUDA, but it applies to the CPU too.
    """
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
