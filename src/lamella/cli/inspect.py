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
    device: Device = None,
) -> None:
    """Show what a model has learned, and how much still fits.

    Lists its tasks, the free directions of each layer, a forecast of how many tasks still fit, and the overlap of
    tasks.
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
    opened = load(model, device=device)
    found, noun = inspected(opened, origins(model)), opened.backbone.transform.noun
    told = json.dumps(facts(found), indent=2, ensure_ascii=False) if as_json else inspection_text(found, noun).rstrip()
    typer.echo(told)
    if html is not None:
        write_atomic(html, inspection_page(found, str(model), noun).encode())
        say(f"page: {html}", err=True)
