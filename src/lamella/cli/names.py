"""Names of files and classes on a terminal."""

__all__ = ["printable"]


def printable(name: str) -> str:
    """A name on one line: whoever gave it may have put line breaks, terminal codes or bytes of no script into it.

    >>> print(printable("owl\\n"), printable("\\udce9"))
    owl\\n \\udce9
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
