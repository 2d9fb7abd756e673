"""All replay-free methods on one stream, in one table: accuracy, and what each costs.

    LAMELLA_DATA=DIR python benchmarks/replay_free.py table --out runs/replay-free
    LAMELLA_DATA=DIR python benchmarks/replay_free.py ablation --out runs/duallora-ablation
    LAMELLA_DATA=DIR python benchmarks/replay_free.py table --out runs/replay-free --only inflora,duallora --seeds 3

Each method is a run directory of its own, as `lamella run` writes it. What is finished stays as it is, what was
interrupted goes on, so the same command may be given again. All runs have the settings of one configuration, bfloat16
and, where a method takes it, alignment; one training gives the rows of its own heads, calibrated and aligned.
"""

from pathlib import Path
from typing import Annotated

import typer

from lamella.experiments.report import load_results, render_table
from lamella.experiments.run import run
from lamella.learner.config.document import load_config

app = typer.Typer(add_completion=False)

CONFIG = "cifar100-part-tuned"
ALIGN = ["method.align=true", "method.align.own_covariance=0.1", "method.align.ridge=1"]
CALIBRATE = ["method.calibrate=true", "method.calibrate.score=gaussian"]

METHODS: dict[str, list[str]] = {
    "inflora": [],
    "inflora-b5": ["method.blocks=5"],
    "duallora": ["method.name=duallora", *ALIGN],
    "duallora-tokens": ["method.name=duallora", "method.basis=tokens", *ALIGN],  # chosen on validation, docs/log.md
    "olora": ["method.name=olora", *CALIBRATE, *ALIGN],
    "sdlora": ["method.name=sdlora", *CALIBRATE, *ALIGN],
    "seq-lora": ["method.name=seq-lora", *CALIBRATE, *ALIGN],
    "color": ["method.name=color", *ALIGN],
    "ranpac": ["method.name=ranpac", *ALIGN],
    "streaming-lda": ["method.name=streaming-lda"],
    "nearest-mean": ["method.name=nearest-mean"],
    "joint": ["method.name=joint", *ALIGN],
}

DUALLORA = ["method.name=duallora", "method.calibration=0"]
ABLATION: dict[str, list[str]] = {
    "O": [*DUALLORA, "method.residual=none", *ALIGN],
    "O+R": [*DUALLORA, "method.gate=off", *ALIGN],
    "O+R+gate": [*DUALLORA, *CALIBRATE, *ALIGN],
    "O+R+gate+calibration": ["method.name=duallora", *ALIGN],
    "all, bases of all tokens": ["method.name=duallora", "method.basis=tokens", *ALIGN],
}

Out = Annotated[Path, typer.Option(help="Folder of the run directories.")]
Only = Annotated[str, typer.Option(help="Names of rows, separated by commas; all where left out.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes for every run, such as backbone.size=224.")]


@app.command()
def table(out: Out, overrides: Overrides = None, only: Only = "", seeds: int = 1) -> None:
    """The table of methods."""
    _compare(METHODS, out, overrides or [], only, seeds)


@app.command()
def ablation(out: Out, overrides: Overrides = None, only: Only = "", seeds: int = 1) -> None:
    """DualLoRA part by part."""
    _compare(ABLATION, out, overrides or [], only, seeds)


def _compare(rows: dict[str, list[str]], out: Path, overrides: list[str], only: str, seeds: int) -> None:
    names = only.split(",") if only else list(rows)
    if unknown := [name for name in names if name not in rows]:
        raise typer.BadParameter(f"no row '{unknown[0]}'; there are {', '.join(rows)}")
    for name in names:
        for seed in range(seeds):
            changes = [*rows[name], "fit.precision=bf16", f"run.seed={seed}", *overrides]
            run(load_config(CONFIG, changes), out / name / f"seed-{seed}", resume=True)
    print(render_table(load_results([out]), "markdown", costs=True))


if __name__ == "__main__":
    app()
