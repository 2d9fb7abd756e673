"""A task that is ready to be learned into a model's folder."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from lamella.common.progress import Progress, silent
from lamella.data.loading import Examples
from lamella.data.scenario import Task
from lamella.data.sources.readable import ReadableData
from lamella.learner.learning import learn
from lamella.learner.model import Model, save
from lamella.learner.next_task import LeftOut, note
from lamella.learner.records import TaskRecord
from lamella.learner.resume import Resumed
from lamella.training import processes

__all__ = ["Learning"]


@dataclass(frozen=True)
class Learning:
    """A task that is ready to be learned into a model's folder, which is locked meanwhile.

    Attributes:
        folder: the model's folder.
        model: the model before the task is learned.
        task: the task to learn.
        held_back: the samples of its classes that the model is not trained on.
        data: the data set that the task is from.
        left_out: how many of its training images are not learned, and why.
        otherwise: how many of its images were learned before as another class, by the name of that class.
        resumed: what an interrupted learning has left.
        stored: the record of the task if it was learned and stored already, so that nothing is left to do; else None.
    """

    folder: Path
    model: Model
    task: Task
    held_back: Examples
    data: ReadableData
    left_out: LeftOut
    otherwise: Mapping[str, int]
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
        record = learn(self.model, self.task, held_back=self.held_back, checkpoints=checkpoints, progress=progress)
        note(self.model, record, self.task, self.held_back, self.data)
        what = f"learned {self.task.name}"
        processes.from_first(lambda: save(self.model, self.folder, what=what, keep=None, whole=False))
        checkpoints.clear()
        return record

    def copied(self) -> Model:
        """Return a copy of the model, for a trial that does not change `model`."""
        return deepcopy(self.model)
