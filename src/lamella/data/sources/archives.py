"""Data sets in one `.npz` file. Three layouts, told apart by the names of the arrays (n images, uint8 pixels):

1. One list of encoded images (JPEG, PNG, WebP ... as Pillow reads them), one after the other:
   `bytes` (total,) uint8; `offsets` (n + 1,), image i is `bytes[offsets[i]:offsets[i + 1]]`; `labels` (n,);
   optionally `is_test` (n,) bool, `names` (classes,) and `domains` (n,) with `domain_names`.
2. Two such lists, under prefixes: `train_bytes`, `train_offsets`, `train_labels`, and the same with `test_` or `val_`;
   optionally `names`, and `wnids` to tell equal names apart.
3. Plain pixels: `x_train` (n, h, w) or (n, h, w, 1 or 3), `y_train` (n,), `x_test`, `y_test`; optionally `names`.

Without `names`, classes are called by their number. Nothing in the file is ever unpickled.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lamella.data.images import EncodedBytes, ImageSet, PixelArray, concatenate
from lamella.data.one_class import several_labels
from lamella.data.scenario import Source
from lamella.data.sources.parts import divide

__all__ = ["load_archive", "pixel_set"]

MOST_CLASSES = 100_000
Arrays = dict[str, NDArray]


def load_archive(path: Path, *, name: str | None = None, test_fraction: float = 0.2, split_seed: int = 0) -> Source:
    """Load a `.npz` data set in one of the layouts above.

    Args:
        path: of the file.
        name: of the data set; the file's name where left out.
        test_fraction: of each class to hold out for testing where the file has no test part.
        split_seed: of that split.

    Raises:
        ValueError: the file is not such an archive, or its arrays do not fit together.
    """
    name = name or path.stem
    arrays = _read(path)
    if {"bytes", "offsets", "labels"} <= arrays.keys():
        data = _encoded(arrays, "", name, path)
        is_test = _flags(arrays["is_test"], len(data), path) if "is_test" in arrays else None
    elif {"train_bytes", "train_offsets", "train_labels"} <= arrays.keys():
        data, is_test = _two_parts(
            _encoded(arrays, "train_", name, path), _encoded(arrays, _test_prefix(arrays, path), name, path)
        )
    elif {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        train, test = (pixel_set(arrays[f"x_{p}"], arrays[f"y_{p}"], f"{name}/{p}") for p in ("train", "test"))
        data, is_test = _two_parts(train, test)
    else:
        raise ValueError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; a data set needs bytes, offsets and labels, "
            "or train_bytes ... with test_bytes ..., or x_train, y_train, x_test and y_test"
        )
    return divide(
        name,
        data,
        _class_names(arrays, data.labels, path),
        is_test=is_test,
        domains=_domains(arrays, len(data), path),
        domain_names=_texts(arrays, "domain_names", path),
        test_fraction=test_fraction,
        split_seed=split_seed,
    )


def _texts(arrays: Arrays, key: str, path: Path) -> list[str]:
    """Return an array of texts as a list; empty if there is no such array.

    Raises:
        ValueError: it holds something else, has another shape, or is not UTF-8.
    """
    if key not in arrays:
        return []
    found = arrays[key]
    if found.ndim != 1 or found.dtype.kind not in "US":
        raise ValueError(f"{path}: {key} must be texts (n,), not {found.dtype} {found.shape}")
    try:
        return [text.decode() if isinstance(text, bytes) else str(text) for text in found.tolist()]
    except UnicodeDecodeError:
        raise ValueError(f"{path}: {key} are not UTF-8; write them with numpy.array([...], dtype=str)") from None


def _flags(found: NDArray, count: int, path: Path) -> Tensor:
    """Return which images are test images, (n,) bool."""
    values = set(np.unique(found).tolist()) if found.dtype.kind in "biu" else {None}
    if found.shape != (count,) or not values <= {0, 1}:
        raise ValueError(f"{path}: is_test must be true or false for each of {count} images, not {_form(found)}")
    return torch.from_numpy(found.astype(bool))


def _domains(arrays: Arrays, count: int, path: Path) -> Tensor | None:
    """Return the domain of each image, (n,) int64; None if there are none."""
    if "domains" not in arrays:
        return None
    found, names = arrays["domains"], len(_texts(arrays, "domain_names", path))
    if found.shape != (count,) or found.dtype.kind not in "iu":
        raise ValueError(f"{path}: domains must be a whole number for each of {count} images, not {_form(found)}")
    if count and not 0 <= int(found.min()) <= int(found.max()) < names:
        wrong = int(found.min()) if int(found.min()) < 0 else int(found.max())
        raise ValueError(f"{path}: domain {wrong} has no name; there are {names} domain_names")
    return torch.from_numpy(found.astype(np.int64))


def _form(array: NDArray) -> str:
    return f"{array.dtype} {array.shape}"


def pixel_set(images: NDArray, labels: NDArray, name: str) -> ImageSet:
    """A set over pixels in memory.

    Args:
        images: uint8 (n, h, w), (n, h, w, 1) or (n, h, w, 3).
        labels: (n,) integers.
        name: prefix of the keys, `name/0` and so on.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise ValueError(f"{name}: pixels must be uint8 (n, h, w) or (n, h, w, 3), not {images.dtype} {images.shape}")
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return ImageSet(PixelArray(pixels), _labels(labels, name), [f"{name}/{i}" for i in range(len(pixels))])


def _read(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except MemoryError:
        raise
    except Exception as fault:  # each way of compressing has errors of its own, and NumPy has some for other files
        raise ValueError(_unreadable(path)) from fault
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):  # NumPy gives other files as bytes
        raise ValueError(_unreadable(path))
    return arrays


def _unreadable(path: Path) -> str:
    return f"{path} cannot be read as an .npz archive of plain arrays; write it with numpy.savez"


def _encoded(arrays: Arrays, prefix: str, name: str, path: Path) -> ImageSet:
    content, offsets, labels = (arrays[prefix + key] for key in ("bytes", "offsets", "labels"))
    if content.dtype != np.uint8 or content.ndim != 1:
        raise ValueError(f"{path}: {prefix}bytes must be uint8 (total,), not {content.dtype} {content.shape}")
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu":
        raise ValueError(f"{path}: {prefix}offsets must be whole numbers (n + 1,), not {_form(offsets)}")
    labels_of = _labels(labels, path)
    if len(offsets) != len(labels) + 1:
        raise ValueError(f"{path}: {len(labels)} {prefix}labels need {len(labels) + 1} offsets, not {len(offsets)}")
    offsets = offsets.astype(np.int64)
    if offsets[0] < 0 or offsets[-1] > len(content) or (np.diff(offsets) <= 0).any():
        raise ValueError(f"{path}: {prefix}offsets must rise from 0 to the {len(content)} bytes there are")
    storage = EncodedBytes(torch.from_numpy(content), torch.from_numpy(offsets), f"{prefix}bytes in {path}")
    part = f"{name}/{prefix.rstrip('_')}".rstrip("/")
    return ImageSet(storage, labels_of, [f"{part}/{i}" for i in range(len(labels))])


def _test_prefix(arrays: Arrays, path: Path) -> str:
    for prefix in ("test_", "val_"):
        if {prefix + key for key in ("bytes", "offsets", "labels")} <= arrays.keys():
            return prefix
    raise ValueError(f"{path} has train_bytes but no test part; it needs test_ or val_ bytes, offsets and labels")


def _two_parts(train: ImageSet, test: ImageSet) -> tuple[ImageSet, Tensor]:
    return concatenate([train, test]), torch.arange(len(train) + len(test)) >= len(train)


def _labels(labels: NDArray, path: Path | str) -> Tensor:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        several = f"; {several_labels('image')}" if labels.ndim == 2 else ""
        raise ValueError(f"{path}: labels must be whole numbers (n,), not {labels.dtype} {labels.shape}{several}")
    return torch.from_numpy(labels.astype(np.int64))


def _class_names(arrays: Arrays, labels: Tensor, path: Path) -> list[str]:
    if len(labels) and int(labels.min()) < 0:
        raise ValueError(f"{path}: label {int(labels.min())} is below 0; classes are numbered from 0")
    if "names" not in arrays:
        count = int(labels.max()) + 1 if len(labels) else 0
        if count > MOST_CLASSES:
            raise ValueError(f"{path}: label {count - 1} is too large; number the classes from 0 without gaps")
        return [str(i) for i in range(count)]
    names, wnids = _texts(arrays, "names", path), _texts(arrays, "wnids", path)
    counts = Counter(names)
    if len(wnids) == len(names):
        names = [f"{n} ({w})" if counts[n] > 1 else n for n, w in zip(names, wnids, strict=True)]
    if len(labels) and int(labels.max()) >= len(names):
        raise ValueError(f"{path}: label {int(labels.max())} has no name; there are {len(names)} names")
    return names
