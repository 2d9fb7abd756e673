"""All classifications that one training gives: a method's own, and those of what it is built on.

Readouts are named by what was taken off: "" is the whole, "base" what it carries or learns on, "base.base" what that is
built on in turn.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["all_readouts", "beneath", "features_and_readouts"]


def all_readouts(method: Any, x: Tensor) -> Mapping[str, Tensor]:
    """(n, classes) logits of every readout; a method without several has its prediction only."""
    return method.readouts(x) if hasattr(method, "readouts") else {"": method.predict(x)}


def features_and_readouts(method: Any, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
    """(n, d) features and all readouts: in one pass, but for methods whose readout is neither heads nor offered so."""
    if hasattr(method, "features_and_readouts"):
        return method.features_and_readouts(x)
    if hasattr(method, "features_and_logits"):
        features, logits = method.features_and_logits(x)
        return features, {"": logits}
    features, heads = method.features(x), getattr(method, "heads", None)
    return features, {"": method.predict(x) if heads is None else heads(features)}


def beneath(readouts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The readouts of a base, as its carrier names them."""
    return {f"base.{name}".rstrip("."): logits for name, logits in readouts.items()}
