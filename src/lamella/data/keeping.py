"""Decode a set once: keep its pixels in memory, where they fit, and find out which images cannot be read."""

from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lamella.common.progress import Progress, silent
from lamella.data.decoding import in_threads
from lamella.data.disk_cache import cache_folder, on_disk
from lamella.data.images import EncodedBytes, Files, ImageSet, PixelArray
from lamella.data.loading import Examples
from lamella.data.tasks import Unreadable

__all__ = ["Readable", "content_digest", "keep_decoded", "keep_readable"]

CHUNK = 64  # images decoded between two looks at the budget
PROBE = 32  # images decoded to estimate the size of all


class Readable(NamedTuple):
    """The images of a set that can be read.

    Attributes:
        data: these images, decoded into memory where they fit.
        digests: (n,) int64; equal for images with the same content, under whatever name.
        unreadable: the images that cannot be read.
    """

    data: ImageSet
    digests: Tensor
    unreadable: list[Unreadable]


def keep_decoded(data: Examples, *, budget_bytes: int | None = None, progress: Progress = silent) -> Examples:
    """The same set with its images decoded into memory as uint8, or on disk where they would not fit and LAMELLA_CACHE
    names a folder for them; else the set itself.

    Args:
        data: any set; one whose samples are no images, or lie decoded in memory, comes back as it is.
        budget_bytes: most bytes to use; the smaller of 2 GiB and a quarter of the free memory where left out.

    Raises:
        ValueError: an image cannot be decoded; the message names it.
    """
    if not isinstance(data, ImageSet) or not data.storage.encoded or len(data) == 0:
        return data
    budget = _budget(budget_bytes)
    probe = torch.linspace(0, len(data) - 1, min(PROBE, len(data))).long()
    typical = sum(image.numel() for image in data.pixels(probe)) / len(probe)
    if typical * len(data) > budget:
        return _beyond_memory(data, int(typical * len(data)), progress)
    images: list[Tensor] = []
    used = 0
    for chunk in torch.arange(len(data)).split(CHUNK):
        decoded = data.pixels(chunk)
        used += sum(image.numel() for image in decoded)
        if used > budget:  # the probe was not typical
            return _beyond_memory(data, used * len(data) // (int(chunk[-1]) + 1), progress)
        images += decoded
    return _in_memory(data, images)


def keep_readable(data: ImageSet, *, budget_bytes: int | None = None) -> Readable:
    """The images of a set that can be read, decoded into memory where they fit, and those that cannot.

    Every image is looked at once. Where it becomes clear that not all fit, the others are decoded for the look only,
    JPEGs roughly, and the set stays where it lies.

    Args:
        budget_bytes: as for `keep_decoded`.
    """
    if not data.storage.encoded or not len(data):
        return Readable(data, torch.tensor([_digest(data, i) for i in range(len(data))], dtype=torch.int64), [])
    budget, fits, used = _budget(budget_bytes), True, 0
    images: list[Tensor] = []
    readable: list[int] = []
    digests: list[int] = []
    unreadable: list[Unreadable] = []
    for chunk in torch.arange(len(data)).split(CHUNK):
        looks = in_threads(_Look(data, keep=fits), chunk.tolist())
        for i, look in zip(chunk.tolist(), looks, strict=True):
            if isinstance(look, Unreadable):
                unreadable.append(look)
                continue
            pixels, digest = look
            readable.append(i)
            digests.append(digest)
            if fits:
                images.append(pixels)
                used += pixels.numel()
        if fits and used * len(data) > budget * (int(chunk[-1]) + 1):
            fits, images = False, []
    part = data if not unreadable else data.subset(readable)
    kept = _in_memory(part, images) if fits and images else part
    return Readable(kept, torch.tensor(digests, dtype=torch.int64), unreadable)


class _Look:
    """Reads image i of a set: its pixels (nothing of them where they are not to be kept) and its digest, or why it
    cannot be read.
    """

    def __init__(self, data: ImageSet, *, keep: bool) -> None:
        self.data, self.keep = data, keep
        self.options = {"rough": True} if not keep and isinstance(data.storage, EncodedBytes | Files) else {}

    def __call__(self, i: int) -> tuple[Tensor, int] | Unreadable:
        from lamella.data.decoding import why

        try:
            pixels = self.data.storage.read(int(self.data.positions[i]), **self.options)
        except FileNotFoundError:
            return Unreadable(self.data.keys[i], "there is no such file")
        except ValueError as fault:
            return Unreadable(self.data.keys[i], why(fault.__cause__ or fault))
        return pixels if self.keep else pixels[:, :0, :0], _digest(self.data, i)


def _digest(data: ImageSet, i: int) -> int:
    """Return the digest of the content of image i of a set."""
    return content_digest(data.storage.content(int(data.positions[i])))


def content_digest(content: bytes) -> int:
    """Return 64 bits of the SHA-256 of some content, as a signed number."""
    return int.from_bytes(sha256(content).digest()[:8], "big", signed=True)


def _beyond_memory(data: ImageSet, bytes_expected: int, progress: Progress) -> ImageSet:
    folder = cache_folder()
    return data if folder is None else on_disk(data, folder, bytes_expected=bytes_expected, progress=progress)


def _in_memory(data: ImageSet, images: list[Tensor]) -> ImageSet:
    equal = len({image.shape for image in images}) == 1
    return ImageSet(PixelArray(torch.stack(images) if equal else images), data.labels, data.keys)


def _budget(bytes_: int | None) -> int:
    return min(2 << 30, _free_memory() // 4) if bytes_ is None else bytes_


def _free_memory() -> int:
    """Bytes that can be used without swapping; 8 GiB where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 8 << 30
