"""The names of methods with their base and their parts: NAME(BASE)+PART+PART, as in "inflora+align" or "dlc(wa)+align".

A method has only the parts that are in its name or have a table: "inflora" has no alignment. Stored configurations have
the name alone, and a table for each part (`with_parts`), as in all versions. Three rules give the order of the parts:

1. `mean_weights` and `merge` come first wherever they stand, since what the other parts measure depends on them.
2. The parts of the name come next, in the order of the name.
3. Parts that only have a table come after them, in the order of their tables.
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from lamella.common.options import Option, check_table, near_matches
from lamella.learner.config.own_methods import NAME
from lamella.learner.config.registry import find, shown
from lamella.methods import ALIASES
from lamella.methods.parts import FIRST, PARTS

__all__ = [
    "MethodName",
    "alias_settings",
    "method_name",
    "parse_name",
    "readout_names",
    "takes_base",
    "with_parts",
]


class MethodName(NamedTuple):
    """The pieces of a name such as "dlc(wa)+align".

    Attributes:
        method: the method itself.
        base: the method that it is built on; None if the name has none.
        parts: the parts, in the order of the name.
    """

    method: str
    base: str | None
    parts: tuple[str, ...]


def parse_name(text: str) -> MethodName:
    """Split the name of a method into the method, its base and its parts.

    >>> parse_name("dlc(wa)+align")
    MethodName(method='dlc', base='wa', parts=('align',))

    Raises:
        ValueError: the text is not a name, a part is unknown or there twice, or the method has no base.
    """
    if not (match := NAME.fullmatch(text)):
        raise ValueError(
            f"method.name = '{text}' is not a name; write a method, in brackets the base it learns on, and its parts "
            "after plus signs, as in inflora+align or dlc(wa)+align"
        )
    parts = tuple(match[3].split("+")[1:])
    for i, part in enumerate(parts):
        if part not in PARTS:
            raise ValueError(f"method.name = '{text}' has the unknown part '{part}'; {near_matches(part, PARTS)}")
        if part in parts[:i]:
            raise ValueError(f"method.name = '{text}' has the part '{part}' twice; write it once")
    if match[2] and not takes_base(match[1]):
        raise ValueError(f"method.name = '{text}': {match[1]} learns on no other method; leave ({match[2]}) out")
    return MethodName(match[1], match[2], parts)


def with_parts(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return [method] in the stored form: the name alone, and a table for the base and for each part.

    >>> with_parts({"name": "inflora+align", "rank": 8})
    {'name': 'inflora', 'rank': 8, 'align': {}}
    >>> with_parts({"name": "dlc(wa)+align", "base": {"memory": 200}})
    {'name': 'dlc', 'base': {'memory': 200, 'name': 'wa'}, 'align': {}}

    Raises:
        ValueError: the name is not valid, see `parse_name`, or a table contradicts it.
    """
    given = table.get("name")
    if not isinstance(given, str):
        return dict(table)
    name = parse_name(given)
    own = {key: value for key, value in table.items() if key not in name.parts} | alias_settings(name.method, table)
    if name.base:
        own["base"] = _named_base(given, name.base, own.get("base", {}))
    for part in name.parts:
        if table.get(part) is False:
            raise ValueError(
                f"method.name = '{given}' has the part '{part}', and method.{part} = false takes it away; "
                "leave one of them out"
            )
    others = {key: own.pop(key) for key in list(own) if key in PARTS}
    parts = {part: table.get(part, {}) for part in name.parts} | others
    return own | {part: parts[part] for part in FIRST if part in parts} | parts


def alias_settings(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a plain name stands for, with the name of the method itself.

    >>> alias_settings("inflora-b5", {})
    {'name': 'inflora', 'blocks': 5}
    >>> alias_settings("wa", {})
    {'name': 'wa'}

    Raises:
        ValueError: the table contradicts them.
    """
    method, settings = ALIASES.get(name, (name, {}))
    for key, value in settings.items():
        if table.get(key, value) != value:
            raise ValueError(
                f"method.name = '{name}' means {method} with {key} = {value}, and method.{key} is {table[key]!r}; "
                "leave one of them out"
            )
    return {"name": method, **settings}


def _named_base(given: str, base: str, table: Any) -> dict[str, Any]:
    check_table("method", {"base": table}, {"base": Option(dict)})
    if table.get("name", base) != base:
        raise ValueError(
            f"method.name = '{given}' and method.base.name = '{table['name']}' are two bases; leave one of them out"
        )
    return {**table, "name": base}


def method_name(config: Mapping[str, Any]) -> str:
    """Return the name of the method with its base and its parts, without the folders of Python files.

    >>> method_name({"method": {"name": "inflora", "rank": 10, "align": {}}})
    'inflora+align'
    >>> method_name({"method": {"name": "dlc", "base": {"name": "wa"}}})
    'dlc(wa)'
    """
    table = config["method"]
    return "+".join([_plain_name(table), *(part for part in table if part in PARTS)])


def readout_names(config: Mapping[str, Any]) -> list[str]:
    """Return the names of all readouts: the method, then without its parts one by one from the last, then its base.

    >>> readout_names({"method": {"name": "inflora", "calibrate": {}, "align": {}}})
    ['inflora+calibrate+align', 'inflora+calibrate', 'inflora']
    >>> readout_names({"method": {"name": "dlc", "base": {"name": "wa"}}})
    ['dlc(wa)', 'wa']
    """
    table = config["method"]
    parts = [part for part in table if part in PARTS]
    carried = ["+".join([_plain_name(table), *parts[:n]]) for n in range(len(parts), -1, -1)]
    return carried + ([shown(table["base"]["name"])] if "base" in table else [])


def _plain_name(table: Mapping[str, Any]) -> str:
    name = shown(table["name"])
    return f"{name}({shown(table['base']['name'])})" if "base" in table else name


def takes_base(name: Any) -> bool:
    """Return whether the method is built on another one, which [method.base] names."""
    return "base" in inspect.signature(find(name)).parameters
