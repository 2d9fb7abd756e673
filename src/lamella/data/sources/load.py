"""Find and load a data set by name or path."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lamella.common.checks import did_you_mean
from lamella.data.scenario import Source
from lamella.data.sources.changes import change_domains
from lamella.data.sources.parts import keep_classes, keep_domains, keep_per_class, keep_test_rows, keep_train_rows
from lamella.data.sources.places import look_for, places
from lamella.data.sources.rows import ROWS, Rows, read_rows

__all__ = ["ANSWERS", "PATTERNS", "SOURCES", "is_table_of_answers", "load_source"]

HUB = "hf:"
OLORA = "olora/"
SUPERNI = "superni/"
FILES = (*ROWS, ".npz")
PATH_COLUMN = "path"
ANSWERS = "answers"
"""The value of the option `samples` that asks for answers where a table has texts alone."""
KEEPING: dict[str, Callable[..., Source]] = {
    "domains": keep_domains,
    "classes": keep_classes,
    "per_class": keep_per_class,
    "train_rows": keep_train_rows,
    "test_rows": keep_test_rows,
    "changes": change_domains,
}
"""Options of every data set: which part of it to keep, and how to make domains of it."""

SOURCES = {
    "digits": "handwritten digits, 8 x 8, 10 classes, 1,797 images; part of scikit-learn, no download",
    "handwriting": "digits and mnist as two domains of the same 10 classes",
    "mnist": "handwritten digits, 28 x 28, 10 classes, 70,000 images",
    "fashion-mnist": "articles of clothing, 28 x 28, 10 classes, 70,000 images",
    "cifar10": "photos of animals and vehicles, 32 x 32, 10 classes, 60,000 images",
    "cifar100": "photos, 32 x 32, 100 classes, 60,000 images",
    "cifar100-part": "8,637 photos of CIFAR-100, 100 classes; local copy, cifar100_part.npz",
    "tiny-imagenet": "photos, 64 x 64, 200 classes, 110,000 images; local copy, tiny-imagenet-200/",
    "tiny-imagenet32": "Tiny-ImageNet at 32 x 32; local copy, tiny_imagenet32.npz",
    "imagenet-r": "renditions (art, toys, sketches ...), 200 classes, 30,000 images; local copy, imagenet-r/",
    "imagenet-a": "natural adversarial photos, 200 classes, 7,500 images; local copy, imagenet-a/",
    "cub200": "birds, 200 classes, 11,788 images; local copy, CUB_200_2011/",
    "domainnet": "6 domains, 345 classes, about 590,000 images; local copy, domainnet/",
    "requests": "requests to a service desk written by a grammar, 15 classes, 540 texts; no download",
    "clinc150": "queries, 150 intents of 10 domains, 19,500 texts; local copy, clinc150.tar.xz",
    "banking77": "queries to a bank, 77 intents, 13,083 texts; local copy, banking77.tar.xz",
    "olora/NAME": "agnews, sst2 ..., 15 sets of texts of O-LoRA's benchmark; local copy, cl_benchmark.tar.xz",
    "superni/NAME": "task591, task363 ..., 15 sets of answers of SuperNI; local copy, superni15.tar.xz",
}
"""Data sets by name, with one line on each."""

PATTERNS = {
    "FOLDER": "class/*.jpg or class/*.txt, the same under train/ and test/, or domain/class/*.jpg",
    "FILE.csv": "columns text and label, or path and label; also .tsv, .jsonl, .json, .parquet",
    "FILE.jsonl": "prompt and response, messages, or text alone: answers; also .csv, .parquet ...",
    "FILE.npz": "encoded images with offsets, or x_train, y_train, x_test, y_test",
    "hf:OWNER/NAME": "any data set of labelled images or texts of the Hugging Face hub",
}
"""What else can be loaded: how it is written, and one line on it."""


def load_source(name_or_path: str | Path, *, root: str | Path | None = None, **options: Any) -> Source:
    """Load a data set.

    Args:
        name_or_path: a name of SOURCES, a folder of images or texts, a `.csv`, `.tsv`, `.jsonl`, `.json`, `.parquet` or
            `.npz` file, or `hf:owner/name`. A path may also be relative to the root; a name goes before a folder of the
            same name (write `./digits` for that).
        root: the folder that holds the data; $LAMELLA_DATA and the user's cache where left out.
        options: of every set: `domains` and `classes` (keep only these; a number keeps the first so many classes),
            `per_class` (training samples kept of each class, in each domain), `train_rows` and `test_rows` (samples
            kept of a whole part), `changes` (makes a domain of each of these changes of the pictures, see
            `changes.CHANGES`); of the loader: `test_fraction` and `split_seed` where a split is made, `layout` and
            `samples` of a folder, `samples` = "answers" of a table of texts alone and of `olora/NAME`, whose labels
            are the answers then, `text` or `image`, and `label` (columns) of a file of rows and of the hub, `config`,
            `train`, `test` and `revision` of the hub.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the name or an option is unknown, or the data are not as they should be.
        RuntimeError: a download failed, or an optional package is missing.
    """
    name = str(name_or_path)
    kept = {option: options.pop(option, None) for option in KEEPING}
    source = _load(name, root, options)
    for option, wanted in kept.items():
        source = source if wanted is None else KEEPING[option](source, wanted)
    return source


def _load(name: str, root: str | Path | None, options: dict[str, Any]) -> Source:
    if name.startswith(HUB):
        from lamella.data.sources.hub import load_hub

        return _call(name, load_hub, name.removeprefix(HUB), options)
    if name.startswith(OLORA):
        from lamella.data.sources.answer_sets import labels_as_answers
        from lamella.data.sources.text_sets import load_olora

        plain, answers = _without_samples(options)
        source = _call(name, partial(load_olora, name.removeprefix(OLORA)), root, plain)
        return labels_as_answers(source) if answers else source
    if name.startswith(SUPERNI):
        from lamella.data.sources.answer_sets import load_superni

        return _call(name, partial(load_superni, name.removeprefix(SUPERNI)), root, _without_samples(options)[0])
    if name in SOURCES:
        archive = look_for(root, f"{name.replace('-', '_')}.npz")
        if archive is not None:
            from lamella.data.sources.archives import load_archive

            return _call(name, load_archive, archive, {"name": name, **options})
        return _call(name, _named(name, root), root, options)
    return _load_path(name, root, options)


def _named(name: str, root: str | Path | None) -> Callable[..., Source]:
    from lamella.data.sources import layouts, named, text_sets
    from lamella.data.sources.requests import load_requests

    loaders: dict[str, Callable[..., Source]] = {
        "handwriting": load_handwriting,
        "digits": named.load_digits,
        "mnist": named.load_mnist,
        "fashion-mnist": named.load_fashion_mnist,
        "cifar10": named.load_cifar10,
        "cifar100": named.load_cifar100,
        "tiny-imagenet": layouts.load_tiny_imagenet,
        "imagenet-r": layouts.load_imagenet_r,
        "imagenet-a": layouts.load_imagenet_a,
        "cub200": layouts.load_cub200,
        "domainnet": layouts.load_domainnet,
        "requests": load_requests,
        "clinc150": text_sets.load_clinc150,
        "banking77": text_sets.load_banking77,
    }
    if name in loaders:
        return loaders[name]
    looked = " or ".join(str(place) for place in places(root))
    file = f"{name.replace('-', '_')}.npz"
    raise FileNotFoundError(
        f"{name} needs the file {file} in {looked}; put it there, or name its folder by $LAMELLA_DATA"
    )


def load_handwriting(root: str | Path | None = None) -> Source:
    """Ten digits in two domains: scans of scikit-learn's digits, 8 x 8, and MNIST, 28 x 28."""
    from lamella.data.sources.parts import as_domains

    return as_domains("handwriting", {name: _load(name, root, {}) for name in ("digits", "mnist")})


def _load_path(name: str, root: str | Path | None, options: dict[str, Any]) -> Source:
    path = Path(name).expanduser()
    if not path.exists():
        found = None if path.is_absolute() else look_for(root, name)
        if found is None:
            raise _not_found(name)
        path = found
    if path.is_dir():
        from lamella.data.sources.folders import load_folder

        return _call(name, load_folder, path, options)
    suffix = path.suffix.lower()
    if suffix in ROWS:
        rows = read_rows(path)
        loader = _table_loader(rows, options)
        return _call(name, loader, rows, _without_samples(options)[0])
    if suffix == ".npz":
        from lamella.data.sources.archives import load_archive

        return _call(name, load_archive, path, options)
    raise ValueError(f"{path} is not a data set; give a folder of images or texts, or a file {', '.join(FILES)}")


def _table_loader(rows: Rows, options: Mapping[str, Any]) -> Callable[..., Source]:
    """Return what loads these rows: answers, paths of images, or texts.

    Raises:
        ValueError: there are both, and no option says which.
    """
    from lamella.data.sources.answer_rows import has_columns_of_answers, load_answers
    from lamella.data.sources.table import load_image_table
    from lamella.data.sources.text_table import LABELS, TEXTS, column_of, load_text_table

    image, text = PATH_COLUMN in rows.columns, column_of(rows.columns, TEXTS)
    labelled = column_of(rows.columns, LABELS) or "label" in options
    if options.get("samples") == ANSWERS or (has_columns_of_answers(rows) and not labelled):
        return load_answers
    if "text" in options or "image" in options:
        return load_text_table if "text" in options else load_image_table
    if image and text:
        raise ValueError(
            f"{rows.path} has the columns {PATH_COLUMN} and {text}: say which the samples are: the texts by "
            f"--text {text} (scenario.text of a run), or the images by leaving the column {text} out of the table "
            f"(scenario.image = '{PATH_COLUMN}' of a run)"
        )
    misspelt = not text and did_you_mean(PATH_COLUMN, rows.columns)
    return load_image_table if image or misspelt else load_text_table


def _without_samples(options: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return options without one that asks for answers, and whether it is there."""
    asks = options.get("samples") == ANSWERS
    return {key: value for key, value in options.items() if not asks or key != "samples"}, asks


def is_table_of_answers(path: Path) -> bool:
    """Whether a path is that of a table whose rows are answers, as those of texts without labels may be."""
    from lamella.data.sources.answer_rows import holds_answers

    return path.suffix.lower() in ROWS and path.is_file() and holds_answers(read_rows(path))


def _not_found(name: str) -> Exception:
    if "/" in name or "\\" in name or Path(name).suffix.lower() in FILES:
        where = "" if Path(name).is_absolute() else f" in {Path.cwd()}"
        return FileNotFoundError(f"no such file or folder: {name}{where}")
    return ValueError(
        f"no data set is called {name!r}, and no such folder exists{did_you_mean(name, SOURCES)}; "
        f"known are {', '.join(SOURCES)}, folders of images or texts, files {', '.join(FILES)}, and hf:owner/name"
    )


def _call(name: str, loader: Callable[..., Source], place: Any, options: dict[str, Any]) -> Source:
    """Call a loader with the options it knows; refuse others."""
    allowed = [p.name for p in inspect.signature(loader).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in allowed:
            known = ", ".join([*(a for a in allowed if a not in ("name", "renamed")), *KEEPING])
            raise ValueError(
                f"{name} has no option {option!r}{did_you_mean(option, [*allowed, *KEEPING])}; it has {known}"
            )
    return loader(place, **options)
