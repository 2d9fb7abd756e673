"""In which precision a model computes, and with which attention."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["PRECISIONS", "computing"]

PRECISIONS = ("float32", "bf16")


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

    `benchmarks/precision.py` has the figures. The flag keeps the products in bfloat16; it is named after CUDA and holds
    for the CPU too.
    """
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
