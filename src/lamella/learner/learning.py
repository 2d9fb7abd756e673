"""Learning one task."""

import time
from dataclasses import replace

import torch

from lamella.common.progress import Progress, silent
from lamella.data.keeping import keep_decoded
from lamella.data.loading import Examples
from lamella.data.scenario import Task
from lamella.learner.model import Model
from lamella.learner.records import TaskRecord, check_task, task_record
from lamella.training.checkpoints import Checkpoints
from lamella.training.checks import DIVERGED, LOWER

__all__ = ["learn"]


def learn(
    model: Model,
    task: Task,
    *,
    held_back: Examples | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress = silent,
) -> TaskRecord:
    """Learn one task. Arguments, return value and errors are those of `Learner.learn`."""
    model.check_whole()
    check_task(task, model.class_names)
    task = replace(task, train=keep_decoded(task.train, progress=progress))
    fit = model.fit(checkpoints=checkpoints, progress=progress)
    fit.begin(str(len(model.tasks)))
    started = time.monotonic()
    model.half_learned = task.name
    try:
        model.method.learn(task, fit)
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise RuntimeError(f"{DIVERGED}: the features of task '{task.name}' are not finite; {LOWER}") from error
    model.class_names |= dict(zip(task.classes, task.class_names, strict=True))
    model.follow_drift(fit)
    record = task_record(task, model.method, fit, time.monotonic() - started)
    if held_back is not None:
        record.held_back = model.hold_back(held_back, fit) if len(held_back) else None
        record.beside = model.compare(task, held_back, fit)
    model.tasks.append(record)
    model.half_learned = ""
    return record
