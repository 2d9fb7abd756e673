"""`lamella evaluate`: measure a model on labelled images or texts, or on answers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from lamella.cli.arguments import Device, LabelColumn, Layout, Model, Samples, TextColumn, Untrusted, read_options
from lamella.cli.output import say, say_few_held_back

__all__ = ["evaluate"]


def evaluate(
    model: Model,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="As for learn: a folder or a file of labelled images or texts, or answers."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page as well.", metavar="FILE")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the confusion matrix.", metavar="FILE")] = None,
    layout: Layout = None,
    samples: Samples = None,
    text: TextColumn = None,
    label: LabelColumn = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=0, help="Of a written answer, at most; 0 writes none.", metavar="N", show_default="128"),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="A text that ends a written answer; repeatable.", metavar="TEXT", show_default=False),
    ] = None,
    choice: Annotated[
        list[str] | None,
        typer.Option(
            help="An answer to choose from, where a row has no column choices; repeatable.",
            metavar="TEXT",
            show_default=False,
        ),
    ] = None,
    written: Annotated[
        Path | None,
        typer.Option(help="Write each prompt, answer and score as a line of JSON.", metavar="FILE", show_default=False),
    ] = None,
    device: Device = None,
    untrusted: Untrusted = False,
) -> None:
    """Measure a model on labelled images or texts, or on answers.

    Reports accuracy by class and task, calibration, and confusion, and whether classes it never learned are called
    unknown. Of answers, it reports what they cost, and how like the references those are that the model writes. If DATA
    has a test part, only that is measured. If the model learned from DATA, only the held-back part is.
    """
    from lamella.cli.evaluate_answers import evaluate_answers
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
    of_answers = {"--max-tokens": max_tokens, "--stop": stop, "--choice": choice, "--written": written}
    of_classes = {"--html": html, "--png": png}
    is_of_answers = learned.backbone.transform.noun == "answer"
    _check_options(model, of_classes if is_of_answers else of_answers, is_of_answers)
    found = images_to_measure(data, learned, **read_options(layout, samples, text, label))
    if is_of_answers:
        evaluate_answers(
            learned,
            found,
            data,
            max_tokens=128 if max_tokens is None else max_tokens,
            stop=stop or (),
            choices=choice or (),
            written=written,
            as_json=as_json,
        )
        return
    images, names, part = found
    measured = evaluated(learned, images, names, unknown_below=UNKNOWN)
    if measured.unknown_below is not None:
        say_few_held_back(model, learned.confidence.images, images.noun)
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


def _check_options(model: Path, options: Mapping[str, object], is_of_answers: bool) -> None:
    """Raise ValueError where an option is given that models of this kind have no use for."""
    kind, other = ("answers", "classes") if is_of_answers else ("classes", "answers")
    if given := [name for name, value in options.items() if value is not None]:
        instead = "; --written has each answer" if is_of_answers else ""
        raise ValueError(
            f"'{model}' is a model of {kind}, and {given[0]} is for those of {other}; leave it out{instead}"
        )
