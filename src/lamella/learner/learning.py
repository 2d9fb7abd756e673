"""Learning one task."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from lamella.common.progress import Progress, silent
from lamella.data.answer_tokens import AnswerTokens, fitting
from lamella.data.answers import AnswerSet
from lamella.data.keeping import keep_decoded
from lamella.data.loading import Examples
from lamella.data.scenario import Task
from lamella.data.tasks import Unreadable
from lamella.federated.federation import Federation
from lamella.federated.fit import FederatedFit
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
    federation: Federation | None = None,
    loop: Callable[..., FederatedFit] = FederatedFit,
) -> TaskRecord:
    """Learn one task. Arguments, return value and errors are those of `Learner.learn`."""
    model.check_whole()
    task, too_long, told = _fitting(model, task, held_back)
    check_task(task, model.class_names)
    task = replace(task, train=keep_decoded(task.train, progress=progress))
    fit = model.fit(checkpoints=checkpoints, progress=progress, federation=federation, loop=loop)
    fit.begin(str(len(model.tasks)))
    if isinstance(fit, FederatedFit):
        fit.divide(task.train)
    started = time.monotonic()
    model.half_learned = task.name
    try:
        model.method.learn(task, fit)
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise RuntimeError(f"{DIVERGED}: the features of task '{task.name}' are not finite; {LOWER}") from error
    model.class_names |= dict(zip(task.classes, task.class_names, strict=True))
    model.follow_drift(fit)
    record = task_record(task, model.method, fit, time.monotonic() - started)
    record.note_unreadable(too_long)
    record.told = told or None
    record.federated = fit.ledger.to_json() if isinstance(fit, FederatedFit) else None
    if held_back is not None:
        record.held_back = model.hold_back(held_back, fit) if len(held_back) else None
        record.beside = model.compare(task, held_back, fit)
    model.tasks.append(record)
    model.half_learned = ""
    return record


def _fitting(model: Model, task: Task, held_back: Examples | None) -> tuple[Task, list[Unreadable], list[str]]:
    """Return a task without the answers that are too long for a language model, these, and what to tell of the others.

    Raises:
        ValueError: answers should be learned by a model of something else, or something else by one of answers; no
            answer fits, or some are held back, which only serve the confidence among classes.
    """
    transform = model.backbone.transform
    if isinstance(task.train, AnswerSet) != isinstance(transform, AnswerTokens):
        raise ValueError(
            f"this model takes {transform.noun}s, by the backbone {model.backbone.name}, and task '{task.name}' holds "
            f"{task.train.noun}s; choose another model"
        )
    if not isinstance(task.train, AnswerSet) or not isinstance(transform, AnswerTokens):
        return task, [], []
    if held_back is not None:
        raise ValueError("held_back serves the confidence among classes, and answers have none; leave it out")
    found = fitting(task.train, transform)
    if not len(found.data):
        why = found.too_long[0].reason if found.too_long else "it has none"
        raise ValueError(f"task '{task.name}' has no answer that can be learned: {why}")
    return replace(task, train=found.data), found.too_long, found.told
