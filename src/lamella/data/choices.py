"""Checks of how a person cuts and orders classes, domains and columns."""

from collections.abc import Sequence

from lamella.common.checks import did_you_mean
from lamella.data.names import normal_name

__all__ = ["choose_all", "choose_some", "equal_sizes", "given_sizes"]


def equal_sizes(classes: int, tasks: int) -> list[int]:
    """The number of classes of each of equally large tasks.

    >>> equal_sizes(10, 5)
    [2, 2, 2, 2, 2]

    Raises:
        ValueError: the classes cannot be shared out equally; the message names what can be done.
    """
    if not 1 <= tasks <= classes:
        raise ValueError(f"tasks must be between 1 and the number of classes, {classes}; got {tasks}")
    if classes % tasks:
        fewer = max(d for d in range(1, tasks) if classes % d == 0)
        more = min(d for d in range(tasks, classes + 1) if classes % d == 0)
        larger, base = classes % tasks, classes // tasks
        uneven = [base + 1] * larger + [base] * (tasks - larger)
        shown = str(uneven) if tasks <= 12 else f"[{uneven[0]}, {uneven[1]}, ...]"
        raise ValueError(
            f"{classes} classes cannot be cut into {tasks} equal tasks; use tasks={fewer} or {more}, or sizes={shown}"
        )
    return [classes // tasks] * tasks


def given_sizes(classes: int, sizes: Sequence[int]) -> list[int]:
    """The sizes, checked: each at least one, and all classes used."""
    if not sizes or min(sizes) < 1 or sum(sizes) != classes:
        raise ValueError(f"sizes must be whole numbers above 0 that add up to {classes} classes; got {list(sizes)}")
    return list(sizes)


def choose_all(names: tuple[str, ...], order: Sequence[int | str], noun: str) -> tuple[int, ...]:
    """The ids of an order given by name or id, in which everything comes exactly once.

    >>> choose_all(("cat", "dog"), ["dog", 0], "class")
    (1, 0)
    """
    ids = choose_some(names, order, noun)
    if missing := [names[i] for i in range(len(names)) if i not in ids]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"the order must name every {noun} once; {missing[0]!r}{more} is missing")
    return ids


def choose_some(names: tuple[str, ...], chosen: Sequence[int | str], noun: str) -> tuple[int, ...]:
    """The ids of what is chosen by name or id, in that order, nothing twice.

    >>> choose_some(("cat", "dog", "owl"), ["owl", 0], "class")
    (2, 0)
    """
    place = {name: i for i, name in enumerate(names)}
    ids: list[int] = []
    numbers = [name for name in names if name.isdigit()]
    for entry in chosen:
        if not isinstance(entry, str) and str(entry) in numbers and names.index(str(entry)) != entry:
            raise ValueError(
                f"{noun} {entry} may be the one called '{entry}' or the one at place {entry}, '{_at(names, entry)}'; "
                f'write "{entry}" in quotation marks for the name, or give all by name'
            )
        entry = normal_name(entry) if isinstance(entry, str) else entry
        if isinstance(entry, str) and entry not in place:
            raise ValueError(f"no {noun} is called {entry!r}{did_you_mean(entry, names)}")
        i = place[entry] if isinstance(entry, str) else int(entry)
        if not 0 <= i < len(names):
            raise ValueError(f"there is no {noun} {i}; they count from 0 to {len(names) - 1}")
        if i in ids:
            raise ValueError(f"{noun} {names[i]!r} comes twice in the order")
        ids.append(i)
    return tuple(ids)


def _at(names: Sequence[str], place: int) -> str:
    return names[place] if 0 <= place < len(names) else "none"
