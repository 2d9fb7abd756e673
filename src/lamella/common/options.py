"""Tables of a configuration file as keyword arguments: the keys, their types and their defaults.

The keys of a table are read from the signature of what it builds, so a new argument needs no second declaration. An
argument that is a dataclass, such as `training: Training = Training(epochs=20)`, has no key of its own. Instead, each
of its fields is a key, whose default is the value in the default of the argument.
"""

import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lamella.common.checks import alike

__all__ = ["Option", "UnknownKey", "arguments", "check_table", "completed", "near_matches", "options_of"]

REQUIRED = inspect.Parameter.empty
WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "text",
    dict: "a table",
}


class UnknownKey(ValueError):
    """A key of a table is none of its options.

    Args:
        message: one line.
        misspelt: whether it looks like one of the options.
    """

    def __init__(self, message: str, *, misspelt: bool = False) -> None:
        super().__init__(message)
        self.misspelt = misspelt


@dataclass(frozen=True)
class Option:
    """One key of a table.

    Attributes:
        annotation: the type of the value.
        default: the value if the table does not have the key; `REQUIRED` if it must have it.
        recipe: for a key that is a field of a dataclass, the name and the default of that argument; else None.
    """

    annotation: Any
    default: Any = REQUIRED
    recipe: tuple[str, Any] | None = None


class Mismatch(Exception):
    """A value is not of the annotated type."""


def options_of(build: Callable[..., Any], *, without: Collection[str] = ()) -> dict[str, Option]:
    """Return the options of a table by key: the keyword-only arguments of `build`, or its fields if it is a dataclass.

    An argument that is itself a dataclass is replaced by its fields.

    Args:
        build: the function or class that the table builds.
        without: the names of arguments that are left out.

    >>> sorted(options_of(sorted))
    ['key', 'reverse']

    Raises:
        TypeError: two arguments have the same key, or an argument that is a dataclass has no default.
    """
    kinds = {inspect.Parameter.KEYWORD_ONLY}
    if hasattr(build, "__dataclass_fields__"):
        kinds.add(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = inspect.signature(build, eval_str=True).parameters.values()
    options: dict[str, Option] = {}
    for argument in (p for p in found if p.kind in kinds and p.name not in without):
        own = {argument.name: Option(argument.annotation, argument.default)}
        if is_dataclass(argument.annotation):
            own = _fields(argument)
        if twice := options.keys() & own.keys():
            raise TypeError(f"'{min(twice)}' is a key of two arguments of {build.__qualname__}; rename one of them")
        options |= own
    return options


def _fields(argument: inspect.Parameter) -> dict[str, Option]:
    """Return the options of an argument that is a dataclass."""
    if argument.default is REQUIRED:
        raise TypeError(f"the argument '{argument.name}' is a dataclass, so its keys need the defaults of an instance")
    default = argument.default
    hints = get_type_hints(type(default))
    return {
        name: Option(hints[name], getattr(default, name), (argument.name, default))
        for name in type(default).__dataclass_fields__
    }


def near_matches(name: str, allowed: Collection[str]) -> str:
    """Suggest what to write instead of an unknown name.

    >>> near_matches("rnak", ["rank", "epochs"])
    "did you mean 'rank'? allowed: epochs, rank"
    """
    near = alike(name, allowed)
    meant = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{meant}allowed: {', '.join(sorted(allowed))}"


def check_table(where: str, table: Mapping[str, Any], options: Mapping[str, Option]) -> None:
    """Check the keys and values of a table.

    Args:
        where: the path of the table in the configuration, such as "method.align".
        table: the table.
        options: its allowed keys.

    Raises:
        UnknownKey: a key is unknown.
        ValueError: a key is missing, or a value has the wrong type.
    """
    for key, value in table.items():
        if key not in options:
            message = f"unknown key '{where}.{key}'; {near_matches(key, options)}"
            raise UnknownKey(message, misspelt=bool(alike(key, options)))
        _convert(value, options[key].annotation, f"{where}.{key}")
    for key, option in options.items():
        if option.default is REQUIRED and key not in table:
            raise ValueError(f"[{where}] lacks '{key}' ({_describe(option.annotation)}); set {where}.{key}=...")


def completed(where: str, table: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    """Check a table and add the default of every missing key, except defaults such as None that TOML cannot express.

    The keys of the result are in the order of the options, so equal tables give equal results.

    Args:
        where: the path of the table in the configuration.
        table: the table.
        options: its allowed keys.

    Raises:
        ValueError: a key is unknown or missing, or a value is refused.
    """
    check_table(where, table, options)
    arguments(where, table, options)  # a recipe refuses values that contradict each other
    full = {key: table.get(key, option.default) for key, option in options.items()}
    return {key: _plain(value) for key, value in full.items() if key in table or _is_plain(value)}


def arguments(where: str, table: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    """Convert a table to keyword arguments. Lists become tuples if the annotation is a tuple, and recipes are built.

    Args:
        where: the path of the table in the configuration.
        table: the table, whose keys are among `options`.
        options: its allowed keys.

    Raises:
        ValueError: a value has the wrong type, or a recipe refuses it.
    """
    given: dict[str, Any] = {}
    recipes: dict[str, Any] = {}
    for key, value in table.items():
        option = options[key]
        value = _convert(value, option.annotation, f"{where}.{key}")
        if option.recipe is None:
            given[key] = value
        else:
            name, default = option.recipe
            recipes.setdefault(name, (default, {}))[1][key] = value
    return given | {name: replace(default, **fields) for name, (default, fields) in recipes.items()}


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
        finite = "a finite number" if isinstance(value, float) and not isfinite(value) else _describe(annotation)
        raise ValueError(f"{where} = {value!r} should be {finite}") from error


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
        return _unless(isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value), value)
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
    """Describe an annotation in words, for users who write TOML and not Python."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in inner if a is not type(None))
    if origin is Literal:
        return " or ".join(repr(v) for v in inner)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        fixed = origin is tuple and inner and inner[-1] is not Ellipsis
        return f"a list of {len(inner)}, each {_describe(inner[0])}" if fixed else f"a list, each {_describe(inner[0])}"
    return WORDS.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))
