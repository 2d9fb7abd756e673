"""The learner that `lamella learn` teaches: that of an existing model, or a new one."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lamella.learner.resume import config_under_way, is_free

if TYPE_CHECKING:
    from lamella.learner.learner import Learner

__all__ = ["BACKBONE", "METHOD", "open_learner", "same_again"]

BACKBONE = "fractal-vit-micro"
METHOD = "inflora"  # carried by alignment


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
    from lamella.learner.config.new_config import new_config
    from lamella.learner.learner import Learner
    from lamella.learner.store.versions import MANIFEST, holds_model

    if not holds_model(model):
        if not is_free(model):
            raise ValueError(f"'{model}' exists and is no model (no {MANIFEST} in it); choose a new folder")
        return _new_learner(
            model, new_config(**_tables(backbone or BACKBONE, method or METHOD, settings), seed=seed or 0)
        )
    learner = Learner.load(model)
    for other in _others(learner.config, backbone, method, seed, settings):
        raise ValueError(
            f"'{model}' exists already, so its backbone, method and seed are fixed, and so are their settings: "
            f"{other}; leave it out"
        )
    return learner


def same_again(learner: "Learner", model: Path) -> "Learner":
    """The learner of a model once more, or the same new one."""
    from lamella.learner.learner import Learner

    return Learner.load(model) if learner.tasks else Learner(learner.config)


def _new_learner(model: Path, config: dict[str, Any]) -> "Learner":
    """A precision that an interrupted first learning has chosen by measuring is kept, so that it can go on."""
    from lamella.learner.config.precision import AUTO, as_chosen, precision_line
    from lamella.learner.learner import Learner

    left = config_under_way(model)
    again = as_chosen(config, left)
    learner = Learner(again if again == left else config)
    if config["fit"]["precision"] == AUTO:
        typer.echo(precision_line(learner.config))
    return learner


def _tables(backbone: str, method: str, settings: Sequence[str]) -> dict[str, Any]:
    """The tables of a new learner's configuration, with the settings put in."""
    from lamella.learner.config.overrides import parse_override, put

    tables: dict[str, Any] = {"backbone": {"name": backbone}, "method": {"name": method}, "augment": {}, "fit": {}}
    for setting in settings:
        put(tables, *parse_override(setting, tables))
    return tables


def _others(
    config: dict[str, Any], backbone: str | None, method: str | None, seed: int | None, settings: Sequence[str]
) -> Iterator[str]:
    """What is asked for and not so in a model's configuration."""
    from lamella.learner.config.overrides import parse_override
    from lamella.learner.config.precision import AUTO

    asked = {("backbone", "name"): backbone, ("method", "name"): method, ("run", "seed"): seed}
    asked |= dict(parse_override(setting, ("backbone", "method", "augment", "fit")) for setting in settings)
    if asked.get(("fit", "precision")) == AUTO and "measured" in config["fit"]:
        asked.pop(("fit", "precision"))  # it was answered when the model was made
    for path, value in asked.items():
        found: Any = config
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        there = isinstance(found, dict) if value is True else found is None if value is False else False
        if not there and value not in (None, found):
            yield f"{'.'.join(path)} is {found!r}, not {value!r}"
