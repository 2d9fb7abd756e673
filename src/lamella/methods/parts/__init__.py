"""The parts that any method can have, by the names of their tables within [method]."""

from collections.abc import Callable

from lamella.methods.method import Method
from lamella.methods.parts.align import Aligned
from lamella.methods.parts.calibrate import Calibrated
from lamella.methods.parts.mean_weights import MeanWeights
from lamella.methods.parts.merge import Merged
from lamella.methods.parts.rehearsal import Rehearsed

__all__ = ["FIRST", "PARTS", "Aligned", "Calibrated", "MeanWeights", "Merged", "Rehearsed"]

PARTS: dict[str, Callable[..., Method]] = {
    "align": Aligned,
    "calibrate": Calibrated,
    "mean_weights": MeanWeights,
    "merge": Merged,
    "rehearsal": Rehearsed,
}
FIRST = ("mean_weights", "merge")
"""The parts that are carried below all others, because what they measure depends on them."""
