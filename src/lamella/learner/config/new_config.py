"""The configuration of a new model that is made without a TOML file."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamella.backbones.from_folder import backbone_table
from lamella.learner.config.document import complete, method_name
from lamella.learner.config.method_tables import with_parts
from lamella.learner.config.own_methods import name_in_table

__all__ = ["BACKBONE", "METHOD", "new_config"]

BACKBONE = "fractal-vit-micro"
"""The default backbone of a new model, which comes with the package."""

METHOD = "inflora+align"
"""The default method of a new model."""


def new_config(
    *,
    backbone: str | Mapping[str, Any],
    method: str | Mapping[str, Any],
    align: bool | None = None,
    seed: int = 0,
    augment: Mapping[str, Any] | None = None,
    fit: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a complete configuration without [scenario]; arguments and errors are those of `Learner.create`."""
    given = dict(method) if isinstance(method, Mapping) else {"name": method}
    table: dict[str, Any] = name_in_table(given, Path.cwd())
    config = complete(
        {
            "backbone": _backbone_table(backbone),
            "method": table if align is None else _with_align(table, align),
            "augment": dict(augment or {}),
            "fit": dict(fit or {}),
            "run": {"seed": seed},
        }
    )
    if align is not None:
        name = method_name(config)
        instead = f'{{"name": "{name}", ...}}' if isinstance(method, Mapping) else f'"{name}"'
        text = f"align={align} is deprecated, since the name says which parts a method has; write method={instead}"
        warnings.warn(text, DeprecationWarning, stacklevel=3)  # where the user called Learner.create
    return config


def _with_align(table: dict[str, Any], align: bool) -> dict[str, Any]:
    """Return [method] with or without the part, as the deprecated argument says; an existing table of it stays."""
    if align:
        plain = with_parts(table)
        return plain if "align" in plain else {**plain, "align": {}}
    if table == {"name": METHOD}:  # the default, which the caller may not have written
        return {"name": METHOD.partition("+")[0]}
    return table if "align" in table else {**table, "align": False}


def _backbone_table(backbone: str | Mapping[str, Any]) -> dict[str, Any]:
    given = dict(backbone) if isinstance(backbone, Mapping) else {"name": backbone}
    if not isinstance(given.get("name"), str):
        raise ValueError(
            f"backbone is {backbone!r}; give a name such as '{BACKBONE}', a folder, or a table with a 'name'"
        )
    return backbone_table(given["name"]) | {key: value for key, value in given.items() if key != "name"}
