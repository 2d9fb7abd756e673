"""`lamella inspect`: show the facts of a model."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lamella.cli.arguments import Device, Model
from lamella.cli.output import say

__all__ = ["inspect"]


def inspect(
    model: Model,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page as well.", metavar="FILE")] = None,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", help="Add settings, sizes, free directions of each layer, and the overlap of tasks."),
    ] = False,
    device: Device = None,
) -> None:
    """Show what a model has learned, and how much still fits.

    Lists its tasks, and says how many more fit, what happens then, and what to do. The weights of the backbone are not
    needed.
    """
    from lamella.common.files import write_atomic
    from lamella.common.page import check_file
    from lamella.learner.inspection.facts import inspect as inspected
    from lamella.learner.inspection.facts import origins
    from lamella.learner.inspection.pages import inspection_page
    from lamella.learner.inspection.text import facts, inspection_text
    from lamella.learner.model import load

    if html is not None:
        check_file(html)
    opened = load(model, device=device, only_facts=True)
    found, noun = inspected(opened, origins(model)), opened.backbone.transform.noun
    if as_json:
        typer.echo(json.dumps(facts(found), indent=2, ensure_ascii=False))
    else:
        typer.echo(inspection_text(found, noun, verbose=verbose).rstrip())
    if html is not None:
        write_atomic(html, inspection_page(found, str(model), noun).encode())
        say(f"page: {html}", err=True)
