"""Fields of a result file, each checked as it is read: what is missing or of another kind is refused by name.

All raise KeyError where a field that must be there is not, ValueError where its content is none.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Seconds", "count", "fraction", "listed", "matrix", "optional_count", "row", "seconds", "table", "text"]

Seconds: TypeAlias = dict[str, float]
"""Seconds spent per phase, summed over tasks."""


def text(content: Mapping[str, Any], key: str) -> str:
    value = content[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r}, not a text")
    return value


def listed(content: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = content[key]
    if not isinstance(value, list):
        raise ValueError(f"{key} is not a list")
    return value


def table(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{key} is not a table")
    return value


def matrix(content: Mapping[str, Any], key: str, tasks: int) -> npt.NDArray[np.float64]:
    """(tasks, tasks) fractions, nan for what was not measured."""
    rows = listed(content, key)
    if len(rows) != tasks:
        raise ValueError(f"{key} has {len(rows)} rows for {tasks} tasks")
    return np.stack([row(values, key, tasks) for values in rows])


def row(values: Any, key: str, tasks: int) -> npt.NDArray[np.float64]:
    """(tasks,) fractions, nan for what was not measured."""
    if not isinstance(values, list) or len(values) != tasks:
        raise ValueError(f"{key} has not one entry per task ({tasks})")
    parsed = [fraction(value, key) for value in values]
    return np.array([math.nan if value is None else value for value in parsed], dtype=np.float64)


def fraction(value: Any, key: str, signed: bool = False) -> float | None:
    """A fraction; None for what was not measured (null, or NaN where a writer let it through)."""
    if value is None or _number(value, key) != value:
        return None
    if not (-1 if signed else 0) <= value <= 1:
        raise ValueError(f"{key} is {value:g}, but accuracies are fractions from 0 to 1")
    return float(value)


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} is {value!r}, not a number")
    return float(value)


def count(value: Any, key: str) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{key} holds {value!r}, not a whole number of 0 or more")
    return value


def optional_count(content: Mapping[str, Any], key: str) -> int | None:
    value = content.get(key)
    return None if value is None else count(value, key)


def seconds(content: Mapping[str, Any], key: str) -> Seconds:
    return {str(phase): _total(spent, f"{key}.{phase}") for phase, spent in table(content, key).items()}


def _total(spent: Any, key: str) -> float:
    entries = spent if isinstance(spent, list) else [spent]
    return sum(_number(entry, key) for entry in entries if entry is not None)
