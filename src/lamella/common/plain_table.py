"""Plain-text tables for the terminal."""

import io
from collections.abc import Iterable, Sequence

from lamella.common.printable import printable

__all__ = ["WIDEST", "plain_table"]

WIDEST = 200
"""The maximal width of a table, unless another is asked for."""


def plain_table(heads: Sequence[str], rows: Iterable[Sequence[str]], width: int = WIDEST) -> str:
    """Format a table, as wide as its cells need.

    Cells are printed literally: they are not read as markup, and control characters are escaped.

    Args:
        heads: the heading of each column.
        rows: the cells of each row.
        width: the maximal width of the table in characters; wider cells are folded.
    """
    from rich.console import Console
    from rich.table import Table

    table, page = Table(*map(printable, heads)), io.StringIO()
    for row in rows:
        table.add_row(*map(printable, row))
    Console(file=page, width=width, color_system=None, highlight=False, markup=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"
