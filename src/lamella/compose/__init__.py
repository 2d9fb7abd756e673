"""Parts that any method can carry, by the name of their table within [method]."""

from collections.abc import Callable
from typing import Any

from lamella.compose.align import Aligned

__all__ = ["PARTS", "Aligned"]

PARTS: dict[str, Callable[..., Any]] = {"align": Aligned}
