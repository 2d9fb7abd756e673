"""Checks of what a caller passes, and what to quote of an error that others raised."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches

__all__ = ["check_one_of", "did_you_mean", "first_line"]


def check_one_of(what: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a value that is not among those allowed.

    Raises:
        ValueError: names both.
    """
    if value not in (known := tuple(allowed)):
        raise ValueError(f"{what} '{value}' is unknown; use one of {', '.join(known)}")


def first_line(error: BaseException) -> str:
    """What an error says in its first line; its type where it says nothing.

    >>> first_line(OSError("no network\\nTraceback ...")), first_line(EOFError())
    ('no network', 'EOFError')
    """
    return str(error).strip().partition("\n")[0] or type(error).__name__


def did_you_mean(word: str, known: Collection[str]) -> str:
    """The end of a message about an unknown word: the known ones that look like it, or nothing.

    >>> did_you_mean("cifra10", ["cifar10", "mnist"])
    "; did you mean 'cifar10'?"
    """
    found = get_close_matches(word.lower(), list(known), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""
