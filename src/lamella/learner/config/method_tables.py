"""[method] of a configuration: its parts, such as [method.align], its base, [method.base], and their defaults.

Only the outermost method may have parts. A method that is built on another one has the keyword argument `base`.
Configurations of older versions can be read: schedules may have their former names, tables may have options that a
method or a part lists as `removed`, and stored tables may lack those that a method lists as `unstored`. A method lists
as `own_meanings` the options whose names others have too, for something else: their values are not carried over to
another method. How names of methods are read, method_names.py says.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lamella.adapters.few_bits import has_few_bits
from lamella.backbones import Backbone
from lamella.common.options import Option, arguments, check_table, completed, near_matches, options_of
from lamella.data.online import ONLINE
from lamella.learner.config.method_names import parse_name, takes_base, with_parts
from lamella.learner.config.registry import find, is_own, names
from lamella.learner.config.scenario_table import number_of_tasks
from lamella.methods import ALIASES, METHODS, WHOLE_STREAM, Method
from lamella.methods.parts import PARTS
from lamella.methods.shared.refusals import check_objective
from lamella.training.schedules import FORMER_NAMES

__all__ = [
    "build_method",
    "check_method",
    "complete_method",
    "switch_methods",
    "with_unstored",
]


SCHEDULING = ("schedule", "milestones")
"""Keys whose values are valid only together."""
MORE_EPOCHS = ("first_epochs", "min_steps")
"""Keys that add epochs in some tasks."""


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

    In an online stream every sample is trained on once, so `epochs` is 1 there, whatever was given.

    Args:
        table: the table [method].
        scenario: the checked [scenario], whose number of tasks replaces `horizon = "auto"`; empty if there is none.

    Raises:
        ValueError: a key is unknown or missing, a name is unknown, or a value has the wrong type.
    """
    table = with_parts(table)
    resolved = _complete_plain("method", table, scenario)
    if takes_base(resolved["name"]):
        resolved["base"] = _complete_plain("method.base", resolved["base"], scenario)
    for part in (key for key in table if key in PARTS and table[key] is not False):
        inner = {} if table[part] is True else table[part]
        check_table("method", {part: inner}, {part: Option(dict)})
        inner = _up_to_date(f"method.{part}", inner, PARTS[part])
        resolved[part] = completed(f"method.{part}", inner, _keywords(PARTS[part]))
    if scenario.get("kind") == ONLINE and resolved["name"] not in WHOLE_STREAM and "epochs" in resolved:
        return {k: v for k, v in resolved.items() if k not in MORE_EPOCHS} | {"epochs": 1}  # as `Fit.once` trains
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
    if has_few_bits(backbone.model) and (method.merges or method.changes_backbone):
        raise ValueError(
            f"method '{table['name']}' {'folds its branches into' if method.merges else 'trains'} the backbone's "
            f"weights, and backbone.storage is '{config['backbone']['storage']}', where these stay as they are; use "
            "storage 'float32', or a method that keeps its branches or has none, such as seq-lora, color, sdlora or "
            "streaming-lda"
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
    known = {"name"} | options.keys() | PARTS.keys() | ({"base"} if takes_base(name) else set())
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
    if not outermost and (name in WHOLE_STREAM or takes_base(table["name"])):
        raise ValueError(f"{where}.name = '{name}' cannot be a base; {near_matches(name, _bases())}")
    options = _keywords(find(table["name"]))
    own = {key: value for key, value in table.items() if not (outermost and key in PARTS)}
    own = _up_to_date(where, own, find(table["name"]))
    if "horizon" in options and own.get("horizon") == "auto":
        own["horizon"] = _horizon(scenario)
    tables = {part: Option(dict, None) for part in PARTS} if outermost else {}
    if takes_base(table["name"]):
        tables["base"] = Option(dict)
        if "base" not in own:
            raise ValueError(
                f"[{where}] lacks the method that '{table['name']}' learns on; set {where}.base.name to one of "
                + ", ".join(_bases())
            )
    known = {"name": Option(str)} | options | tables
    if not is_own(name):
        _refuse_options_of_others(where, name, [key for key in own if key not in known and key not in PARTS])
    return completed(where, own, known)


def _refuse_options_of_others(where: str, name: str, unknown: Iterable[str]) -> None:
    """Raise ValueError where a key that a method does not know is an option of others; a misspelt one passes."""
    for key in unknown:
        if others := [other for other, build in METHODS.items() if key in _keywords(build)]:
            raise ValueError(f"'{where}.{key}' is an option of {', '.join(others)}, not of {name}; leave it out")


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


def _bases() -> list[str]:
    return [name for name in METHODS if name not in WHOLE_STREAM and not takes_base(name)]


def _horizon(scenario: Mapping[str, Any]) -> int:
    """Return what `horizon = "auto"` means: the number of tasks."""
    if (tasks := number_of_tasks(scenario)) is None:
        if scenario.get("kind") == "domain-incremental":
            raise ValueError("method.horizon = 'auto' needs the number of domains; set method.horizon to a number")
        raise ValueError(
            "method.horizon = 'auto' needs the number of tasks; set scenario.tasks, or method.horizon to a number"
        )
    return tasks


def _keywords(build: Callable[..., Any]) -> dict[str, Option]:
    """Return the hyper-parameters of a method or a part, without the seed, which is that of the run."""
    return options_of(build, without={"seed"})
