"""A data set cut into a sequence of tasks, by classes or by domains; or several data sets, one a task."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lamella.common.randomness import generator
from lamella.data.answers import AnswerSet, split_prompts
from lamella.data.choices import choose_all, equal_sizes, given_sizes
from lamella.data.loading import Examples
from lamella.data.splits import stratified_split
from lamella.data.tasks import Scenario, Source, Task

__all__ = [
    "Scenario",
    "Source",
    "Task",
    "as_task",
    "class_incremental",
    "dataset_incremental",
    "domain_incremental",
    "task_incremental",
]


def class_incremental(
    source: Source,
    *,
    tasks: int | None = None,
    sizes: Sequence[int] | None = None,
    order: str | Sequence[int | str] = "label",
    seed: int = 0,
    validation: float = 0.0,
) -> Scenario:
    """Each task brings new classes; at test time all classes seen so far compete.

    Args:
        source: the data set.
        tasks: this many tasks with equally many classes.
        sizes: or the number of classes of each task.
        order: "label" (as the data set counts them), "seeded" (shuffled by `seed`), or every class once, by name or id.
        seed: of the class order and of the validation part.
        validation: fraction of each class's training images to hold out, in [0, 1).

    Raises:
        ValueError: the classes cannot be cut like this, the order is not one, or a class has no training image.
    """
    return _by_class("class-incremental", source, tasks, sizes, order, seed, validation)


def task_incremental(
    source: Source,
    *,
    tasks: int | None = None,
    sizes: Sequence[int] | None = None,
    order: str | Sequence[int | str] = "label",
    seed: int = 0,
    validation: float = 0.0,
) -> Scenario:
    """As `class_incremental`, but at test time the task is known and only its classes compete."""
    return _by_class("task-incremental", source, tasks, sizes, order, seed, validation)


def domain_incremental(
    source: Source,
    *,
    order: str | Sequence[int | str] = "domain",
    seed: int = 0,
    validation: float = 0.0,
) -> Scenario:
    """Each task brings the same classes in a new domain (photo, sketch, painting ...).

    Args:
        source: a data set with domains.
        order: "domain" (as the data set counts them), "seeded", or every domain once, by name or id.
        seed: of the domain order and of the validation part.
        validation: fraction of each class's training images to hold out, in [0, 1).

    Raises:
        ValueError: the source has no domains, the order is not one, or a domain lacks a class.
    """
    if source.train_domains is None or source.test_domains is None:
        raise ValueError(f"{source.name} has no domains; use class_incremental, or folders as domain/class/image.jpg")
    domains = in_order(source.domain_names, order, "domain", generator(seed, "domain order"))
    classes = tuple(range(len(source.class_names)))
    parts = []
    for domain in domains:
        train = where(source.train, source.train_domains == domain)
        if missing := sorted(set(classes) - set(train.labels.tolist())):
            raise ValueError(
                f"domain {source.domain_names[domain]!r} of {source.name} has no training {train.noun} of class "
                f"{source.class_names[missing[0]]!r}; every domain needs every class: add {train.noun}s or leave it out"
            )
        parts.append((source.domain_names[domain], classes, train, where(source.test, source.test_domains == domain)))
    return _assemble("domain-incremental", source.class_names, parts, validation, seed)


def dataset_incremental(
    sources: Sequence[Source], *, share_labels: bool = False, seed: int = 0, validation: float = 0.0
) -> Scenario:
    """Each task brings a data set of its own; at test time all classes seen so far compete. Answers have no classes.

    Args:
        sources: the data sets, in the order they are learned. All have samples of one kind.
        share_labels: whether classes of different data sets that have one name are one class. If not, each is called
            "DATA SET: class".
        seed: of the validation part.
        validation: fraction of each class's training samples to hold out, in [0, 1).

    Raises:
        ValueError: there is no data set, two have the same name or samples of different kinds, or a class has no
            training sample.
    """
    _check_datasets(sources)
    names = [[name if share_labels else f"{s.name}: {name}" for name in s.class_names] for s in sources]
    class_names = tuple(dict.fromkeys(name for own in names for name in own))
    parts: list[Part] = []
    for source, own in zip(sources, names, strict=True):
        ids = torch.tensor([class_names.index(name) for name in own])
        train, test = (
            data.relabelled(ids[data.labels] if own else data.labels, [f"{source.name}/{key}" for key in data.keys])
            for data in (source.train, source.test)
        )
        parts.append((source.name, tuple(ids.tolist()), train, test))
    return _assemble("datasets", class_names, parts, validation, seed)


def _check_datasets(sources: Sequence[Source]) -> None:
    if not sources:
        raise ValueError("there are no data sets; name at least one, each of which becomes a task")
    names = [source.name for source in sources]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"two data sets are called {twice[0]!r}; rename the file or folder of one, or leave it out")
    if len(nouns := {source.train.noun: source.name for source in sources}) > 1:
        told = " and ".join(f"{name} has {noun}s" for noun, name in nouns.items())
        raise ValueError(f"the data sets of a scenario must have samples of one kind, but {told}")
    for source in sources:
        check_each_class(source, range(len(source.class_names)))


def as_task(source: Source, *, name: str | None = None) -> Task:
    """The training part of a source as one task, for a learner that is shown data outside of any scenario."""
    classes = tuple(label for label in source.train.labels.unique().tolist() if label >= 0)
    return Task(0, name or source.name, classes, tuple(source.class_names[i] for i in classes), source.train)


Part = tuple[str, tuple[int, ...], Examples, Examples]


def _by_class(
    kind: str,
    source: Source,
    tasks: int | None,
    sizes: Sequence[int] | None,
    order: str | Sequence[int | str],
    seed: int,
    validation: float,
) -> Scenario:
    classes = in_order(source.class_names, order, "class", generator(seed, "class order"))
    count = len(classes)
    if (tasks is None) == (sizes is None):
        raise ValueError("give either tasks= (their number, all equal) or sizes= (the classes of each task)")
    cut = equal_sizes(count, tasks) if tasks is not None else given_sizes(count, sizes or ())
    check_each_class(source, classes)
    parts: list[Part] = []
    for members in torch.tensor(classes).split(cut):
        train = where(source.train, torch.isin(source.train.labels, members))
        test = where(source.test, torch.isin(source.test.labels, members))
        parts.append((short([source.class_names[label] for label in members]), tuple(members.tolist()), train, test))
    return _assemble(kind, source.class_names, parts, validation, seed)


def check_each_class(source: Source, classes: Iterable[int]) -> None:
    """Raise ValueError where one of these classes has no training sample."""
    present = set(source.train.labels.tolist())
    if missing := [source.class_names[label] for label in classes if label not in present]:
        noun = source.train.noun
        raise ValueError(f"class {missing[0]!r} of {source.name} has no training {noun}; add some or remove the class")


def _assemble(kind: str, class_names: tuple[str, ...], parts: Sequence[Part], validation: float, seed: int) -> Scenario:
    if not 0 <= validation < 1:
        raise ValueError(f"validation is a fraction of the training part, in [0, 1), not {validation}")
    tasks = []
    for i, (name, classes, train, _) in enumerate(parts):
        kept, held = train, None
        if validation > 0:
            out = held_out(train, validation, seed)
            kept, held = where(train, ~out), where(train, out) if out.any() else None
        tasks.append(Task(i, name, classes, tuple(class_names[label] for label in classes), kept, held))
    return Scenario(kind, class_names, tasks, [test for *_, test in parts])


def held_out(train: Examples, fraction: float, seed: int) -> Tensor:
    """(n,) bool, the validation part of a task's training samples."""
    if isinstance(train, AnswerSet):
        return split_prompts(train, fraction=fraction, seed=seed, name="validation")
    out = torch.zeros(len(train), dtype=torch.bool)
    out[stratified_split(train.labels, train.keys, fraction=fraction, seed=seed, name="validation")[1]] = True
    return out


def in_order(
    names: tuple[str, ...], order: str | Sequence[int | str], noun: str, random: torch.Generator
) -> tuple[int, ...]:
    """The ids of classes or domains in the order that is asked for.

    Args:
        names: the name of id i at place i.
        order: their natural order ("label" of classes, "domain" of domains), "seeded", or every one once.
        noun: "class" or "domain".
        random: draws the order "seeded".

    Raises:
        ValueError: the order is unknown, or names something else than each of them once.
    """
    natural = "label" if noun == "class" else noun
    if order == natural:
        return tuple(range(len(names)))
    if order == "seeded":
        return tuple(torch.randperm(len(names), generator=random).tolist())
    if isinstance(order, str):
        raise ValueError(f"unknown order {order!r}; use {natural!r}, 'seeded', or a list with every {noun} once")
    return choose_all(names, order, noun)


def where(data: Examples, mask: Tensor) -> Examples:
    """The samples of which a mask (n,) is true."""
    return data.subset(mask.nonzero()[:, 0])


def short(names: Sequence[str]) -> str:
    """Several names in a few words."""
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]}"
