"""Bytes: what this process takes of memory, and what autograd keeps for a backward pass."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["bytes_now", "kept_for_backward", "peak_bytes"]


def peak_bytes(device: torch.device) -> int:
    """The most so far: on a GPU what torch has allocated there, else what the process has had in memory.

    0 where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if found := _status("VmHWM"):  # not getrusage, whose peak a child process takes over from its parent
        return found
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def bytes_now(device: torch.device) -> int:
    """As `peak_bytes`, but at this moment; the peak where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS") or peak_bytes(device)


@contextmanager
def kept_for_backward(own: Iterable[Tensor]) -> Iterator[Callable[[], int]]:
    """Count the bytes of the storages that autograd keeps of what is computed meanwhile, those of `own` left out.

    Yields:
        A function that tells the bytes so far.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(kept.values())


def _status(name: str) -> int:
    """A figure that Linux gives of the process, in bytes; 0 where there is none."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
