"""Sets of labelled images: a storage of pixels, and which of its images, under which labels.

A set is cheap: subsets and joins share the storage and only carry positions. Pixels are read when asked for, and
`keep_decoded` decodes them once into memory where they fit.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lamella.data.decoding import in_threads
from lamella.data.loading import batches
from lamella.data.transform import View

__all__ = [
    "EncodedBytes",
    "Files",
    "ImageSet",
    "PixelArray",
    "Pixels",
    "TensorSet",
    "batches",
    "concatenate",
    "content_sha256",
    "data_sha256",
]


class Pixels(Protocol):
    """Where the images of a set lie."""

    encoded: bool  # reading takes long enough to be worth threads, and keeping the result

    def __len__(self) -> int: ...

    def read(self, i: int) -> Tensor:
        """Image i: uint8 (3, h, w)."""
        ...

    def identity(self, i: int) -> bytes:
        """What is another one where image i has changed."""
        ...


class PixelArray:
    """Decoded images in memory.

    Args:
        images: uint8 (n, 3, h, w), or (n, 1, h, w) for grey ones, or a sequence of (3, h, w) of any sizes.
    """

    encoded = False

    def __init__(self, images: Tensor | Sequence[Tensor]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int) -> Tensor:
        return self.images[i].expand(3, -1, -1)

    def identity(self, i: int) -> bytes:
        """Shape and pixels."""
        image = self.images[i]
        return f"{tuple(image.shape)}".encode() + image.contiguous().numpy().tobytes()


class EncodedBytes:
    """Encoded image files, one after the other in one array.

    Args:
        data: (total,) uint8.
        offsets: (n + 1,) int64; image i is `data[offsets[i]:offsets[i + 1]]`.
        name: what error messages call the archive.
    """

    encoded = True

    def __init__(self, data: Tensor, offsets: Tensor, name: str = "archive") -> None:
        self.data, self.offsets, self.name = data, offsets, name

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def read(self, i: int, *, rough: bool = False) -> Tensor:
        from lamella.data.decoding import decode

        return decode(self.identity(i), f"{i} of {self.name}", rough=rough)

    def identity(self, i: int) -> bytes:
        """The encoded image itself."""
        return self.data[int(self.offsets[i]) : int(self.offsets[i + 1])].numpy().tobytes()


class Files:
    """Image files on disk."""

    encoded = True

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int, *, rough: bool = False) -> Tensor:
        from lamella.data.decoding import decode

        return decode(self.paths[i], str(self.paths[i]), rough=rough)

    def identity(self, i: int) -> bytes:
        """Place, size and time of the file."""
        stat = self.paths[i].stat()
        return f"{self.paths[i]} {stat.st_size} {stat.st_mtime_ns}".encode("utf-8", "surrogateescape")


class _Joined:
    """Several storages, one after the other."""

    def __init__(self, parts: Sequence[Pixels]) -> None:
        self.parts = tuple(parts)
        self.starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
        self.encoded = any(part.encoded for part in parts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, i: int) -> Tensor:
        part, at = self._place(i)
        return part.read(at)

    def identity(self, i: int) -> bytes:
        part, at = self._place(i)
        return part.identity(at)

    def _place(self, i: int) -> tuple[Pixels, int]:
        part = int(torch.searchsorted(self.starts, i, right=True)) - 1
        return self.parts[part], i - int(self.starts[part])


class ImageSet:
    """Labelled images.

    Args:
        storage: where the pixels lie.
        labels: (n,) int64, global class ids.
        keys: a stable identity per image (a relative path, or source and position); no two are equal.
        positions: (n,) of each image in the storage; all of the storage, in order, where left out.

    Raises:
        ValueError: the lengths differ, or a key comes twice.
    """

    def __init__(self, storage: Pixels, labels: Tensor, keys: Sequence[str], positions: Tensor | None = None) -> None:
        self.storage = storage
        self.positions = torch.arange(len(storage)) if positions is None else positions
        self.labels = labels.to(torch.int64)
        self.keys = tuple(keys)
        if not len(self.positions) == len(self.labels) == len(self.keys):
            counts = f"{len(self.positions)} images, {len(self.labels)} labels and {len(self.keys)} keys"
            raise ValueError(f"every image needs one label and one key, but there are {counts}")
        _check_keys(self.keys)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"ImageSet({len(self)} images of {len(self.labels.unique())} classes)"

    def subset(self, index: Tensor | Sequence[int]) -> "ImageSet":
        """The images at these positions of this set, in this order; the storage is shared."""
        index = _as_index(index)
        keys = [self.keys[i] for i in index.tolist()]
        return ImageSet(self.storage, self.labels[index], keys, self.positions[index])

    def pixels(self, index: Tensor | Sequence[int]) -> list[Tensor]:
        """The images at these positions: uint8 (3, h, w) each, of any sizes.

        Raises:
            ValueError: an image cannot be decoded; the message names it.
        """
        positions = self.positions[_as_index(index)].tolist()
        if self.storage.encoded:
            return in_threads(self.storage.read, positions)
        return [self.storage.read(i) for i in positions]

    def batch(self, index: Tensor | Sequence[int], view: View) -> Tensor:
        """The images at these positions as a backbone wants them: (n, 3, size, size) float32, normalised."""
        index = _as_index(index)
        return view(self.pixels(index), index)


class TensorSet:
    """Labelled tensors (features, or synthetic inputs) with the manners of an ImageSet.

    Args:
        x: (n, ...) inputs.
        labels: (n,) int64, global class ids.
        keys: a stable identity per sample; its position where left out.
    """

    def __init__(self, x: Tensor, labels: Tensor, keys: Sequence[str] | None = None) -> None:
        if len(x) != len(labels):
            raise ValueError(f"every input needs one label, but there are {len(x)} inputs and {len(labels)} labels")
        self.x = x
        self.labels = labels.to(torch.int64)
        self.keys = tuple(str(i) for i in range(len(x))) if keys is None else tuple(keys)
        _check_keys(self.keys)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor | Sequence[int]) -> "TensorSet":
        index = _as_index(index)
        return TensorSet(self.x[index], self.labels[index], [self.keys[i] for i in index.tolist()])

    def batch(self, index: Tensor | Sequence[int], view: View | None = None) -> Tensor:
        """The inputs at these positions; the view is for images and not used."""
        return self.x[_as_index(index)]


AnySet = TypeVar("AnySet", ImageSet, TensorSet)


def concatenate(sets: Sequence[AnySet]) -> AnySet:
    """One set holding all, in order.

    Raises:
        ValueError: there is no set, or a key comes twice.
    """
    if not sets:
        raise ValueError("nothing to concatenate: give at least one set")
    labels = torch.cat([part.labels for part in sets])
    keys = [key for part in sets for key in part.keys]
    first = sets[0]
    if isinstance(first, TensorSet):
        return TensorSet(torch.cat([part.x for part in sets]), labels, keys)  # pyright: ignore
    if all(part.storage is first.storage for part in sets):  # pyright: ignore
        return ImageSet(first.storage, labels, keys, torch.cat([part.positions for part in sets]))  # pyright: ignore
    joined = _Joined([part.storage for part in sets])  # pyright: ignore
    starts = joined.starts.tolist()
    positions = torch.cat([part.positions + start for part, start in zip(sets, starts, strict=False)])  # pyright: ignore
    return ImageSet(joined, labels, keys, positions)  # pyright: ignore


def _as_index(index: Tensor | Sequence[int]) -> Tensor:
    return torch.as_tensor(index, dtype=torch.int64, device="cpu")


def _check_keys(keys: tuple[str, ...]) -> None:
    if len(set(keys)) != len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))
        raise ValueError(f"two images share the key {twice!r}; keys must differ, they decide the split")


def data_sha256(data: ImageSet | TensorSet, class_names: Mapping[int, str]) -> str:
    """SHA-256 over the sorted (key, class name) of every image: what the data are called, not their pixels."""
    named = (f"{key}\x1f{class_names[label]}" for key, label in zip(data.keys, data.labels.tolist(), strict=True))
    return sha256("\n".join(sorted(named)).encode()).hexdigest()


def content_sha256(data: ImageSet) -> str:
    """SHA-256 over key and identity of every image in its order; of files, size and time stand for their content."""
    digest = sha256()
    for key, i in zip(data.keys, data.positions.tolist(), strict=True):
        digest.update(f"{key}\x1f".encode("utf-8", "surrogateescape") + data.storage.identity(i))
    return digest.hexdigest()
