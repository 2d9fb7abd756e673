"""`lamella predict`: name the classes of images or texts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lamella.cli.arguments import FROM_STDIN, Address, Device, Model, Resource, Untrusted
from lamella.cli.output import say, say_few_held_back, say_uncalibrated
from lamella.cli.predict_rows import as_csv as as_csv_page
from lamella.cli.predict_rows import line_of, row_of
from lamella.common.words import many

if TYPE_CHECKING:
    from lamella.cli.predict_parts import Engine
    from lamella.learner.learner import Learner

__all__ = ["predict"]


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
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write very many images part by part into this folder, as CSV or with --json as lines of JSON. PATH "
            "may be a URL of fsspec. The same command goes on after a stop.",
            show_default=False,
        ),
    ] = None,
    part: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="With --out: images of a part.", show_default="1000"),
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="With --out: this process does share I of N.", show_default="all parts"),
    ] = None,
    on: Annotated[
        str,
        typer.Option("--engine", help="With --out: local (this process) or ray (Ray Data).", metavar="NAME"),
    ] = "local",
    address: Address = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --engine ray: parts at a time, each in its own process.",
            metavar="N",
            show_default="as many as there is room for",
        ),
    ] = None,
    resource: Resource = None,
    device: Device = None,
    untrusted: Untrusted = False,
) -> None:
    """Name the class of each image or text. What cannot be read is named at the end, and the exit status is then 1.

    The output has confidences, the task that taught the class, and how familiar the sample is.
    """
    given = {"--part": part, "--share": share, "--engine": None if on == "local" else on, "--address": address}
    _check_parts(paths or (), out, given | {"--processes": processes, "--resource": resource or None})
    if as_json and as_csv:
        raise ValueError("--json and --csv cannot be combined; choose one")
    if not paths and not text:
        raise ValueError("there is nothing to predict; give files or folders, or for a model of texts --text")
    from lamella.cli.predict_inputs import asked_images, asked_texts, check_paths
    from lamella.learner.learner import Learner

    if out is None:
        check_paths(paths or ())
    else:
        if share and on == "ray":
            raise ValueError("engine 'ray' shares the parts out itself; leave out --share")
        engine = _engine(on, address, processes, resource or (), (str(model), device, not untrusted))
    learner = Learner.load(model, device=device, trusted=not untrusted)
    noun = learner.backbone.transform.noun
    if noun == "answer":
        raise ValueError(f"'{model}' writes answers and knows no classes; use lamella generate")
    if unknown and not learner.confidence.images:
        raise ValueError(f"'{model}' has no held-back {noun}s, so it cannot tell what is unknown; leave out --unknown")
    say_uncalibrated(model, learner.confidence.images, noun)
    if unknown:
        say_few_held_back(model, learner.confidence.images, noun)
    if out is not None:
        if noun != "image":
            raise ValueError(f"--out is for very many images, and '{model}' takes {noun}s; leave it out")
        if text or column:
            raise ValueError("--text and --column are for texts, and --out is for images; leave them out")
        from lamella.cli.predict_parts import PART, Form, read_share

        form = Form(top, unknown, as_json)
        options = {"size": part or PART, "share": read_share(share), "engine": engine}
        _write_parts(learner, paths or [], out, form=form, **options)
        return
    if noun == "text":
        asked = asked_texts(paths or (), text or (), column)
    elif text or column:
        raise ValueError(f"'{model}' learns from {noun}s, and --text and --column are for texts; leave them out")
    else:
        asked = asked_images(paths or ())
    predictions = learner.predict(asked.data, top=top) if len(asked.data) else []
    rows = [row_of(named, prediction, unknown) for named, prediction in zip(asked.named, predictions, strict=True)]
    broken = [{"path": name, "error": reason} for name, reason in asked.broken]
    if as_json:
        typer.echo(json.dumps([*rows, *broken], indent=2))
    elif as_csv:
        # Written as bytes, because file names need not be valid UTF-8 and must stay unchanged.
        typer.echo(as_csv_page(rows, noun).encode(errors="surrogateescape"), nl=False)
    else:
        for row in rows:
            say(line_of(row))
    if not rows and not broken:
        say(f"no {noun} in what was given, so nothing is predicted", err=True)
    for row in broken:
        say(f"{row['path']}: cannot be read: {row['error']}", err=True)
    if broken:
        raise typer.Exit(1)


def _check_parts(paths: Sequence[str], out: Path | None, given: Mapping[str, object]) -> None:
    """Raise ValueError where options of `--out` are given without it, or it without what it needs."""
    if out is None:
        if names := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{names[0]} belongs to --out, which writes images part by part; leave it out")
    elif not paths:
        raise ValueError("--out writes the classes of images part by part; give folders, files or URLs of images")
    elif FROM_STDIN in paths:
        raise ValueError("--out reads no paths from stdin, since the same command must find them again; give a folder")


def _engine(
    name: str, address: str | None, processes: int | None, resources: Sequence[str], asked: tuple[str, str | None, bool]
) -> "Engine | None":
    """Return what writes the parts, None where it is this process, or raise ValueError where it cannot be had."""
    from lamella.experiments.sweep.engines import check_engine

    more = "start several commands, each with its --share"
    resources_of_each = check_engine(name, ("local", "ray"), address, resources, more)
    if name == "ray":
        from lamella.cli.predict_on_ray import Asked, RayActors

        return RayActors(Asked(*asked), address, processes, resources_of_each)
    if processes is not None:
        raise ValueError(f"engine 'local' is this process; leave out --processes, or {more}")
    return None


def _write_parts(learner: "Learner", paths: list[str], out: Path, **options: Any) -> None:
    """Write the parts of `--out`, and say how many."""
    from lamella.cli.predict_parts import write_parts
    from lamella.common.progress import bars

    done = write_parts(learner, paths, out, progress=bars, **options)
    there = f" ({many(done.there, 'part')} were there)" if done.there else ""
    say(f"wrote {many(done.written, 'part')} to {out}{there}: {many(done.images, 'image')}")
    if done.broken:
        say(f"{many(done.broken, 'file')} cannot be read; the column error says why", err=True)
        raise typer.Exit(1)
