"""Remove one task from a model exactly: the result does not depend on the data of the forgotten task."""

from lamella.learner.model import Model
from lamella.learner.reference import Reference

__all__ = ["forget"]


def forget(model: Model, task: str) -> None:
    """Drop a task and all that was learned from it. The ids of other classes stay.

    The statistics of the held-back samples of later tasks are dropped too: they depend on the forgotten classes.

    Args:
        model: the model, which is changed in place.
        task: the name of the task. If several tasks have it, the newest is dropped.

    Raises:
        ValueError: there is no such task, or what was learned later depends on it.
    """
    names = [record.name for record in model.tasks]
    if task not in names:
        raise ValueError(f"no task '{task}' was learned; there are {', '.join(names) or 'none'}")
    number = max(i for i, name in enumerate(names) if name == task)
    if not model.method.can_forget:
        raise ValueError(_traces(model.name, names, number))
    model.method.forget(number)
    del model.tasks[number]
    for record in model.tasks[number:]:
        record.held_back = None
    model.held_back.forget(number)
    model.seen.forget(number)
    model.reference = Reference()  # its shared covariance holds the forgotten task
    left = set(model.method.classes)
    model.follow_classes()
    model.class_names = {i: name for i, name in model.class_names.items() if i in left}
    model.former_names = {name: i for name, i in model.former_names.items() if i in left}


def _traces(method: str, names: list[str], number: int) -> str:
    if len(names) == 1:
        return f"'{names[0]}' is the only task; delete the model's folder, or learn into another one"
    later = ", ".join(names[number + 1 :])
    were = "was" if len(names) == number + 2 else "were"
    acting = f"{later} {were} learned on top of it, and " if later else ""
    return (
        f"{method} cannot forget '{names[number]}': {acting}shared weights or statistics contain it; return to an "
        "earlier version (`lamella rollback`)" + (", and learn the later tasks again" if later else "")
    )
