"""A model in a folder: open it, learn under a lock, list its versions, roll back, forget a task."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lamella.common.files import DISK_FULL
from lamella.common.locks import exclusive_lock
from lamella.data.images import data_sha256
from lamella.data.sources.readable import ReadableData
from lamella.learner import forgetting
from lamella.learner.config.document import on_device, to_toml, up_to_date
from lamella.learner.config.precision import as_chosen
from lamella.learner.config.wanted import Wanted
from lamella.learner.model import Model, load, save
from lamella.learner.next_task import LeftOut, as_next_task, known_otherwise, new_samples, newest_with_all, next_task
from lamella.learner.prepared import Learning
from lamella.learner.records import TaskRecord, tasks_from_json
from lamella.learner.resume import PLACE, Resumed, config_left, current_version, is_free, resume, stored_before
from lamella.learner.store.state import state_digest
from lamella.learner.store.versions import (
    MANIFEST,
    Version,
    ancestors,
    drop_versions,
    history,
    holds_model,
    load_manifest,
    make_again,
    manifest_file,
    roll_back,
)
from lamella.training import processes
from lamella.training.checkpoints import Checkpoints
from lamella.training.precision import resolve_device

__all__ = ["Forgotten", "ModelFolder", "Pruned"]

SECONDS_BETWEEN = 0.2
"""The time between two attempts to lock a model that another process is changing."""


@dataclass(frozen=True)
class Forgotten:
    """How a task was forgotten.

    Attributes:
        as_in: the number of the version whose state the model has now; None if the task's own part was dropped instead.
        having: the numbers of the versions that have learned the task.
        removed: whether these versions were deleted.
    """

    as_in: int | None
    having: tuple[int, ...]
    removed: bool


@dataclass(frozen=True)
class Pruned:
    """What was deleted of a model.

    Attributes:
        versions: the numbers of the deleted versions, oldest first.
        bytes: the size of the deleted files.
        left: how many versions are left.
    """

    versions: tuple[int, ...]
    bytes: int
    left: int


class ModelFolder:
    """A model on disk.

    Args:
        path: the folder; it need not exist yet.
        device: what the model computes on; None for a GPU if there is one, or for what the settings of a new model say.
        waiting: a function that is called with the reason, again and again, while another process changes the model;
            None refuses to wait.
        trusted: False for a folder of a stranger; see `Learner.load`.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str | None = None,
        waiting: Callable[[str], None] | None = None,
        trusted: bool = True,
    ) -> None:
        self.path = path
        self.device = device
        self.trusted = trusted
        self.waiting = waiting

    @property
    def version(self) -> int:
        """The number of the current version; 0 if there is no model yet."""
        return current_version(self.path)

    def open(self, wanted: Wanted | None = None, noun: str = "image") -> Model:
        """Load the model, or create a new one if there is none.

        Args:
            wanted: the settings of a new model, which an existing model must have too. None opens an existing model
                only.
            noun: what a new model will learn from, "image", "text" or "answer".

        Raises:
            FileNotFoundError: there is no model, and `wanted` is None.
            ValueError: the folder holds something else, or a setting is unknown or differs from that of the model.
        """
        wanted = wanted and wanted.with_files_named()
        if self.device is not None:
            resolve_device(self.device)
        if wanted is None or holds_model(self.path):
            asked = wanted or Wanted()
            model = load(self.path, device=self.device or asked.device, trusted=self.trusted)
            for other in asked.differences(model.config):
                raise ValueError(
                    f"'{self.path}' exists already, so its backbone, method and seed are fixed, and so are their "
                    f"settings: {other}; leave it out"
                )
            return model
        self._check_free()
        config = wanted.config(noun)
        if self.device is not None:
            config = on_device(config, self.device)
        # An interrupted first learning may have measured and chosen a precision. It is kept, so that learning can
        # resume.
        left = config_left(self.path)
        chosen = as_chosen(config, left)
        return Model(chosen if left and on_device(chosen, None) == on_device(left, None) else config)

    def _check_free(self) -> None:
        """Make sure that a new model can be put into the folder.

        Raises:
            ValueError: it holds something else, or a model that is not there yet is not trusted.
        """
        if not is_free(self.path):
            raise ValueError(f"'{self.path}' exists and is no model (no {MANIFEST} in it); choose a new folder")
        if not self.trusted:
            raise ValueError(f"'{self.path}' holds no model yet, so there is none to distrust; leave out --untrusted")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the model, so that no other process can change it; of several that learn together, the first locks it.

        Raises:
            BlockingIOError: another process holds the lock, and this one does not wait.
        """
        with processes.held(self._locked):
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        busy = f"another process is changing '{self.path}'; wait for it to end"
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(exclusive_lock(self.path, busy))
                    break
                except BlockingIOError as error:
                    if self.waiting is None:
                        raise
                    self.waiting(str(error))
                    time.sleep(SECONDS_BETWEEN)
            yield

    @contextmanager
    def learning(
        self,
        read: Callable[[], ReadableData],
        *,
        wanted: Wanted | None = None,
        model: Model | None = None,
        name: str | None = None,
        again: bool = False,
        place: Path | None = None,
        since: int | None = None,
    ) -> Iterator[Learning]:
        """Lock the model and prepare to learn the training part of a data set as its next task.

        Images that a task was learned from before, as the same class, are left out.

        Args:
            read: a function that reads the data set, which is called once the model is open. Its test part is held
                out, or a fifth of each class if it has none.
            wanted: the settings of a new model, as for `open`.
            model: the model of this folder, if the caller has loaded it already; this object then learns.
            name: the name of the task; None for that of the data set, with a number if a task has that name already.
            again: whether images that were learned before are learned once more, and so count twice.
            place: the folder for the checkpoints of the learning; by default one within the model's folder.
            since: how many tasks the model had when the samples arrived. If later tasks have all of them, they were
                learned already.

        Yields:
            The prepared learning, whose `run` learns the task.

        Raises:
            FileNotFoundError: there is no model, and `wanted` is None.
            ValueError: the folder or a setting is refused by `open`, the samples cannot be the model's next task, all
                were learned before, or a task has that name.
            BlockingIOError: another process holds the lock, and this one does not wait.
            OSError: the disk is full, or the folder cannot be written. The stored model is unchanged.
        """
        version = self.version
        opened, data = self._opened_and_read(read, wanted, model)
        with self.held(), _with_a_hint_where_the_disk_is_full(self.path):
            if model is not None:
                self._check_is_here(model)
            elif self.version != version:  # another process has changed the model meanwhile
                opened = self.open(wanted, data.noun)
            processes.check_shared(self.path)
            processes.same("model, data set or setting", lambda: _what_is_learned(opened, data))
            place = place or self.path / PLACE
            done = processes.from_first(lambda: self._done(opened, data, place, since))
            if done is not None:
                task, held_back = as_next_task(data.divided(), opened)
                resumed = Resumed(Checkpoints(place, 0.0), stored=True)
                yield Learning(self.path, opened, task, held_back, data, LeftOut(), {}, resumed, opened.tasks[done])
                return
            new, left_out = new_samples(opened, data, again)
            task, held_back = next_task(new, opened, name)
            resumed = processes.from_first(lambda: resume(self.path, place, opened, task))
            otherwise = known_otherwise(opened, data.once())
            stored = opened.tasks[-1] if resumed.stored else None
            yield Learning(self.path, opened, task, held_back, new, left_out, otherwise, resumed, stored)

    def _opened_and_read(
        self, read: Callable[[], ReadableData], wanted: Wanted | None, model: Model | None
    ) -> tuple[Model, ReadableData]:
        """Open the model and read the data set. What a new model is made for, its first data set says.

        Raises:
            ValueError: the model learns from samples of another kind.
        """
        if model is None and (wanted is None or holds_model(self.path)):
            model = self.open(wanted)
        if model is None and wanted is not None:
            self._check_free()
            if wanted.says_what_for:
                model = self.open(wanted)
            else:
                wanted.with_files_named().check()
        data = read()
        model = self.open(wanted, data.noun) if model is None else model
        model.check_takes(data.whole)
        return model, data

    def _done(self, model: Model, data: ReadableData, place: Path, since: int | None) -> int | None:
        """Return the number of the task that this very learning has stored before it was interrupted, or None.

        Arguments are those of `learning`.
        """
        newest = newest_with_all(model, data)
        if newest is None:
            return None
        if since is not None and newest >= since:
            return newest
        return newest if newest == len(model.tasks) - 1 and stored_before(self.path, place, model) else None

    def _check_is_here(self, model: Model) -> None:
        """Make sure that the folder holds this model or is free.

        Raises:
            ValueError: the folder holds another model or something else.
        """
        model.check_whole()
        if holds_model(self.path):
            manifest = load_manifest(self.path)
            config = up_to_date(manifest["config"])  # as `load` gave it to the model
            same = on_device(config, None) == on_device(model.config, None)
            same = same and [[i, name] for i, name in model.class_names.items()] == manifest["class_names"]
            if tasks_from_json(manifest["tasks"], manifest_file(self.path)) != model.tasks or not same:
                raise ValueError(
                    f"'{self.path}' holds another model than this learner, or has learned more than it; continue with "
                    "Learner.load of that folder, or choose a new folder"
                )
        elif not is_free(self.path):
            raise ValueError(f"'{self.path}' exists and is no model (no {MANIFEST} in it); choose a new folder")

    def history(self) -> list[Version]:
        """List all versions, oldest first."""
        return history(self.path)

    def roll_back(self, to: int | None = None) -> Version:
        """Make another version the current one. All versions are kept.

        Args:
            to: the number of the version; None for the one that the current one was made from.

        Returns:
            The version that is current now.

        Raises:
            FileNotFoundError: there is no model, or a file of the version is missing.
            ValueError: there is no such version, or it is damaged.
            BlockingIOError: another process holds the lock.
        """
        with self.held():
            earlier = ancestors(self.path) if to is None else [to]
            if not earlier:
                oldest = "its first" if self.version == 1 else "the oldest that is left of its line"
                none = f"version {self.version} of '{self.path}' is {oldest}, so there is none before it"
                raise ValueError(f"{none}; name one with --to")
            roll_back(self.path, earlier[0])
            return next(v for v in self.history() if v.current)

    def change(self, how: Callable[[Model], object], what: str | Callable[[], str], *, whole: bool = True) -> int:
        """Change the model without new samples, and store it as a new version.

        Args:
            how: a function that changes the model in place.
            what: a short text for the history that says what was changed, or what gives it afterwards.
            whole: False for a change that loses nothing of the model: what did not change is not stored again then.

        Returns:
            The number of the new version.

        Raises:
            FileNotFoundError: there is no model.
            ValueError: `how` refuses; the stored model is unchanged.
            BlockingIOError: another process holds the lock, and this one does not wait.
        """
        with self.held():
            model = load(self.path, device=self.device, trusted=self.trusted)
            how(model)
            save(model, self.path, what=what if isinstance(what, str) else what(), keep=None, whole=whole)
            return self.version

    def prune(self, keep: int) -> Pruned:
        """Delete all versions but the newest ones and the current one, with the files that only they need.

        Args:
            keep: how many of the newest are kept, at least 1.

        Raises:
            FileNotFoundError: there is no model.
            ValueError: `keep` is below 1.
            BlockingIOError: another process holds the lock, and this one does not wait.
        """
        if keep < 1:
            raise ValueError(f"--keep {keep} would leave no version; give 1 or more")
        with self.held():
            versions = self.history()
            old = tuple(v.number for v in versions[:-keep] if not v.current)
            return Pruned(old, drop_versions(self.path, old), len(versions) - len(old))

    def forget(self, task: str, *, purge: bool = False) -> Forgotten:
        """Forget a task exactly. This is possible for the last task, and for any task if the tasks share nothing.

        Args:
            task: the name of the task.
            purge: whether every version that has learned the task is deleted, too.

        Raises:
            ValueError: there is no such task, or what was learned later depends on it.
            BlockingIOError: another process holds the lock.
        """
        with self.held():
            now = load_manifest(self.path)
            records = tasks_from_json(now["tasks"], manifest_file(self.path))
            names = [record.name for record in records]
            left_over = [v.number for v in self.history() if task in v.tasks]
            if task not in names and purge and left_over:  # it was forgotten before, without its versions
                drop_versions(self.path, left_over)
                return Forgotten(self.version, tuple(left_over), purge)
            if task not in names:
                learned = ", ".join(names) or "nothing"
                raise ValueError(f"'{self.path}' has learned no task '{task}'; it has learned {learned}")
            as_in = self._newest_with(records[:-1]) if task == names[-1] else None
            if as_in is not None:
                make_again(self.path, as_in, f"forgot {task}", named_as=now)
            else:
                model = load(self.path, trusted=self.trusted)
                forgetting.forget(model, task)
                save(model, self.path, what=f"forgot {task}", keep=None)
            having = [v.number for v in self.history() if v.tasks.count(task) >= names.count(task)]
            drop_versions(self.path, having if purge else [])
            return Forgotten(as_in, tuple(having), purge)

    def _newest_with(self, records: list[TaskRecord]) -> int | None:
        """Return the newest version that has learned these tasks, of those that the current one was made from.

        Where none of these is left, another version that has learned the same counts; None if there is none at all.
        """
        own = ancestors(self.path)
        others = [version.number for version in reversed(self.history()) if version.number not in own]
        return next((n for n in [*own, *others] if self._records(n) == records), None)

    def _records(self, version: int) -> list[TaskRecord]:
        return tasks_from_json(load_manifest(self.path, version)["tasks"], manifest_file(self.path, version))


def _what_is_learned(model: Model, data: ReadableData) -> str:
    """What several processes that learn together must agree on."""
    samples = data_sha256(data.whole.train, dict(enumerate(data.whole.class_names)))
    settings = to_toml(on_device(model.config, None))
    return "\n".join([state_digest(model.method), samples, str(sorted(data.digests.items())), settings])


@contextmanager
def _with_a_hint_where_the_disk_is_full(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        hint = "the stored model is intact; free some space, and the same command resumes"
        raise OSError(error.errno, f"{error.strerror}; {hint}", str(path)) from error
