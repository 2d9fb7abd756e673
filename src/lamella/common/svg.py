"""Matplotlib figures as SVG inside an HTML page, with unique ids and the colours of the page."""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 5.4
"""The width in inches. It is small, so that the text stays readable on a phone, where the page shrinks the figure."""
INK = "#010203"
"""A placeholder for the text colour of the page, `var(--ink)`, which differs between the light and the dark style."""
GRID = "#010204"
CARD = "#010206"
"""A placeholder for the background colour of a figure."""
SERIES = tuple(f"#01{i:02x}05" for i in range(1, 8))
"""Placeholders for the seven series colours, `var(--series-1)` and so on, which are safe for colour blindness."""
VARIABLES: Mapping[str, str] = {
    INK: "var(--ink)",
    GRID: "var(--grid)",
    CARD: "var(--card)",
    **{color: f"var(--series-{i})" for i, color in enumerate(SERIES, 1)},
}

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lamella",
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign, not a formula
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.color": GRID,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
}


@contextmanager
def drawing(width: float, height: float) -> "Iterator[Figure]":
    """Create a figure of `width` x `height` inches in the style of the page, without a window or global state."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure


def to_svg(figure: "Figure", name: str, title: str) -> str:
    """Convert a figure to an `<svg>` element for an HTML page. Call it inside the context of `drawing`.

    Args:
        figure: the figure.
        name: a prefix for all ids of the figure, unique on the page.
        title: the description for screen readers.
    """
    page = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(page, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(page.getvalue())
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", title)
    for element in root.iter():
        for key, value in element.attrib.items():
            element.set(key, _own(key, value, name))
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _own(key: str, value: str, name: str) -> str:
    """Convert an attribute: ids get the prefix, colours and fonts become those of the page."""
    if key == "id":
        return f"{name}-{value}"
    if key == f"{{{_XLINK}}}href":
        return value.replace("#", f"#{name}-", 1)
    if key == "aria-label":
        return value
    value = _REFERENCE.sub(rf"url(#{name}-\1)", value)
    for color, variable in VARIABLES.items():
        value = value.replace(color, variable)
    return re.sub(r"(font: [^;]*px) [^;]*", r"\1 system-ui, sans-serif", value)
