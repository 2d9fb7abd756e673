"""`lamella report`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lamella.cli.output import say

__all__ = ["report"]


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Run directories, or folders of them.")],
    format: Annotated[
        Literal["table", "markdown", "csv", "json"], typer.Option(help="Format of the output.")
    ] = "table",
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page as well.", metavar="FILE")] = None,
    across_splits: Annotated[
        bool, typer.Option("--across-splits", help="Pool seeds whose class order or split differs.")
    ] = False,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="Also show paired differences between methods, and ranks over streams."),
    ] = False,
    costs: Annotated[
        bool, typer.Option("--costs", help="Also show trained parameters, stored bytes, training time and passes.")
    ] = False,
) -> None:
    """Compare finished runs in a table.

    Accuracies are means over seeds with standard deviations, for each method and scenario. With --pairs, methods are
    compared within each seed and split that both have, and a difference that is noise is called so.
    """
    from lamella.experiments.report import load_results, render_table, write_html

    results = load_results(runs)
    text = render_table(results, format, across_splits=across_splits, costs=costs, paired=pairs)
    typer.echo(text.rstrip("\n"))
    if html is not None:
        say(f"page: {write_html(results, html, across_splits=across_splits)}", err=True)
