"""A table for the terminal."""

import io
from collections.abc import Iterable, Sequence

from lamella.common.printable import printable

__all__ = ["plain_table"]

WIDEST = 200
"""Characters beyond which cells are folded."""


def plain_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """As wide as it needs to be, each cell as it is given: nothing in it is markup, nor can it command the terminal."""
    from rich.console import Console
    from rich.table import Table

    table, page = Table(*map(printable, heads)), io.StringIO()
    for row in rows:
        table.add_row(*map(printable, row))
    Console(file=page, width=WIDEST, color_system=None, highlight=False, markup=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"
