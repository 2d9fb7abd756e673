"""Sets of labelled samples: images, as a storage of pixels and which of them, under which labels; and plain tensors.

A set is cheap: subsets and joins share the storage and only carry positions. Pixels are read when asked for, and
`keep_decoded` decodes them once into memory where they fit.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from lamella.data.decoding import in_threads
from lamella.data.loading import Examples, batches
from lamella.data.one_class import check_one_label
from lamella.data.samples import Samples, View, concatenate_samples, tensors_of

__all__ = [
    "EncodedBytes",
    "Files",
    "ImageSet",
    "PixelArray",
    "Pixels",
    "TensorSet",
    "UNKNOWN_CLASS",
    "batches",
    "concatenate",
    "content_sha256",
    "data_sha256",
]


AnySamples = TypeVar("AnySamples", bound=Samples)

UNKNOWN_CLASS = -1
"""The label of a sample whose class nobody has told."""


class Pixels(Protocol):
    """Where the images of a set lie."""

    encoded: bool  # reading takes long enough to be worth threads, and keeping the result

    def __len__(self) -> int: ...

    def read(self, i: int) -> Tensor:
        """Image i: uint8 (3, h, w)."""
        ...

    def identity(self, i: int) -> bytes:
        """What is another one where image i has changed, without reading all of it."""
        ...

    def content(self, i: int) -> bytes:
        """What is equal where two images are the same file, or have the same pixels, wherever they lie."""
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

    def content(self, i: int) -> bytes:
        return self.identity(i)


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

    def content(self, i: int) -> bytes:
        return self.identity(i)


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

    def content(self, i: int) -> bytes:
        return self.paths[i].read_bytes()


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

    def content(self, i: int) -> bytes:
        part, at = self._place(i)
        return part.content(at)

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

    noun = "image"

    def __init__(self, storage: Pixels, labels: Tensor, keys: Sequence[str], positions: Tensor | None = None) -> None:
        self.storage = storage
        self.positions = torch.arange(len(storage)) if positions is None else positions
        check_one_label(labels, self.noun)
        self.labels = labels.to(torch.int64)
        self.keys = tuple(keys)
        if not len(self.positions) == len(self.labels) == len(self.keys):
            counts = f"{len(self.positions)} images, {len(self.labels)} labels and {len(self.keys)} keys"
            raise ValueError(f"every image needs one label and one key, but there are {counts}")
        _check_keys(self.keys, self.noun)

    @classmethod
    def unlabelled(cls, storage: Pixels) -> Self:
        """All images of a storage, whose classes are not known."""
        n = len(storage)
        return cls(storage, torch.full((n,), UNKNOWN_CLASS), [str(i) for i in range(n)])

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"ImageSet({len(self)} images of {len(self.labels.unique())} classes)"

    def subset(self, index: Tensor | Sequence[int]) -> Self:
        """The images at these positions of this set, in this order; the storage is shared."""
        index = _as_index(index)
        keys = [self.keys[i] for i in index.tolist()]
        return type(self)(self.storage, self.labels[index], keys, self.positions[index])

    def relabelled(self, labels: Tensor, keys: Sequence[str] | None = None) -> Self:
        """The same images with other labels (n,), and with other keys where they are given."""
        return type(self)(self.storage, labels, self.keys if keys is None else keys, self.positions)

    def concatenate(self, others: Sequence[Self]) -> Self:
        """The images of this set and then those of the others; a storage that all share stays shared."""
        sets = (self, *others)
        labels, keys = torch.cat([part.labels for part in sets]), [key for part in sets for key in part.keys]
        if all(part.storage is self.storage for part in sets):
            return type(self)(self.storage, labels, keys, torch.cat([part.positions for part in sets]))
        joined = _Joined([part.storage for part in sets])
        starts = joined.starts.tolist()[:-1]
        positions = torch.cat([part.positions + start for part, start in zip(sets, starts, strict=True)])
        return type(self)(joined, labels, keys, positions)

    def pixels(self, index: Tensor | Sequence[int]) -> list[Tensor]:
        """The images at these positions: uint8 (3, h, w) each, of any sizes.

        Raises:
            ValueError: an image cannot be decoded; the message names it.
        """
        positions = self.positions[_as_index(index)].tolist()
        if self.storage.encoded:
            return in_threads(self.storage.read, positions)
        return [self.storage.read(i) for i in positions]

    def batch(self, index: Tensor | Sequence[int], view: Callable[[list[Tensor], Tensor], AnySamples]) -> AnySamples:
        """The images at these positions as a backbone wants them: (n, 3, size, size) float32, normalised."""
        index = _as_index(index)
        return view(self.pixels(index), index)

    def identity(self, i: int) -> bytes:
        """What the storage says of image i; of a file, size and time stand for its content."""
        return self.storage.identity(int(self.positions[i]))


class TensorSet:
    """Labelled samples that are what a network takes already: features, say, or inputs that were prepared before.

    Args:
        x: the inputs of n samples.
        labels: (n,) int64, global class ids.
        keys: a stable identity per sample; its position where left out.
        noun: what one sample is called in messages.
    """

    def __init__(self, x: Samples, labels: Tensor, keys: Sequence[str] | None = None, *, noun: str = "sample") -> None:
        if len(x) != len(labels):
            raise ValueError(f"every input needs one label, but there are {len(x)} inputs and {len(labels)} labels")
        self.x, self.noun = x, noun
        check_one_label(labels, noun)
        self.labels = labels.to(torch.int64)
        self.keys = tuple(str(i) for i in range(len(x))) if keys is None else tuple(keys)
        _check_keys(self.keys, noun)

    @classmethod
    def unlabelled(cls, x: Samples, *, noun: str = "sample") -> Self:
        """Samples whose classes are not known."""
        return cls(x, torch.full((len(x),), UNKNOWN_CLASS), noun=noun)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor | Sequence[int]) -> Self:
        """The samples at these positions of this set, in this order."""
        index = _as_index(index)
        keys = [self.keys[i] for i in index.tolist()]
        return type(self)(self.x[index], self.labels[index], keys, noun=self.noun)

    def relabelled(self, labels: Tensor, keys: Sequence[str] | None = None) -> Self:
        """The same samples with other labels (n,), and with other keys where they are given."""
        return type(self)(self.x, labels, self.keys if keys is None else keys, noun=self.noun)

    def concatenate(self, others: Sequence[Self]) -> Self:
        """The samples of this set and then those of the others, whose inputs have the same shapes."""
        sets = (self, *others)
        labels, keys = torch.cat([part.labels for part in sets]), [key for part in sets for key in part.keys]
        return type(self)(concatenate_samples([part.x for part in sets]), labels, keys, noun=self.noun)

    def batch(self, index: Tensor | Sequence[int], view: View | None = None) -> Samples:
        """The inputs at these positions; there is nothing left to do for a view."""
        return self.x[_as_index(index)]

    def identity(self, i: int) -> bytes:
        """Shapes and numbers."""
        rows = [tensor[i].detach().cpu().contiguous() for tensor in tensors_of(self.x)]
        return b"".join(f"{tuple(row.shape)} {row.dtype}".encode() + _bytes(row) for row in rows)


AnySet = TypeVar("AnySet", bound=Examples)


def concatenate(sets: Sequence[AnySet]) -> AnySet:
    """One set holding all, in order.

    Raises:
        ValueError: there is no set, they are of different kinds, or a key comes twice.
    """
    if not sets:
        raise ValueError("nothing to concatenate: give at least one set")
    if kinds := {type(part).__name__ for part in sets} - {type(sets[0]).__name__}:
        raise ValueError(f"a {type(sets[0]).__name__} and a {min(kinds)} cannot become one set")
    return sets[0].concatenate(sets[1:])


def _as_index(index: Tensor | Sequence[int]) -> Tensor:
    return torch.as_tensor(index, dtype=torch.int64, device="cpu")


def _bytes(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def _check_keys(keys: tuple[str, ...], noun: str) -> None:
    if len(set(keys)) != len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))
        raise ValueError(f"two {noun}s share the key {twice!r}; keys must differ, they decide the split")


def data_sha256(data: Examples, class_names: Mapping[int, str]) -> str:
    """SHA-256 over the sorted (key, class name) of every sample: what the data are called, not their content.

    The name of samples without a class is "".
    """
    names = {UNKNOWN_CLASS: "", **class_names}
    named = (f"{key}\x1f{names[label]}" for key, label in zip(data.keys, data.labels.tolist(), strict=True))
    return sha256("\n".join(sorted(named)).encode()).hexdigest()


def content_sha256(data: Examples) -> str:
    """SHA-256 over key and identity of every sample in its order."""
    digest = sha256()
    for i, key in enumerate(data.keys):
        digest.update(f"{key}\x1f".encode("utf-8", "surrogateescape") + data.identity(i))
    return digest.hexdigest()
