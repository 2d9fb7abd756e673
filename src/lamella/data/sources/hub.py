"""Image data sets of the Hugging Face hub, through `datasets` (an optional extra)."""

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamella.common.checks import did_you_mean, first_line
from lamella.data.decoding import decode
from lamella.data.images import ImageSet, concatenate
from lamella.data.scenario import Source
from lamella.data.sources.parts import divide

__all__ = ["load_hub"]

TEST_SPLITS = ("test", "validation", "valid", "val")
LABEL_COLUMNS = ("label", "labels")


def load_hub(
    name: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    image: str | None = None,
    label: str | None = None,
    train: str = "train",
    test: str | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> Source:
    """Load an image data set by its name on the hub, or from a local folder that `datasets` can read.

    Args:
        name: `owner/name`, or a folder.
        config: which of its configurations.
        revision: a commit or tag, to stay with one version.
        image: the column of the images; found by its type where there is only one.
        label: the column of the classes; found by its type, or by the name `label`, where there is only one.
        train: the split to learn from.
        test: the split to test on; `test` or else `validation` where left out, or a part of `train` where neither is.
        test_fraction: of each class to hold out for testing where there is no test split.
        split_seed: of that split.

    Raises:
        RuntimeError: `datasets` is not installed, or cannot load the data set.
        ValueError: a split or column is missing, or the choice is not clear.
    """
    splits = _read(name, config, revision)
    _check(train, splits, f"split of {name}")
    if test is None:
        test = next((split for split in TEST_SPLITS if split in splits and split != train), None)
    else:
        _check(test, splits, f"split of {name}")
    image = image or _only_column(name, splits[train].features, "Image", "image")
    label = label or _label_column(name, splits[train].features)
    for column in (image, label):
        _check(column, splits[train].features, f"column of {name}")
    values, class_names = _classes(name, [splits[split] for split in (train, test) if split], label)
    parts = [
        ImageSet(HubRows(splits[split], image, f"{name}/{split}"), labels, [f"{name}/{split}/{i}" for i in range(n)])
        for split, labels, n in zip((train, test), values, map(len, values), strict=False)
        if split
    ]
    is_test = torch.cat([torch.full((len(part),), i == 1) for i, part in enumerate(parts)])
    return divide(
        name,
        concatenate(parts),
        class_names,
        is_test=is_test if test else None,
        test_fraction=test_fraction,
        split_seed=split_seed,
    )


class HubRows:
    """The images of one split, decoded on reading."""

    encoded = True

    def __init__(self, rows: Any, column: str, name: str) -> None:
        from datasets import Image

        self.rows = rows.select_columns([column]).cast_column(column, Image(decode=False))
        self.column, self.name = column, name
        self.lock = threading.Lock()  # arrow tables are read by one thread at a time

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, i: int) -> Tensor:
        return decode(self._encoded(i), f"{i} of {self.name}")

    def identity(self, i: int) -> bytes:
        """The encoded image itself."""
        encoded = self._encoded(i)
        return encoded.read_bytes() if isinstance(encoded, Path) else encoded

    def content(self, i: int) -> bytes:
        return self.identity(i)

    def _encoded(self, i: int) -> bytes | Path:
        with self.lock:
            cell = self.rows[i][self.column]
        if cell is None:
            raise ValueError(f"row {i} of {self.name} has no image")
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"])


def _read(name: str, config: str | None, revision: str | None) -> Any:
    try:
        import datasets
    except ImportError:
        raise RuntimeError("Hugging Face data sets need one more package: pip install 'lamella[hf]'") from None
    try:
        loaded = datasets.load_dataset(name, config, revision=revision)
    except Exception as fault:  # third-party border: network, hub, file format, each with a type of its own
        raise RuntimeError(
            f"cannot load hf:{name} ({first_line(fault)}); check the name, config= and the network"
        ) from fault
    return loaded


def _check(choice: str, known: Any, noun: str) -> None:
    if choice not in known:
        raise ValueError(
            f"no {noun} is called {choice!r}{did_you_mean(choice, list(known))}; it has {', '.join(known)}"
        )


def _only_column(name: str, features: Any, kind: str, option: str) -> str:
    found = [column for column, feature in features.items() if type(feature).__name__ == kind]
    if len(found) != 1:
        has = " and ".join(found) if found else f"none (it has {', '.join(features)})"
        raise ValueError(f"{name} needs one {option} column, but has {has}; name it with {option}=")
    return found[0]


def _label_column(name: str, features: Any) -> str:
    if not any(type(feature).__name__ == "ClassLabel" for feature in features.values()):
        for column in LABEL_COLUMNS:
            if column in features:
                return column
    return _only_column(name, features, "ClassLabel", "label")


def _classes(name: str, splits: list[Any], column: str) -> tuple[list[Tensor], list[str]]:
    """The labels of each split as class ids, and the class names."""
    values = [list(split[column]) for split in splits]
    feature = splits[0].features[column]
    missing = {value for part in values for value in part if value is None or value == -1}
    if missing:
        raise ValueError(f"a split of {name} hides its labels in {column!r}; choose another split with test=")
    if type(feature).__name__ == "ClassLabel":
        return [torch.tensor(part, dtype=torch.int64) for part in values], list(feature.names)
    known = sorted({value for part in values for value in part})
    place = {value: i for i, value in enumerate(known)}
    return [torch.tensor([place[value] for value in part]) for part in values], [str(value) for value in known]
