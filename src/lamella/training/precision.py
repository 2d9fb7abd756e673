"""On which device a model computes, in which precision, and with which attention."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["PRECISIONS", "computing", "resolve_device", "wait_for"]

PRECISIONS = ("float32", "bf16")


def resolve_device(name: str) -> torch.device:
    """ "auto" is the first accelerator, else the CPU.

    Raises:
        ValueError: the named device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.split(":")[0] not in ("cpu", "cuda") or (name != "cpu" and not torch.cuda.is_available()):
        raise ValueError(f"device '{name}' is not available here; use 'cpu' or 'auto'")
    return torch.device(name)


def wait_for(device: torch.device) -> None:
    """Until what is queued there is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """Forward passes within it run in this precision: "float32", or "bf16" (autocast; statistics stay float32)."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        if device.type == "cpu" and precision == "bf16":
            with _attention_as_products():
                yield
        else:
            yield


@contextmanager
def _attention_as_products() -> Iterator[None]:
    """Attention as two matrix products: torch's fused kernel is slow in bfloat16 on a CPU, above all backwards.

    `benchmarks/ratios.py precision` has the figures. The flag keeps the products in bfloat16; it is named after CUDA
    and holds for the CPU too.
    """
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
