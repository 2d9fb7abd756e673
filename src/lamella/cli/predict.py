"""`lamella predict`: name the classes of images."""

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lamella.cli.arguments import Device, Model, Untrusted
from lamella.cli.output import say

if TYPE_CHECKING:
    from lamella.learner.learner import Prediction

__all__ = ["predict"]

STDIN = "-"


def predict(
    model: Model,
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Image files, folders of them, or - for paths from stdin.")
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes to name for each image.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, a line for each image.")] = False,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="Call an image unknown if it looks stranger than 19 of 20 known images.")
    ] = False,
    device: Device = None,
    untrusted: Untrusted = False,
) -> None:
    """Name the class of each image. Images that cannot be read are named at the end, and the exit status is then 1.

    The output has confidences, the task that taught the class, and how familiar the image is.
    """
    if as_json and as_csv:
        raise ValueError("--json and --csv cannot be combined; choose one")
    files = _files(paths)
    from lamella.data.images import Files, ImageSet
    from lamella.data.keeping import keep_readable
    from lamella.learner.learner import Learner

    learner = Learner.load(model, device=device, trusted=not untrusted)
    if unknown and not learner.confidence.images:
        raise ValueError(f"'{model}' has no held-back images, so it cannot tell what is unknown; leave out --unknown")
    found = keep_readable(ImageSet.unlabelled(Files(files)))
    there = [files[int(key)] for key in found.data.keys]
    predictions = learner.predict(found.data, top=top) if there else []
    rows = [_row(path, prediction, unknown) for path, prediction in zip(there, predictions, strict=True)]
    broken = [{"path": str(files[int(file.key)]), "error": file.reason} for file in found.unreadable]
    if as_json:
        typer.echo(json.dumps([*rows, *broken], indent=2))
    elif as_csv:
        # Written as bytes, because file names need not be valid UTF-8 and must stay unchanged.
        typer.echo(_csv(rows).encode(errors="surrogateescape"), nl=False)
    else:
        for row in rows:
            say(_line(row))
    for row in broken:
        say(f"{row['path']}: cannot be read: {row['error']}", err=True)
    if broken:
        raise typer.Exit(1)


def _files(paths: Sequence[str]) -> list[Path]:
    """List the image files that the paths name, in order.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder has no image.
    """
    from lamella.data.sources.files import list_images

    named = [line for path in paths for line in (_lines_of_stdin() if path == STDIN else [path]) if line]
    files: list[Path] = []
    for path in map(Path, named):
        if path.is_dir():
            files += list_images(path)
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f"no image file or folder '{path}'")
    return files


def _lines_of_stdin() -> list[str]:
    return os.fsdecode(sys.stdin.buffer.read()).splitlines()


def _row(path: Path, prediction: "Prediction", unknown: bool) -> dict[str, Any]:
    pairs = zip(prediction.classes, prediction.confidences, strict=True)
    classes = [{"name": name, "confidence": confidence} for name, confidence in pairs]
    row: dict[str, Any] = {"path": str(path), "classes": classes, "task": prediction.task}
    row["familiarity"] = prediction.familiarity
    if unknown and prediction.familiarity is not None:
        from lamella.learner.confidence import UNKNOWN

        row["unknown"] = prediction.familiarity < UNKNOWN
    return row


def _line(row: dict[str, Any]) -> str:
    named = ", ".join(f"{entry['name']} {entry['confidence']:.1%}" for entry in row["classes"])
    strange = f"unknown (familiarity {row['familiarity']:.1%}); nearest: " if row.get("unknown") else ""
    return f"{row['path']}: {strange}{named} (task: {row['task']})"


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    page = io.StringIO()
    extra = ["unknown"] if rows and "unknown" in rows[0] else []
    writer = csv.writer(page, lineterminator="\n")
    writer.writerow(["path", "class", "confidence", "task", "familiarity", *extra])
    for row in rows:
        best = row["classes"][0]
        more = [row[key] for key in extra]
        writer.writerow([row["path"], best["name"], best["confidence"], row["task"], row["familiarity"], *more])
    return page.getvalue()
