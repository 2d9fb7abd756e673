"""A model in a folder that keeps learning: opened, taught under a lock, taken back, made to forget."""

import errno
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lamella.common.locks import alone
from lamella.common.progress import Progress, silent
from lamella.data.images import data_sha256
from lamella.data.keeping import Unreadable
from lamella.data.loading import Examples
from lamella.data.scenario import Source, Task
from lamella.data.sources.readable import load_readable
from lamella.learner import forgetting
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
"""Between two tries to hold a model that another process changes."""


@dataclass(frozen=True)
class Learning:
    """A task that is about to be learned into a model's folder, which is held meanwhile.

    Attributes:
        folder: of the model.
        model: as it is before the task is learned.
        task: what is learned.
        held_out: samples of its classes that it is not trained on.
        unreadable: files that were left out because they cannot be read.
        resumed: what an interrupted learning has left.
        stored: the record of the task, where it was learned and stored already; then there is nothing to run.
    """

    folder: Path
    model: Model
    task: Task
    held_out: Examples
    unreadable: Sequence[Unreadable]
    resumed: Resumed
    stored: TaskRecord | None = None

    def run(self, progress: Progress = silent) -> TaskRecord:
        """Learn the task, from where an interrupted learning stood, and store the model; returns the task's record."""
        if self.stored is not None:
            return self.stored
        checkpoints = self.resumed.checkpoints
        record = learn(self.model, self.task, held_back=self.held_out, checkpoints=checkpoints, progress=progress)
        record.note_unreadable(self.unreadable)
        save(self.model, self.folder, what=f"learned {self.task.name}", keep=None)
        checkpoints.clear()
        return record

    def rehearsed(self) -> Model:
        """The same model once more, for a trial that leaves `model` as it is."""
        return load(self.folder) if self.model.tasks else Model(self.model.config)


@dataclass(frozen=True)
class Forgotten:
    """How a task was forgotten.

    Attributes:
        as_in: the version whose learned state the model has now; None where the task's own part was dropped.
        having: numbers of the versions that have learned the task.
        removed: whether these versions were removed.
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
        """The number of the current version; 0 where there is no model yet."""
        return current_version(self.path)

    def open(self, wanted: Wanted | None = None) -> Model:
        """The model that is here, or a new one where there is none.

        Args:
            wanted: what a new model is made of, and what an existing one must have been made of. Where it is left
                out, only an existing model is opened.

        Raises:
            FileNotFoundError: there is no model, and none is wanted.
            ValueError: something else is here, or a setting is unknown or not that of the model.
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
        # A precision that an interrupted first learning has chosen by measuring is kept, so that it can go on.
        left = config_left(self.path)
        chosen = as_chosen(config, left)
        return Model(chosen if chosen == left else config)

    @contextmanager
    def held(self, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
        """Keep other processes from changing the model.

        Args:
            waiting: called again and again with the reason while another process holds the model.

        Raises:
            BlockingIOError: another process holds it, and `waiting` was left out.
        """
        busy = f"another process is changing '{self.path}'; wait for it to end"
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(alone(self.path, busy))
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
        """Hold the model and prepare to learn a source's training part as its next task.

        Args:
            source: what is learned; its test part is held out.
            unreadable: files of it that cannot be read.
            wanted: as for `open`.
            model: what this folder holds, where the caller has loaded it already; it is what learns.
            place: where an interrupted learning is kept; by default within the model's folder.
            since: how many tasks the model had when the samples came. A later task of the very same samples means
                that they were learned already.
            waiting: as for `held`.

        Raises:
            FileNotFoundError, ValueError: as `open`; or the samples cannot be the model's next task.
            BlockingIOError: as `held`.
            OSError: the disk is full, or the folder cannot be written; the model is as it was.
        """
        version = self.version
        opened = self.open(wanted) if model is None else model
        with self.held(waiting), _with_a_hint_where_the_disk_is_full(self.path):
            if model is not None:
                self._check_is_here(model)
            elif self.version != version:  # another process has just finished
                opened = self.open()
            task, held_out = as_next_task(source, opened)
            resumed = resume(self.path, place or self.path / PLACE, opened, task)
            stored = opened.tasks[-1] if resumed.stored else _learned_since(opened, task, since)
            yield Learning(self.path, opened, task, held_out, unreadable, resumed, stored)

    def _check_is_here(self, model: Model) -> None:
        """Refuse to store a model where another one is.

        Raises:
            ValueError: the folder holds something else.
        """
        model.check_whole()
        if holds_model(self.path):
            manifest = load_manifest(self.path)
            if tasks_from_json(manifest["tasks"]) != model.tasks or manifest["config"] != model.config:
                raise ValueError(
                    f"'{self.path}' holds another model than this learner, or has learned more than it; go on with "
                    "Learner.load of that folder, or choose a new folder"
                )
        elif not is_free(self.path):
            raise ValueError(f"'{self.path}' exists and is no model (no {MANIFEST} in it); choose a new folder")

    def history(self) -> list[Version]:
        """All versions, oldest first."""
        return history(self.path)

    def roll_back(self, to: int | None = None) -> Version:
        """Make an earlier version the current one again; no version is lost.

        Args:
            to: the number of a version; the one before the current one where left out.

        Returns:
            The version that is the current one now.

        Raises:
            FileNotFoundError, ValueError: there is no such version, or it is damaged.
            BlockingIOError: as `held`.
        """
        found = self.history()
        current = next(v.number for v in found if v.current)
        earlier = [v.number for v in found if v.number < current]
        if to is None and not earlier:
            raise ValueError(
                f"version {current} of '{self.path}' is its first, so there is none before it; name one with --to"
            )
        with self.held():
            roll_back(self.path, earlier[-1] if to is None else to)
            return next(v for v in self.history() if v.current)

    def forget(self, task: str, *, purge: bool = False) -> Forgotten:
        """Forget a task exactly: the last one, or any where tasks share nothing.

        Args:
            task: its name.
            purge: whether every version that has learned the task is removed, too.

        Raises:
            ValueError: there is no such task, or others hold traces of it.
            BlockingIOError: as `held`.
        """
        with self.held():
            records = load_manifest(self.path)["tasks"]
            names = [record["name"] for record in records]
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

    def _tasks_of(self, version: Version) -> object:
        return load_manifest(self.path, version.number)["tasks"]


def learn_from(model: Model, data: str | Path, *, folder: Path | None, progress: Progress) -> TaskRecord:
    """What `Learner.learn_from` does; arguments, record and errors are its."""
    source, unreadable = load_readable(data)
    if unreadable:
        first = f"the first is {unreadable[0].key}: {unreadable[0].reason}"
        left_out = f"{len(unreadable)} files of '{data}' cannot be read and are left out; {first}"
        warnings.warn(left_out, stacklevel=3)  # where the user called the learner
    if folder is not None:
        with ModelFolder(folder).learning(source, unreadable, model=model) as learning:
            return learning.run(progress)
    task, held_out = as_next_task(source, model)
    record = learn(model, task, held_back=held_out, progress=progress)
    record.note_unreadable(unreadable)
    return record


def _learned_since(model: Model, task: Task, since: int | None) -> TaskRecord | None:
    """The record of a task of the very same samples, learned since the model had so many tasks."""
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
        hint = "the model is whole, and with more space the same command goes on"
        raise OSError(error.errno, f"{error.strerror}; {hint}", str(path)) from error
