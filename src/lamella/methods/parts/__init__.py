"""The parts that any method can have, by the names of their tables within [method]."""

from collections.abc import Callable

from lamella.methods.method import Method
from lamella.methods.parts.align import Aligned
from lamella.methods.parts.calibrate import Calibrated

__all__ = ["PARTS", "Aligned", "Calibrated"]

PARTS: dict[str, Callable[..., Method]] = {"align": Aligned, "calibrate": Calibrated}
