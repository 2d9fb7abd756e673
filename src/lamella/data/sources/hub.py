"""Data sets of images or texts of the Hugging Face hub, through `datasets` (an optional extra)."""

from typing import Any

import torch
from torch import Tensor

from lamella.common.checks import did_you_mean, first_line
from lamella.data.images import ImageSet, concatenate
from lamella.data.one_class import columns_hint, several_labels
from lamella.data.scenario import Source
from lamella.data.sources.hub_images import HubRows
from lamella.data.sources.labelled_texts import LabelledText, texts_to_source
from lamella.data.sources.parts import divide
from lamella.data.sources.text_table import LABELS, TEXTS, column_of

__all__ = ["load_hub"]

TEST_SPLITS = ("test", "validation", "valid", "val", "dev")
LABEL_COLUMNS = ("label", "labels", *LABELS[1:])
STRINGS = ("string", "large_string")
LISTS = ("Sequence", "List", "LargeList", "dict", "list")


def load_hub(
    name: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    image: str | None = None,
    text: str | None = None,
    label: str | None = None,
    train: str = "train",
    test: str | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> Source:
    """Load a data set by its name on the hub, or from a local folder that `datasets` can read.

    It is one of texts where it has no column of images but one of texts, or where `text` names one.

    Args:
        name: `owner/name`, or a folder.
        config: which of its configurations.
        revision: a commit or tag, to stay with one version.
        image: the column of the images; found by its type where there is only one.
        text: the column of the texts; found by its usual name, or by its type where there is only one.
        label: the column of the classes; found by its type, or by its usual name, where there is only one.
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
    features = splits[train].features
    column, of_texts = _sample_column(name, features, image, text)
    label = label or _label_column(name, features, column)
    for read in (column, label):
        _check(read, features, f"column of {name}")
    used = [split for split in (train, test) if split]
    values, class_names = _classes(name, [splits[split] for split in used], label)
    if of_texts:
        samples = [
            LabelledText(_text(cell, place), class_names[value], place, is_test=split == test if test else None)
            for split, labels in zip(used, values, strict=True)
            for i, (cell, value) in enumerate(zip(list(splits[split][column]), labels.tolist(), strict=True))
            for place in (f"row {i} of {name}/{split}",)
        ]
        return texts_to_source(
            name, samples, class_names=class_names, test_fraction=test_fraction, split_seed=split_seed
        )
    parts = [
        ImageSet(HubRows(splits[split], column, f"{name}/{split}"), labels, [f"{name}/{split}/{i}" for i in range(n)])
        for split, labels, n in zip(used, values, map(len, values), strict=True)
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
        lists = [column for column, feature in features.items() if type(feature).__name__ in LISTS]
        hint = f". {', '.join(lists)}: {columns_hint(lists, (), '')[2:] or several_labels('sample')}" if lists else ""
        raise ValueError(f"{name} needs one {option} column, but has {has}; name it with {option}={hint}")
    return found[0]


def _sample_column(name: str, features: Any, image: str | None, text: str | None) -> tuple[str, bool]:
    """Return the column of the samples, and whether they are texts.

    Without a choice the samples are images where a column has them, and texts else.

    Raises:
        ValueError: both are chosen, or it is not clear which column holds the samples.
    """
    if image is not None and text is not None:
        raise ValueError(f"the samples of {name} are images or texts; give one of image= and text=")
    if text is not None:
        return text, True
    if image is not None:
        return image, False
    if any(type(feature).__name__ == "Image" for feature in features.values()):
        return _only_column(name, features, "Image", "image"), False
    texts = [column for column, feature in features.items() if getattr(feature, "dtype", None) in STRINGS]
    others = [column for column in texts if not column_of([column], LABEL_COLUMNS)]
    found = column_of(texts, TEXTS) or (others[0] if len(others) == 1 else None)
    if found is None:
        raise ValueError(
            f"{name} has no column of images, and none that is clearly of texts (it has {', '.join(features)}); name "
            "it with image= or text="
        )
    return found, True


def _text(cell: Any, place: str) -> str:
    if cell is not None and not isinstance(cell, str):
        raise ValueError(f"{place} holds {type(cell).__name__} where a text should be; name another column by text=")
    return cell or ""


def _label_column(name: str, features: Any, samples: str) -> str:
    if not any(type(feature).__name__ == "ClassLabel" for feature in features.values()):
        others = [column for column in features if column != samples]
        if found := column_of(others, LABEL_COLUMNS):
            return found
    return _only_column(name, features, "ClassLabel", "label")


def _classes(name: str, splits: list[Any], column: str) -> tuple[list[Tensor], list[str]]:
    """The labels of each split as class ids, and the class names."""
    values = [list(split[column]) for split in splits]
    feature = splits[0].features[column]
    if any(isinstance(value, list | dict) for part in values for value in part):
        noun = several_labels("sample")
        raise ValueError(
            f"the column {column!r} of {name} holds lists, not labels; choose another one with label=. {noun}"
        )
    missing = {value for part in values for value in part if value is None or value == -1}
    if missing:
        raise ValueError(f"a split of {name} hides its labels in {column!r}; choose another split with test=")
    if type(feature).__name__ == "ClassLabel":
        return [torch.tensor(part, dtype=torch.int64) for part in values], list(feature.names)
    known = sorted({value for part in values for value in part})
    place = {value: i for i, value in enumerate(known)}
    return [torch.tensor([place[value] for value in part]) for part in values], [str(value) for value in known]
