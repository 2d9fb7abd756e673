"""Tables of a configuration file as keyword arguments: which keys there are, of which type, with which default.

The signature of what a table builds is the only list of its keys, so a new argument needs no second declaration. An
argument that is a dataclass, such as `training: Training = Training(epochs=20)`, has no key of its own: each of its
fields is one, with the default that the argument's default has there.
"""

import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["Option", "arguments", "check_table", "completed", "near_matches", "options_of"]

REQUIRED = inspect.Parameter.empty
WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "text",
    dict: "a table",
}


@dataclass(frozen=True)
class Option:
    """One key of a table.

    Attributes:
        annotation: the type of its values.
        default: its value where the table leaves it out; `REQUIRED` where it may not.
        recipe: the argument whose field the key is, and the default of that argument; None of an argument's own key.
    """

    annotation: Any
    default: Any = REQUIRED
    recipe: tuple[str, Any] | None = None


class Mismatch(Exception):
    """A value is not of the annotated type."""


def options_of(build: Callable[..., Any], *, without: Collection[str] = ()) -> dict[str, Option]:
    """The keyword-only arguments of `build`, or all fields if it is a dataclass.

    Of an argument that is a dataclass itself, each field is a key.

    >>> sorted(options_of(sorted))
    ['key', 'reverse']

    Raises:
        TypeError: two of them have the same key, or an argument that is a dataclass has no default.
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
    """The keys of an argument that is a dataclass."""
    if argument.default is REQUIRED:
        raise TypeError(f"the argument '{argument.name}' is a dataclass, so its keys need the defaults of an instance")
    default = argument.default
    hints = get_type_hints(type(default))
    return {
        name: Option(hints[name], getattr(default, name), (argument.name, default))
        for name in type(default).__dataclass_fields__
    }


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
        ValueError: as `check_table`, or a recipe refuses a value.
    """
    check_table(where, table, options)
    arguments(where, table, options)  # a recipe refuses values that do not fit together
    full = {key: table.get(key, option.default) for key, option in options.items()}
    return {key: _plain(value) for key, value in full.items() if key in table or _is_plain(value)}


def arguments(where: str, table: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    """The table as keyword arguments: lists become tuples where the annotation asks for one, and recipes are built.

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
