"""From one labelled set to a Source with a training and a test part."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lamella.common.checks import did_you_mean
from lamella.data.answers import AnswerSet, split_prompts
from lamella.data.choices import choose_some
from lamella.data.images import concatenate
from lamella.data.loading import Examples
from lamella.data.scenario import Source
from lamella.data.splits import in_drawn_order, stratified_split
from lamella.data.tasks import Unreadable

__all__ = [
    "as_domains",
    "divide",
    "keep_classes",
    "keep_domains",
    "keep_per_class",
    "keep_test_rows",
    "keep_train_rows",
]


def divide(
    name: str,
    data: Examples,
    class_names: Sequence[str],
    *,
    is_test: Tensor | None = None,
    domains: Tensor | None = None,
    domain_names: Sequence[str] = (),
    test_fraction: float = 0.2,
    split_seed: int = 0,
    test_each_class: bool = True,
    told: Sequence[str] = (),
    unreadable: Sequence[Unreadable] = (),
) -> Source:
    """Cut a set into its training and test part.

    Args:
        name: of the data set.
        data: all of its samples.
        class_names: `class_names[label]`.
        is_test: (n,) bool, the data set's own split; where left out, one is made from the samples' keys.
        domains: (n,) int64, where the data set has domains.
        domain_names: `domain_names[domain]`.
        test_fraction: of each class (in each domain) that a made split holds out, in [0, 1); with 0 the test part is
            empty, which is for learning without measuring.
        split_seed: of a made split.
        test_each_class: whether a made split must give a test sample to each class. If not, a class with a single
            sample has none.
        told: how the data were read, in lines for people.
        unreadable: the samples that were left out.

    Raises:
        ValueError: there are no samples, or a class is too small to be cut.
    """
    if len(data) == 0:
        raise ValueError(f"{name} has no {data.noun}s")
    if is_test is None:
        is_test = _make_split(name, data, class_names, domains, test_fraction, split_seed, test_each_class)
    train, test = (~is_test).nonzero()[:, 0], is_test.nonzero()[:, 0]
    return Source(
        name,
        data.subset(train),
        data.subset(test),
        tuple(class_names),
        tuple(domain_names),
        None if domains is None else domains[train],
        None if domains is None else domains[test],
        tuple(told),
        tuple(unreadable),
    )


def as_domains(name: str, sources: Mapping[str, Source]) -> Source:
    """Join data sets of the same classes, each of which becomes a domain.

    Args:
        name: of the whole.
        sources: the data sets by the names of their domains.

    Raises:
        ValueError: their classes differ.
    """
    parts = list(sources.values())
    if len({part.class_names for part in parts}) > 1:
        raise ValueError(f"the data sets {', '.join(sources)} have other classes than each other")

    def domains(sizes: Sequence[int]) -> Tensor:
        return torch.arange(len(parts)).repeat_interleave(torch.tensor(sizes))

    return Source(
        name,
        concatenate([part.train for part in parts]),
        concatenate([part.test for part in parts]),
        parts[0].class_names,
        tuple(sources),
        domains([len(part.train) for part in parts]),
        domains([len(part.test) for part in parts]),
    )


def keep_domains(source: Source, domains: Sequence[str]) -> Source:
    """The source with only these domains, in this order."""
    if source.train_domains is None or source.test_domains is None:
        raise ValueError(f"{source.name} has no domains to choose from")
    for domain in domains:
        if domain not in source.domain_names:
            known = ", ".join(source.domain_names)
            raise ValueError(
                f"{source.name} has no domain {domain!r}{did_you_mean(domain, source.domain_names)}; it has {known}"
            )
    place = torch.full((len(source.domain_names),), -1)
    place[[source.domain_names.index(domain) for domain in domains]] = torch.arange(len(domains))
    train, test = place[source.train_domains], place[source.test_domains]
    return replace(
        source,
        train=source.train.subset((train >= 0).nonzero()[:, 0]),
        test=source.test.subset((test >= 0).nonzero()[:, 0]),
        domain_names=tuple(domains),
        train_domains=train[train >= 0],
        test_domains=test[test >= 0],
    )


def keep_classes(source: Source, classes: int | Sequence[int | str]) -> Source:
    """The source with only the first so many classes, or only these, by name or id; they are counted anew from 0.

    Raises:
        ValueError: there is no such class or not so many, or one comes twice.
    """
    if isinstance(classes, int):
        count = len(source.class_names)
        if not 1 <= classes <= count:
            raise ValueError(f"classes = {classes} of {source.name} cannot be kept; it has {count}")
        classes = range(classes)
    kept = choose_some(source.class_names, classes, "class")
    place = torch.full((len(source.class_names),), -1)
    place[list(kept)] = torch.arange(len(kept))
    masks = [place[data.labels] >= 0 for data in (source.train, source.test)]
    train, test = (d.subset(m.nonzero()[:, 0]) for d, m in zip((source.train, source.test), masks, strict=True))
    train.labels, test.labels = place[train.labels], place[test.labels]
    return replace(
        source,
        train=train,
        test=test,
        class_names=tuple(source.class_names[i] for i in kept),
        train_domains=None if source.train_domains is None else source.train_domains[masks[0]],
        test_domains=None if source.test_domains is None else source.test_domains[masks[1]],
    )


def keep_per_class(source: Source, count: int) -> Source:
    """The source with at most so many training samples of each class, drawn by their keys; the test part stays whole.

    Where there are domains, so many are kept of each class in each domain.

    Raises:
        ValueError: fewer than one sample was asked for.
    """
    if count < 1:
        noun = source.train.noun
        raise ValueError(f"per_class = {count} leaves {source.name} without training {noun}s; keep 1 or more")
    labels, keys = source.train.labels, source.train.keys
    domains = source.train_domains
    groups = labels if domains is None else labels * len(source.domain_names) + domains
    kept = [
        i
        for group in groups.unique().tolist()
        for i in in_drawn_order((groups == group).nonzero()[:, 0].tolist(), keys, seed=0, name="per class")[:count]
    ]
    index = torch.tensor(sorted(kept), dtype=torch.int64)
    return replace(source, train=source.train.subset(index), train_domains=None if domains is None else domains[index])


def keep_train_rows(source: Source, count: int) -> Source:
    """The source with at most so many training samples in all, drawn by their keys; the test part stays whole."""
    index = _drawn(source, source.train, count, "train_rows")
    domains = source.train_domains
    return replace(source, train=source.train.subset(index), train_domains=None if domains is None else domains[index])


def keep_test_rows(source: Source, count: int) -> Source:
    """The source with at most so many test samples in all, drawn by their keys; the training part stays whole."""
    index = _drawn(source, source.test, count, "test_rows")
    domains = source.test_domains
    return replace(source, test=source.test.subset(index), test_domains=None if domains is None else domains[index])


def _drawn(source: Source, data: Examples, count: int, option: str) -> Tensor:
    if count < 1:
        raise ValueError(f"{option} = {count} leaves {source.name} without {data.noun}s; keep 1 or more")
    drawn = in_drawn_order(range(len(data)), data.keys, seed=0, name=option)
    return torch.tensor(sorted(drawn[:count]), dtype=torch.int64)


def _make_split(
    name: str,
    data: Examples,
    class_names: Sequence[str],
    domains: Tensor | None,
    fraction: float,
    seed: int,
    test_each_class: bool,
) -> Tensor:
    if not 0 <= fraction < 1:
        raise ValueError(f"test_fraction must be at least 0 and below 1, not {fraction}")
    is_test = torch.zeros(len(data), dtype=torch.bool)
    if fraction == 0:
        return is_test
    if isinstance(data, AnswerSet):
        held = split_prompts(data, fraction=fraction, seed=seed, name="test")
        if test_each_class and not held.any():
            raise ValueError(
                f"{name} has answers to a single prompt; add another, so that one can be held back for tests"
            )
        return held
    known = data.labels[data.labels >= 0]
    for label, count in enumerate(torch.bincount(known, minlength=len(class_names)).tolist()):
        if count < 2 and test_each_class:
            has = f"a single {data.noun}" if count else f"no {data.noun}"
            raise ValueError(
                f"class {class_names[label]!r} of {name} has {has}; it needs one for training and one for testing: "
                f"add {data.noun}s, remove the class, or give a test part"
            )
    groups = data.labels if domains is None else domains * len(class_names) + data.labels
    _, held = stratified_split(groups, data.keys, fraction=fraction, seed=seed, name="test")
    is_test[held] = True
    return is_test
