"""`lamella classes`: list, rename, merge and drop the classes of a model."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from lamella.cli.arguments import Model, Untrusted, Wait, say_once
from lamella.cli.output import say

if TYPE_CHECKING:
    from lamella.learner.model import Model as LearnedModel

__all__ = ["classes"]

FORMS = {"rename": ("OLD", "NEW"), "merge": ("FROM", "INTO"), "drop": ("NAME",)}
"""What can be done with classes, and the names that it needs."""


def classes(
    model: Model,
    change: Annotated[
        str | None, typer.Argument(metavar="[rename|merge|drop]", help="What to do; left out, the classes are listed.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="OLD NEW, or FROM INTO, or NAME.", show_default=False)
    ] = None,
    wait: Wait = False,
    untrusted: Untrusted = False,
) -> None:
    """List the classes of a model, or change them without images. A change makes a new version.

    Any class can be renamed. Merging and dropping must be exact, so a method refuses them where weights were trained on
    the images of the class.
    """
    from lamella.learner.store.versions import load_manifest

    if "output" in load_manifest(model)["config"].get("backbone", {}):
        raise ValueError(f"'{model}' writes answers and knows no classes; lamella inspect shows what it has learned")
    if change is None:
        _list(model)
        return
    if change not in FORMS:
        raise ValueError(f"'{change}' is unknown; use {', '.join(FORMS)}, or nothing to list the classes")
    given = names or []
    if len(given) != len(FORMS[change]):
        raise ValueError(f"{change} needs {' '.join(FORMS[change])}, but got {' '.join(given) or 'nothing'}")
    from lamella.learner.folder import ModelFolder

    folder = ModelFolder(model, waiting=say_once() if wait else None, trusted=not untrusted)
    done = {"rename": "renamed {0} to {1}", "merge": "merged {0} into {1}", "drop": "dropped {0}"}[change]
    # A version without a class must not need the files of one that has it.
    version = folder.change(_change(change, given), done.format(*given), whole=change != "rename")
    say(f"{model}: {done.format(*given)}; this is version {version}")


def _change(change: str, names: list[str]) -> "Callable[[LearnedModel], None]":
    from lamella.learner import classes as own

    functions: dict[str, Callable[..., None]] = {
        "rename": own.rename_class,
        "merge": own.merge_classes,
        "drop": own.drop_class,
    }
    return lambda learned: functions[change](learned, *names)


def _list(model: Model) -> None:
    from lamella.common.plain_table import plain_table
    from lamella.learner.store.versions import load_manifest

    manifest = load_manifest(model)
    rows = [
        (name, ", ".join(task["name"] for task in manifest["tasks"] if i in task["classes"]))
        for i, name in manifest["class_names"]
    ]
    typer.echo(plain_table(("class", "learned with"), rows), nl=False)
