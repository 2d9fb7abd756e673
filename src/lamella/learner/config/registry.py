"""Looks up methods by name. There are three kinds of names:

"inflora"               a method of Lamella, or one that was added to METHODS in this process
"their-name"            an entry point of an installed package, in the group "lamella.methods"
"my_file.py:EMALoRA"    a class in a file of the user; see `own_files`
"""

from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from lamella.common.checks import first_line
from lamella.common.options import near_matches
from lamella.learner.config.own_files import (
    OWN_FILE,
    MethodFileChanged,
    checked,
    class_of,
    digests,
    is_own,
    name_file,
    recognise,
    shown,
)
from lamella.methods import ALIASES, METHODS, Method

__all__ = [
    "GROUP",
    "OWN_FILE",
    "MethodFileChanged",
    "digests",
    "find",
    "is_own",
    "name_file",
    "names",
    "recognise",
    "shown",
]

GROUP = "lamella.methods"
"""The group of entry points in which a package declares its methods, each with its name and its class."""


def find(name: Any) -> Callable[..., Method]:
    """Return the class, or another callable, that builds the method of this name.

    Raises:
        ValueError: there is no such method, several have this name, its package cannot be imported, or its file was
            neither named by the caller nor listed in the environment variable `LAMELLA_METHODS`.
    """
    if not isinstance(name, str):
        raise ValueError(f"the name of a method is a text such as 'inflora', not {name!r}")
    if is_own(name):
        return class_of(name)
    given = _packaged().get(name, ())
    if len(given) + (name in METHODS) > 1:
        raise ValueError(_taken(name, given))
    if name in METHODS:
        return METHODS[name]
    if not given:
        hint = "write FILE.py:CLASS for a method of your own; " if name.endswith((".py", ".py:")) else ""
        others = [] if name in ALIASES else ALIASES  # such a name is not known in this place
        raise ValueError(f"unknown method {name!r}; {hint}{near_matches(name, [*names(), *others])}")
    return _loaded(given[0])


def names() -> list[str]:
    """Return the names of all methods but those in files: first Lamella's own, then those of packages."""
    return list(dict.fromkeys([*METHODS, *sorted(_packaged())]))


@cache
def _packaged() -> dict[str, tuple[EntryPoint, ...]]:
    """Return the entry points by name, each once, although a package may be on the path twice."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=GROUP):
        if entry not in found.get(entry.name, ()):
            found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


def _loaded(entry: EntryPoint) -> Callable[..., Method]:
    what = f"the method '{entry.name}' of the package '{_package(entry)}' ({entry.value})"
    try:
        found = entry.load()
    except Exception as error:
        raise ValueError(f"{what} cannot be imported: {type(error).__name__}: {first_line(error)}") from error
    return checked(found, what)


def _taken(name: str, given: tuple[EntryPoint, ...]) -> str:
    owners = [*(["Lamella"] if name in METHODS else []), *(f"the package '{_package(entry)}'" for entry in given)]
    return f"the method name '{name}' is given by {' and by '.join(owners)}; uninstall one, or rename its entry point"


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.module
