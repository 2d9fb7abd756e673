"""All merging rules on one training: final accuracy under each, with and without alignment.

    LAMELLA_DATA=DIR python benchmarks/merging_rules.py --out runs/merging/newest
    LAMELLA_DATA=DIR python benchmarks/merging_rules.py --start pretrained --out runs/merging/pretrained

The part `merge` does not touch the training of its method, so a rule needs no training of its own: what each task
trained is stored below --out, once, and every rule starts from there and takes its own passes of alignment. A rule that
has its result there is not computed again, so that an interrupted call goes on where it was.

Beside the rules stand "last", the newest weights without any merge (as `seq-lora` alone), and, where the tasks are
trained in a row, "running mean", the part `mean_weights`. The settings are those of benchmarks/sweeps/accuracy.toml, on
validation images; --test reads the test images instead, and takes the validation images into training.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from forms.trained import learned
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lamella.adapters.merging import RULES
from lamella.common.files import read_json, write_json
from lamella.data.scenario import Scenario
from lamella.experiments.sweep.plan import read_sweep
from lamella.learner.config.document import load_config
from lamella.learner.learner import Learner

SETTINGS = Path(__file__).with_name("sweeps") / "accuracy.toml"
MEASURED = ("aligned", "aligned, task given", "own heads", "own heads, task given")


def main(
    settings: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...")] = None,
    config: Annotated[str | None, typer.Option(help="Instead of the one in accuracy.toml, with its changes.")] = None,
    start: Annotated[str, typer.Option(help="What a task is trained from: newest or pretrained.")] = "newest",
    rule: Annotated[list[str] | None, typer.Option(help="One of them; repeatable. All, if left out.")] = None,
    seed: int = 0,
    test: bool = False,
    out: Path = Path("runs/merging"),
) -> None:
    """Train once, and read with every rule."""
    results: dict[str, dict[str, float]] = {}
    for name, changes in ways(start).items():
        if rule and name not in rule:
            continue
        path = out / f"{name.replace(' ', '-')}.json"
        if not path.exists():
            write_json(path, measured(configured(config, changes, settings or [], seed, test), out / "trained"))
        results[name] = read_json(path)
        print(f"{name}: " + ", ".join(f"{what} {results[name][what]:.1f}" for what in MEASURED), flush=True)
    page = Table("rule", *MEASURED, title=f"tasks trained from the {start} weights, seed {seed}")
    for name, row in results.items():
        page.add_row(name, *(f"{row[what]:.1f}" for what in MEASURED))
    Console(width=100).print(page)


def ways(start: str) -> dict[str, list[str]]:
    """Return by name the changes of the configuration with which a stored training is read."""
    merged = {
        rule: ["method.name=seq-lora+merge+align", f"method.merge.rule={rule}", f"method.merge.start={start}"]
        for rule in RULES
        if rule != "weighted"
    }
    if start != "newest":
        return merged
    alone = {"last": ["method.name=seq-lora+align"], "running mean": ["method.name=seq-lora+mean_weights+align"]}
    return alone | merged


def configured(config: str | None, changes: list[str], settings: list[str], seed: int, test: bool) -> dict[str, Any]:
    """Return the configuration of a way to read, with an adapter of its own for each task."""
    sweep = read_sweep(SETTINGS)
    common = [*sweep.changes] if config is None else ["scenario.validation=0.25", "run.evaluate_on=validation"]
    ours = ["method.fresh=true", f"run.seed={seed}"]
    theirs = ["scenario.validation=0", "run.evaluate_on=test"] if test else []
    return load_config(config or str(sweep.config), [*common, *changes, *ours, *settings, *theirs])


def measured(config: dict[str, Any], store: Path) -> dict[str, float]:
    """Learn all tasks, by what is stored of their training, and return what is right at the end, in per cent."""
    learner, scenario = learned(config, store)
    return scores(learner, scenario, config["run"]["evaluate_on"] == "test")


def scores(learner: Learner, scenario: Scenario, test: bool) -> dict[str, float]:
    """Score the model with both readouts on the samples of all tasks."""
    right: list[Tensor] = []
    for i in range(len(scenario)):
        found: dict[str, Tensor] = {}
        part = scenario.test(i) if test else scenario[i].validation
        assert part is not None, "the settings leave no validation part"
        learner.evaluate(part, scenario[i].classes, right=found)
        own = next(key for key in found if key)
        right.append(torch.cat([found[""], found[own]]))
    return dict(zip(MEASURED, (100 * torch.cat(right, 1).double().mean(1)).tolist(), strict=True))


if __name__ == "__main__":
    typer.run(main)
