"""HTML pages that need nothing else: no network, light and dark, on a phone as on a desk."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from lamella.common.printable import printable

__all__ = ["check_file", "render"]


def check_file(path: Path) -> None:
    """Refuse, before anything is drawn, a path that a page cannot be written to.

    Raises:
        IsADirectoryError: it is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder; name a file in it, such as '{path / 'report.html'}'")


def render(room: str, template: str, **content: Any) -> str:
    """The text of an HTML page in the style that all pages share.

    Args:
        room: the package that holds the template, such as "lamella.experiments.report".
        template: the name of its file there.
        content: what the template shows; every text in it is escaped.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    style = files("lamella.common").joinpath("style.css").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_showable
    )
    page = environment.from_string(files(room).joinpath(template).read_text(encoding="utf-8"))
    return page.render(style=Markup(style), **content)


def _showable(value: Any) -> Any:
    """Text without signs that a page may not hold, or that turn the direction of what comes after them."""
    return "\n".join(map(printable, value.split("\n"))) if type(value) is str else value
