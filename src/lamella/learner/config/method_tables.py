"""[method] of a configuration: its parts, such as [method.align], its base, [method.base], their names and defaults.

Only the outermost method may have parts. A method that is built on another one has the keyword argument `base`.
Configurations of older versions can be read: schedules may have their former names, tables may have options that a
method or a part lists as `removed`, and stored tables may lack those that a method lists as `unstored`. A method lists
as `own_meanings` the options whose names others have too, for something else: their values are not carried over to
another method.

A method with its base and its parts is written NAME(BASE)+PART+PART everywhere, as in "inflora+align" or
"dlc(wa)+align". A method has only the parts that are in its name or have a table: "inflora" has no alignment. Stored
configurations have the name alone, and a table for each part (`with_parts`), as in all versions. Three rules give the
order of the parts:

1. `mean_weights` and `merge` come first wherever they stand, since what the other parts measure depends on them.
2. The parts of the name come next, in the order of the name.
3. Parts that only have a table come after them, in the order of their tables.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lamella.adapters.int8 import has_int8
from lamella.backbones import Backbone
from lamella.common.options import Option, arguments, check_table, completed, near_matches, options_of
from lamella.learner.config.own_methods import NAME
from lamella.learner.config.registry import find, is_own, names, shown
from lamella.methods import ALIASES, METHODS, WHOLE_STREAM, Method
from lamella.methods.parts import FIRST, PARTS
from lamella.methods.shared.refusals import check_objective
from lamella.training.schedules import FORMER_NAMES

__all__ = [
    "alias_settings",
    "build_method",
    "check_method",
    "complete_method",
    "method_name",
    "parse_name",
    "readout_names",
    "switch_methods",
    "with_parts",
    "with_unstored",
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
    if match[2] and not _takes_base(match[1]):
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


SCHEDULING = ("schedule", "milestones")
"""Keys whose values are valid only together."""


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


def switch_methods(document: dict[str, Any], changes: Mapping[tuple[str, ...], Any]) -> None:
    """Remove the settings of a file that do not fit if the command line names another method or another base.

    An option that both methods have is kept, unless one of them lists it in `own_meanings`.

    The name on the command line decides which parts the method has. Other parts of the file are removed, unless the
    command line has settings of them, as in `method.name=inflora method.align.ridge=1`.

    Args:
        document: the document of the file, which is changed in place: [method] gets the stored form, and `run.dropped`
            lists what was removed.
        changes: the values of the command line by their paths, such as ("method", "name").
    """
    given = with_parts(document.get("method", {}))
    table = document["method"] = {key: v for key, v in given.items() if not (key in PARTS and v is False)}
    wanted, base_name = changes.get(("method", "name")), changes.get(("method", "base", "name"))
    if isinstance(wanted, str):
        name = parse_name(wanted)
        kept = {*name.parts, *(path[1] for path in changes if path[0] == "method")}
        method, settings = ALIASES.get(name.method, (name.method, {}))
        _switch_method(document, "method", table, method)
        _drop(document, "method", table, [key for key in settings if key in table and ("method", key) not in changes])
        _drop(document, "method", table, [key for key in table if key in PARTS and key not in kept])
        base_name = base_name or name.base
    if isinstance(base := table.get("base"), dict) and base_name:
        _switch_method(document, "method.base", base, base_name)
        base["name"] = base_name


def complete_method(table: dict[str, Any], scenario: Mapping[str, Any]) -> dict[str, Any]:
    """Check [method] and fill in its defaults, and those of its base and its parts.

    Args:
        table: the table [method].
        scenario: the checked [scenario], whose number of tasks replaces `horizon = "auto"`; empty if there is none.

    Raises:
        ValueError: a key is unknown or missing, a name is unknown, or a value has the wrong type.
    """
    table = with_parts(table)
    resolved = _complete_plain("method", table, scenario)
    if _takes_base(resolved["name"]):
        resolved["base"] = _complete_plain("method.base", resolved["base"], scenario)
    for part in (key for key in table if key in PARTS and table[key] is not False):
        inner = {} if table[part] is True else table[part]
        check_table("method", {part: inner}, {part: Option(dict)})
        inner = _up_to_date(f"method.{part}", inner, PARTS[part])
        resolved[part] = completed(f"method.{part}", inner, _keywords(PARTS[part]))
    return resolved


def with_unstored(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored [method] with the options that its version did not have yet, as far as it or a part lists them.

    Args:
        table: the table [method] of a stored configuration, which has every option that its version had.

    Raises:
        ValueError: no method has this name.
    """
    found = {**_unstored(find(with_parts(table).get("name")), table), **table}
    parts = {part: found[part] for part in PARTS if isinstance(found.get(part), dict)}
    return found | {part: {**_unstored(PARTS[part], own), **own} for part, own in parts.items()}


def _unstored(build: Callable[..., Any], table: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a method or a part lists as unstored, which may depend on what else the table has."""
    found: Mapping[str, Any] | Callable[..., Mapping[str, Any]] = getattr(build, "unstored", {})
    return found(table) if callable(found) else found


def build_method(config: Mapping[str, Any], backbone: Backbone) -> Method:
    """Build the method of [method].

    Args:
        config: a complete configuration.
        backbone: the backbone of the method.

    Returns:
        The method, built on its base if it has one, with its parts on top in their order.

    Raises:
        ValueError: the backbone is a language model, and the method or a part of it needs classes.
    """
    table, seed = config["method"], config["run"]["seed"]
    base = {"base": _build_plain("method.base", table["base"], backbone, seed)} if "base" in table else {}
    method = _build_plain("method", table, backbone, seed, **base)
    if has_int8(backbone.model) and (method.merges or method.changes_backbone):
        raise ValueError(
            f"method '{table['name']}' {'folds its branches into' if method.merges else 'trains'} the backbone's "
            "weights, and backbone.storage is 'int8', where these stay as they are; use storage 'float32', or a method "
            "that keeps its branches or has none, such as seq-lora, color, sdlora or streaming-lda"
        )
    for part in (key for key in table if key in PARTS):
        check_objective(f"the part '{part}'", PARTS[part].answers, backbone)
        method = PARTS[part](method, seed=seed, **arguments(f"method.{part}", table[part], _keywords(PARTS[part])))
    return method


def check_method(config: Mapping[str, Any]) -> None:
    """Check the values of [method] as far as that is possible without a backbone.

    Raises:
        ValueError: a value is not allowed, such as a number of epochs below 1.
    """
    table = config["method"]
    for where, plain in (("method", table), ("method.base", table.get("base"))):
        if plain is not None:
            arguments(where, _own_keys(plain), _keywords(find(plain["name"])))


def _own_keys(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a method itself, without those of its base and of its parts."""
    return {key: value for key, value in table.items() if key not in ("name", "base", *PARTS)}


def _switch_method(document: dict[str, Any], where: str, table: dict[str, Any], name: Any) -> None:
    if name == table.get("name"):
        return
    options = _keywords(find(name))
    known = {"name"} | options.keys() | PARTS.keys() | ({"base"} if _takes_base(name) else set())
    known -= _own_meanings(name) | _own_meanings(table.get("name"))
    dropped = [key for key in table if key not in known or (key in SCHEDULING and not _fits(table, options))]
    _drop(document, where, table, dropped)


def _own_meanings(name: Any) -> frozenset[str]:
    """Return the options of a method that mean something else in others."""
    try:
        return getattr(find(name), "own_meanings", frozenset())
    except ValueError:  # the file may name a method that is not known here, since another one replaces it
        return frozenset()


def _drop(document: dict[str, Any], where: str, table: dict[str, Any], dropped: list[str]) -> None:
    for key in dropped:
        del table[key]
    if dropped:
        document.setdefault("run", {}).setdefault("dropped", []).extend(f"{where}.{key}" for key in dropped)


def _fits(table: Mapping[str, Any], options: Mapping[str, Option]) -> bool:
    """Return whether a table's schedule and milestones fit together, with the defaults of these options."""
    defaults = {key: options[key].default for key in SCHEDULING if key in options}
    schedule, milestones = (table.get(key, defaults.get(key)) for key in SCHEDULING)
    return schedule == "milestones" or not milestones


def _up_to_date(where: str, table: Mapping[str, Any], build: Callable[..., Any]) -> dict[str, Any]:
    """Convert the table of an older version to this one.

    Raises:
        ValueError: an option that was removed has another value than the one that is used now.
    """
    removed: Mapping[str, Any] = getattr(build, "removed", {})
    for key in table.keys() & removed.keys():
        if table[key] != removed[key]:
            raise ValueError(
                f"{where}.{key} = {table[key]!r} is not an option any more: this version computes {removed[key]!r} "
                "only; take it away, or use a version of Lamella that has it"
            )
    own = {key: value for key, value in table.items() if key not in removed}
    if isinstance(own.get("schedule"), str):
        own["schedule"] = FORMER_NAMES.get(own["schedule"], own["schedule"])
    return own


def _complete_plain(where: str, table: Mapping[str, Any], scenario: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the table of one method without its parts, which only the outermost method may have."""
    outermost = where == "method"
    if "name" not in table:
        allowed = [*names(), *ALIASES] if outermost else _bases()
        raise ValueError(f"[{where}] lacks 'name'; set {where}.name to one of {', '.join(allowed)}")
    name = str(table["name"])
    if not outermost and not is_own(name) and re.search(r"[+()]", name):
        raise ValueError(
            f"method.base.name = '{table['name']}' should be a name alone; parts belong to the whole method, as in "
            "method.name = 'dlc(wa)+align'"
        )
    if not outermost and (name in WHOLE_STREAM or _takes_base(table["name"])):
        raise ValueError(f"{where}.name = '{name}' cannot be a base; {near_matches(name, _bases())}")
    options = _keywords(find(table["name"]))
    own = {key: value for key, value in table.items() if not (outermost and key in PARTS)}
    own = _up_to_date(where, own, find(table["name"]))
    if "horizon" in options and own.get("horizon") == "auto":
        own["horizon"] = _count_tasks(scenario)
    tables = {part: Option(dict, None) for part in PARTS} if outermost else {}
    if _takes_base(table["name"]):
        tables["base"] = Option(dict)
        if "base" not in own:
            raise ValueError(
                f"[{where}] lacks the method that '{table['name']}' learns on; set {where}.base.name to one of "
                + ", ".join(_bases())
            )
    known = {"name": Option(str)} | options | tables
    for key in own.keys() - known.keys() - set(PARTS):
        if not is_own(name) and (others := [n for n in METHODS if key in _keywords(METHODS[n])]):
            raise ValueError(f"'{where}.{key}' is an option of {', '.join(others)}, not of {name}; leave it out")
    return completed(where, own, known)


def _build_plain(where: str, table: Mapping[str, Any], backbone: Backbone, seed: int, **base: Method) -> Method:
    """Build one method without its parts."""
    build = find(table["name"])
    kind: object = build
    if isinstance(kind, type) and issubclass(kind, Method):
        check_objective(f"method '{table['name']}'", kind.answers, backbone)
    method = build(backbone, **base, seed=seed, **arguments(where, _own_keys(table), _keywords(build)))
    if not isinstance(method, Method):
        raise TypeError(f"method '{table['name']}' is a {type(method).__name__}; derive its class from lamella.Method")
    return method


def _takes_base(name: Any) -> bool:
    """Return whether the method is built on another one, which [method.base] names."""
    return "base" in inspect.signature(find(name)).parameters


def _bases() -> list[str]:
    return [name for name in METHODS if name not in WHOLE_STREAM and not _takes_base(name)]


def _count_tasks(scenario: Mapping[str, Any]) -> int:
    if "sizes" in scenario:
        return len(scenario["sizes"])
    if "tasks" in scenario:
        return scenario["tasks"]
    if "sources" in scenario:
        return len(scenario["sources"])
    if scenario.get("kind") == "domain-incremental":
        for key in ("domains", "changes"):
            if key in scenario:
                return len(scenario[key])
        raise ValueError("method.horizon = 'auto' needs the number of domains; set method.horizon to a number")
    raise ValueError(
        "method.horizon = 'auto' needs the number of tasks; set scenario.tasks, or method.horizon to a number"
    )


def _keywords(build: Callable[..., Any]) -> dict[str, Option]:
    """Return the hyper-parameters of a method or a part, without the seed, which is that of the run."""
    return options_of(build, without={"seed"})
