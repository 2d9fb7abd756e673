"""Docstrings as reStructuredText: ours are plain text with `code`, lists and indented formulas.

Sections such as "Args:" are left to napoleon, which runs afterwards.
"""

import re
from typing import Any

SECTIONS = {"Args:", "Attributes:", "Returns:", "Yields:", "Raises:", "Example:", "Examples:", "Note:", "Notes:"}
ITEM = re.compile(r"(?:[-*]|\d+\.|\(\d+\)) ")


def as_rst(lines: list[str]) -> list[str]:
    """The same docstring with marked code, blank lines around lists, and indented paragraphs as literal blocks."""
    out: list[str] = []
    inside = ""  # which kind of block the line before belongs to
    for line in lines:
        if not line.strip():
            out.append("")
            continue
        kind = _kind(line, inside)
        if out and kind != inside and (out[-1] or kind == "literal"):
            _separate(out, kind, inside)
        out.append(line if kind in ("literal", "doctest") else _inline(line))
        inside = kind
    return out


def _kind(line: str, inside: str) -> str:
    if line.lstrip().startswith(">>>") or (inside == "doctest" and not line[0].isalpha()):
        return "doctest"
    if line.rstrip() in SECTIONS:
        return "section"
    if not line.startswith(" "):
        return "list" if ITEM.match(line) else "text"
    if inside in ("section", "list"):
        return inside
    return "literal"


def _separate(out: list[str], kind: str, inside: str) -> None:
    if kind == "literal":
        while out and not out[-1]:
            out.pop()
        out.extend(["", "::", ""])
    elif kind in ("list", "section", "text", "doctest") and out[-1] and (kind != "text" or inside != "text"):
        out.append("")


def _inline(line: str) -> str:
    """Code between backticks as literals; every other sign stands for itself."""
    pieces = re.split(r"`+([^`]+)`+", line)
    texts = [re.sub(r"([*|\\])|(?<=\w)_(?=\W|$)", r"\\\g<0>", piece) for piece in pieces[::2]]
    codes = [f"``{code.strip()}``" for code in pieces[1::2]]
    joined = texts[0]
    for code, text in zip(codes, texts[1:], strict=True):
        joined += code + ("\\ " if text[:1].isalnum() else "") + text
    return joined


def process(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    made_by_python = len(lines) == 2 and lines[0].startswith("Alias for field number")  # of a named tuple
    lines[:] = [] if made_by_python else as_rst(lines)


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process, priority=400)  # napoleon has 500
    return {"parallel_read_safe": True}
