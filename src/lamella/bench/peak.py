"""The most memory that this process has taken so far."""

import sys
from pathlib import Path

import torch

__all__ = ["peak_bytes"]


def peak_bytes(device: torch.device) -> int:
    """On a GPU what torch has allocated there, else what the process has had in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage, whose peak a child process takes over from its parent
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
