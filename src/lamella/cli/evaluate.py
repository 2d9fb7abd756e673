"""`lamella evaluate`: measure a model on labelled images."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lamella.cli.arguments import Device, LabelColumn, Layout, Model, Samples, TextColumn, Untrusted, read_options
from lamella.cli.output import say

__all__ = ["evaluate"]


def evaluate(
    model: Model,
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="As for learn: a folder or a file of labelled images or texts.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page as well.", metavar="FILE")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the confusion matrix.", metavar="FILE")] = None,
    layout: Layout = None,
    samples: Samples = None,
    text: TextColumn = None,
    label: LabelColumn = None,
    device: Device = None,
    untrusted: Untrusted = False,
) -> None:
    """Measure a model on labelled images or texts.

    Reports accuracy by class and task, calibration, and confusion, and whether classes it never learned are called
    unknown. If DATA has a test part, only that is measured. If the model learned from DATA, only the held-back
    part is.
    """
    from lamella.common.files import write_atomic
    from lamella.common.page import check_file
    from lamella.learner.confidence import UNKNOWN
    from lamella.learner.inspection.evaluation import evaluate as evaluated
    from lamella.learner.inspection.evaluation import images_to_measure
    from lamella.learner.inspection.pages import evaluation_page
    from lamella.learner.inspection.text import evaluation_text, facts
    from lamella.learner.model import load

    for file in (html, png):
        if file is not None:
            check_file(file)
    learned = load(model, device=device, trusted=not untrusted)
    images, names, part = images_to_measure(data, learned, **read_options(layout, samples, text, label))
    measured = evaluated(learned, images, names, unknown_below=UNKNOWN)
    what = f"{data}: {part}"
    if as_json:
        typer.echo(json.dumps({"data": data, "part": part, **facts(measured)}, indent=2, ensure_ascii=False))
    else:
        typer.echo(evaluation_text(measured, what, images.noun).rstrip())
    if html is not None:
        write_atomic(html, evaluation_page(measured, str(model), what, images.noun).encode())
        say(f"page: {html}", err=True)
    if png is not None:
        from lamella.learner.inspection.figures import confusion_png

        write_atomic(png, confusion_png(measured))
        say(f"picture: {png}", err=True)
