"""`lamella demo`: a pre-trained ViT learns task after task without forgetting, in under a minute, with no download."""

from pathlib import Path
from typing import Any

from lamella.common.files import refuse_links
from lamella.experiments.run import run
from lamella.learner.config.document import load_config

__all__ = ["DEMO", "demo"]

DEMO: tuple[tuple[str, ...], ...] = (
    (),
    ("method.name=seq-lora", "method.align=false"),
    ("method.name=nearest-mean", "method.align=false"),
    ("method.name=joint", "method.align=false"),
)
"""Overrides of the configuration "digits": InfLoRA with alignment, and three methods to compare it with."""


def demo(out: Path, *, quiet: bool = False) -> Path:
    """Run Split Digits with four methods and write a report. Finished runs are kept, so a second call only shows them.

    Args:
        out: the folder of the runs and the report.
        quiet: whether to hide progress.

    Returns:
        The path of the HTML page.
    """
    from lamella.experiments.report import write_report
    from lamella.learner.config.document import method_name

    runs: list[Path] = []
    for overrides in DEMO:
        config: dict[str, Any] = load_config("digits", list(overrides))
        folder = out / method_name(config)
        refuse_links(folder)
        runs.append(run(config, folder, resume=True, quiet=quiet))
    return write_report(runs, html=out / "report.html")
