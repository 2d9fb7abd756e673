"""Write docs/methods/: a page for each method and part, from its docstrings and its signature.

    python tools/method_pages.py

Nothing on these pages is written by hand, so nothing on them can disagree with the code; tests/test_docs.py compares.
"""

import importlib
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lamella.common.options import Option, options_of
from lamella.methods import METHODS, WHOLE_STREAM
from lamella.methods.parts import PARTS

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "methods"


def pages() -> dict[str, str]:
    """The text of every page, by file name."""
    methods = {f"{name}.md": _page(name, build, "[method]") for name, build in METHODS.items()}
    parts = {f"{name}.md": _page(name, build, f"[method.{name}]") for name, build in PARTS.items()}
    return methods | parts


def _page(name: str, build: Callable[..., Any], table: str) -> str:
    source = inspect.getsourcefile(build) or ""
    place = Path(source).resolve().relative_to(ROOT).as_posix()
    module = inspect.getdoc(importlib.import_module(build.__module__)) or ""
    title, _, rest = module.partition("\n")
    told = f"Given all tasks as one: the upper bound `{name}`.\n\n" if name in WHOLE_STREAM else ""
    return (
        f"# {name}\n\n{told}{title}\n\n{_markdown(rest.strip())}\n\n## Settings in {table}\n\n{_settings(build)}\n"
        f"From [{place}](../../{place}), by `python tools/method_pages.py`. [All methods](../methods.md).\n"
    )


def _markdown(text: str) -> str:
    """Docstring text as Markdown: indented tables become code, lists get their blank line."""
    text = re.sub(r"(?m)^(Departures.*|As the .*):\n(?=- )", r"**\1:**\n\n", text)
    text = re.sub(r"(?m)((?:^ {4}.*\n?|^\n(?= {4}))+)", lambda m: f"\n{_block(inspect.cleandoc(m[0]))}\n", text)
    return re.sub(r"arXiv:? ?(\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _block(text: str) -> str:
    """A table from the paper's letters to our names as one of Markdown; anything else as it is."""
    if not re.match(r"(paper|symbol) +here\n", text):
        return f"```text\n{text}\n```"
    lines = re.sub(r"\n {2,}", " ", text).splitlines()  # a cell that goes on is on the line below
    (left, right), *rows = [re.split(r" {2,}", line, maxsplit=1) for line in lines]
    body = [f"| {_code(letter)} | {_plain(name)} |" for letter, name in rows]
    return "\n".join([f"| {left} | {right} |", "|---|---|", *body])


def _code(cell: str) -> str:
    return f"`{cell.replace('|', chr(92) + '|')}`"


def _plain(cell: str) -> str:
    """Every sign for itself, but for code between backticks."""
    pieces = re.split(r"(`[^`]*`)", cell)
    return "".join(p if p.startswith("`") else re.sub(r"([<*|])", r"\\\1", p) for p in pieces)


def _settings(build: Callable[..., Any]) -> str:
    options = options_of(build, without={"seed"})
    if not options:
        return "None.\n"
    recipes = {option.recipe[0]: type(option.recipe[1]) for option in options.values() if option.recipe}
    meanings: dict[str, str] = {}
    for described in (*recipes.values(), build):
        meanings |= _meanings(inspect.getdoc(described) or "")
    own_first = sorted(options.items(), key=lambda item: item[1].recipe is not None)
    rows = [f"| `{key}` | {_default(option)} | {meanings.get(key, '')} |" for key, option in own_first]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows, ""])


def _meanings(doc: str) -> dict[str, str]:
    """What the "Args" of a docstring say of each argument: one a line, longer texts indented below it."""
    found = re.search(r"^Args:\n((?: {4}.*\n?|\n(?= {4}))*)", doc, re.MULTILINE)
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", found[1] if found else "", re.MULTILINE)
    return {key: " ".join(text.split()).rstrip(".").replace("|", "\\|") for key, text in entries}


def _default(option: Option) -> str:
    if option.default is None:
        return "none"
    return f"`{json.dumps(option.default)}`"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.md"):
        old.unlink()
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
