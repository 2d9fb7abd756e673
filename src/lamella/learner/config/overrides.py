"""Overrides of a configuration from the command line, such as "method.rank=8"."""

import tomllib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lamella.common.options import near_matches

__all__ = ["changes_of", "parse_override", "parse_value", "put"]

SELECTED = ("scenario", "backbone", "method", "augment", "fit", "federated")
"""The sections that `run.selection` is about, the text that says how the settings were chosen."""
OF_THE_MACHINE = {("fit", "device"), ("fit", "compile"), ("fit", "recompute"), ("fit", "checkpoint_seconds")}
"""Settings in these sections that do not affect `run.selection`, since they do not change what is computed: the device,
compilation, and how often checkpoints are stored. `fit.precision` is not one of them, since bf16 gives other numbers.
Neither are `scenario.root` and `backbone.weights`, where other images or weights may be. The seed, which is in [run],
does not affect the selection either: the settings are chosen for every seed."""


def parse_override(text: str, sections: Collection[str]) -> tuple[tuple[str, ...], Any]:
    """Split an override into the path of the key and the value: TOML, a bare word as text, or None if it is empty.

    >>> parse_override("method.rank=8", ["method"])
    (('method', 'rank'), 8)
    >>> parse_override("method.optimizer=sgd", ["method"])
    (('method', 'optimizer'), 'sgd')

    Raises:
        ValueError: the text is not an assignment, or the section is unknown.
    """
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or len(path) < 2 or not all(path):
        raise ValueError(f"'{text}' is not an override; write section.key=value, such as method.rank=8")
    if path[0] not in sections:
        raise ValueError(f"unknown section '{path[0]}' in '{text}'; {near_matches(path[0], sections)}")
    return path, parse_value(value.strip())


def parse_value(text: str) -> Any:
    """Read the value of an override: TOML, a bare word as text, or None if it is empty."""
    if not text:
        return None
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def put(document: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set a value in a document; None removes the key.

    Args:
        document: changed in place.
        path: the keys from the section to the value.
        value: the value; True for a part keeps a table that is already there.

    Raises:
        ValueError: a key on the way is a value and not a table.
    """
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
    """Return the overrides that change a setting of the file, so that its `run.selection` may be wrong.

    >>> changes_of(["fit.precision=bf16", "fit.device=cpu"], {}, {"fit": {"precision": "bf16", "device": "cpu"}})
    ['fit.precision=bf16']

    Args:
        overrides: the overrides as text.
        before: the complete configuration without them; empty if the file alone is not complete.
        after: the complete configuration with them.
    """
    last = {parse_override(text, [*SELECTED, "run"])[0]: text.strip() for text in overrides}
    counted = {path: text for path, text in last.items() if path[0] in SELECTED and path not in OF_THE_MACHINE}
    return [text for path, text in counted.items() if _effect(before, path) != _effect(after, path)]


def _effect(config: Mapping[str, Any], path: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the value at a path, and for [augment] whether it is enabled, since any of its values enables it."""
    switched = [_value(config, ("augment", "enabled"))] if path[0] == "augment" else []
    return (_value(config, path), *switched)


def _value(config: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
