"""Checks of arguments, and short texts for error messages."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches

__all__ = ["alike", "check_one_of", "did_you_mean", "first_line"]


def check_one_of(what: str, value: str, allowed: Iterable[str]) -> None:
    """Check that a value is allowed.

    Args:
        what: what the value is, for the message.
        value: the value.
        allowed: the allowed values.

    Raises:
        ValueError: the value is not allowed; the message names it and the allowed ones.
    """
    if value not in (known := tuple(allowed)):
        raise ValueError(f"{what} '{value}' is unknown; use one of {', '.join(known)}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the name of its type if the message is empty.

    >>> first_line(OSError("no network\\nTraceback ...")), first_line(EOFError())
    ('no network', 'EOFError')
    """
    return str(error).strip().partition("\n")[0] or type(error).__name__


def alike(word: str, known: Collection[str]) -> list[str]:
    """Return up to three known words that are similar to an unknown one, the most similar first.

    >>> alike("cifra10", ["cifar10", "mnist"])
    ['cifar10']
    """
    return get_close_matches(word.lower(), list(known))


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Suggest similar known words, as the end of a message about an unknown word; "" if there are none.

    >>> did_you_mean("cifra10", ["cifar10", "mnist"])
    "; did you mean 'cifar10'?"
    """
    found = alike(word, known)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""
