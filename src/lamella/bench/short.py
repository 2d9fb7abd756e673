"""Learners that are quick to train: a method's own settings, but for the length of training."""

from collections.abc import Mapping
from typing import Any

from lamella.learner import Learner
from lamella.method_tables import with_parts
from lamella.methods import METHODS
from lamella.options import options_of

__all__ = ["quick_learner", "short_method"]


def short_method(name: str, *, batch: int, epochs: int = 1) -> dict[str, Any]:
    """The [method] table of a name, which may have parts and a base; what trains nothing has no epochs to set.

    Raises:
        ValueError: it is not written as a name, or has an unknown part.
    """
    table = with_parts({"name": name})
    if "base" in table:
        table["base"] |= _short(table["base"]["name"], batch, epochs)
    return table | _short(table["name"], batch, epochs)


def _short(name: str, batch: int, epochs: int) -> dict[str, Any]:
    known = options_of(METHODS[name]) if name in METHODS else {}
    return {key: value for key, value in (("epochs", epochs), ("batch_size", batch)) if key in known}


def quick_learner(backbone: Mapping[str, Any], method: str, batch: int, fit: Mapping[str, Any]) -> Learner:
    """A learner of one epoch, in batches of this size.

    Raises:
        ValueError: an unknown backbone or method, or one that cannot learn on this backbone.
    """
    return Learner.create(backbone=backbone, method=short_method(method, batch=batch), fit=fit)
