"""Memory in bytes: that of this process, and that which autograd keeps for a backward pass."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["bytes_now", "kept_for_backward", "peak_bytes"]


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory so far; 0 if the system does not report it.

    Args:
        device: on a GPU, the memory that torch has allocated there counts, else the memory of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if found := _status("VmHWM"):  # not getrusage, since a child process inherits its peak from the parent
        return found
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def bytes_now(device: torch.device) -> int:
    """Return the memory in use now, of the kind of `peak_bytes`; the peak if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS") or peak_bytes(device)


@contextmanager
def kept_for_backward(own: Iterable[Tensor]) -> Iterator[Callable[[], int]]:
    """Count the bytes of the storages that autograd keeps of computations within the context.

    Args:
        own: tensors whose storages are not counted.

    Yields:
        A function that returns the number of bytes so far.
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
    """Return an entry of the status file of the process on Linux, in bytes; 0 if there is none."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
