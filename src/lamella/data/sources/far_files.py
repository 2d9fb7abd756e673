"""Image files below a folder or at a URL, listed by their names and read some at a time.

URLs are those of fsspec, such as `s3://bucket/photos` (with the package s3fs) or `memory://photos`.
"""

import os
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch

from lamella.data.images import EncodedBytes, Files, ImageSet, Pixels
from lamella.data.sources.files import IMAGES, list_images

__all__ = ["FarFiles", "is_url", "list_files"]

PATTERN = re.compile(r"[*?\[]")
"""What makes fsspec take a name for the pattern of others."""


def is_url(place: str) -> bool:
    """Whether a place is a URL, and no path."""
    return "://" in place


class FarFiles(NamedTuple):
    """The image files of one place.

    Attributes:
        names: of the files, as people know them, in order.
        system: the file system of fsspec; None for this machine's own.
    """

    names: tuple[str, ...]
    system: Any = None

    def some(self, names: Sequence[str]) -> ImageSet:
        """Return some of the files as a set of images, whose keys are positions.

        A file of another system that cannot be had any more is one that cannot be read.
        """
        return ImageSet.unlabelled(self._storage(names))

    def check_there(self, names: Sequence[str]) -> None:
        """Make sure that a process that has not listed the files itself sees at least one of some.

        Raises:
            FileNotFoundError: it sees none of them.
        """
        there = os.path.exists if self.system is None else self.system.exists
        if names and not any(map(there, names)):
            first = names[0] if self.system else Path(names[0]).absolute()
            raise FileNotFoundError(
                f"'{first}' is not to be seen there, nor is any other image of this part; every machine must see the "
                "images under the same paths"
            )

    def _storage(self, names: Sequence[str]) -> Pixels:
        if self.system is None:
            return Files([Path(name) for name in names])
        paths = [self.system._strip_protocol(name) for name in names]
        plain = [path for path in paths if not PATTERN.search(path)]
        found = self.system.cat(plain, on_error="return") if plain else {}
        contents = [self._content(path) if PATTERN.search(path) else found[path] for path in paths]
        contents = [content if isinstance(content, bytes) else b"" for content in contents]
        ends = list(accumulate(map(len, contents), initial=0))
        whole = torch.frombuffer(bytearray(b"".join(contents)) or bytearray(1), dtype=torch.uint8)
        return EncodedBytes(whole, torch.tensor(ends), "these files")

    def _content(self, path: str) -> bytes | Exception:
        """Read one file by its very name, as `cat` does not do where that may be a pattern."""
        try:
            return self.system.cat_file(path)
        except Exception as error:  # as `cat` gives them
            return error


def list_files(place: str) -> FarFiles:
    """List the image files below a folder or at a URL, or the one file that it is.

    Raises:
        FileNotFoundError: there is no such place.
        ValueError: it has no images, or fsspec does not know such URLs.
    """
    if is_url(place):
        return _at_url(place)
    path = Path(place)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder '{place}'")
    if path.is_file():
        return FarFiles((place,))
    try:
        return FarFiles(tuple(map(str, list_images(path))))
    except ValueError:  # speaks of a class to learn
        raise ValueError(f"folder '{place}' has no images; give another one, or image files") from None


def _at_url(url: str) -> FarFiles:
    from fsspec.core import url_to_fs

    try:
        system, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"'{url}' cannot be read by fsspec ({error})") from error
    found = sorted(system.find(root))
    names = [system.unstrip_protocol(path) for path in found if PurePosixPath(path).name in IMAGES]
    if not names:
        raise FileNotFoundError(f"no images at '{url}'")
    return FarFiles(tuple(names), system)
