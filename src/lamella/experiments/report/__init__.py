"""Reports: result files of runs in, tables and one self-contained HTML page out.

Accuracies are fractions 0..1 in result files, CSV and JSON, and percent in everything made for reading.
"""

from pathlib import Path

from lamella.experiments.report.page import write_html
from lamella.experiments.report.summary import Row, Spread, Summary, summarise
from lamella.experiments.report.tables import FORMATS, render_table, to_csv, to_json, to_markdown, to_rich
from lamella.experiments.results_files import Result, load_results

__all__ = [
    "FORMATS",
    "Result",
    "Row",
    "Spread",
    "Summary",
    "load_results",
    "render_table",
    "summarise",
    "to_csv",
    "to_json",
    "to_markdown",
    "to_rich",
    "write_html",
    "write_report",
]


def write_report(paths: list[Path], *, html: Path, across_splits: bool = False) -> Path:
    """Write the page of the runs under `paths` to `html` and return where it is.

    Raises:
        FileNotFoundError, ValueError: see `load_results`.
        IsADirectoryError: `html` is a folder.
    """
    return write_html(load_results(paths), html, across_splits=across_splits)
