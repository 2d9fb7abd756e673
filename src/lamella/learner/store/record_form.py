"""The form of the records of tasks in a version's file, field by field; `learner/records.py` says what they mean."""

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["is_count", "is_table", "is_text", "wrong_field"]

LARGEST = 2**31
Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    """Whether a JSON value is a text."""
    return isinstance(value, str)


def is_table(value: Any) -> bool:
    """Whether a JSON value is a table."""
    return isinstance(value, dict)


def is_count(value: Any) -> bool:
    """Whether a JSON value is a whole number that can be a count or a class id."""
    return type(value) is int and 0 <= value < LARGEST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _list_of(fits: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _table_of(fits: Check) -> Check:
    return lambda value: is_table(value) and all(map(fits, value.values()))


def _or_none(fits: Check) -> Check:
    return lambda value: value is None or fits(value)


def _with(**fields: Check) -> Check:
    """Return the check of a table that has these fields and no others; what is None may also be missing."""
    return lambda value: (
        is_table(value)
        and not value.keys() - fields.keys()
        and all(fits(value.get(key)) for key, fits in fields.items())
    )


_is_histogram = _with(low=_is_number, high=_is_number, counts=lambda v: bool(v) and _list_of(is_count)(v))
_is_score = _with(
    images=lambda value: is_count(value) and value > 0,
    right=is_count,
    temperature=_or_none(lambda value: _is_number(value) and not value <= 0),
    typicality=_or_none(_is_histogram),
)

FIELDS: Mapping[str, tuple[Check, str]] = {
    "name": (is_text, "a text"),
    "classes": (_list_of(is_count), "a list of class ids"),
    "images": (is_count, "a whole number"),
    "seconds": (lambda v: _table_of(_is_number)(v) and "total" in v, "a table of seconds with a total"),
    "trainable_parameters": (_is_size, "a whole number"),
    "trained": (_or_none(_table_of(_is_size)), "a table of whole numbers"),
    "waited": (_or_none(_is_number), "a number of seconds"),
    "data_sha256": (_or_none(is_text), "a checksum"),
    "directions": (_or_none(_table_of(is_count)), "a table of whole numbers"),
    "held_back": (_or_none(_is_score), "a table of images, right and, where known, temperature and typicality"),
    "unreadable": (_or_none(_with(images=is_count, first=_list_of(is_text))), "a table of images and first"),
    "beside": (
        _or_none(_with(images=is_count, learned=is_count, class_means=is_count, discriminant=is_count)),
        "a table of images, learned, class_means and discriminant",
    ),
}
"""Each field of a record, the check of its value, and what it should be in words."""


def wrong_field(record: Any) -> str:
    """Return what is wrong with a task's record, as "'FIELD' should be ..."; empty if nothing is.

    Args:
        record: its JSON values. Fields that this version does not know are left to `TaskRecord.from_json`.
    """
    if not is_table(record):
        return "it should be a table"
    return next(
        (f"'{key}' should be {words}" for key, (fits, words) in FIELDS.items() if not fits(record.get(key))), ""
    )
