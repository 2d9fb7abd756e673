"""Changes to a configuration from the command line: "method.rank=8"."""

import tomllib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lamella.common.options import near_matches

__all__ = ["changes_of", "parse_override", "put"]

SELECTED = ("scenario", "backbone", "method", "augment", "fit")
"""The sections that `run.selection` speaks of: what was tried, and what was chosen."""
OF_THE_MACHINE = {("fit", "device"), ("fit", "compile"), ("fit", "checkpoint_seconds")}
"""Settings of these sections that leave a selection as it stands, since the same thing is computed with them: on which
device, how fast, and filed how often. `fit.precision` is not one of them: bf16 computes other numbers. Neither are
`scenario.root` and `backbone.weights`: other images or weights may lie there. The seed of a run, which is in [run],
leaves the selection as it stands too: what was chosen is the setting, for every seed."""


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


def changes_of(overrides: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Those of the overrides that give a value which the file has not, and so may falsify how it says it was selected.

    >>> changes_of(["fit.precision=bf16", "fit.device=cpu"], {}, {"fit": {"precision": "bf16", "device": "cpu"}})
    ['fit.precision=bf16']

    Args:
        before, after: the complete configuration without and with the overrides; `before` is empty where the file alone
            is none.
    """
    last = {parse_override(text, [*SELECTED, "run"])[0]: text.strip() for text in overrides}
    counted = {path: text for path, text in last.items() if path[0] in SELECTED and path not in OF_THE_MACHINE}
    return [text for path, text in counted.items() if _effect(before, path) != _effect(after, path)]


def _effect(config: Mapping[str, Any], path: tuple[str, ...]) -> tuple[Any, ...]:
    """The value at a place, and what else is decided by giving one: a value in [augment] switches the table on."""
    switched = [_value(config, ("augment", "enabled"))] if path[0] == "augment" else []
    return (_value(config, path), *switched)


def _value(config: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
