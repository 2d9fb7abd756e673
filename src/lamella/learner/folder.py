"""A model in a folder: open it, learn under a lock, list its versions, roll back, forget a task."""

import errno
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lamella.common.locks import exclusive_lock
from lamella.common.progress import Progress, silent
from lamella.data.images import data_sha256
from lamella.data.keeping import Unreadable
from lamella.data.loading import Examples
from lamella.data.scenario import Source, Task
from lamella.data.sources.readable import load_readable
from lamella.learner import forgetting
from lamella.learner.config.document import up_to_date
from lamella.learner.config.precision import as_chosen
from lamella.learner.config.wanted import Wanted
from lamella.learner.learning import learn
from lamella.learner.model import Model, load, save
from lamella.learner.next_task import as_next_task
from lamella.learner.records import TaskRecord, tasks_from_json
from lamella.learner.resume import PLACE, Resumed, config_left, current_version, is_free, resume
from lamella.learner.store.versions import (
    MANIFEST,
    Version,
    drop_versions,
    history,
    holds_model,
    load_manifest,
    make_again,
    roll_back,
)

__all__ = ["Forgotten", "Learning", "ModelFolder", "learn_from"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SECONDS_BETWEEN = 0.2
"""The time between two attempts to lock a model that another process is changing."""


@dataclass(frozen=True)
class Learning:
    """A task that is ready to be learned into a model's folder, which is locked meanwhile.

    Attributes:
        folder: the model's folder.
        model: the model before the task is learned.
        task: the task to learn.
        held_out: the samples of its classes that the model is not trained on.
        unreadable: the files that were left out because they cannot be read.
        resumed: what an interrupted learning has left.
        stored: the record of the task if it was learned and stored already, so that nothing is left to do; else None.
    """

    folder: Path
    model: Model
    task: Task
    held_out: Examples
    unreadable: Sequence[Unreadable]
    resumed: Resumed
    stored: TaskRecord | None = None

    def run(self, progress: Progress = silent) -> TaskRecord:
        """Learn the task, or resume an interrupted learning of it, and store the model.

        Args:
            progress: opens a progress bar.

        Returns:
            The record of the task.
        """
        if self.stored is not None:
            return self.stored
        checkpoints = self.resumed.checkpoints
        record = learn(self.model, self.task, held_back=self.held_out, checkpoints=checkpoints, progress=progress)
        record.note_unreadable(self.unreadable)
        save(self.model, self.folder, what=f"learned {self.task.name}", keep=None)
        checkpoints.clear()
        return record

    def rehearsed(self) -> Model:
        """Return a copy of the model, for a trial that does not change `model`."""
        return load(self.folder) if self.model.tasks else Model(self.model.config)


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


class ModelFolder:
    """A model on disk.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def version(self) -> int:
        """The number of the current version; 0 if there is no model yet."""
        return current_version(self.path)

    def open(self, wanted: Wanted | None = None) -> Model:
        """Load the model, or create a new one if there is none.

        Args:
            wanted: the settings of a new model, which an existing model must have too. None opens an existing model
                only.

        Raises:
            FileNotFoundError: there is no model, and `wanted` is None.
            ValueError: the folder holds something else, or a setting is unknown or differs from that of the model.
        """
        wanted = wanted and wanted.with_files_named()
        if wanted is None or holds_model(self.path):
            model = load(self.path)
            for other in (wanted or Wanted()).differences(model.config):
                raise ValueError(
                    f"'{self.path}' exists already, so its backbone, method and seed are fixed, and so are their "
                    f"settings: {other}; leave it out"
                )
            return model
        if not is_free(self.path):
            raise ValueError(f"'{self.path}' exists and is no model (no {MANIFEST} in it); choose a new folder")
        config = wanted.config()
        # An interrupted first learning may have measured and chosen a precision. It is kept, so that learning can
        # resume.
        left = config_left(self.path)
        chosen = as_chosen(config, left)
        return Model(chosen if chosen == left else config)

    @contextmanager
    def held(self, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
        """Lock the model, so that no other process can change it.

        Args:
            waiting: called repeatedly with the reason while another process holds the lock. None does not wait.

        Raises:
            BlockingIOError: another process holds the lock, and `waiting` is None.
        """
        busy = f"another process is changing '{self.path}'; wait for it to end"
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(exclusive_lock(self.path, busy))
                    break
                except BlockingIOError as error:
                    if waiting is None:
                        raise
                    waiting(str(error))
                    time.sleep(SECONDS_BETWEEN)
            yield

    @contextmanager
    def learning(
        self,
        source: Source,
        unreadable: Sequence[Unreadable] = (),
        *,
        wanted: Wanted | None = None,
        model: Model | None = None,
        place: Path | None = None,
        since: int | None = None,
        waiting: Callable[[str], None] | None = None,
    ) -> Iterator[Learning]:
        """Lock the model and prepare to learn the training part of a data set as its next task.

        Args:
            source: the data set; its test part is held out.
            unreadable: the files of the data set that cannot be read.
            wanted: the settings of a new model, as for `open`.
            model: the model of this folder, if the caller has loaded it already; this object then learns.
            place: the folder for the checkpoints of the learning; by default one within the model's folder.
            since: how many tasks the model had when the samples arrived. If a later task has exactly the same samples,
                they were learned already.
            waiting: as for `held`.

        Yields:
            The prepared learning, whose `run` learns the task.

        Raises:
            FileNotFoundError: there is no model, and `wanted` is None.
            ValueError: the folder or a setting is refused by `open`, or the samples cannot be the model's next task.
            BlockingIOError: another process holds the lock, and `waiting` is None.
            OSError: the disk is full, or the folder cannot be written. The stored model is unchanged.
        """
        version = self.version
        opened = self.open(wanted) if model is None else model
        with self.held(waiting), _with_a_hint_where_the_disk_is_full(self.path):
            if model is not None:
                self._check_is_here(model)
            elif self.version != version:  # another process has changed the model meanwhile
                opened = self.open(wanted)
            task, held_out = as_next_task(source, opened)
            resumed = resume(self.path, place or self.path / PLACE, opened, task)
            stored = opened.tasks[-1] if resumed.stored else _learned_since(opened, task, since)
            yield Learning(self.path, opened, task, held_out, unreadable, resumed, stored)

    def _check_is_here(self, model: Model) -> None:
        """Make sure that the folder holds this model or is free.

        Raises:
            ValueError: the folder holds another model or something else.
        """
        model.check_whole()
        if holds_model(self.path):
            manifest = load_manifest(self.path)
            config = up_to_date(manifest["config"])  # as `load` gave it to the model
            if tasks_from_json(manifest["tasks"]) != model.tasks or config != model.config:
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
        before = _before(self.history()) if to is None else to
        if before is None:
            raise ValueError(
                f"version {self.version} of '{self.path}' is its first, so there is none before it; name one with --to"
            )
        with self.held():
            roll_back(self.path, before)
            return next(v for v in self.history() if v.current)

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
            records = tasks_from_json(load_manifest(self.path)["tasks"])
            names = [record.name for record in records]
            if task not in names:
                learned = ", ".join(names) or "nothing"
                raise ValueError(f"'{self.path}' has learned no task '{task}'; it has learned {learned}")
            earlier = [v.number for v in self.history() if self._tasks_of(v) == records[:-1]]
            as_in = earlier[-1] if task == names[-1] and earlier else None
            if as_in is not None:
                make_again(self.path, as_in, f"forgot {task}")
            else:
                model = load(self.path)
                forgetting.forget(model, task)
                save(model, self.path, what=f"forgot {task}", keep=None)
            having = [v.number for v in self.history() if v.tasks.count(task) >= names.count(task)]
            drop_versions(self.path, having if purge else [])
            return Forgotten(as_in, tuple(having), purge)

    def _tasks_of(self, version: Version) -> list[TaskRecord]:
        return tasks_from_json(load_manifest(self.path, version.number)["tasks"])


def learn_from(model: Model, data: str | Path, *, folder: Path | None, progress: Progress) -> TaskRecord:
    """Learn a data set as the next task. Arguments, return value and errors are those of `Learner.learn_from`."""
    source, unreadable = load_readable(data)
    if unreadable:
        first = f"the first is {unreadable[0].key}: {unreadable[0].reason}"
        left_out = f"{len(unreadable)} files of '{data}' cannot be read and are left out; {first}"
        warnings.warn(left_out, stacklevel=3)  # points to the line where the user called the learner
    if folder is not None:
        with ModelFolder(folder).learning(source, unreadable, model=model) as learning:
            return learning.run(progress)
    task, held_out = as_next_task(source, model)
    record = learn(model, task, held_back=held_out, progress=progress)
    record.note_unreadable(unreadable)
    return record


def _before(versions: Sequence[Version]) -> int | None:
    """Return the newest version that is left of those that the current one was made from, or None.

    What is not known of versions of older Lamellas is taken to be the number before.
    """
    known = {version.number: version for version in versions}
    number = next(version.number for version in versions if version.current)
    while number > 1:
        own = known.get(number)
        number = own.parent if own is not None and own.parent is not None and own.parent < number else number - 1
        if number in known:
            return number
    return None


def _learned_since(model: Model, task: Task, since: int | None) -> TaskRecord | None:
    """Return the record of a task after the first `since` that has exactly the same samples, or None."""
    if since is None:
        return None
    images = data_sha256(task.train, dict(zip(task.classes, task.class_names, strict=True)))
    return next((record for record in model.tasks[since:] if record.data_sha256 == images), None)


@contextmanager
def _with_a_hint_where_the_disk_is_full(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        hint = "the stored model is intact; free some space, and the same command resumes"
        raise OSError(error.errno, f"{error.strerror}; {hint}", str(path)) from error
