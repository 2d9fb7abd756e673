"""Parts that any method can carry, by the name of their table within [method]."""

from collections.abc import Callable
from typing import Any

from lamella.compose.align import Aligned
from lamella.compose.calibrate import Calibrated

__all__ = ["PARTS", "Aligned", "Calibrated"]

PARTS: dict[str, Callable[..., Any]] = {"align": Aligned, "calibrate": Calibrated}
