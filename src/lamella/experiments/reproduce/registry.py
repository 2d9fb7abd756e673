"""The registry of papers: what a table reports, where the value was read, and the configuration that is run for it.

A paper is one TOML file of `src/lamella/papers/`, written like its table: rows are methods, and the cells of a row are
streams of tasks, which `benchmarks.toml` spells out. What a paper says once (protocol, checkpoint, seeds ...) stands at
the top, and a row or a cell may say otherwise. `without.toml` has the methods of the package that have no cell.
"""

import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from lamella.common.options import near_matches
from lamella.learner.config.document import read_document, with_overrides

__all__ = [
    "RESULT_KEYS",
    "Cell",
    "Paper",
    "Reported",
    "cell_config",
    "find_cell",
    "find_paper",
    "papers",
    "without_cell",
]

Table = Mapping[str, Any]
FOLDER = Path(__file__).parents[2] / "papers"
BENCHMARKS, WITHOUT = "benchmarks", "without"
"""The files of the folder that are no papers."""
RESULT_KEYS = {"last": "final_accuracy", "average": "average_accuracy"}
"""What papers report, and what a result file calls it."""


@dataclass(frozen=True)
class Reported:
    """A published value in percent, and its spread over runs where the source gives one."""

    mean: float
    spread: float | None


@dataclass(frozen=True)
class Cell:
    """One cell of a published table."""

    paper: str
    """The name of the paper in the registry."""
    name: str
    """The benchmark for the paper's own method, else with the row's name before it, as in "inflora-imagenet-r-10"."""
    method: str
    """The method of this package, with its parts, as in "seq-lora+merge"."""
    config: str
    """The shipped configuration that the settings change."""
    settings: Mapping[str, Any]
    """By section, what is changed in that configuration."""
    last: Reported
    """Accuracy on all classes after the last task."""
    average: Reported | None
    """The mean of the accuracies after each task."""
    runs: int | None
    """How many runs the value is the mean of; None where it was not read."""
    source: Literal["primary", "secondary"]
    """Whether the value was read where those who measured it published it, or in what others wrote about it."""
    read: str
    """Where it was read."""
    checkpoint: str
    protocol: str
    split: str
    order: str
    seeds: str
    unsaid: tuple[str, ...]
    """What the source leaves open."""
    departures: tuple[str, ...]
    """What is known to be otherwise in the configuration that is run here. A file has those of the method; those that
    follow from the configuration are added."""

    @property
    def reported(self) -> dict[str, Reported]:
        """The reported values by `RESULT_KEYS`, those that there are."""
        return {name: value for name in RESULT_KEYS if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Paper:
    """A paper, or another published table, with the cells of its table that this package can run."""

    name: str
    title: str
    cite: str
    arxiv: str
    """The number at arXiv; empty where it is not known."""
    method: str
    """The method of this package that is the paper's own; empty where it is not in the package."""
    cells: Mapping[str, Cell]


ABOUT_PAPER = {"title", "cite", "arxiv", "method"}
SAID = {field.name for field in fields(Cell)} - {"paper", "name", "method", "last", "average"}
"""What may stand at the top of a file, in a row, and in a cell; the nearest to the cell holds."""
DERIVED = (
    ("order", "seeded", "class orders are drawn by our seeds"),
    ("test_fraction", 0.2, "test images are a fifth of each class, drawn by a hash of the images"),
)
"""Departures that follow from a key of [scenario] and its value."""
VALUES = {"last", "last_spread", "average", "average_spread"}


@cache
def papers() -> dict[str, Paper]:
    """Return the papers of the registry by name, in alphabetical order.

    Raises:
        ValueError: a file has a key that is unknown, or lacks one.
    """
    files = sorted(file for file in FOLDER.glob("*.toml") if file.stem not in (BENCHMARKS, WITHOUT))
    return {file.stem: parse_paper(file.stem, _read(file), _read(FOLDER / f"{BENCHMARKS}.toml")) for file in files}


def without_cell() -> dict[str, str]:
    """Return the methods of the package that have no cell, with the reason of each."""
    return _read(FOLDER / f"{WITHOUT}.toml")


def find_cell(paper: str, cell: str) -> Cell:
    """Look up a cell.

    Raises:
        ValueError: there is no such paper, or it has no such cell.
    """
    return _find(_find(papers(), paper, "paper").cells, cell, f"cell of {paper}")


def find_paper(paper: str) -> Paper:
    """Look up a paper.

    Raises:
        ValueError: there is no such paper.
    """
    return _find(papers(), paper, "paper")


def cell_config(cell: Cell, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the complete configuration of a cell.

    If the method is not that of the configuration which the cell starts from, nothing is taken over from [method]: what
    the cell does not set is the method's own default.

    Args:
        cell: the cell.
        overrides: changes such as "method.rank=8". With them it is not the published setting any more, and
            `run.overrides` lists them.

    Raises:
        ValueError: an override is unknown or has the wrong type.
    """
    document = read_document(cell.config)
    if document["method"]["name"] != cell.method:
        document["method"] = {"name": cell.method}
    document = _merged(document, cell.settings)
    document["run"] = {"selection": f"published: {cell.paper} {cell.name} of the registry; the rest by default"}
    return with_overrides(document, overrides)


def parse_paper(name: str, content: Mapping[str, Any], benchmarks: Mapping[str, Any]) -> Paper:
    """Make a paper of the content of its file.

    Args:
        name: the name of the file, without its ending.
        content: what stands in it.
        benchmarks: the settings of each benchmark, by its name.

    Raises:
        ValueError: a key is unknown or missing, or a name is there twice.
    """
    _check_keys(content, ABOUT_PAPER | SAID | {"rows"}, f"{name}.toml")
    about = {"name": name, "arxiv": "", **{key: content[key] for key in ABOUT_PAPER & content.keys()}}
    cells: dict[str, Cell] = {}
    for row in content["rows"]:
        _check_keys(row, SAID | {"name", "method", "cells"}, f"a row of {name}.toml")
        own = row["method"].split("+")[0] == content["method"]
        prefix = row.get("name", "" if own else row["method"])
        for benchmark, told in row["cells"].items():
            title = "-".join(filter(None, (prefix, benchmark)))
            where = f"{title} of {name}.toml"
            _check_keys(told, SAID | VALUES, where)
            if title in cells or benchmark not in benchmarks:
                raise ValueError(f"{where} {'is there twice' if title in cells else 'names no known benchmark'}")
            cells[title] = _cell(name, title, benchmark, [content, row, told], benchmarks[benchmark])
    return Paper(**about, cells=cells)


def _cell(
    paper: str, name: str, benchmark: str, layers: Sequence[Mapping[str, Any]], stream: Mapping[str, Any]
) -> Cell:
    """Make a cell of what its file, its row and itself say."""
    said = {key: layer[key] for layer in layers for key in SAID & layer.keys()}
    settings = dict(stream)
    for layer in layers:
        settings = _merged(settings, layer.get("settings", {}))
    said |= {
        "runs": said.get("runs") or None,
        "settings": settings,
        "config": said["config"].replace("{benchmark}", benchmark),
        "unsaid": tuple(said["unsaid"]),
    }
    scenario = _merged(read_document(said["config"])["scenario"], settings.get("scenario", {}))
    derived = [text for key, value, text in DERIVED if scenario.get(key) == value]
    said["departures"] = (*said.get("departures", ()), *derived)
    if missing := SAID - said.keys():
        raise ValueError(f"{name} of {paper}.toml lacks {', '.join(sorted(missing))}")
    values = layers[-1]
    last, average = (
        Reported(values[metric], values.get(f"{metric}_spread")) if metric in values else None for metric in RESULT_KEYS
    )
    if last is None or said["source"] not in ("primary", "secondary"):
        raise ValueError(f"{name} of {paper}.toml needs 'last', and a source that is 'primary' or 'secondary'")
    return Cell(paper=paper, name=name, method=layers[1]["method"], last=last, average=average, **said)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of `below` with those of `above` put over them, key by key."""
    merged = deepcopy(dict(below))
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[key] = _merged(cast(Table, old), value) if both else deepcopy(value)
    return merged


def _find(known: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in known:
        raise ValueError(f"no {what} is called '{name}'; {near_matches(name, known)}")
    return known[name]


def _check_keys(table: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := table.keys() - known:
        raise ValueError(f"{where} has the unknown key {', '.join(sorted(unknown))}")


def _read(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text(encoding="utf-8"))
