"""The parts that any method can have, by the names of their tables within [method]."""

from collections.abc import Callable

from lamella.methods.method import Method
from lamella.methods.parts.align import Aligned
from lamella.methods.parts.calibrate import Calibrated
from lamella.methods.parts.mean_weights import MeanWeights

__all__ = ["FIRST", "PARTS", "Aligned", "Calibrated", "MeanWeights"]

PARTS: dict[str, Callable[..., Method]] = {"align": Aligned, "calibrate": Calibrated, "mean_weights": MeanWeights}
FIRST = "mean_weights"
"""The part that is carried below all others, because what they measure depends on it."""
