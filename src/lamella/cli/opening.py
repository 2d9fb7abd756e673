"""The learner that `lamella learn` teaches: that of an existing model, or a new one."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lamella.cli.under_way import config_under_way, is_free

if TYPE_CHECKING:
    from lamella.learner import Learner

__all__ = ["BACKBONE", "METHOD", "open_learner", "same_again"]

BACKBONE = "fractal-vit-micro"
METHOD = "inflora+align"
SECTIONS = ("backbone", "method", "augment", "fit")
"""Of a configuration that has no stream of tasks; the settings of a new model are in them."""


def open_learner(
    model: Path, backbone: str | None = None, method: str | None = None, seed: int | None = None,
    settings: Sequence[str] = (),
) -> "Learner":  # fmt: skip
    """The learner of the model at a place, or a new one where there is none.

    Args:
        backbone, method, seed, settings: of a new one; an existing one must have been made with the same. `settings`
            such as "method.epochs=5".

    Raises:
        ValueError: something else is there, or a setting is unknown or not that of the model.
    """
    from lamella.learner import Learner
    from lamella.new_config import new_config
    from lamella.store import MANIFEST, holds_model

    if not holds_model(model):
        if not is_free(model):
            raise ValueError(f"'{model}' exists and is no model (no {MANIFEST} in it); choose a new folder")
        return _new_learner(model, new_config(**_tables(backbone or BACKBONE, method, settings), seed=seed or 0))
    learner = Learner.load(model)
    for other in _others(learner.config, backbone, method, seed, settings):
        raise ValueError(
            f"'{model}' exists already, so its backbone, method and seed are fixed, and so are their settings: "
            f"{other}; leave it out"
        )
    return learner


def same_again(learner: "Learner", model: Path) -> "Learner":
    """The learner of a model once more, or the same new one."""
    from lamella.learner import Learner

    return Learner.load(model) if learner.tasks else Learner(learner.config)


def _new_learner(model: Path, config: dict[str, Any]) -> "Learner":
    """A precision that an interrupted first learning has chosen by measuring is kept, so that it can go on."""
    from lamella.chosen_precision import AUTO, as_chosen, precision_line
    from lamella.learner import Learner

    left = config_under_way(model)
    again = as_chosen(config, left)
    learner = Learner(again if again == left else config)
    if config["fit"]["precision"] == AUTO:
        typer.echo(precision_line(learner.config))
    return learner


def _tables(backbone: str, method: str | None, settings: Sequence[str]) -> dict[str, Any]:
    """The tables of a new learner's configuration, with the settings put in."""
    from lamella.method_tables import with_parts
    from lamella.overrides import parse_override, put

    changes = [parse_override(setting, SECTIONS) for setting in settings]
    # Nobody wrote the name that stands by default, so method.align=false may take its part away.
    default = {} if ("method", "name") in dict(changes) else with_parts({"name": METHOD})
    table = {"name": method} if method else default
    tables: dict[str, Any] = {"backbone": {"name": backbone}, "method": table, "augment": {}, "fit": {}}
    for change in changes:
        put(tables, *change)
    return tables


def _others(
    config: dict[str, Any], backbone: str | None, method: str | None, seed: int | None, settings: Sequence[str]
) -> Iterator[str]:
    """What is asked for and not so in a model's configuration."""
    from lamella.chosen_precision import AUTO
    from lamella.overrides import parse_override

    asked: dict[tuple[str, ...], Any] = {("backbone", "name"): backbone, ("run", "seed"): seed}
    asked |= dict(parse_override(setting, SECTIONS) for setting in settings)
    yield from _other_method(config, asked.pop(("method", "name"), method), asked)
    if asked.get(("fit", "precision")) == AUTO and "measured" in config["fit"]:
        asked.pop(("fit", "precision"))  # it was answered when the model was made
    for path, value in asked.items():
        found: Any = config
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        there = isinstance(found, dict) if value is True else found is None if value is False else False
        if not there and value not in (None, found):
            yield f"{'.'.join(path)} is {found!r}, not {value!r}"


def _other_method(config: dict[str, Any], name: str | None, asked: Mapping[tuple[str, ...], Any]) -> Iterator[str]:
    """The method where it is asked for by another name; with a setting such as method.align=true, a part counts too."""
    from lamella.method_tables import method_name, with_parts
    from lamella.overrides import put

    if name is None:
        return
    tables: dict[str, Any] = {"method": {"name": name}}
    for path, value in asked.items():
        if path[0] == "method":
            put(tables, path, value)
    own = config["method"]
    table = {key: value for key, value in with_parts(tables["method"]).items() if value is not False}
    base = table.pop("base", {})
    if table["name"] == own["name"]:  # a base that is not named may be any
        base = own.get("base", {}) | base
    wanted = method_name({"method": table | ({"base": base} if "name" in base else {})})
    if wanted != method_name(config):
        yield f"method.name is {method_name(config)!r}, not {wanted!r}"
