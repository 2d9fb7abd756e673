"""Folders of samples: `class/*.jpg` or `class/*.txt`, the same under `train/` and `test/`, or `domain/class/*.jpg`."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lamella.common.checks import check_one_of
from lamella.common.words import many
from lamella.data.names import alike, normal_name
from lamella.data.scenario import Source
from lamella.data.sources.files import (
    IMAGES,
    KINDS,
    PARTS,
    TEST_PARTS,
    TEXTS,
    TRAIN_PARTS,
    FileKind,
    LabelledFile,
    all_files,
    folder_names,
    list_samples,
)
from lamella.data.sources.image_files import images_to_source
from lamella.data.sources.other_labels import check_layout
from lamella.data.sources.text_files import text_files_to_source

__all__ = ["load_folder"]

AUTO = "auto"
LAYOUTS = (AUTO, "classes", "domains")


def load_folder(
    path: Path,
    *,
    name: str | None = None,
    layout: str = AUTO,
    samples: str = AUTO,
    renamed: Mapping[str, str] | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> Source:
    """Load a folder of images or texts; classes are its folders, sorted by name.

    `train/` beside `test/` (or `val/`) is taken as the split; where both `test/` and `val/` are there, `val/` is left
    alone. Without them a split is made from the files' relative paths. What was taken stands in the source's `told`.

    Args:
        path: of the folder.
        name: of the data set; the folder's name where left out.
        layout: "classes" (`class/` with samples at any depth), "domains" (`domain/class/`), or "auto", which takes
            classes where some hold samples themselves, and asks otherwise.
        samples: "images", "texts" (`.txt` files, each of which is one text), or "auto", which takes what every folder
            of files holds, and asks where that is both or neither.
        renamed: folder name -> class name, for folders called by an identifier.
        test_fraction: of each class to hold out for testing where there is no test part.
        split_seed: of that split.

    Raises:
        ValueError: there are no samples, a class folder is empty, the parts do not fit together, it is not clear what
            the folders or the samples are, or the samples have boxes or masks, not classes.
    """
    check_one_of("layout", layout, LAYOUTS)
    check_one_of("samples", samples, (AUTO, *KINDS))
    if layout == AUTO:
        check_layout(path)
    kind = _kind(path) if samples == AUTO else KINDS[samples]
    train, test = _parts(path, layout, kind)
    if layout == AUTO:
        _check_clear([part for part in (train, test) if part is not None], kind)
    files = [file for part in (train, test) if part is not None for file in _labelled(part, layout, part is test, kind)]
    if test is None:  # no part of its own, so that one is made
        files = [replace(file, is_test=None) for file in files]
    elif extra := {f.class_name for f in files if f.is_test} - {f.class_name for f in files if not f.is_test}:
        raise ValueError(
            f"class {min(extra)!r} is in {test} but not in {train}; remove it there, or give {train} alone"
        )
    to_source = images_to_source if kind is IMAGES else text_files_to_source
    return to_source(
        name or path.resolve().name,
        path,
        files,
        renamed=renamed,
        test_fraction=test_fraction,
        split_seed=split_seed,
        told=_told(path, files, train, test, kind),
    )


def _kind(path: Path) -> FileKind:
    """Return the kind of the samples: the one that every folder of files holds.

    Raises:
        ValueError: both are in every folder, or neither is.
    """
    direct = [file for file in path.iterdir() if file.is_file()]
    found: dict[Path, dict[str, Path]] = defaultdict(dict)
    for name in folder_names(path):
        for file in all_files(path / name):
            for word, kind in KINDS.items():
                if file.name in kind:
                    found[file.parent].setdefault(word, file)
    if not found:
        return TEXTS if any(f.name in TEXTS for f in direct) and not any(f.name in IMAGES for f in direct) else IMAGES
    everywhere = [word for word in KINDS if all(word in kinds for kinds in found.values())]
    if len(everywhere) == 1:
        return KINDS[everywhere[0]]
    first = [next(kinds[word] for kinds in found.values() if word in kinds) for word in KINDS]
    raise ValueError(
        f"{path} holds images and texts, such as {first[0].relative_to(path)} and {first[1].relative_to(path)}: say "
        "which of them are the samples, --samples images or --samples texts (scenario.samples of a run)"
    )


def _parts(path: Path, layout: str, kind: FileKind) -> tuple[Path, Path | None]:
    """Return the folder to learn from and the one to test on, if there is one.

    Raises:
        ValueError: parts are beside other folders, or only a test part is there.
    """
    folders = folder_names(path)
    found = {part: path / name for name in folders if (part := alike(name)) in PARTS and not _holds(path / name, kind)}
    train, test = (next((found[p] for p in parts if p in found), None) for parts in (TRAIN_PARTS, TEST_PARTS))
    whole = len(found) == len(folders) and not all(part in found for part in TRAIN_PARTS)
    if whole and train is not None:
        return train, test
    if not found or layout != AUTO:
        return path, None
    others = [name for name in folders if path / name not in found.values()]
    beside = f"beside {', '.join(others[:3])}" if others else "but none to learn from, train/"
    parts = ", ".join(f"{place.name}/" for place in found.values())
    raise ValueError(
        f"{path} has {parts} {beside}, so it is not clear what its folders are: give the folder that holds the "
        "classes, or --layout classes if each folder is a class"
    )


def _told(path: Path, files: Sequence[LabelledFile], train: Path, test: Path | None, kind: FileKind) -> tuple[str, ...]:
    """Say what the folders were taken as, and how many files are no samples."""
    domains = len({file.domain for file in files if file.domain is not None})
    form = f"DOMAIN/CLASS/{kind.noun}" if domains else f"CLASS/{kind.noun}"
    below = "" if train == path else f" below {train.name}/"
    tests = "" if test is None else f", {test.name}/ is the test part"
    ignored = Counter(
        file.suffix.lower() or file.name
        for file in all_files(path)
        if file.name not in kind and not file.name.startswith(".")
    )
    counted = ", ".join(f"{count} {ending}" for ending, count in ignored.most_common(5))
    left_out = [f"left out, no {kind.noun}s: {many(sum(ignored.values()), 'file')} ({counted})"] if ignored else []
    return (f"read as {form}{below}{tests}", *left_out)


def _holds(path: Path, kind: FileKind) -> bool:
    """Whether a folder holds samples itself."""
    return any(entry.name in kind for entry in path.iterdir())


def _labelled(path: Path, layout: str, is_test: bool, kind: FileKind) -> list[LabelledFile]:
    folders = folder_names(path)
    if not folders:
        found = f"{kind.noun}s that lie directly in it" if _holds(path, kind) else "no class folders"
        form = f"class/{kind.noun}{'.jpg' if kind is IMAGES else '.txt'}"
        raise ValueError(f"{path} has {found}; every class needs a folder of its own, as {form}")
    if layout != "domains":
        return [
            LabelledFile(file, normal_name(name), None, is_test)
            for name in folders
            for file in list_samples(path / name, kind)
        ]
    return [
        LabelledFile(file, normal_name(name), normal_name(domain), is_test)
        for domain in folders
        for name in folder_names(path / domain)
        for file in list_samples(path / domain / name, kind)
    ]


def _check_clear(parts: Sequence[Path], kind: FileKind) -> None:
    """Raise ValueError where no folder in any part holds samples itself, but only folders, which may be the classes."""
    folders = [part / name for part in parts for name in folder_names(part)]
    inner = [(folder, name) for folder in folders for name in folder_names(folder)]
    if inner and not any(_holds(folder, kind) for folder in folders):
        folder, name = inner[0]
        raise ValueError(
            f"the folders of {parts[0]} hold no {kind.noun}s themselves, only folders such as {folder.name}/{name}: "
            f"give the layout 'classes' if '{folder.name}' is a class, the layout 'domains' if '{name}' is a class and "
            f"'{folder.name}' a domain (--layout, or scenario.layout of a run), or give {folder} alone"
        )
