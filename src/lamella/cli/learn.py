"""`lamella learn`: teach the model in a folder its next task."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lamella.cli.arguments import (
    Device,
    LabelColumn,
    Layout,
    Model,
    Samples,
    TextColumn,
    Untrusted,
    Wait,
    read_options,
    say_once,
)
from lamella.cli.learn_messages import say_expected, say_found, say_known, say_resumed, say_took
from lamella.cli.output import say
from lamella.common.words import many

if TYPE_CHECKING:
    from lamella.data.sources.readable import ReadableData
    from lamella.learner.config.wanted import Wanted
    from lamella.learner.folder import ModelFolder

__all__ = ["learn"]

UNTRAINED = "streaming-lda"
OTHERS = (
    "or choose another backbone with --backbone NAME or FOLDER; --bundled takes the one of the package, which is for "
    "digits and other small images"
)


def learn(
    model: Model,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Images: a folder CLASS/*.jpg, a CSV of paths and labels, or an npz archive. Texts: a CSV, TSV, JSONL "
            "or Parquet file with a column of texts and one of labels, or a folder CLASS/*.txt. Answers: such a file "
            "with columns prompt and response, or messages, or text alone.",
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...",
            help="Of a new model, such as method.epochs=5 or backbone.size=128.",
            show_default=False,
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Of a new model; also a FOLDER of timm, transformers or `lamella export`, NAME+FOLDER with a LoRA of "
            "PEFT, or a GGUF file for answers.",
            metavar="NAME",
            show_default="vit_tiny_patch16_224, all-MiniLM-L6-v2 for texts, SmolLM2 for answers",
        ),
    ] = None,
    bundled: Annotated[
        bool,
        typer.Option("--bundled", help="Take the small backbone of the package: for digits and other small images."),
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(
            help="Of a new model, with its parts; plain inflora has none. FILE.py:CLASS is a method of your own.",
            metavar="NAME",
            show_default="seq-lora+mean_weights+align, bundled inflora+align, for texts ranpac, for answers inflora",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="The settings of a new model: a configuration of `lamella list configs`, or a TOML file.",
            metavar="NAME",
            show_default="photos, bundled small-images, for texts texts, for answers answers",
        ),
    ] = None,
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Leave the backbone as it is: short for --method streaming-lda.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(help="Of the task; a name that no task of this model has.", metavar="TASK", show_default="DATA's"),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Learn samples once more that were learned before; they count twice then.")
    ] = False,
    layout: Layout = None,
    samples: Samples = None,
    text: TextColumn = None,
    label: LabelColumn = None,
    wait: Wait = False,
    device: Device = None,
    untrusted: Untrusted = False,
    seed: Annotated[int | None, typer.Option(help="Of a new model.", show_default="0")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse DATA with files that cannot be read, instead of leaving them out.")
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Watch the folder DATA, and say of what comes into it whether it is a new task. Nothing is learned.",
        ),
    ] = False,
    teach: Annotated[bool, typer.Option("--teach", help="With --watch: learn what is proposed as a new task.")] = False,
) -> None:
    """Teach a model the classes of DATA, or its answers.

    They become its next task. The first use creates the model. Earlier data is not needed, and no image or text is
    kept. Samples that it has learned before, under whatever file name, are left out.
    """
    from lamella.backbones.gguf_files import is_gguf
    from lamella.backbones.weight_files import WeightsNotFound
    from lamella.common.progress import bars
    from lamella.data.sources.readable import load_readable
    from lamella.learner.config.new_config import BUNDLED
    from lamella.learner.config.wanted import Wanted
    from lamella.learner.folder import ModelFolder

    for setting in settings or ():
        if "=" not in setting:
            raise ValueError(
                f"'{setting}' is no setting KEY=VALUE; to learn several folders, run the command once for each of them"
            )
    if bundled and backbone:
        raise ValueError(f"--bundled and --backbone {backbone} are two backbones; leave one of them out")
    if no_train and method:
        raise ValueError(f"--no-train and --method {method} are two methods; leave one of them out")
    if teach and not watch:
        raise ValueError("--teach belongs to --watch; without it DATA is learned anyway")
    if watch and (name or again):
        raise ValueError(
            f"--watch may find many tasks, so {'--name' if name else '--again'} cannot be given; leave it out"
        )
    wanted = Wanted(
        BUNDLED if bundled else backbone,
        UNTRAINED if no_train else method,
        seed,
        tuple(settings or ()),
        config,
    )

    def read(data: str = data) -> "ReadableData":
        takes = "answer" if is_gguf(backbone or "") else _takes(model, settings or (), config)
        found = load_readable(data, takes=takes, **read_options(layout, samples, text, label))
        if strict and found.unreadable:
            first = f"the first is {found.unreadable[0].key}: {found.unreadable[0].reason}"
            left_out = many(len(found.unreadable), found.whole.train.noun)
            raise ValueError(f"{left_out} of '{data}' cannot be read, {first}; replace or remove")
        return found

    folder = ModelFolder(model, device=device, waiting=say_once() if wait else None, trusted=not untrusted)

    def teach_it(data: str) -> None:
        with folder.learning(lambda: read(data), wanted=wanted, name=name, again=again) as learning:
            say_found(learning)
            say_resumed(learning)
            if learning.stored:
                return
            expected = None if learning.resumed.goes_on else say_expected(learning)
            started = time.monotonic()
            learning.run(progress=bars)
            say_took(learning, time.monotonic() - started, expected)
            say_known(learning)

    try:
        if watch:
            _watch(folder, Path(data), read, wanted, teach_it if teach else None)
        else:
            teach_it(data)
    except WeightsNotFound as error:
        if "--backbone" in str(error):  # an encoder of texts, whose message says what else there is
            raise
        raise FileNotFoundError(f"{error}; {OTHERS}") from error
    except KeyboardInterrupt:
        say(f"'{model}' is unchanged; the same command resumes where this one stopped", err=True)
        raise


def _watch(
    folder: "ModelFolder",
    data: Path,
    read: "Callable[[str], ReadableData]",
    wanted: "Wanted",
    teach: Callable[[str], None] | None,
) -> None:
    """Watch a folder for a model that is there."""
    from lamella.cli.watch import watch
    from lamella.learner.proposals import Lookout

    opened = folder.open(wanted if folder.version else None)  # what the model is not set to is refused at once
    looking = {folder.version: Lookout(opened)}

    def lookout() -> Lookout:
        if (version := folder.version) not in looking:
            looking.clear()
            looking[version] = Lookout(folder.open())
        return looking[version]

    watch(
        data,
        lambda place: read(str(place)),
        lookout,
        None if teach is None else lambda place: teach(str(place)),
        command=lambda place: f"lamella learn {folder.path} {place}",
    )


def _takes(model: Path, settings: Sequence[str], config: str | None) -> str:
    """Return "answer" where the model is one of answers, or will be by its settings; else ""."""
    from lamella.learner.config.document import read_document
    from lamella.learner.store.versions import holds_model, load_manifest

    known = load_manifest(model)["config"] if holds_model(model) else read_document(config) if config else {}
    asked = any(setting.startswith("backbone.output=") for setting in settings)
    return "answer" if asked or "output" in known.get("backbone", {}) else ""
