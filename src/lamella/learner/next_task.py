"""New samples as a learner's next task."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from lamella.common.words import all_of, many
from lamella.data.images import UNKNOWN_CLASS
from lamella.data.loading import Examples
from lamella.data.names import alike
from lamella.data.scenario import Source, Task
from lamella.data.sources.readable import ReadableData
from lamella.learner.model import Model
from lamella.learner.records import TaskRecord

__all__ = ["LeftOut", "as_next_task", "known_otherwise", "new_samples", "newest_with_all", "next_task", "note"]


class LeftOut(NamedTuple):
    """How many training samples of a data set are not learned.

    Attributes:
        known: those that the model has learned or held back before as the same class, unless they are learned again.
        held_back: those that are never learned, because the model holds them back and is measured on them.
        copies: copies of other samples of their class.
        tests: samples of the data's own test part that are not measured, because the model was or will be trained on
            them.
    """

    known: int = 0
    held_back: int = 0
    copies: int = 0
    tests: int = 0


def as_next_task(source: Source, model: Model, name: str | None = None) -> tuple[Task, Examples]:
    """Return the training part as the model's next task, and the part that is held back.

    Known class names keep their ids, new ones get the next.

    Args:
        source: the data set.
        model: the model that will learn it.
        name: the name of the task; None for the name of the data set, with a number if a task has that name already.

    Raises:
        ValueError: the name is empty, a task has it already, or two names of classes differ only in capitals or spaces.
    """
    if name is not None and not name.strip():
        raise ValueError("the name of the task is empty; give a name (--name), or leave it out for that of the data")
    used = {task.name for task in model.tasks}
    if name in used:
        raise ValueError(f"a task called '{name}' was learned already; choose another name (--name)")
    task_name = name or next(each for each in _numbered(source.name) if each not in used)
    if not source.class_names:  # answers have none
        return Task(len(model.tasks), task_name, (), (), source.train), source.test
    ids = model.ids()
    class_names = [source.class_names[i] for i in source.train.labels.unique().tolist()]
    _check_spelling(list(model.class_names.values()), [each for each in class_names if each not in ids])
    for each in class_names:  # the next id is not the number of classes, because some may have been forgotten
        ids.setdefault(each, max(ids.values(), default=-1) + 1)
    names = {ids[each]: each for each in class_names} | model.class_names
    own = {ids[each]: names[ids[each]] for each in class_names}
    present = set(class_names)
    number = torch.tensor([ids[each] if each in present else -1 for each in source.class_names])

    def renumbered(part: Examples) -> Examples:
        labels = number[part.labels]
        of_task = labels >= 0  # what has only test samples cannot be learned, and so tells nothing
        return part.relabelled(labels).subset(of_task.nonzero()[:, 0])

    task = Task(len(model.tasks), task_name, tuple(own), tuple(own.values()), renumbered(source.train))
    return task, renumbered(source.test)


def _check_spelling(known: Sequence[str], new: Sequence[str]) -> None:
    """Raise ValueError where a new name differs from another one in capitals or spaces only."""
    seen = {alike(name): name for name in known}
    for name in new:
        other = seen.setdefault(alike(name), name)
        if other != name:
            raise ValueError(
                f"the classes '{other}' and '{name}' differ only in {_difference(other, name)}: if they are one class, "
                "give both the same name (`lamella classes MODEL rename` for a learned one); if not, give one of them "
                "another name"
            )


def _difference(name: str, other: str) -> str:
    """What two names that are alike differ in."""
    if name.casefold() == other.casefold():
        return "capitals"
    return "spaces" if name.split() == other.split() else "capitals and spaces"


def _numbered(name: str) -> Iterator[str]:
    """Yield a name, and then the same name with the numbers 2, 3, ... behind it."""
    yield name
    number = 2
    while True:
        yield f"{name} {number}"
        number += 1


def new_samples(model: Model, data: ReadableData, again: bool) -> tuple[ReadableData, LeftOut]:
    """Return the data set without the samples that were learned before, and with each sample once.

    Args:
        model: the model that will learn it.
        data: the data set.
        again: whether samples that were learned before stay. Those that are held back never do, under whatever class,
            because the model is measured on them.

    Returns:
        The data set, and how many samples are left out.

    Raises:
        ValueError: there is no training image, or none that is new.
    """
    noun = data.whole.train.noun
    if not len(data.whole.train):
        raise ValueError(f"{data.whole.name} has no training {noun}, so there is nothing to learn; add some {noun}s")
    pairs, tasks, measured = data.pairs(), _seen(model), model.seen.held_back()
    known = [] if again else [pair for pair in pairs if pair in tasks]
    held_back = [pair for pair in pairs if pair[0] in measured and (again or pair not in tasks)]
    fresh = data.without({*known, *held_back})
    new = fresh.once()
    if not len(new.whole.train):
        newest = model.tasks[max(tasks[pair] for pair in known)] if known else None
        raise ValueError(_nothing_new(data, newest))
    copies = len(fresh.whole.train) - len(new.whole.train)
    return new, LeftOut(len(known), len(held_back), copies, _trained_on(model, new))


def _trained_on(model: Model, data: ReadableData) -> int:
    """Count the test samples of a data set that were trained on before, or that its training part has, too."""
    test, train = data.whole.test, data.whole.train
    trained = model.seen.trained_on() | {data.digests[key] for key in train.keys}
    labels = set(train.labels.tolist())
    return sum(
        label in labels and data.digests[key] in trained
        for key, label in zip(test.keys, test.labels.tolist(), strict=True)
    )


def known_otherwise(model: Model, data: ReadableData) -> dict[str, int]:
    """Count the samples that were learned before as another class, by the name of that class.

    Args:
        model: the model that knows the other class.
        data: the data set.
    """
    before: dict[int, set[int]] = {}
    for digest, label in model.seen.newest_tasks():
        before.setdefault(digest, set()).add(label)
    ids, found = model.ids(), Counter[str]()
    for digest, name in data.pairs():
        labels = before.get(digest, set())
        if labels and ids.get(name) not in labels:
            found.update(model.class_names[label] for label in labels if label in model.class_names)
    return dict(found)


def _seen(model: Model) -> dict[tuple[int, str], int]:
    """Return the newest task with each pair of a digest and a name of a class, its former names included."""
    names: dict[int, list[str]] = {UNKNOWN_CLASS: [""]}  # of answers
    for name, label in model.ids().items():
        names.setdefault(label, []).append(name)
    tasks = model.seen.newest_tasks().items()
    return {(digest, name): task for (digest, label), task in tasks for name in names.get(label, ())}


def newest_with_all(model: Model, data: ReadableData) -> int | None:
    """Return the newest task that has some of the images, if all that can be learned are in tasks; else None."""
    tasks, measured = _seen(model), model.seen.held_back()
    found = [tasks.get(pair) for pair in data.pairs() if pair in tasks or pair[0] not in measured]
    known = [task for task in found if task is not None]
    return max(known) if known and len(known) == len(found) else None


def next_task(data: ReadableData, model: Model, name: str | None) -> tuple[Task, Examples]:
    """Return the next task of a model, and the samples of its classes that are held back.

    Nothing is held back that the model has been or will be trained on, or that it holds back already. Such samples of a
    data set without a test part are trained on.

    Args:
        data: the data set that the task is made of.
        model: the model that will learn it.
        name: the name of the task; None for that of the data set.
    """
    known = set(model.seen.digests.tolist())
    in_two_classes = {digest for digest, count in Counter(digest for digest, _ in data.pairs()).items() if count > 1}
    task, held_back = as_next_task(data.divided(never=known | in_two_classes), model, name)
    used = known | {data.digests[key] for key in task.train.keys}
    fresh: list[int] = []
    for i, key in enumerate(held_back.keys):
        if data.digests[key] not in used:
            used.add(data.digests[key])
            fresh.append(i)
    return task, held_back.subset(fresh)


def _nothing_new(data: ReadableData, record: TaskRecord | None) -> str:
    noun = data.whole.train.noun
    if record is None:
        return (
            f"nothing of {data.whole.name} is new: {many(len(data.whole.train), noun)} held back before, on which the "
            f"model is measured, so never learned; give new {noun}s"
        )
    number = len(data.whole.train)
    was, they = ("was", "it") if number == 1 else ("were", "they")
    return (
        f"{all_of(number, noun)} of {data.whole.name} {was} learned before, the newest as task "
        f"'{record.name}'; once more {they} would count twice: give new {noun}s, or ask for it (--again, "
        "or again=true in a request to a server)"
    )


def note(model: Model, record: TaskRecord, task: Task, held_back: Examples, data: ReadableData) -> None:
    """Record the files that cannot be read, and the contents of the images that can."""
    record.note_unreadable(data.unreadable)
    number = len(model.tasks) - 1
    for part, trained in ((task.train, True), (held_back, False)):
        model.seen.add([data.digests[key] for key in part.keys], part.labels, number, trained=trained)
