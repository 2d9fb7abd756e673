"""`lamella list` and `lamella layers`: the known methods, data sets, backbones and configurations, and layers."""

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import typer

from lamella.cli.output import say

__all__ = ["layers", "list_known"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def list_known(
    what: Annotated[
        Literal["methods", "data", "backbones", "configs"] | None,
        typer.Argument(help="One kind only.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List methods, data sets, backbones, configurations."""
    kinds = [what] if what else list(KINDS)
    known = {kind: KINDS[kind]() for kind in kinds}
    if as_json:
        rows = {kind: [{"name": n, "description": d} for n, d in entries.items()] for kind, entries in known.items()}
        typer.echo(json.dumps(rows, indent=2))
        return
    for number, (kind, entries) in enumerate(known.items()):
        if not what:
            typer.echo(f"{chr(10) if number else ''}{kind}")
        _print_columns([(f"  {name}", description) for name, description in entries.items()])


def layers(
    backbone: Annotated[
        str,
        typer.Argument(
            metavar="BACKBONE", help="A name of `lamella list backbones`, any of timm's, or an encoder of texts."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """List the layers that can have branches.

    Each with its roles (query, key, value ...) and their output rows.
    No weights are downloaded: the layers are the same with random ones.
    """
    from lamella.backbones import describe_layers
    from lamella.backbones.from_folder import backbone_table

    rows = describe_layers(backbone_table(backbone)["name"])
    if not rows:
        raise ValueError(
            f"no layer of '{backbone}' has a known role, so none can have branches; use a ViT of timm or an encoder"
        )
    if as_json:
        typer.echo(json.dumps([row._asdict() for row in rows], indent=2))
        return
    heads = ("layer", "inputs", "outputs", "roles: rows", "")
    lines = [
        (
            row.name,
            str(row.d_in),
            str(row.d_out),
            _roles(row.roles, row.rows),
            "" if row.called else "not called: a branch does nothing",
        )
        for row in rows
    ]
    _print_columns([heads, *lines])


def _roles(roles: Sequence[str], rows: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{role}: {start}-{stop - 1}" for role, (start, stop) in zip(roles, rows, strict=True))


def _methods() -> dict[str, str]:
    from lamella.learner.config.registry import names
    from lamella.methods import ALIASES, WHOLE_STREAM

    at_once = "All tasks at once: an upper bound for methods that learn them one after the other."
    known = {name: at_once if name in WHOLE_STREAM else _about_method(name) for name in names()}
    for name, (method, settings) in ALIASES.items():
        known[name] = f"Another name for {method} with {', '.join(f'{key} = {v}' for key, v in settings.items())}."
    return known


def _about_method(name: str) -> str:
    from lamella.learner.config.registry import find

    try:
        return _first_line(find(name))
    except ValueError as error:  # of a package that cannot be imported
        return f"Cannot be used: {error}"


def _data() -> dict[str, str]:
    from lamella.data.sources.load import SOURCES

    return dict(SOURCES)


def _backbones() -> dict[str, str]:
    from lamella.backbones import BACKBONES

    return dict(BACKBONES)


def _configs() -> dict[str, str]:
    from lamella.learner.config.document import describe_config, shipped_configs

    return {name: describe_config(path) for name, path in shipped_configs().items()}


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "methods": _methods,
    "data": _data,
    "backbones": _backbones,
    "configs": _configs,
}


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print left-aligned columns. Cells are never truncated, so a pipe receives complete names."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
