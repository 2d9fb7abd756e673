"""Source, Task, Scenario: a data set, and the sequence of tasks that it is cut into.

A Task holds training data only; the test data of a task is asked from the Scenario, which a method never sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from torch import Tensor

from lamella.data.images import UNKNOWN_CLASS, concatenate
from lamella.data.loading import Examples
from lamella.data.names import normal_name

__all__ = ["Scenario", "Source", "Task", "Unreadable", "check_first"]


class Unreadable(NamedTuple):
    """A sample that cannot be read: its key in its set, or the place where it stands, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class Source:
    """A data set: what a loader returns and a scenario is cut from.

    Attributes:
        name: of the data set.
        train: its training part.
        test: its test part.
        class_names: the name of class i at place i; no two are equal. None where samples have no classes, as answers.
        domain_names: the name of domain i at place i; empty where there are no domains.
        train_domains: (n,) int64, the domain of each training sample, where there are domains.
        test_domains: (n,) int64, the same for the test part.
        told: how the data were read, in lines for people.
        unreadable: the samples that the loader left out of both parts, because they cannot be read. Images are looked
            at later; see `keep_readable`.

    Names of classes and domains are brought into one form; see `normal_name`.

    Raises:
        ValueError: two classes share a name, a name is empty, a label or domain has no name, or a sample is in both
            parts.
    """

    name: str
    train: Examples
    test: Examples
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...] = ()
    train_domains: Tensor | None = field(default=None, repr=False)
    test_domains: Tensor | None = field(default=None, repr=False)
    told: tuple[str, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()

    def __post_init__(self) -> None:
        for own in ("class_names", "domain_names"):
            object.__setattr__(self, own, tuple(normal_name(name) for name in getattr(self, own)))
        names = [*self.class_names]
        first = 0 if names else UNKNOWN_CLASS
        if empty := [i for i, name in enumerate(names) if not name.strip()]:
            raise ValueError(f"class {empty[0]} of {self.name} has an empty name; give it a name")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two classes of {self.name} are called {twice[0]!r}; class names must differ")
        for part, data, domains in (
            ("training", self.train, self.train_domains),
            ("test", self.test, self.test_domains),
        ):
            if len(data) and not first <= int(data.labels.min()) <= int(data.labels.max()) < len(names):
                label = next(label for label in data.labels.tolist() if not 0 <= label < len(names))
                what = f"a {part} {data.noun} of {self.name}"
                raise ValueError(f"{what} has label {label}, but there are {len(names)} classes")
            if bool(self.domain_names) != (domains is not None) or (domains is not None and len(domains) != len(data)):
                raise ValueError(f"{self.name} with domains needs one domain for each {part} {data.noun}")
        if both := set(self.train.keys) & set(self.test.keys):
            raise ValueError(f"{min(both)} of {self.name} is both a training and a test {self.train.noun}")


@dataclass(frozen=True)
class Task:
    """What a method may learn from.

    Attributes:
        id: position in the scenario, from 0.
        name: of the task, for people.
        classes: global class ids, in the order they come.
        class_names: the name of each of `classes`.
        train: training samples, labelled with global class ids.
        validation: carved from the training part, where asked.
    """

    id: int
    name: str
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    train: Examples
    validation: Examples | None = None


def check_first(first: int, tasks: int) -> None:
    """Raise ValueError unless a stream of so many tasks has so many first ones."""
    if not 1 <= first <= tasks:
        raise ValueError(f"first_tasks is {first}; this stream has {tasks} tasks, so give 1 to {tasks}")


class Scenario:
    """A sequence of tasks, and the test data of each.

    Args:
        kind: "class-incremental", "domain-incremental", "task-incremental" (the task is given at test time),
            "datasets" or "online".
        class_names: of all classes of the source; `class_names[label]`.
        tasks: in the order they are learned.
        tests: the test data of each task.
        batch: of an online stream, how many samples come in together: each task is then learned batch by batch, in the
            order of its samples. None where a task is there as a whole.
    """

    def __init__(
        self,
        kind: str,
        class_names: tuple[str, ...],
        tasks: Sequence[Task],
        tests: Sequence[Examples],
        batch: int | None = None,
    ) -> None:
        self.kind = kind
        self.batch = batch
        self.class_names = class_names
        self.class_order = tuple(dict.fromkeys(label for task in tasks for label in task.classes))
        self._tasks = tuple(tasks)
        self._tests = tuple(tests)
        for task, test in zip(tasks, tests, strict=True):
            if len(test) == 0:
                which = f"task {task.id} ({task.name})"
                raise ValueError(f"{which} has no test {test.noun}; its accuracy cannot be measured")
        self.split_sha256 = self._hash_split()

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, i: int) -> Task:
        return self._tasks[i]

    def __repr__(self) -> str:
        sizes = ", ".join(str(len(task.classes)) for task in self._tasks)
        return f"Scenario({self.kind}, {len(self)} tasks of {sizes} classes)"

    @property
    def shared_classes(self) -> bool:
        """Whether a class belongs to several tasks, so that a choice of task has no meaning."""
        classes = sum(len(task.classes) for task in self._tasks)
        return self.kind == "domain-incremental" or classes > len(self.class_order)

    def test(self, i: int) -> Examples:
        """The test data of task i."""
        return self._tests[i]

    def first(self, tasks: int) -> "Scenario":
        """The first tasks alone.

        Raises:
            ValueError: there are not that many tasks, or the number is below 1.
        """
        check_first(tasks, len(self))
        return Scenario(self.kind, self.class_names, self._tasks[:tasks], self._tests[:tasks], self.batch)

    def joined(self) -> "Scenario":
        """All tasks as one, for the upper bound that sees all data at once."""
        held = [task.validation for task in self._tasks if task.validation is not None]
        task = Task(
            id=0,
            name="all tasks",
            classes=self.class_order,
            class_names=tuple(self.class_names[label] for label in self.class_order),
            train=concatenate([task.train for task in self._tasks]),
            validation=concatenate(held) if held else None,
        )
        return Scenario(self.kind, self.class_names, [task], [concatenate(self._tests)])

    def _hash_split(self) -> str:
        """SHA-256 over the sorted (key, class name, part, task) of every sample."""
        lines = []
        for task, test in zip(self._tasks, self._tests, strict=True):
            for part, data in (("train", task.train), ("validation", task.validation), ("test", test)):
                if data is not None:
                    names = (self.class_names[label] if label >= 0 else "" for label in data.labels.tolist())
                    lines += [f"{k}\x1f{n}\x1f{part}\x1f{task.id}" for k, n in zip(data.keys, names, strict=True)]
        return sha256("\n".join(sorted(lines)).encode()).hexdigest()
