"""Methods of the user's own files, where a caller names them: "my_file.py:EMALoRA+align".

A name that the caller wrote is read here once: the file is run, and the name gets its absolute path, under which the
configuration is stored. Names in stored configurations do not come this way, since nobody has named their files.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lamella.methods.registry import OWN_FILE, digests, is_own, name_file, recognise

__all__ = [
    "NAME",
    "method_digests",
    "name_changes",
    "name_in_full",
    "name_in_table",
    "plain_names",
    "recognise_methods",
]

PLAIN = rf"{OWN_FILE}|[^+()]+"
NAME = re.compile(rf"({PLAIN})(?:\(({PLAIN})\))?((?:\+[^+()]+)*)")
"""A method, in brackets the base it learns on, and its parts after plus signs."""
PLACES = (("method", "name"), ("method", "base", "name"))
"""Where a configuration names a method."""


def name_in_full(name: str, folder: Path) -> str:
    """A name with the absolute paths of the files in it, which are run; any other name as it is.

    Args:
        name: with its base and its parts.
        folder: where relative paths start.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file cannot be run, or has no such method.
    """
    if not (match := NAME.fullmatch(name)):
        return name
    method, base = (name_file(part, folder) if part and is_own(part) else part for part in match.groups()[:2])
    return f"{method}({base}){match[3]}" if base else f"{method}{match[3]}"


def name_in_table(table: Any, folder: Path) -> Any:
    """[method] with the names of its method and its base in full; arguments and errors as of `name_in_full`."""
    if not isinstance(table, Mapping):
        return table
    named = {key: name_in_full(v, folder) if key == "name" and isinstance(v, str) else v for key, v in table.items()}
    return named | ({"base": name_in_table(named["base"], folder)} if "base" in named else {})


def name_changes(changes: Iterable[tuple[tuple[str, ...], Any]], folder: Path) -> list[tuple[tuple[str, ...], Any]]:
    """Overrides with the names of methods in full; arguments and errors as of `name_in_full`."""
    return [(p, name_in_full(v, folder) if p in PLACES and isinstance(v, str) else v) for p, v in changes]


def plain_names(config: Mapping[str, Any]) -> Sequence[str]:
    """The names of the method of a complete configuration and of its base, without parts."""
    table = config.get("method", {})
    return [str(t["name"]) for t in (table, table.get("base")) if isinstance(t, Mapping) and "name" in t]


def method_digests(config: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of the files that the method and its base come from, by their full names; mostly empty."""
    return digests(plain_names(config))


def recognise_methods(config: Mapping[str, Any], recorded: Mapping[str, str]) -> None:
    """Find the files of a stored configuration's method among those that the caller has named.

    Args:
        config: as it is stored.
        recorded: `method_digests` of when it was stored.

    Raises:
        ValueError: a file was not named, so that nothing says that its code may be run.
    """
    for name in plain_names(config):
        if is_own(name):
            recognise(name, recorded.get(name))
