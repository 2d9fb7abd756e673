"""Escapes text from untrusted sources, such as file names, for the terminal."""

__all__ = ["one_line", "printable"]


def printable(text: str) -> str:
    """Escape line breaks, control codes, marks of text direction and undecodable bytes, as Python writes them.

    >>> print(printable("owl\\n"), printable("\\x1b[31mred"), printable("\\u202egpj.exe"), printable("\\udce9"))
    owl\\n \\x1b[31mred \\u202egpj.exe \\udce9
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """Join the lines of a text by spaces. Within a line nothing changes, so that names keep their double spaces.

    >>> one_line("no file 'a  b.jpg'\\n  and no folder")
    "no file 'a  b.jpg' and no folder"
    """
    return " ".join(stripped for line in text.splitlines() if (stripped := line.strip()))
