"""Decoded images on disk, for sets that are larger than memory: made once, read as if they lay in memory."""

import os
import shutil
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from lamella.common.files import read_json, write_json
from lamella.common.progress import Progress, silent
from lamella.data.images import ImageSet, content_sha256

__all__ = ["CACHE", "cache_folder", "on_disk"]

CACHE = "LAMELLA_CACHE"
"""The environment variable that names the folder; without it nothing is cached."""
CHUNK = 64  # images decoded at once


class MappedPixels:
    """Pixels in one file that is mapped into memory; the system keeps what is read often.

    Args:
        path: the file with the pixels of all images, one after the other.
        shapes: the height and the width of each image.
    """

    encoded = False

    def __init__(self, path: Path, shapes: list[tuple[int, int]]) -> None:
        self.shapes = shapes
        self.ends = np.cumsum([3 * h * w for h, w in shapes])
        self.bytes = np.memmap(path, dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self.shapes)

    def read(self, i: int) -> Tensor:
        """uint8 (3, h, w)."""
        h, w = self.shapes[i]
        end = int(self.ends[i])
        return torch.from_numpy(np.array(self.bytes[end - 3 * h * w : end])).view(3, h, w)

    def identity(self, i: int) -> bytes:
        """Its pixels."""
        return self.read(i).numpy().tobytes()

    def content(self, i: int) -> bytes:
        return self.identity(i)


def cache_folder() -> Path | None:
    """Where decoded images are kept; None where the user names no place."""
    named = os.environ.get(CACHE)
    return Path(named) if named else None


def on_disk(data: ImageSet, folder: Path, *, bytes_expected: int, progress: Progress = silent) -> ImageSet:
    """The same set with its images decoded into `folder`, which two processes may use at once.

    What is there already is taken, if it was made of the same images: see `content_sha256`.

    Args:
        bytes_expected: about how much all images take.

    Raises:
        ValueError: an image cannot be decoded, or the folder has no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = content_sha256(data)[:32]
    pixels, index = folder / f"{name}.pixels", folder / f"{name}.json"
    with FileLock(folder / f"{name}.lock"):  # a second process waits, and finds all there
        if not (index.exists() and pixels.exists()):
            free = shutil.disk_usage(folder).free
            if bytes_expected > free:
                raise ValueError(
                    f"the decoded images take about {bytes_expected / 1e9:.1f} GB, and '{folder}' has "
                    f"{free / 1e9:.1f} GB free; let {CACHE} name another folder, or unset it"
                )
            write_json(index, _decode_into(pixels, data, progress))  # last: what it names is whole
    shapes = [(h, w) for h, w in read_json(index)]
    return ImageSet(MappedPixels(pixels, shapes), data.labels, data.keys)


def _decode_into(path: Path, data: ImageSet, progress: Progress) -> list[list[int]]:
    """Height and width of each image, whose pixels are written one after the other."""
    shapes: list[list[int]] = []
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file, progress("decode", len(data)) as advance:
            for chunk in torch.arange(len(data)).split(CHUNK):
                for image in data.pixels(chunk):
                    file.write(image.contiguous().numpy().tobytes())
                    shapes.append(list(image.shape[1:]))
                advance(len(chunk), "")
            file.flush()
            os.fsync(file.fileno())  # the index must not outlive a power cut that these did not
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)  # a full disk gets its room back
        raise
    return shapes
