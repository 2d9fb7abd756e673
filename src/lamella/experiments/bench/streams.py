"""Learners that are quick to train: a method's own settings, but for the length of training."""

from collections.abc import Mapping
from typing import Any

from lamella.common.options import options_of
from lamella.learner.learner import Learner
from lamella.methods import METHODS

__all__ = ["quick_learner", "short_method"]


def short_method(name: str, *, batch: int, epochs: int = 1) -> dict[str, Any]:
    """The [method] table of a name with parts, as in "inflora+align"; what trains nothing has no epochs to set."""
    plain, *parts = name.split("+")
    known = options_of(METHODS[plain]) if plain in METHODS else {}
    short = {key: value for key, value in (("epochs", epochs), ("batch_size", batch)) if key in known}
    return {"name": plain, **short, **dict.fromkeys(parts, True)}


def quick_learner(backbone: Mapping[str, Any], method: str, batch: int, fit: Mapping[str, Any]) -> Learner:
    """A learner of one epoch, in batches of this size.

    Raises:
        ValueError: an unknown backbone or method, or one that cannot learn on this backbone.
    """
    table = short_method(method, batch=batch)
    return Learner.create(backbone=backbone, method=table, align="align" in table, fit=fit)
