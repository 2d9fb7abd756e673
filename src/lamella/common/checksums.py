"""Checksums of tensors, which reveal any change of their content.

Torch has a version counter for each tensor, but it misses changes through `tensor.data` and by fused optimisers. A
checksum reads the content itself, so it reveals these too.
"""

import zlib
from collections.abc import Sequence
from hashlib import sha256

import torch
from torch import Tensor

__all__ = ["checksums", "digest"]

# The odd factors of the mixing function SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), as signed numbers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX = 0xBF58476D1CE4E5B9 - 2**64
_WORDS = {1: torch.uint8, 2: torch.int16}  # by bytes of an element; larger elements are read as words of 32 bits


def checksums(tensors: Sequence[Tensor]) -> list[int]:
    """Compute a checksum for each tensor, which depends on every bit and its position.

    A change of a single number always changes the checksum. Any other change, such as a permutation, is missed with a
    probability of about one in four thousand million.

    On a CPU it is the CRC-32 of the bytes. On an accelerator it is a sum that is computed there, with one
    synchronisation for all tensors. Checksums of equal tensors on different kinds of devices therefore differ.

    Args:
        tensors: dense tensors of any shape, strides and dtype, with or without gradients.

    Returns:
        The checksums, in the order of `tensors`.
    """
    sums = [_on_cpu(t) if t.device.type == "cpu" else _on_accelerator(t) for t in tensors]
    waiting = [s for s in sums if isinstance(s, Tensor)]
    fetched = iter(torch.stack(waiting).tolist() if waiting else ())
    return [next(fetched) if isinstance(s, Tensor) else s for s in sums]


def digest(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's numbers and shape, the same on all devices."""
    content = sha256(_flat(tensor.cpu()).view(torch.uint8).numpy().data)
    content.update(str(tuple(tensor.shape)).encode())
    return content.hexdigest()


def _on_cpu(tensor: Tensor) -> int:
    return zlib.crc32(_flat(tensor).view(torch.uint8).numpy().data)


def _on_accelerator(tensor: Tensor) -> Tensor:
    """The sum of all words times the weights of their places, in whole numbers modulo 2^64: a tensor without axes."""
    words = _flat(tensor).view(_WORDS.get(tensor.element_size(), torch.int32))
    places = torch.arange(1, len(words) + 1, device=tensor.device) * _GOLDEN
    weights = (places ^ (places >> 32)) * _MIX | 1  # odd, so that a change of one word always changes the product
    return (words * weights).sum()


def _flat(tensor: Tensor) -> Tensor:
    """All numbers side by side: a tensor of one number may keep the stride of the row that it was cut from."""
    flat = tensor.detach().reshape(-1)
    return flat if flat.stride() == (1,) else flat.clone(memory_format=torch.contiguous_format)
