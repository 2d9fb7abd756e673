"""`lamella demo`."""

from pathlib import Path
from typing import Annotated

import typer

from lamella.cli.output import say

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the runs and the page.")] = Path("lamella-demo"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """See it learn without forgetting.

    Handwritten digits arrive two by two; four methods learn them, side by side. Under a minute, no download.
    """
    from lamella.experiments.demo import demo as run_demo
    from lamella.experiments.report import load_results, render_table

    page = run_demo(out, quiet=quiet)
    typer.echo(render_table(load_results([out]), "table"))
    say(f"page: {page}")
