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
from lamella.learner.answers.costs import costs_of
from lamella.learner.model import Model
from lamella.learner.records import HeldBackCosts, TaskRecord, check_task, task_record
from lamella.learner.store.state import state_digest
from lamella.learner.streaming import Stream, check_online, learn_stream
from lamella.training import processes
from lamella.training.checkpoints import Checkpoints
from lamella.training.checks import DIVERGED, LOWER

__all__ = ["fitting_task", "learn"]


def learn(
    model: Model,
    task: Task,
    *,
    held_back: Examples | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress = silent,
    federation: Federation | None = None,
    loop: Callable[..., FederatedFit] = FederatedFit,
    stream: Stream | None = None,
) -> TaskRecord:
    """Learn one task. Arguments, return value and errors are those of `Learner.learn`."""
    model.check_whole()
    if stream is not None:
        check_online(model)
    task, too_long, told = fitting_task(model, task)
    check_task(task, model.class_names)
    task = replace(task, train=keep_decoded(task.train, progress=progress))
    fit = model.fit(checkpoints=checkpoints, progress=progress, federation=federation, loop=loop)
    fit.begin(str(len(model.tasks)))
    if isinstance(fit, FederatedFit):
        fit.divide(task.train)
    answers = _fitting_answers(model, held_back)
    before = None if answers is None else _loss(model, answers)
    started = time.monotonic()
    model.half_learned = task.name
    try:
        measuring = 0.0 if stream is None else learn_stream(model, task, fit, stream)
        if stream is None:
            model.method.learn(task, fit)
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise RuntimeError(f"{DIVERGED}: the features of task '{task.name}' are not finite; {LOWER}") from error
    processes.same(f"learned state after task '{task.name}'", lambda: state_digest(model.method))
    model.class_names |= dict(zip(task.classes, task.class_names, strict=True))
    model.follow_drift(fit)
    record = task_record(task, model.method, fit, time.monotonic() - started - measuring)
    record.processes = processes.count() if processes.count() > 1 else None
    record.note_unreadable(too_long)
    record.told = told or None
    record.federated = fit.ledger.to_json() if isinstance(fit, FederatedFit) else None
    if answers is not None and before is not None:
        record.held_back_costs = HeldBackCosts(len(answers), before, _loss(model, answers))
    elif held_back is not None and task.classes:
        record.held_back = model.hold_back(held_back, fit) if len(held_back) else None
        record.beside = model.compare(task, held_back, fit)
    model.tasks.append(record)
    model.half_learned = ""
    return record


def fitting_task(model: Model, task: Task) -> tuple[Task, list[Unreadable], list[str]]:
    """Return a task without the answers that are too long for a language model, these, and what to tell of the others.

    Raises:
        ValueError: answers should be learned by a model of something else, or something else by one of answers; or no
            answer fits.
    """
    transform = model.backbone.transform
    if isinstance(task.train, AnswerSet) != isinstance(transform, AnswerTokens):
        raise ValueError(
            f"this model takes {transform.noun}s, by the backbone {model.backbone.name}, and task '{task.name}' holds "
            f"{task.train.noun}s; choose another model"
        )
    if not isinstance(task.train, AnswerSet) or not isinstance(transform, AnswerTokens):
        return task, [], []
    found = fitting(task.train, transform)
    if not len(found.data):
        why = found.too_long[0].reason if found.too_long else "it has none"
        raise ValueError(f"task '{task.name}' has no answer that can be learned: {why}")
    return replace(task, train=found.data), found.too_long, found.told


def _fitting_answers(model: Model, held_back: Examples | None) -> AnswerSet | None:
    """Return those of the held-back answers that fit into a language model; None where there are none."""
    transform = model.backbone.transform
    if not isinstance(held_back, AnswerSet) or not isinstance(transform, AnswerTokens) or not len(held_back):
        return None
    found = fitting(held_back, transform).data
    return found if len(found) else None


def _loss(model: Model, answers: AnswerSet) -> float:
    """What answers cost, in nats a target token."""
    fit = model.config["fit"]
    return costs_of(model.method, answers, device=fit["device"], precision=fit["precision"]).loss
