"""Self-contained HTML pages, without network access, in a light and a dark style, for phones and desktops."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from lamella.common.printable import printable

__all__ = ["check_file", "render"]


def check_file(path: Path) -> None:
    """Check, before a page is drawn, that its path is not a folder.

    Args:
        path: the file to write.

    Raises:
        IsADirectoryError: the path is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder; name a file in it, such as '{path / 'report.html'}'")


def render(room: str, template: str, **content: Any) -> str:
    """Render an HTML page in the common style.

    Args:
        room: the package that holds the template, such as "lamella.experiments.report".
        template: the file name of the template.
        content: the variables of the template; every text in them is escaped.
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
    """Escape characters that a page may not contain or that change the direction of the text after them."""
    return "\n".join(map(printable, value.split("\n"))) if type(value) is str else value
