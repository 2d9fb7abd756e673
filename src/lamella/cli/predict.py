"""`lamella predict`: name the classes of images or texts."""

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lamella.cli.arguments import Device, Model, Untrusted
from lamella.cli.output import say

if TYPE_CHECKING:
    from lamella.cli.predict_inputs import Named
    from lamella.learner.learner import Prediction

__all__ = ["predict"]

SHOWN = 60  # characters of a text in a line


def predict(
    model: Model,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH...",
            help="Image files and folders of them, or - for paths from stdin. For a model of texts: tables and .txt "
            "files, or - for a text in each line of stdin.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="A text; repeatable.", metavar="TEXT", show_default=False)
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="Of the texts in tables.", metavar="NAME", show_default="text, sentence, utterance or query"),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to name for each sample.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, a line for each sample.")] = False,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="Call a sample unknown if it looks stranger than 19 of 20 known ones.")
    ] = False,
    device: Device = None,
    untrusted: Untrusted = False,
) -> None:
    """Name the class of each image or text. What cannot be read is named at the end, and the exit status is then 1.

    The output has confidences, the task that taught the class, and how familiar the sample is.
    """
    if as_json and as_csv:
        raise ValueError("--json and --csv cannot be combined; choose one")
    if not paths and not text:
        raise ValueError("there is nothing to predict; give files or folders, or for a model of texts --text")
    from lamella.cli.predict_inputs import asked_images, asked_texts, check_paths
    from lamella.learner.learner import Learner

    check_paths(paths or ())
    learner = Learner.load(model, device=device, trusted=not untrusted)
    noun = learner.backbone.transform.noun
    if noun == "answer":
        raise ValueError(f"'{model}' writes answers and knows no classes; use lamella generate")
    if unknown and not learner.confidence.images:
        raise ValueError(f"'{model}' has no held-back {noun}s, so it cannot tell what is unknown; leave out --unknown")
    if noun == "text":
        asked = asked_texts(paths or (), text or (), column)
    elif text or column:
        raise ValueError(f"'{model}' learns from {noun}s, and --text and --column are for texts; leave them out")
    else:
        asked = asked_images(paths or ())
    predictions = learner.predict(asked.data, top=top) if len(asked.data) else []
    rows = [_row(named, prediction, unknown) for named, prediction in zip(asked.named, predictions, strict=True)]
    broken = [{"path": name, "error": reason} for name, reason in asked.broken]
    if as_json:
        typer.echo(json.dumps([*rows, *broken], indent=2))
    elif as_csv:
        # Written as bytes, because file names need not be valid UTF-8 and must stay unchanged.
        typer.echo(_csv(rows, noun).encode(errors="surrogateescape"), nl=False)
    else:
        for row in rows:
            say(_line(row))
    if not rows and not broken:
        say(f"no {noun} in what was given, so nothing is predicted", err=True)
    for row in broken:
        say(f"{row['path']}: cannot be read: {row['error']}", err=True)
    if broken:
        raise typer.Exit(1)


def _row(named: "Named", prediction: "Prediction", unknown: bool) -> dict[str, Any]:
    pairs = zip(prediction.classes, prediction.confidences, strict=True)
    classes = [{"name": name, "confidence": confidence} for name, confidence in pairs]
    row: dict[str, Any] = {**named, "classes": classes, "task": prediction.task}
    row["familiarity"] = prediction.familiarity
    if unknown and prediction.familiarity is not None:
        from lamella.learner.confidence import UNKNOWN

        row["unknown"] = prediction.familiarity < UNKNOWN
    return row


def _line(row: dict[str, Any]) -> str:
    named = ", ".join(f"{entry['name']} {entry['confidence']:.1%}" for entry in row["classes"])
    strange = f"unknown (familiarity {row['familiarity']:.1%}); nearest: " if row.get("unknown") else ""
    return f"{row['path'] if 'text' not in row else _short(row['text'])}: {strange}{named} (task: {row['task']})"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def _csv(rows: Sequence[dict[str, Any]], noun: str) -> str:
    page = io.StringIO()
    extra = ["unknown"] if rows and "unknown" in rows[0] else []
    names = ["text", "path"] if noun == "text" else ["path"]
    writer = csv.writer(page, lineterminator="\n")
    writer.writerow([*names, "class", "confidence", "task", "familiarity", *extra])
    for row in rows:
        best = row["classes"][0]
        own, more = ([row[key] for key in keys] for keys in (names, extra))
        writer.writerow([*own, best["name"], best["confidence"], row["task"], row["familiarity"], *more])
    return page.getvalue()
