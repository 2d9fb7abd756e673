"""Decode a set once and keep its pixels in memory, where they fit."""

from pathlib import Path

import torch
from torch import Tensor

from lamella.data.images import ImageSet, PixelArray, TensorSet

__all__ = ["keep_decoded"]

CHUNK = 512  # images decoded between two looks at the budget
PROBE = 32  # images decoded to estimate the size of all


def keep_decoded(data: ImageSet | TensorSet, *, budget_bytes: int | None = None) -> ImageSet | TensorSet:
    """The same set with its images decoded into memory as uint8, or the set itself where they would not fit.

    Args:
        data: any set; one whose pixels already lie in memory comes back as it is.
        budget_bytes: most bytes to use; the smaller of 2 GiB and a quarter of the free memory where left out.

    Raises:
        ValueError: an image cannot be decoded; the message names it.
    """
    if isinstance(data, TensorSet) or not data.storage.encoded or len(data) == 0:
        return data
    budget = min(2 << 30, _free_memory() // 4) if budget_bytes is None else budget_bytes
    probe = torch.linspace(0, len(data) - 1, min(PROBE, len(data))).long()
    typical = sum(image.numel() for image in data.pixels(probe)) / len(probe)
    if typical * len(data) > budget:
        return data
    images: list[Tensor] = []
    used = 0
    for chunk in torch.arange(len(data)).split(CHUNK):
        decoded = data.pixels(chunk)
        used += sum(image.numel() for image in decoded)
        if used > budget:  # the probe was not typical
            return data
        images += decoded
    equal = len({image.shape for image in images}) == 1
    return ImageSet(PixelArray(torch.stack(images) if equal else images), data.labels, data.keys)


def _free_memory() -> int:
    """Bytes that can be used without swapping; 8 GiB where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 8 << 30
