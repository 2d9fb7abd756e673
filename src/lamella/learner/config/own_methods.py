"""Methods in Python files of the user, in names that the caller wrote: "my_file.py:EMALoRA+align".

These functions run the file, and replace its path in the name by the absolute path, which is then stored with the
configuration. Names in stored configurations are not passed to them, since the caller has not named those files.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lamella.learner.config.registry import OWN_FILE, digests, is_own, name_file, recognise

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
"""A method, in brackets the base that it is built on, and its parts after plus signs."""
PLACES = (("method", "name"), ("method", "base", "name"))
"""The paths of the names of methods in a configuration."""


def name_in_full(name: str, folder: Path) -> str:
    """Run the files in a name, and return the name with their absolute paths; other names are not changed.

    Args:
        name: the name of a method, with its base and its parts.
        folder: the folder that relative paths start from.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file cannot be run, or has no such method.
    """
    if not (match := NAME.fullmatch(name)):
        return name
    method, base = (name_file(part, folder) if part and is_own(part) else part for part in match.groups()[:2])
    return f"{method}({base}){match[3]}" if base else f"{method}{match[3]}"


def name_in_table(table: Any, folder: Path) -> Any:
    """Return [method] with the full names of its method and its base; errors are those of `name_in_full`."""
    if not isinstance(table, Mapping):
        return table
    named = {key: name_in_full(v, folder) if key == "name" and isinstance(v, str) else v for key, v in table.items()}
    return named | ({"base": name_in_table(named["base"], folder)} if "base" in named else {})


def name_changes(changes: Iterable[tuple[tuple[str, ...], Any]], folder: Path) -> list[tuple[tuple[str, ...], Any]]:
    """Return overrides with the full names of methods; errors are those of `name_in_full`."""
    return [(p, name_in_full(v, folder) if p in PLACES and isinstance(v, str) else v) for p, v in changes]


def plain_names(config: Mapping[str, Any]) -> Sequence[str]:
    """Return the names of the method of a complete configuration and of its base, without parts."""
    table = config.get("method", {})
    return [str(t["name"]) for t in (table, table.get("base")) if isinstance(t, Mapping) and "name" in t]


def method_digests(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of the files of the method and its base, by full name; empty if they are in no file."""
    return digests(plain_names(config))


def recognise_methods(config: Mapping[str, Any], recorded: Mapping[str, str]) -> None:
    """Find the files of a stored configuration's method among those that may be used.

    Args:
        config: the stored configuration.
        recorded: the result of `method_digests` when it was stored.

    Raises:
        ValueError: the caller has not named a file, and `LAMELLA_METHODS` does not list it, so it must not be run.
    """
    for name in plain_names(config):
        if is_own(name):
            recognise(name, recorded.get(name))
