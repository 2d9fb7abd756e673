"""One form for every name that comes in: of a class, a domain or a task."""

import unicodedata

__all__ = ["alike", "normal_name"]


def normal_name(name: str) -> str:
    """Return a name in the Unicode form NFC.

    Some systems store "é" as two characters, which would otherwise make a second class of the same name.

    >>> normal_name("Cafe\\u0301") == "Caf\\u00e9"
    True
    """
    return unicodedata.normalize("NFC", name)


def alike(name: str) -> str:
    """Return what is equal for names that differ only in capitals and in spaces.

    >>> alike("Air plane ") == alike("air  plane")
    True
    """
    return " ".join(normal_name(name).casefold().split())
