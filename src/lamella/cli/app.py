"""The commands, each with its name and its examples."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from lamella.cli import bench
from lamella.cli.catalogue import layers, list_known
from lamella.cli.classes import classes
from lamella.cli.correct import correct, remove
from lamella.cli.demo import demo
from lamella.cli.evaluate import evaluate
from lamella.cli.export import export
from lamella.cli.federate import federate
from lamella.cli.generate import generate
from lamella.cli.inspect import inspect
from lamella.cli.learn import learn
from lamella.cli.merge import merge
from lamella.cli.predict import predict
from lamella.cli.report import report
from lamella.cli.reproduce import reproduce
from lamella.cli.run import run, show
from lamella.cli.serve import serve
from lamella.cli.sweep import sweep
from lamella.cli.versions import forget, history, prune, rollback

__all__ = ["app"]

app = typer.Typer(
    name="lamella",
    help="Teach a pre-trained model new classes, task after task, without forgetting the old ones.",
    epilog="Start with: lamella demo",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # keeps the examples line by line, and [key=value] from being read as markup
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from lamella.common.version import __version__

        typer.echo(f"lamella {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Teach a pre-trained model new classes, task after task, without forgetting the old ones."""


def _add(command: Callable[..., Any], name: str, *examples: str, group: typer.Typer = app) -> None:
    # \b keeps the lines of a paragraph as they are
    epilog = "\b\n" + "\n".join(["Examples:", *(f"  {example}" for example in examples)])
    group.command(name, epilog=epilog)(command)


_add(demo, "demo", "lamella demo", "lamella demo --out my-demo")
_add(
    run,
    "run",
    "lamella run digits",
    "lamella run cifar100-part method.rank=8 --seeds 3 --out runs/rank-8",
    "lamella run cifar100-part method.name=nearest-mean --out runs/nearest-mean",
    "lamella run digits --resume",
)
_add(
    sweep,
    "sweep",
    "lamella sweep digits method.rank=2,4,8 method.name=inflora+align,olora --seeds 3 --processes 2 --out runs/ranks",
    "lamella sweep my-sweep.toml --only olora,inflora --seeds 3",
    "lamella sweep digits method.lr=5e-4,1e-3 scenario.validation=0.2 run.evaluate_on=validation --best final_accuracy",
)
_add(
    federate,
    "federate",
    "lamella federate digits --clients 5 --dirichlet 0.1 --rounds 10",
    "lamella federate digits method.name=seq-lora+align --rule fedex-lora --out runs/fedex",
    "lamella federate digits --lose 4@3 federated.clip=0.5 federated.noise=1.0",
)
_add(
    reproduce,
    "reproduce",
    "lamella reproduce                          # papers and cells",
    "lamella reproduce inflora                  # what is known of each cell, and what is left unsaid",
    "lamella reproduce inflora imagenet-r-10 fit.device=cuda",
    "lamella reproduce inflora imagenet-r-10 --dry-run > my.toml",
    "lamella reproduce --against ~/RanPAC ranpac   # the authors' functions and ours on the same tensors",
)
_add(
    report,
    "report",
    "lamella report runs/digits",
    "lamella report runs/* --pairs",
    "lamella report runs/* --format markdown --html report.html",
)
_add(show, "show", "lamella show digits", "lamella show digits method.rank=2 > my.toml")
_add(list_known, "list", "lamella list", "lamella list methods --json")
_add(layers, "layers", "lamella layers fractal-vit-micro", "lamella layers vit_tiny_patch16_224 --json")
_add(
    learn,
    "learn",
    "lamella learn model photos/           # photos/CLASS/*.jpg; the first use creates the model",
    "lamella learn model more-photos/      # the second task; the first is not needed any more",
    "lamella learn model scans/ --bundled    # digits and other small images; needs no download",
    "lamella learn tickets october.csv       # texts: columns text and label; others by --text and --label",
    "lamella learn my-assistant answers.jsonl   # answers of a language model: columns prompt and response",
)
_add(
    predict,
    "predict",
    "lamella predict model photo.jpg",
    "lamella predict model photos/ --top 3 --json",
    'lamella predict tickets --text "My card has not arrived yet"',
    "lamella predict tickets new.csv --csv > labels.csv",
)
_add(
    generate,
    "generate",
    'lamella generate my-assistant "What is the capital of France?" --max-tokens 32',
    "lamella generate my-assistant questions.jsonl --json > answers.jsonl",
)
_add(
    export,
    "export",
    "lamella export model --format timm --out model-timm",
    "lamella export model --format onnx --out model.onnx",
    "lamella export model --format timm --readout base --out own-heads",
)
_add(
    merge,
    "merge",
    "lamella merge north south --rule tsv --out both      # two models of one network",
    "lamella merge lora-a lora-b --rule weighted --weights 1,-0.5 --out lora-c",
    "lamella merge lora-a lora-b --rule ties --rank 16 --out lora-c",
)
_add(history, "history", "lamella history model", "lamella history model --json")
_add(rollback, "rollback", "lamella rollback model", "lamella rollback model --to 3")
_add(forget, "forget", "lamella forget model birds", "lamella forget model birds --purge")
_add(prune, "prune", "lamella prune model --keep 10")
_add(
    classes,
    "classes",
    "lamella classes model                      # lists them",
    "lamella classes model rename tabby cat",
    "lamella classes model merge kitten cat",
    "lamella classes model drop kitten",
)
_add(
    correct,
    "correct",
    "lamella correct model wrong.csv             # columns path, label (as it was learned) and right",
    "lamella correct tickets wrong.csv           # texts: columns text, label and right",
)
_add(
    remove,
    "remove",
    "lamella remove model photos-of-anna/",
    "lamella remove model inbox/cat/0012.jpg --whole-classes",
)
_add(inspect, "inspect", "lamella inspect model", "lamella inspect model --html model.html")
_add(
    evaluate,
    "evaluate",
    "lamella evaluate model test-photos/ --html accuracy.html",
    "lamella evaluate model test-photos/ --png confusion.png --json",
    "lamella evaluate my-assistant test.jsonl --max-tokens 32 --written written.jsonl",
)
_add(serve, "serve", "lamella serve model", "LAMELLA_TOKEN=... lamella serve model --host 0.0.0.0 --port 80")

costs = typer.Typer(help="Measure what learning costs on this machine.", rich_markup_mode=None)
app.add_typer(costs, name="bench")
_add(
    bench.speed,
    "speed",
    "lamella bench speed",
    "lamella bench speed --backbone vit_base_patch16_224 --batch 8 --method inflora+align --out speed.json",
    group=costs,
)
_add(bench.memory, "memory", "lamella bench memory --backbone vit_base_patch16_224 --batch 8", group=costs)
_add(bench.growth, "growth", "lamella bench growth --tasks 100 --png growth.png", group=costs)
