"""Tables of a configuration file as keyword arguments: which keys there are, of which type, with which default.

The signature of what a table builds is the only list of its keys, so a new argument needs no second declaration.
"""

import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

__all__ = ["Option", "arguments", "check_table", "completed", "near_matches", "options_of"]

REQUIRED = inspect.Parameter.empty
WORDS: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "text", dict: "a table",
}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One key of a table: the annotation of its argument, and its default, if it has one."""

    annotation: Any
    default: Any = REQUIRED


class Mismatch(Exception):
    """A value is not of the annotated type."""


def options_of(build: Callable[..., Any], *, without: Collection[str] = ()) -> dict[str, Option]:
    """The keyword-only arguments of `build`; all fields, if it is a dataclass.

    >>> sorted(options_of(sorted))
    ['key', 'reverse']
    """
    kinds = {inspect.Parameter.KEYWORD_ONLY}
    if hasattr(build, "__dataclass_fields__"):
        kinds.add(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = inspect.signature(build, eval_str=True).parameters.values()
    return {p.name: Option(p.annotation, p.default) for p in found if p.kind in kinds and p.name not in without}


def near_matches(name: str, allowed: Collection[str]) -> str:
    """What to write instead of an unknown `name`.

    >>> near_matches("rnak", ["rank", "epochs"])
    "did you mean 'rank'? allowed: epochs, rank"
    """
    near = get_close_matches(name, list(allowed), 3)
    meant = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{meant}allowed: {', '.join(sorted(allowed))}"


def check_table(where: str, table: Mapping[str, Any], options: Mapping[str, Option]) -> None:
    """Compare the keys and values of a table with what may stand there.

    Args:
        where: the table's place in the configuration, such as "method.align".

    Raises:
        ValueError: a key is unknown or missing, or a value has the wrong type.
    """
    for key, value in table.items():
        if key not in options:
            raise ValueError(f"unknown key '{where}.{key}'; {near_matches(key, options)}")
        _convert(value, options[key].annotation, f"{where}.{key}")
    for key, option in options.items():
        if option.default is REQUIRED and key not in table:
            raise ValueError(f"[{where}] lacks '{key}' ({_describe(option.annotation)}); set {where}.{key}=...")


def completed(where: str, table: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    """The checked table with the default of every key that it leaves out, where TOML can write it (it knows no None).

    Keys come in the order of the options, so that two ways of writing the same give the same.

    Raises:
        ValueError: as `check_table`.
    """
    check_table(where, table, options)
    full = {key: table.get(key, option.default) for key, option in options.items()}
    return {key: _plain(value) for key, value in full.items() if key in table or _is_plain(value)}


def arguments(where: str, table: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    """The table as keyword arguments: lists become tuples where the annotation asks for one."""
    return {key: _convert(value, options[key].annotation, f"{where}.{key}") for key, value in table.items()}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    return isinstance(value, (bool, int, float, str))


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _convert(value: Any, annotation: Any, where: str) -> Any:
    try:
        return _as_type(value, annotation)
    except Mismatch as error:
        raise ValueError(f"{where} = {value!r} should be {_describe(annotation)}") from error


def _as_type(value: Any, annotation: Any) -> Any:
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in (Any, REQUIRED):
        return value
    if origin in (Union, types.UnionType):
        return _as_first(value, inner)
    if origin is Literal:
        return _unless(value not in inner, value)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _as_sequence(value, origin, inner)
    expected = origin or annotation
    if expected is float:
        return _unless(isinstance(value, bool) or not isinstance(value, (int, float)), value)
    if expected is int:
        return _unless(isinstance(value, bool) or not isinstance(value, int), value)
    if expected is Path:
        return Path(_as_type(value, str))
    return _unless(not isinstance(value, expected), value)


def _unless(wrong: bool, value: Any) -> Any:
    if wrong:
        raise Mismatch
    return value


def _as_first(value: Any, annotations: Sequence[Any]) -> Any:
    for annotation in annotations:
        try:
            return _as_type(value, annotation)
        except Mismatch:
            continue
    raise Mismatch


def _as_sequence(value: Any, origin: type, inner: tuple[Any, ...]) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise Mismatch
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        _unless(len(value) != len(inner), value)
        return tuple(_as_type(v, a) for v, a in zip(value, inner, strict=True))
    items = [_as_type(v, inner[0] if inner else Any) for v in value]
    return tuple(items) if origin is tuple else items


def _describe(annotation: Any) -> str:
    """An annotation in words, for people who read TOML and not Python."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in inner if a is not type(None))
    if origin is Literal:
        return " or ".join(repr(v) for v in inner)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        fixed = origin is tuple and inner and inner[-1] is not Ellipsis
        return f"a list of {len(inner)}, each {_describe(inner[0])}" if fixed else f"a list, each {_describe(inner[0])}"
    return WORDS.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))
