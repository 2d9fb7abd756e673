"""A data set to learn from, without the images that cannot be read."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamella.data.images import ImageSet
from lamella.data.keeping import Unreadable, keep_readable
from lamella.data.scenario import Source
from lamella.data.sources.load import load_source
from lamella.data.sources.parts import divide

__all__ = ["load_readable"]


def load_readable(data: str | Path, **options: Any) -> tuple[Source, list[Unreadable]]:
    """Load a data set and look at every image once; pixels stay in memory where they fit.

    A split is made after that, so that it is the one of the same data with the unreadable files removed.

    Args:
        data: the name or the place of the data, as for `load_source`.
        options: the other arguments of `load_source`, but for the fraction of test samples.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: as `load_source`.
        TypeError: it holds no images.
        ValueError: too few images of a class can be read.
    """
    source = _undivided(data, options)
    if not isinstance(source.train, ImageSet) or not isinstance(source.test, ImageSet):
        raise TypeError(f"{source.name} holds no images")
    train, unreadable = keep_readable(source.train)
    domains = _of(source.train_domains, source.train, train)
    if len(source.test):
        test, more = keep_readable(source.test)
        _check(source, train, unreadable, needed=1)
        test_domains = _of(source.test_domains, source.test, test)
        kept = replace(source, train=train, test=test, train_domains=domains, test_domains=test_domains)
        return kept, unreadable + more
    _check(source, train, unreadable, needed=2)
    names = source.domain_names
    return divide(source.name, train, source.class_names, domains=domains, domain_names=names), unreadable


def _undivided(data: str | Path, options: dict[str, Any]) -> Source:
    """The source with all its images in the training part, if it has no test part of its own."""
    try:
        return load_source(data, test_fraction=0.0, **options)
    except ValueError:  # it has its own test part and no such option, or cannot be read at all
        return load_source(data, **options)


def _of(domains: Tensor | None, before: ImageSet, after: ImageSet) -> Tensor | None:
    """The domains of the images that are left."""
    if domains is None:
        return None
    left = set(after.keys)
    return domains[torch.tensor([key in left for key in before.keys], dtype=torch.bool)]


def _check(source: Source, train: ImageSet, unreadable: Sequence[Unreadable], *, needed: int) -> None:
    """Raise where unreadable files leave a class with fewer images than are needed to learn it."""
    count = len(source.class_names)
    had, has = (torch.bincount(data.labels, minlength=count).tolist() for data in (source.train, train))
    label_of = dict(zip(source.train.keys, source.train.labels.tolist(), strict=True))
    for label, name in enumerate(source.class_names):
        if needed > has[label] < had[label]:
            first = next(file for file in unreadable if label_of.get(file.key) == label)
            raise ValueError(
                f"class {name!r} of {source.name} has {has[label] or 'no'} image that can be read, of {had[label]}; "
                f"it needs {needed}: replace the others or remove the class ({first.key}: {first.reason})"
            )
