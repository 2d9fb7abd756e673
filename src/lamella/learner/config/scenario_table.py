"""[scenario] of a configuration: which data set or data sets, how they are loaded, and how they are cut into tasks."""

from collections.abc import Callable, Mapping
from typing import Any

from lamella.common.options import Option, arguments, completed, near_matches, options_of
from lamella.data.online import ONLINE, online
from lamella.data.scenario import (
    Scenario,
    class_incremental,
    dataset_incremental,
    domain_incremental,
    task_incremental,
)
from lamella.data.tasks import check_first

__all__ = ["build_scenario", "complete_scenario", "number_of_tasks", "source_name"]

DATASETS = "datasets"
SCENARIOS: dict[str, Callable[..., Scenario]] = {
    "class-incremental": class_incremental,
    "domain-incremental": domain_incremental,
    "task-incremental": task_incremental,
    DATASETS: dataset_incremental,
    ONLINE: online,
}
OF_EVERY_KIND = {"kind": Option(str, "class-incremental"), "first_tasks": Option(int, None)}
"""The kind, and of how many tasks a run learns only the first ones, as for a choice of settings on them."""


def build_scenario(config: Mapping[str, Any]) -> Scenario:
    """Load the data sets of [scenario] and split them into tasks."""
    from lamella.data.sources.load import load_source

    table, kind = config["scenario"], config["scenario"]["kind"]
    options = options_of(SCENARIOS[kind])
    cut = arguments("scenario", {k: v for k, v in table.items() if k in options}, options)
    rest = {k: v for k, v in table.items() if k not in options and k not in (*_place(kind), *OF_EVERY_KIND)}
    loading = arguments("scenario", rest, _source_options(_sources(table)))
    loaded = [load_source(source, **loading) for source in _sources(table)]
    scenario = SCENARIOS[kind](loaded if kind == DATASETS else loaded[0], **cut)
    return scenario.first(table["first_tasks"]) if "first_tasks" in table else scenario


def complete_scenario(table: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Check [scenario] and fill in its defaults.

    Args:
        table: the table.
        run: [run], complete.

    Raises:
        ValueError: a key is unknown or missing, or a value is refused.
    """
    kind = table.get("kind", "class-incremental")
    if not isinstance(kind, str) or kind not in SCENARIOS:
        raise ValueError(f"unknown scenario.kind {kind!r}; {near_matches(str(kind), SCENARIOS)}")
    options = _place(kind) | OF_EVERY_KIND
    options |= _source_options(_sources(table)) | options_of(SCENARIOS[kind])
    for key in table.keys() - options.keys():
        if kinds := [other for other in SCENARIOS if key in (_place(other) | options_of(SCENARIOS[other]))]:
            raise ValueError(
                f"'scenario.{key}' belongs to the kinds {', '.join(kinds)}, not to {kind}; take it away with "
                f"scenario.{key}="
            )
    done = completed("scenario", {"seed": run["seed"], **table}, options)
    if run["evaluate_on"] == "validation" and not done["validation"]:
        raise ValueError(
            "run.evaluate_on = 'validation' needs a validation part; set scenario.validation to a share such as 0.2"
        )
    if "measure_every" in run and (kind != ONLINE or run["measure_every"] < 1):
        why = f"is for scenario.kind = '{ONLINE}', and this is {kind}; take it away"
        few = f"= {run['measure_every']} should be a number of samples, 1 or more"
        raise ValueError(f"run.measure_every {why if kind != ONLINE else few}")
    if "first_tasks" in done and (tasks := number_of_tasks(done)) is not None:
        check_first(done["first_tasks"], tasks)
    return done


def number_of_tasks(table: Mapping[str, Any]) -> int | None:
    """Return how many tasks the whole stream of a checked [scenario] has; None where only its data can tell."""
    if "sizes" in table:
        return len(table["sizes"])
    if "tasks" in table:
        return int(table["tasks"])
    if "sources" in table:
        return len(table["sources"])
    if table.get("kind") == "domain-incremental":
        return next((len(table[key]) for key in ("domains", "changes") if key in table), None)
    return None


def source_name(table: Mapping[str, Any]) -> str:
    """Return what the data of [scenario] are called in results."""
    return ", ".join(_sources(table))


def _sources(table: Mapping[str, Any]) -> list[str]:
    """Return the data sets that [scenario] names."""
    named = table.get("sources") if table.get("kind") == DATASETS else [table.get("source")]
    return [str(source) for source in named] if isinstance(named, list) else []


def _place(kind: str) -> dict[str, Option]:
    """Return the key that names the data."""
    return {"sources": Option(list[str])} if kind == DATASETS else {"source": Option(str)}


def _source_options(sources: list[str]) -> dict[str, Option]:
    """Return the options of all loaders, without defaults; `load_source` checks which ones a source has."""
    from lamella.data.sources.folders import load_folder
    from lamella.data.sources.hub import load_hub
    from lamella.data.sources.load import HUB, load_source
    from lamella.data.sources.table import load_image_table
    from lamella.data.sources.text_table import load_text_table

    loaders: list[Callable[..., Any]] = [load_folder, load_image_table, load_text_table]
    if any(source.startswith(HUB) for source in sources):
        loaders = [load_hub] if all(source.startswith(HUB) for source in sources) else [*loaders, load_hub]
    options: dict[str, Option] = {}
    for loader in loaders:
        options |= options_of(loader, without={"name", "renamed"})
    rows = {"per_class": int, "train_rows": int, "test_rows": int}
    kept = {"domains": list[str], "classes": int | list[int | str], "changes": list[str]} | rows
    options |= options_of(load_source) | {name: Option(annotation) for name, annotation in kept.items()}
    return {name: Option(option.annotation, None) for name, option in options.items()}
