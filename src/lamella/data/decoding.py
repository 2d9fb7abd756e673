"""From an encoded image (a file or its bytes) to uint8 RGB pixels, one or many at once."""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lamella.common.checks import first_line

__all__ = ["decode", "image_endings", "in_threads", "why"]

Item = TypeVar("Item")
Result = TypeVar("Result")

ROUGH = (8, 8)  # JPEG has no form smaller than an eighth; of this size or larger


FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000", "MPO", "TGA")
"""The formats of pictures, among all that Pillow or a plugin may know."""


@cache
def image_endings() -> tuple[str, ...]:
    """The endings of the names of image files that can be read here, in small letters, sorted.

    HEIC files need the package `pillow-heif`.
    """
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    Image.init()
    endings = Image.registered_extensions().items()
    return tuple(sorted(ending for ending, format in endings if format in FORMATS and format in Image.OPEN))


def decode(source: Path | bytes, name: str, *, rough: bool = False) -> Tensor:
    """The pixels of one image, upright and in colour.

    EXIF orientation is applied, grey becomes three equal channels, transparent pixels are laid on white, 16 bits
    become 8.

    Args:
        source: a file, or the bytes of one.
        name: what an error message calls the image.
        rough: a JPEG comes smaller, in less than half the time; a damaged one is damaged like this too.

    Returns:
        uint8 (3, h, w).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the image cannot be decoded; the message names it.
    """
    try:
        if not (source if isinstance(source, bytes) else source.stat().st_size):
            raise ValueError("the file is empty")
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            if rough:
                image.draft("RGB", ROUGH)
            upright = ImageOps.exif_transpose(image)
            array = np.array(_to_rgb(upright))
    except FileNotFoundError:
        raise FileNotFoundError(f"no such image: {name}") from None
    except MemoryError:
        raise
    except Exception as fault:  # each format raises errors of its own for damaged files
        raise ValueError(f"cannot read image {name}: {why(fault)}; replace or remove it") from fault
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def why(fault: BaseException) -> str:
    """The reason why an image cannot be read, in a few words, from what Pillow or the system raised."""
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror.lower()
    reason = first_line(fault)
    if isinstance(fault, Image.DecompressionBombError):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, which may be a decompression bomb"
    return "not an image that Pillow knows" if reason.startswith("cannot identify") else reason


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise ValueError("it holds 32-bit floats, whose range is unknown; save it with 8 bits a channel")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, colour).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("it holds 32-bit integers, whose range is unknown; save it with 8 or 16 bits a channel")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of each item, in order; Pillow decodes outside Python's lock, so threads share the work."""
    workers = min(len(items), os.cpu_count() or 1)
    if workers < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers, thread_name_prefix="lamella-read") as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise
