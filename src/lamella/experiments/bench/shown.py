"""Prints the table of a benchmark and writes it as JSON."""

from pathlib import Path
from typing import TYPE_CHECKING

from lamella.common.files import write_json

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["show"]


def show(table: "Table", name: str, *, out: Path = Path("runs/benchmarks"), width: int = 120) -> None:
    """Print a table, and write its title and rows to OUT/NAME.json.

    Args:
        table: the table.
        name: the name of the benchmark.
        out: the folder of the JSON file.
        width: the width of the printed table in characters.
    """
    from rich.console import Console

    Console(width=width).print(table)
    heads = [str(column.header) for column in table.columns]
    rows = zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True)
    file = out / f"{name}.json"
    write_json(file, {"title": str(table.title or ""), "rows": [dict(zip(heads, row, strict=True)) for row in rows]})
    print(f"written to {file}")
