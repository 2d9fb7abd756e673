"""`lamella correct` and `lamella remove`: what was learned wrongly, or should not have been."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lamella.cli.arguments import Device, LabelColumn, Model, TextColumn, Untrusted, Wait, say_once
from lamella.cli.output import say
from lamella.common.words import many

if TYPE_CHECKING:
    from lamella.learner.corrections import Corrected
    from lamella.learner.model import Model as LearnedModel

__all__ = ["correct", "remove"]

WholeClasses = Annotated[
    bool, typer.Option("--whole-classes", help="Also take out classes of which nothing would be left.")
]


def correct(
    model: Model,
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE", help="A table as for learn, with one more column, right: the right label of each sample."
        ),
    ],
    text: TextColumn = None,
    label: LabelColumn = None,
    whole_classes: WholeClasses = False,
    wait: Wait = False,
    device: Device = None,
    untrusted: Untrusted = False,
) -> None:
    """Correct the labels of images or texts that a model has learned, exactly, as if it had learned them so.

    This is possible where a method keeps only sums of features that stay as they are (nearest-mean, streaming-lda,
    ranpac); else the command refuses and says what learning anew would cost. A correction makes a new version.
    """

    def how(learned: "LearnedModel") -> "Corrected":
        from lamella.data.sources.pointed import read_corrections
        from lamella.learner import corrections

        given = read_corrections(table, learned.backbone.transform.noun, text=text, label=label)
        return corrections.correct(learned, given, whole_classes=whole_classes)

    _changed(model, how, "corrected", wait, device, untrusted)


def remove(
    model: Model,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Files and folders of images or texts, or tables of them."),
    ],
    text: TextColumn = None,
    whole_classes: WholeClasses = False,
    known_only: Annotated[
        bool, typer.Option("--known-only", help="Leave out what was never learned, instead of refusing it.")
    ] = False,
    wait: Wait = False,
    device: Device = None,
    untrusted: Untrusted = False,
) -> None:
    """Take images or texts out of a model, exactly, as if it had never learned them. They must be at hand.

    The model knows them by their content. This is possible where a method keeps only sums of features that stay as they
    are (nearest-mean, streaming-lda, ranpac); else the command refuses and says what learning anew would cost. Earlier
    versions still hold them.
    """

    def how(learned: "LearnedModel") -> "Corrected":
        from lamella.data.sources.pointed import pointed_at
        from lamella.learner import corrections

        given = pointed_at(paths, learned.backbone.transform.noun, text=text)
        return corrections.remove(learned, given, whole_classes=whole_classes, known_only=known_only)

    _changed(model, how, "removed", wait, device, untrusted)


def _changed(
    model: Path, how: "Callable[[LearnedModel], Corrected]", verb: str, wait: bool, device: str | None, untrusted: bool
) -> None:
    """Change a model, and say what was changed."""
    from lamella.learner.folder import ModelFolder

    done: list[Corrected] = []
    folder = ModelFolder(model, device=device, waiting=say_once() if wait else None, trusted=not untrusted)
    # A version without some samples must not need the files of one that has them.
    version = folder.change(
        lambda learned: done.append(how(learned)), lambda: f"{verb} {many(done[0].samples, done[0].noun)}", whole=True
    )
    found = done[0]
    counted = [f"{found.trained:,} in what was learned"] * bool(found.trained)
    counted += [f"{found.held_back:,} held back"] * bool(found.held_back)
    say(f"{model}: {verb} {many(found.samples, found.noun)} ({', '.join(counted)}); this is version {version}")
    if found.left_out:
        say(f"  left out, never learned: {many(found.left_out, found.noun)}")
    if found.gone:
        say(f"  nothing is left of, so no class any more: {', '.join(found.gone)}")
    say("  earlier versions still hold what was: lamella rollback undoes this, lamella prune --keep 1 deletes them")
