"""Replay, WA, DLC, DER and MEMO under one budget of bytes for model and memory together.

    LAMELLA_DATA=DIR python benchmarks/fixed_budget.py mnist-5-scratch runs/budget/mnist --budget-of der
    LAMELLA_DATA=DIR python benchmarks/fixed_budget.py mnist-5-scratch runs/budget/mnist --methods "dlc(wa),der"

The configuration's base gives memory and schedule to all methods. The budget is what the method of --budget-of takes
after the last task with that memory; the others get as many exemplars as their smaller models leave room for. Counts
are made before anything is trained, and compared with the finished models. Every method is a run of its own in
OUT/METHOD/seed-N; finished ones are not repeated. Where a small stream lets a method keep most of its images, the table
shows it, and says little about forgetting.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lamella.data.transform import of_images
from lamella.experiments.budget import exemplars_within, finished_parameters, parameters_of, total_bytes
from lamella.experiments.report.summary import spread
from lamella.experiments.report.words import percent
from lamella.experiments.run import run
from lamella.learner.config.document import build_backbone, build_scenario, complete, load_config
from lamella.learner.learner import Learner

METHODS = "replay,wa,dlc(wa),der,memo"
SCHEDULE = ("epochs", "first_epochs", "lr", "batch_size", "optimizer", "momentum", "weight_decay")
"""What other methods take over from the configuration's base; what else they have is their own."""

Config = dict[str, Any]


def main(
    config: str,
    out: Path,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...")] = None,
    methods: Annotated[str, typer.Option(help="Names, separated by commas.")] = METHODS,
    budget_of: Annotated[str, typer.Option(help="The method whose bytes are the budget.")] = "der",
    seeds: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Run what is not there yet, and print the table."""
    tables = {
        seed: load_config(config, [*(overrides or []), f"run.seed={seed}"])
        for seed in range(seeds)
    }  # fmt: skip
    scenario = build_scenario(tables[0])
    image_bytes = 3 * of_images(build_backbone(tables[0]).transform, "a budget of images").size ** 2
    memory = int(tables[0]["method"]["base"]["memory"])
    names = methods.split(",")
    parameters = {n: finished_parameters(_config(tables[0], n, memory), scenario) for n in {*names, budget_of}}
    budget = total_bytes(parameters[budget_of], memory, image_bytes)
    allowed = {name: exemplars_within(budget, parameters[name], image_bytes) for name in names}
    rows = []
    for name in names:
        folders = [out / name / f"seed-{seed}" for seed in tables]
        for folder, table in zip(folders, tables.values(), strict=True):
            run(_config(table, name, allowed[name]), folder, resume=True)
        rows.append((name, parameters[name], allowed[name], *_measures(folders, parameters[name])))
    images = sum(len(scenario[i].train) for i in range(len(scenario)))
    _print(rows, f"{config}: {budget:,} bytes, those of {budget_of} with {memory} exemplars", image_bytes, images)


def _config(table: Config, name: str, memory: int) -> Config:
    """The configuration with this method, or with dlc on this base, and a memory of its own."""
    own, base = table["method"], table["method"]["base"]
    plain = name.removeprefix("dlc(").removesuffix(")")
    if plain != base["name"]:
        base = {"name": plain} | {key: base[key] for key in SCHEDULE if key in base}
    base = {**base, "memory": memory}
    return complete({**table, "method": base if plain == name else {**own, "base": base}})


def _measures(folders: list[Path], parameters: int) -> tuple[int, list[float], list[float]]:
    """Exemplars kept at the end, last and average accuracies.

    Raises:
        RuntimeError: a finished model has another number of parameters than was counted before.
    """
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    method = Learner.load(folders[0] / "model").method
    if parameters_of(method) != parameters:
        raise RuntimeError(f"{folders[0]} has {parameters_of(method):,} parameters, but {parameters:,} were counted")
    holder: Any = method.base or method
    last, average = ([r[key] for r in results] for key in ("final_accuracy", "average_accuracy"))
    return len(holder.exemplars), last, average


def _print(
    rows: list[tuple[str, int, int, int, list[float], list[float]]], title: str, image_bytes: int, images: int
) -> None:
    table = Table("method", "parameters", "exemplars allowed", "kept", "of images", "bytes allowed", "last", "average",
                  title=title)  # fmt: skip
    for name, parameters, allowed, kept, last, average in rows:
        total = total_bytes(parameters, allowed, image_bytes)
        table.add_row(name, f"{parameters:,}", f"{allowed:,}", f"{kept:,}", f"{kept / images:.0%}", f"{total:,}",
                      percent(spread(last)), percent(spread(average)))  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    typer.run(main)
