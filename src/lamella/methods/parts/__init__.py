"""Parts that any method can carry, by the name of their table within [method]."""

from collections.abc import Callable

from lamella.methods.method import Method
from lamella.methods.parts.align import Aligned
from lamella.methods.parts.calibrate import Calibrated

__all__ = ["PARTS", "Aligned", "Calibrated"]

PARTS: dict[str, Callable[..., Method]] = {"align": Aligned, "calibrate": Calibrated}
