"""`lamella demo`."""

from pathlib import Path
from typing import Annotated

import typer

from lamella.cli.output import say

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the runs and the page.")] = Path("lamella-demo"),
    text: Annotated[bool, typer.Option("--text", help="Learn requests to a service desk instead of digits.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """See it learn without forgetting.

    Handwritten digits arrive two by two; four methods learn them, side by side. About a minute, no download.

    With --text fifteen kinds of requests, which a small grammar has written, arrive three by three, four texts of each.
    Three methods learn them on hashed words, a backbone without weights, and on an encoder of texts where this machine
    has the usual one.
    """
    from lamella.experiments.demo import demo as run_demo
    from lamella.experiments.report import load_results, render_table

    folder = out / "text" if text else out
    page = run_demo(folder, texts=text, quiet=quiet)
    typer.echo(render_table(load_results([folder]), "table"))
    say(f"page: {page}")
