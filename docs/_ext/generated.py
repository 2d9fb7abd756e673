"""Blocks ```{generated} NAME``` of a page become the text that tools/site_texts.py makes of the code."""

import re
from typing import Any

from site_texts import generated

BLOCK = re.compile(r"^```\{generated\} (.+)\n```$", re.MULTILINE)


def fill(app: Any, docname: str, source: list[str]) -> None:
    source[0] = BLOCK.sub(lambda found: generated(found[1]), source[0])


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
