"""Changes to a configuration from the command line: "method.rank=8"."""

import tomllib
from collections.abc import Collection
from typing import Any

from lamella.common.options import near_matches

__all__ = ["parse_override", "put"]


def parse_override(text: str, sections: Collection[str]) -> tuple[tuple[str, ...], Any]:
    """Where a value goes, and the value: TOML, a bare word, or None where nothing stands.

    >>> parse_override("method.rank=8", ["method"])
    (('method', 'rank'), 8)
    >>> parse_override("method.optimizer=sgd", ["method"])
    (('method', 'optimizer'), 'sgd')

    Raises:
        ValueError: it is no assignment, or names no section.
    """
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or len(path) < 2 or not all(path):
        raise ValueError(f"'{text}' is not an override; write section.key=value, such as method.rank=8")
    if path[0] not in sections:
        raise ValueError(f"unknown section '{path[0]}' in '{text}'; {near_matches(path[0], sections)}")
    return path, _parse_value(value.strip())


def _parse_value(text: str) -> Any:
    if not text:
        return None
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def put(document: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Put an overriding value in its place; None takes the key away."""
    table = document
    for depth, key in enumerate(path[:-1], 1):
        inner = table.get(key)
        table[key] = table = {} if inner is None or isinstance(inner, bool) else inner
        if not isinstance(table, dict):
            raise ValueError(f"{'.'.join(path[:depth])} is a value, not a table; it has no key '{path[depth]}'")
    if value is None:
        table.pop(path[-1], None)
    elif not (value is True and isinstance(table.get(path[-1]), dict)):  # align=true keeps a table that is there
        table[path[-1]] = value
