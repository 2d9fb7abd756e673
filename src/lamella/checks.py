"""Checks of what a caller passes."""

from collections.abc import Iterable

__all__ = ["check_one_of"]


def check_one_of(what: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a value that is not among those allowed.

    Raises:
        ValueError: names both.
    """
    if value not in (known := tuple(allowed)):
        raise ValueError(f"{what} '{value}' is unknown; use one of {', '.join(known)}")
