"""Learning a data set on disk as the next task of a model, from Python."""

import warnings
from pathlib import Path

from lamella.common.progress import Progress
from lamella.common.words import many
from lamella.data.sources.readable import load_readable
from lamella.learner.folder import ModelFolder
from lamella.learner.learning import learn
from lamella.learner.model import Model
from lamella.learner.next_task import new_samples, next_task, note
from lamella.learner.records import TaskRecord

__all__ = ["learn_from"]


def learn_from(
    model: Model, data: str | Path, *, folder: Path | None, name: str | None, again: bool, progress: Progress
) -> TaskRecord:
    """Learn a data set as the next task. Arguments, return value and errors are those of `Learner.learn_from`."""
    found = load_readable(data, takes=model.backbone.transform.noun)
    model.check_takes(found.whole)
    if found.unreadable:
        first = f"the first is {found.unreadable[0].key}: {found.unreadable[0].reason}"
        left_out = (
            f"left out, cannot be read: {many(len(found.unreadable), found.whole.train.noun)} of '{data}'; {first}"
        )
        warnings.warn(left_out, stacklevel=3)  # points to the line where the user called the learner
    if folder is not None:
        with ModelFolder(folder).learning(lambda: found, model=model, name=name, again=again) as learning:
            return learning.run(progress)
    new, _ = new_samples(model, found, again)
    task, held_back = next_task(new, model, name)
    record = learn(model, task, held_back=held_back, progress=progress)
    note(model, record, task, held_back, new)
    return record
