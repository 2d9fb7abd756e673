"""Data sets in one `.npz` file. Three layouts, told apart by the names of the arrays (n images, uint8 pixels):

1. One list of encoded images (JPEG, PNG, WebP ... as Pillow reads them), one after the other:
   `bytes` (total,) uint8; `offsets` (n + 1,), image i is `bytes[offsets[i]:offsets[i + 1]]`; `labels` (n,);
   optionally `is_test` (n,) bool, `names` (classes,) and `domains` (n,) with `domain_names`.
2. Two such lists, under prefixes: `train_bytes`, `train_offsets`, `train_labels`, and the same with `test_` or `val_`;
   optionally `names`, and `wnids` to tell equal names apart.
3. Plain pixels: `x_train` (n, h, w) or (n, h, w, 1 or 3), `y_train` (n,), `x_test`, `y_test`; optionally `names`.

Without `names`, classes are called by their number. Nothing in the file is ever unpickled.
"""

import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lamella.data.images import EncodedBytes, ImageSet, PixelArray, concatenate
from lamella.data.scenario import Source
from lamella.data.sources.parts import divide

__all__ = ["load_archive", "pixel_set"]

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
        is_test = torch.from_numpy(arrays["is_test"].astype(bool)) if "is_test" in arrays else None
        if is_test is not None and len(is_test) != len(data):
            raise ValueError(f"{path}: is_test has {len(is_test)} entries for {len(data)} images")
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
        domains=torch.from_numpy(arrays["domains"].astype(np.int64)) if "domains" in arrays else None,
        domain_names=[str(domain) for domain in arrays.get("domain_names", ())],
        test_fraction=test_fraction,
        split_seed=split_seed,
    )


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
    return ImageSet(PixelArray(pixels), _labels(labels), [f"{name}/{i}" for i in range(len(pixels))])


def _read(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as fault:
        raise ValueError(
            f"{path} cannot be read as an .npz archive of plain arrays; write it with numpy.savez"
        ) from fault


def _encoded(arrays: Arrays, prefix: str, name: str, path: Path) -> ImageSet:
    content, offsets, labels = (arrays[prefix + key] for key in ("bytes", "offsets", "labels"))
    if content.dtype != np.uint8 or content.ndim != 1:
        raise ValueError(f"{path}: {prefix}bytes must be uint8 (total,), not {content.dtype} {content.shape}")
    if len(offsets) != len(labels) + 1:
        raise ValueError(f"{path}: {len(labels)} {prefix}labels need {len(labels) + 1} offsets, not {len(offsets)}")
    offsets = offsets.astype(np.int64)
    if offsets[0] < 0 or offsets[-1] > len(content) or (np.diff(offsets) <= 0).any():
        raise ValueError(f"{path}: {prefix}offsets must rise from 0 to the {len(content)} bytes there are")
    storage = EncodedBytes(torch.from_numpy(content), torch.from_numpy(offsets), f"{prefix}bytes in {path}")
    part = f"{name}/{prefix.rstrip('_')}".rstrip("/")
    return ImageSet(storage, _labels(labels), [f"{part}/{i}" for i in range(len(labels))])


def _test_prefix(arrays: Arrays, path: Path) -> str:
    for prefix in ("test_", "val_"):
        if {prefix + key for key in ("bytes", "offsets", "labels")} <= arrays.keys():
            return prefix
    raise ValueError(f"{path} has train_bytes but no test part; it needs test_ or val_ bytes, offsets and labels")


def _two_parts(train: ImageSet, test: ImageSet) -> tuple[ImageSet, Tensor]:
    return concatenate([train, test]), torch.arange(len(train) + len(test)) >= len(train)


def _labels(labels: NDArray) -> Tensor:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(f"labels must be whole numbers (n,), not {labels.dtype} {labels.shape}")
    return torch.from_numpy(labels.astype(np.int64))


def _class_names(arrays: Arrays, labels: Tensor, path: Path) -> list[str]:
    if "names" not in arrays:
        return [str(i) for i in range(int(labels.max()) + 1 if len(labels) else 0)]
    names = [str(name) for name in arrays["names"]]
    wnids = [str(wnid) for wnid in arrays.get("wnids", ())]
    counts = Counter(names)
    if len(wnids) == len(names):
        names = [f"{n} ({w})" if counts[n] > 1 else n for n, w in zip(names, wnids, strict=True)]
    if len(labels) and int(labels.max()) >= len(names):
        raise ValueError(f"{path}: label {int(labels.max())} has no name; there are {len(names)} names")
    return names
