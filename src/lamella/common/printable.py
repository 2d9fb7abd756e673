"""Names that anyone gave, as a terminal can show them."""

__all__ = ["printable"]


def printable(text: str) -> str:
    """One line that commands nothing: line breaks, terminal codes, marks that turn the direction of writing, and bytes
    of no script are shown as Python writes them.

    >>> print(printable("owl\\n"), printable("\\x1b[31mred"), printable("\\u202egpj.exe"), printable("\\udce9"))
    owl\\n \\x1b[31mred \\u202egpj.exe \\udce9
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
