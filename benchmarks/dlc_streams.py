"""What DLC adds to its bases, and which part of it does: a table for each configuration from scratch.

    LAMELLA_DATA=DIR python benchmarks/dlc_streams.py mnist-5-scratch runs/dlc/mnist --seeds 3
    LAMELLA_DATA=DIR python benchmarks/dlc_streams.py mnist-5-scratch runs/dlc/mnist --bases replay,icarl,wa,lwf
    LAMELLA_DATA=DIR python benchmarks/dlc_streams.py mnist-5-scratch runs/dlc/mnist --ablation --bases wa

Without --ablation every base is a run of its own in OUT/BASE/seed-N, which gives the numbers of base + DLC and, because
taking the plugins out is exact, those of the base alone. With it, the base is learned once for each seed and kept after
each task in OUT/ablation-BASE/; every variant then has its own second phase on that same base. Finished parts are not
repeated. Further arguments change the configuration, such as scenario.validation=0.2 run.evaluate_on=validation.
"""

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lamella.common.files import write_atomic
from lamella.data.keeping import keep_decoded
from lamella.data.scenario import Scenario
from lamella.experiments.report.summary import spread
from lamella.experiments.report.words import percent
from lamella.experiments.run import run
from lamella.learner.config.document import build_scenario, load_config, to_toml
from lamella.learner.learner import Learner
from lamella.learner.scores import correct

CONTROL = "classifier only"
VARIANTS: dict[str, list[str]] = {
    "as configured": [],
    CONTROL: ["method.gate=fixed"],
    "no gates": ["method.gate=fixed"],
    "softmax gates": ["method.gate=softmax"],
    "last convolution": ["method.layers=['last-conv']"],
    "last block": ["method.layers=['last-block']"],
    "last stage": ["method.layers=['last-stage']"],
    "rank 1": ["method.rank=1"],
    "rank 2": ["method.rank=2"],
    "rank 4": ["method.rank=4"],
    "rank 8": ["method.rank=8"],
    "no auxiliary loss": ["method.auxiliary_weight=0.0"],
}
"""Name -> what it changes. The control's gates are all 0: what the second phase gives by a classifier of the base's
features alone is no gain of the plugins."""

Measures = dict[str, float]


def main(
    config: str,
    out: Path,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...")] = None,
    bases: Annotated[str, typer.Option(help="Names, separated by commas.")] = "replay,icarl,wa",
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    ablation: Annotated[bool, typer.Option("--ablation", help="Variants of DLC on the same base.")] = False,
    variants: Annotated[str, typer.Option(help="Of the ablation; all where left out.")] = "",
) -> None:
    """Run what is not there yet, and print the table."""
    settings = {
        (base, seed): [f"method.base.name={base}", f"run.seed={seed}", *(overrides or [])]
        for base in bases.split(",")
        for seed in range(seeds)
    }
    if not ablation:
        runs = {at: load_config(config, changes) for at, changes in settings.items()}
        for (base, seed), table in runs.items():
            run(table, out / base / f"seed-{seed}", resume=True)
        _print_streams(config, out, bases.split(","), seeds)
        return
    chosen = [name for name in VARIANTS if not variants or name in variants.split(",")]
    for base in bases.split(","):
        rows: dict[str, list[Measures]] = {}
        for seed in range(seeds):
            folder = out / f"ablation-{base}" / f"seed-{seed}"
            for name, measures in _ablation(config, settings[base, seed], chosen, folder).items():
                rows.setdefault(name, []).append(measures)
        _print_ablation(config, base, rows)


def _print_streams(config: str, out: Path, bases: list[str], seeds: int) -> None:
    table = Table("base", "base, last", "+ DLC, last", "gain", "base, average", "+ DLC, average", "plugins %",
                  "all extra %", "s phase 1", "s phase 2", title=f"{config}, {seeds} seeds")  # fmt: skip
    for base in bases:
        pairs = [_pair(out / base / f"seed-{seed}", base) for seed in range(seeds)]
        table.add_row(base, *(_mean([pair[key] for pair in pairs]) for key in pairs[0]))
    Console(width=130).print(table)


def _pair(folder: Path, base: str) -> Measures:
    """What one run says of the base and of base + DLC."""
    whole, alone = (json.loads((folder / f"{name}.json").read_text()) for name in ("results", f"results-{base}"))
    counts, second = whole["parameters"], whole["phase_seconds"].get("plugin", 0.0)
    own = counts["backbone"]
    return {
        "base": 100 * alone["final_accuracy"], "dlc": 100 * whole["final_accuracy"],
        "gain": 100 * (whole["final_accuracy"] - alone["final_accuracy"]),
        "base average": 100 * alone["average_accuracy"], "dlc average": 100 * whole["average_accuracy"],
        "plugins": 100 * counts.get("plugins", 0) / own,
        "extra": 100 * (counts.get("plugins", 0) + counts.get("unit", 0) + counts["head"]) / own,
        "first": sum(whole["seconds"]["learn"]) - second, "second": second,
    }  # fmt: skip


def _ablation(config: str, changes: list[str], variants: list[str], folder: Path) -> dict[str, Measures]:
    """The measures of each variant on one base."""
    scenario = build_scenario(load_config(config, changes))
    _claim(folder, to_toml(load_config(config, changes)))
    path = folder / "variants.json"
    done: dict[str, Measures] = json.loads(path.read_text()) if path.exists() else {}
    for name in (name for name in variants if name not in done):
        states = _base_states(config, changes, scenario, folder)
        done[name] = _variant(load_config(config, [*changes, *VARIANTS[name]]), scenario, states, name == CONTROL)
        print(f"{folder.parent.name}, {name}: {done[name]['last']:.1f}", flush=True)
        write_atomic(path, json.dumps(done, indent=1).encode())
    return {name: done[name] for name in variants}


def _claim(folder: Path, settings: str) -> None:
    """Refuse to go on with other settings than those the folder was started with."""
    path = folder / "config.toml"
    if path.exists() and path.read_text() != settings:
        raise ValueError(f"'{folder}' holds an ablation of another configuration (see its config.toml); choose another")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, settings.encode())


def _base_states(config: str, changes: list[str], scenario: Scenario, folder: Path) -> list[dict[str, Tensor]]:
    """What the base had learned after each task, without any plugin."""
    learner = Learner(load_config(config, changes))
    base = learner.method.base
    if base is None:
        raise ValueError(f"the method of {config} is built on no other; give it a [method.base]")
    for i in range(len(scenario)):
        path = folder / f"base-{i}.pt"
        if path.exists():
            base.load_state_dict(torch.load(path, weights_only=True))
            continue
        fit = learner.fit()
        fit.begin(str(i))
        task = scenario[i]
        base.learn(replace(task, train=keep_decoded(task.train)), fit)
        torch.save(base.state_dict(), path)
    return [torch.load(folder / f"base-{i}.pt", weights_only=True) for i in range(len(scenario))]


def _variant(config: Mapping[str, Any], scenario: Scenario, states: list[dict[str, Tensor]], closed: bool) -> Measures:
    """Learn the second phase of every task on bases that are there already, and score the finished model.

    Args:
        closed: whether all gates are 0, so that plugins have no say.
    """
    learner = Learner(config)
    method: Any = learner.method

    def learn_base(task: Any, fit: Any) -> None:
        plugins = {key: value for key, value in method.base.state_dict().items() if ".branches." in key}
        method.base.load_state_dict({**states[task.id], **plugins})

    method.base.learn = learn_base  # its first phase, which no setting of the second one can change
    if closed:
        method.unit.forward = lambda features: features.new_zeros(features.shape[0], features.shape[1] - 1)
    curve = []
    for i in range(len(scenario)):
        learner.learn(scenario[i])
        curve.append(_accuracy(learner, scenario, i + 1, lambda x, y: method.logits(x)))
    counts = learner.parameter_counts()
    if closed:
        counts |= {"plugins": 0, "head": len(method.classes) * (learner.backbone.width + 1)}
    last = len(scenario)
    return {
        "base": _accuracy(learner, scenario, last, lambda x, y: method.base.predict(x)),
        "last": curve[-1], "average": statistics.mean(curve),
        "oracle": _accuracy(learner, scenario, last, lambda x, y: method.logits(x, method.oracle_gates(y))),
        "plugins": 100 * counts.get("plugins", 0) / counts["backbone"],
        "extra": 100 * (counts.get("plugins", 0) + counts.get("unit", 0) + counts["head"]) / counts["backbone"],
    }  # fmt: skip


def _accuracy(learner: Learner, scenario: Scenario, tasks: int, score: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Percent of the images of the first tasks that are right among all classes learned."""
    method: Any = learner.method
    method.eval()
    right = total = 0
    on_validation = learner.config["run"]["evaluate_on"] == "validation"
    for task in range(tasks):
        data = scenario[task].validation if on_validation else scenario.test(task)
        assert data is not None
        scores: list[Tensor] = []
        fit = learner.fit()
        fit.scan(keep_decoded(data), lambda x, y, kept=scores: kept.append(score(x, y).float().cpu()))
        target = torch.tensor([method.classes.index(label) for label in data.labels.tolist()])
        right, total = right + int(correct(torch.cat(scores), target).sum()), total + len(data)
    return 100 * right / total


def _print_ablation(config: str, base: str, rows: dict[str, list[Measures]]) -> None:
    table = Table("variant", "base, last", "+ DLC, last", "average", "oracle gates, last", "plugins %", "all extra %",
                  title=f"{config}, dlc({base})")  # fmt: skip
    for name, seeds in rows.items():
        keys = ("base", "last", "average", "oracle", "plugins", "extra")
        table.add_row(name, *(_mean([measures[key] for measures in seeds]) for key in keys))
    Console(width=120).print(table)


def _mean(values: list[float]) -> str:
    return percent(spread(value / 100 for value in values))


if __name__ == "__main__":
    typer.run(main)
