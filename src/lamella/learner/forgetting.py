"""Take one task out of a model, so that what is left is what it would be had anything else been learned instead."""

from lamella.learner.model import Model

__all__ = ["forget"]


def forget(model: Model, task: str) -> None:
    """Drop the newest task of this name, with all that was learned of it; numbers of other classes stay.

    What was measured of later tasks on held-back images goes too, since the forgotten classes competed then.

    Raises:
        ValueError: there is no such task, or others hold traces of it.
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
    left = set(model.method.classes)
    model.class_names = {i: name for i, name in model.class_names.items() if i in left}


def _traces(method: str, names: list[str], number: int) -> str:
    if len(names) == 1:
        return f"'{names[0]}' is all that was learned; remove the model's folder, or learn into another"
    later = ", ".join(names[number + 1 :])
    acting = f"{later} were learned with what it left acting, and " if later else ""
    return (
        f"{method} cannot forget '{names[number]}': {acting}shared weights or statistics hold it; go back to a version "
        "from before it (`lamella rollback`)" + (", and learn the later ones again" if later else "")
    )
