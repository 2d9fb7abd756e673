"""`lamella merge`: make one adapter of several."""

from pathlib import Path
from typing import Annotated

import typer

from lamella.cli.arguments import Untrusted
from lamella.cli.output import say
from lamella.common.words import many

__all__ = ["merge"]


def merge(
    adapters: Annotated[
        list[Path], typer.Argument(metavar="ADAPTER...", help="Models, or folders that PEFT saved a LoRA in.")
    ],
    out: Annotated[Path, typer.Option(metavar="PATH", help="A new folder.")],
    rule: Annotated[
        str,
        typer.Option(metavar="NAME", help="sum, mean, weighted, ties, dare, elect, iso-c, iso-cts, tsv or opcm."),
    ] = "tsv",
    weights: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="For weighted: one number for each adapter, such as 1,-0.5."),
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="For weighted, in place of --weights: a few labelled samples."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(metavar="NAME", help="For --samples: the network, where no adapter is a model.")
    ] = None,
    scale: Annotated[float, typer.Option(metavar="NUMBER", help="What the merged update is multiplied by.")] = 1.0,
    rank: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Truncate to this rank.", show_default="as it is")
    ] = None,
    keep: Annotated[float, typer.Option(metavar="SHARE", help="For ties: the share of entries that stay.")] = 0.2,
    drop: Annotated[float, typer.Option(metavar="SHARE", help="For dare: the share of entries that go.")] = 0.9,
    common: Annotated[
        float, typer.Option(metavar="SHARE", help="For iso-cts: the share of directions in common.")
    ] = 0.8,
    strong: Annotated[
        float, typer.Option(metavar="SHARE", help="For opcm: the share of strength that is protected.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="For dare.")] = 0,
    untrusted: Untrusted = False,
) -> None:
    """Merge adapters of one network into one, as a folder that PEFT loads.

    Classifiers are left out: each was trained for its own classes. For opcm the adapters are in the order of learning.
    With --samples the weights are searched (CMA-ES): those with which the nearest class mean tells the samples apart
    best, or, of a language model, those with which its answers cost least.
    """
    from lamella.adapters.merging import RULES, Merging
    from lamella.common.checks import check_one_of
    from lamella.common.progress import bars
    from lamella.learner.merge.folder import OF_FOLDERS, merge_folders

    if rule not in RULES:  # what is a rule, but not one of folders, has a message of its own
        check_one_of("rule", rule, OF_FOLDERS)
    merging = Merging(rule, scale, keep, drop, common, strong)
    lines = merge_folders(
        adapters,
        out,
        merging,
        weights=_numbers(weights),
        samples=samples,
        backbone=backbone,
        rank=rank,
        seed=seed,
        trusted=not untrusted,
        progress=bars,
    )
    for line in (f"wrote {out} ({rule} of {many(len(adapters), 'adapter')})", *lines):
        say(line)


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--weights {text!r} is no list of numbers; write it as 1,0.5,-0.5") from None
