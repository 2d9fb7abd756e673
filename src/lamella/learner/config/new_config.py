"""The configuration of a new model that is made without a TOML file."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamella.backbones.bundled import NAME as BUNDLED
from lamella.backbones.causal_models import OUTPUT
from lamella.backbones.from_folder import backbone_table
from lamella.backbones.load import noun_of
from lamella.learner.config.document import complete, method_name, read_document
from lamella.learner.config.method_names import with_parts
from lamella.learner.config.own_methods import name_in_table

__all__ = [
    "ANSWERS",
    "BUNDLED",
    "NOUNS",
    "PHOTOS",
    "SMALL_IMAGES",
    "TEXTS",
    "new_config",
    "same_method",
    "start_tables",
]

PHOTOS = "photos"
"""The shipped configuration that a new model of images starts with."""
SMALL_IMAGES = "small-images"
"""The one for the bundled backbone."""
TEXTS = "texts"
"""The one of a new model of texts."""
ANSWERS = "answers"
"""The one of a new model of answers."""
NOUNS = ("image", "text", "answer")
"""What a model can learn from."""


def start_tables(
    name: str | Path | None, backbone: str | None = None, noun: str = "image"
) -> dict[str, dict[str, Any]]:
    """Return the tables [backbone], [method], [augment] and [fit] that a new model starts with.

    Args:
        name: a shipped configuration or a TOML file; None for that of answers, of texts or of photographs, or, with the
            bundled backbone, that of small images.
        backbone: the name of another backbone than the configuration's, which then has no further settings, but that it
            is a language model where the configuration's is one, or where the model will learn from answers.
        noun: what the model will learn from, one of NOUNS. A backbone that is named says it, too.

    Raises:
        FileNotFoundError: there is no such configuration.
        ValueError: it is not TOML.
    """
    kind = noun if backbone is None or noun == "answer" else noun_of(backbone)
    document = read_document(name or _usual(kind, backbone))
    tables = {section: dict(document.get(section, {})) for section in ("backbone", "method", "augment", "fit")}
    if backbone is not None and backbone != tables["backbone"].get("name"):
        is_causal = kind == "answer" or "output" in tables["backbone"]
        tables["backbone"] = {"name": backbone} | ({"output": OUTPUT} if is_causal else {})
    return tables


def _usual(noun: str, backbone: str | None) -> str:
    """Return the name of the configuration that fits samples and a backbone."""
    if noun != "image":
        return TEXTS if noun == "text" else ANSWERS
    return SMALL_IMAGES if backbone == BUNDLED else PHOTOS


def new_config(
    *,
    backbone: str | Mapping[str, Any] | None = None,
    method: str | Mapping[str, Any] | None = None,
    align: bool | None = None,
    seed: int = 0,
    augment: Mapping[str, Any] | None = None,
    fit: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a complete configuration without [scenario]; arguments and errors are those of `Learner.create`.

    What is left out is that of `start_tables`: the method and its augmentation together, and the backbone.
    """
    named = backbone if isinstance(backbone, str) or backbone is None else str(backbone.get("name"))
    asks = isinstance(backbone, Mapping) and "output" in backbone
    start = start_tables(None, named, "answer" if asks else "image")
    if isinstance(method, str) and same_method(method, start):
        method = None  # the default by its name has the settings of the default
    given = dict(method) if isinstance(method, Mapping) else {"name": method} if method else start["method"]
    table: dict[str, Any] = name_in_table(given, Path.cwd())
    config = complete(
        {
            "backbone": _backbone_table(start["backbone"] if backbone is None else backbone),
            "method": table if align is None else _with_align(table, align, by_default=method is None),
            "augment": dict(start["augment"] if augment is None and method is None else augment or {}),
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


def same_method(name: str, document: Mapping[str, Any]) -> bool:
    """Return whether a name, or what it stands for, is the method of a document with its base and its parts."""
    own, other = with_parts({"name": name}), with_parts(document["method"])
    return method_name({"method": own}) == method_name({"method": other})


def _with_align(table: dict[str, Any], align: bool, *, by_default: bool) -> dict[str, Any]:
    """Return [method] with or without the part, as the deprecated argument says.

    Args:
        table: the table [method].
        align: whether it has the part; an existing table of it stays.
        by_default: whether the table is the default, whose part the caller has not asked for.
    """
    plain = with_parts(table)
    if align:
        return plain if plain.get("align") not in (None, False) else {**plain, "align": {}}
    if by_default:
        return {key: value for key, value in plain.items() if key != "align"}
    return table if "align" in table else {**table, "align": False}


def _backbone_table(backbone: str | Mapping[str, Any]) -> dict[str, Any]:
    given = dict(backbone) if isinstance(backbone, Mapping) else {"name": backbone}
    if not isinstance(given.get("name"), str):
        raise ValueError(
            f"backbone is {backbone!r}; give a name such as '{BUNDLED}', a folder, or a table with a 'name'"
        )
    return backbone_table(given["name"]) | {key: value for key, value in given.items() if key != "name"}
