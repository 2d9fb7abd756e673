"""What is refused of a model folder that is not trusted: whatever is outside of it and would be read or run.

A stranger's folder is read as data only: JSON and safetensors, each checked. Its configuration, however, may name
things elsewhere: files of weights, a LoRA of PEFT, Python files of methods, and weights of timm's hub.
`check_untrusted` refuses the first three before anything is built; `backbones.hub.without_hub` refuses the last one.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lamella.backbones.encoder_copies import is_kept_encoder
from lamella.backbones.encoder_places import is_path
from lamella.learner.config.registry import is_own

__all__ = ["check_untrusted"]

BY_NAME = ("pretrained", "random")
"""Weights that are no path: bundled ones, the user's own below $LAMELLA_DATA or in the hub's cache, or drawn ones."""


def check_untrusted(folder: Path, config: Mapping[str, Any], copy: str | None) -> None:
    """Make sure that a stored configuration names nothing outside of its model's folder.

    Args:
        folder: the model's folder, for the message.
        config: the stored configuration, with the tables "backbone" and "method".
        copy: the name of the backbone's copy within the folder, which is loaded instead of the files that the
            configuration names; None if there is none.

    Raises:
        ValueError: the method is a class of a Python file, the weights or the adapter are files elsewhere, or the name
            of the backbone is a path, unless the copy holds all of an encoder.
    """
    for name in _names(config["method"]):
        if is_own(name):
            _refuse(folder, f"its method '{name}' is a class of a Python file, which would run")
    table = config["backbone"]
    if is_path(str(table["name"])) and not (copy is not None and is_kept_encoder(str(folder / copy))):
        _refuse(folder, f"the name '{table['name']}' of its backbone is a path")
    if copy is not None:
        return
    weights, adapter = table.get("weights", "pretrained"), table.get("adapter")
    if weights not in BY_NAME:
        _refuse(folder, f"its weights '{weights}' are no file of the folder")
    if adapter is not None:
        _refuse(folder, f"its adapter '{adapter}' is no file of the folder")


def _names(table: Any) -> Iterator[str]:
    """Yield the name of a method, of its base, and of whatever else is named in its table."""
    if isinstance(table, Mapping):
        for key, value in table.items():
            if key == "name" and isinstance(value, str):
                yield value
            yield from _names(value)


def _refuse(folder: Path, what: str) -> None:
    raise ValueError(
        f"'{folder}' is not trusted, so no file that it names elsewhere is read or run, but {what}; if you trust it "
        "after all, leave out --untrusted (trusted=False)"
    )
