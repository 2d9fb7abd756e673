"""`lamella demo`: a frozen network learns task after task without forgetting, in about a minute, with no download."""

from collections.abc import Sequence
from pathlib import Path

from lamella.backbones import load_backbone
from lamella.backbones.hub import without_hub
from lamella.common.files import refuse_links
from lamella.experiments.run import run
from lamella.learner.config.document import load_config, method_name
from lamella.learner.config.new_config import start_tables

__all__ = ["DEMO", "TEXT_DEMO", "demo"]

DEMO: tuple[tuple[str, ...], ...] = (
    (),
    ("method.name=seq-lora", "method.align=false"),
    ("method.name=nearest-mean", "method.align=false"),
    ("method.name=joint", "method.align=false"),
)
"""Overrides of the configuration "digits": InfLoRA with alignment, and three methods to compare it with."""

FEW = "scenario.per_class=4"
"""With the 24 texts a class that the configuration has, every method names nearly all of these simple texts right."""

TEXT_DEMO: tuple[tuple[str, ...], ...] = (
    (FEW,),
    (FEW, "method.name=streaming-lda"),
    (FEW, "method.name=nearest-mean"),
)
"""Overrides of the configuration "requests": random projections of hashed words, and two methods beside them."""


def demo(out: Path, *, texts: bool = False, quiet: bool = False) -> Path:
    """Run a small stream with several methods and write a report. Finished runs are kept, so a second call shows them.

    Args:
        out: the folder of the runs and the report.
        texts: whether requests to a service desk are learned, instead of digits. The usual encoder of texts is compared
            with hashed words where this machine has it.
        quiet: whether to hide progress.

    Returns:
        The path of the HTML page.
    """
    from lamella.experiments.report import write_report

    if not texts:
        return write_report([_run("digits", overrides, out, quiet) for overrides in DEMO], html=out / "report.html")
    runs = [_run("requests", overrides, out, quiet) for overrides in TEXT_DEMO]
    if encoder := _encoder():
        runs += [_run("requests", (f"backbone.name={encoder}", *more), out / "encoder", quiet) for more in TEXT_DEMO]
    return write_report(runs, html=out / "report.html")


def _run(config: str, overrides: Sequence[str], out: Path, quiet: bool) -> Path:
    complete = load_config(config, list(overrides))
    folder = out / method_name(complete)
    refuse_links(folder)
    return run(complete, folder, resume=True, quiet=quiet)


def _encoder() -> str:
    """Return the name of the encoder that new models of texts start with, if it is on this machine; else ""."""
    name = str(start_tables("texts")["backbone"]["name"])
    try:
        with without_hub():
            load_backbone(name)
    except (FileNotFoundError, ModuleNotFoundError):
        return ""
    return name
