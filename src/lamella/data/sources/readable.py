"""A data set to learn from, without the samples that cannot be read or that were learned before."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from lamella.data.answers import AnswerSet
from lamella.data.images import UNKNOWN_CLASS, ImageSet
from lamella.data.keeping import content_digest, keep_readable
from lamella.data.scenario import Source
from lamella.data.sources.load import ANSWERS, is_table_of_answers, load_source
from lamella.data.sources.parts import divide
from lamella.data.tasks import Unreadable
from lamella.data.texts import TextSet

__all__ = ["ReadableData", "load_readable"]


@dataclass(frozen=True)
class ReadableData:
    """A data set whose samples were all looked at.

    Attributes:
        whole: the samples that can be read. All are in the training part if the data set has no test part of its own.
        digests: the digest of the content of each sample of `whole` by its key; see `data.keeping.Readable`.
        unreadable: the samples that cannot be read.
    """

    whole: Source
    digests: Mapping[str, int]
    unreadable: Sequence[Unreadable] = ()

    @property
    def noun(self) -> str:
        """What one sample is called, such as "image"."""
        return self.whole.train.noun

    @classmethod
    def of(cls, source: Source) -> Self:
        """Return a data set of samples of any kind. Those that cannot be read were left out when it was loaded.

        Args:
            source: the data set. The content of a sample is what its set says of its identity.
        """
        parts = (source.train, source.test)
        identities = {key: part.identity(i) for part in parts for i, key in enumerate(part.keys)}
        digests = {key: content_digest(identity) for key, identity in identities.items()}
        return cls(source, digests, source.unreadable)

    def pairs(self) -> list[tuple[int, str]]:
        """Return the digest and the name of the class of each sample of the training part of `whole`; "" of answers."""
        train, names = self.whole.train, {UNKNOWN_CLASS: "", **dict(enumerate(self.whole.class_names))}
        return [(self.digests[k], names[label]) for k, label in zip(train.keys, train.labels.tolist(), strict=True)]

    def without(self, known: Collection[tuple[int, str]]) -> Self:
        """Return the data set without some samples.

        Args:
            known: pairs of a digest and the name of a class. Samples of the training part of `whole` with such a digest
                and such a class are left out.
        """
        return self._keep([i for i, pair in enumerate(self.pairs()) if pair not in known])

    def once(self) -> Self:
        """Return the data set in which each sample is once in a class, whatever its copies are called.

        Otherwise one copy could be trained on and another be held back.
        """
        source, seen = self.whole, set[tuple[int, int]]()
        kept: list[int] = []
        for i, (key, label) in enumerate(zip(source.train.keys, source.train.labels.tolist(), strict=True)):
            if (self.digests[key], label) not in seen:
                seen.add((self.digests[key], label))
                kept.append(i)
        return self._keep(kept)

    def _keep(self, kept: Sequence[int]) -> Self:
        source = self.whole
        if len(kept) == len(source.train):
            return self
        index, domains = torch.tensor(kept, dtype=torch.int64), source.train_domains
        train_domains = None if domains is None else domains[index]
        return replace(self, whole=replace(source, train=source.train.subset(index), train_domains=train_domains))

    def divided(self, never: Collection[int] = ()) -> Source:
        """Return the data set with a test part: its own, or a fifth of each class, drawn by the keys of the samples.

        The only sample of a class is never drawn.

        Args:
            never: the digests of samples that are not drawn either. They stay in the training part, and the fifth is
                one of the others.
        """
        source = self.whole
        if len(source.test) or not len(source.train):
            return source
        if never and (known := [self.digests[key] in never for key in source.train.keys]):
            free = self._keep([i for i, is_known in enumerate(known) if not is_known])
            drawn = set(free.divided().test.keys)
            is_test = torch.tensor([key in drawn for key in source.train.keys], dtype=torch.bool)
        else:
            is_test = None
        return divide(
            source.name,
            source.train,
            source.class_names,
            is_test=is_test,
            domains=source.train_domains,
            domain_names=source.domain_names,
            test_each_class=False,
        )


def load_readable(data: str | Path, *, takes: str = "", **options: Any) -> ReadableData:
    """Load a data set and look at every sample once; pixels stay in memory where they fit.

    Args:
        data: the name or the place of the data, as for `load_source`.
        takes: what the model takes that is shown them, if that is known, such as "answer": then a table of texts alone,
            without labels, is one of answers.
        options: the other arguments of `load_source`, but for the fraction of test samples.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: as `load_source`.
        TypeError: it holds neither images, nor texts, nor answers.
        ValueError: no sample of a class can be read.
    """
    if takes == AnswerSet.noun and "samples" not in options and is_table_of_answers(Path(data)):
        options["samples"] = ANSWERS
    source = _undivided(data, options)
    if isinstance(source.train, TextSet | AnswerSet):  # its loader has looked at them
        return ReadableData.of(source)
    if isinstance(source.train, ImageSet) and isinstance(source.test, ImageSet):
        return _of_images(source, source.train, source.test)
    raise TypeError(f"{source.name} holds {source.train.noun}s, which are neither images, nor texts, nor answers")


def _of_images(source: Source, training: ImageSet, testing: ImageSet) -> ReadableData:
    train, test = keep_readable(training), keep_readable(testing)
    unreadable = [*train.unreadable, *test.unreadable]
    _check(source, train.data, unreadable)
    kept = replace(
        source,
        train=train.data,
        test=test.data,
        train_domains=_of(source.train_domains, training, train.data),
        test_domains=_of(source.test_domains, testing, test.data),
    )
    parts = (train, test)
    digests = {key: digest for part in parts for key, digest in zip(part.data.keys, part.digests.tolist(), strict=True)}
    return ReadableData(kept, digests, unreadable)


def _undivided(data: str | Path, options: dict[str, Any]) -> Source:
    """The source with all its samples in the training part, if it has no test part of its own."""
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


def _check(source: Source, train: ImageSet, unreadable: Sequence[Unreadable]) -> None:
    """Raise where no image of a class can be read."""
    count = len(source.class_names)
    had, has = (torch.bincount(data.labels, minlength=count).tolist() for data in (source.train, train))
    label_of = dict(zip(source.train.keys, source.train.labels.tolist(), strict=True))
    for label, name in enumerate(source.class_names):
        if had[label] and not has[label]:
            first = next(file for file in unreadable if label_of.get(file.key) == label)
            raise ValueError(
                f"class {name!r} of {source.name} has no image that can be read, of {had[label]}: replace them or "
                f"remove the class ({first.key}: {first.reason})"
            )
