"""The registry of papers: its data are complete and can be run, and a run stands beside what was reported."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from PIL import Image
from streams import tiny_backbone
from test_report import result, write

from lamella.backbones.hub import without_hub
from lamella.common.words import many, number
from lamella.experiments.report import load_results
from lamella.experiments.reproduce import registry
from lamella.experiments.reproduce.compare import FILE, compare, comparison_line, read_comparison
from lamella.experiments.reproduce.registry import Cell, cell_config, find_cell, papers, parse_paper, without_cell
from lamella.learner.config.document import build_method, complete, load_config, method_name, shipped_configs
from lamella.learner.config.registry import find
from lamella.methods import METHODS, Method

CELLS = [cell for paper in papers().values() for cell in paper.cells.values()]


def title(cell: Cell) -> str:
    return f"{cell.paper} {cell.name}"


# The data ------------------------------------------------------------------------------------------------------------


def test_there_are_many_cells_each_with_a_source_and_a_possible_value() -> None:
    assert len(CELLS) >= 60
    for cell in CELLS:
        assert cell.read, title(cell)
        assert all(cell.reported[name].mean > 10 for name in cell.reported), title(cell)  # percent, not fractions
        average = cell.average.mean if cell.average else 100.0
        assert cell.last.mean < average < 100.01, f"{title(cell)}: accuracy falls with the tasks in all of these"


@pytest.mark.parametrize("cell", CELLS, ids=title)
def test_a_cell_has_a_configuration_that_can_be_run(cell: Cell) -> None:
    assert cell.config in shipped_configs()
    config = cell_config(cell)
    assert method_name(config) == cell.method
    assert "dropped" not in config["run"]
    assert "overrides" not in config["run"]
    assert config["run"]["selection"].startswith("published")
    benchmark = registry._read(registry.FOLDER / "benchmarks.toml")
    stream = next(stream for name, stream in benchmark.items() if cell.name.endswith(name))
    assert stream["scenario"].items() <= config["scenario"].items()
    assert config["backbone"]["name"].startswith("vit_base_patch16_224.augreg_in21k")
    fine_tuned = config["backbone"]["name"].endswith("_ft_in1k")
    if "was not read" not in cell.checkpoint:
        assert fine_tuned == ("then ImageNet-1k" in cell.checkpoint), "the weights are those that the cell says"


def test_a_shipped_configuration_that_is_the_cell_itself_is_not_changed() -> None:
    for name in ("inflora-cifar100-10", "inflora-imagenet-r-10", "sdlora-cifar100-10", "ranpac-cifar100-10"):
        paper, _, benchmark = name.partition("-")
        config, shipped = cell_config(find_cell(paper, benchmark)), load_config(name)
        assert {**config, "run": 0} == {**shipped, "run": 0}


def test_what_a_cell_does_not_set_is_the_default_of_its_method() -> None:
    config = cell_config(find_cell("slca", "cifar100-10"))
    table = config["method"]
    assert table == complete({"backbone": {"name": "test_vit"}, "method": {"name": "slca"}})["method"]
    loda = cell_config(find_cell("loda", "imagenet-r-10"))["method"]
    assert (loda["rank"], loda["lr"], loda["margin"], loda["batch_size"], loda["rho"]) == (64, 0.02, 0.1, 48, 0.7)


def test_every_method_has_a_cell_or_a_reason() -> None:
    with_cell = {cell.method.split("+")[0] for cell in CELLS}
    assert all(find(name) for name in with_cell)
    assert with_cell & without_cell().keys() == set(), "a reason is given for a method that has a cell"
    assert with_cell | without_cell().keys() == set(METHODS)
    assert all(without_cell().values())


def test_the_method_of_every_cell_can_be_built() -> None:
    for cell in {cell.method: cell for cell in CELLS}.values():
        method = build_method(cell_config(cell), tiny_backbone())
        assert isinstance(method, Method)


PAPER: dict[str, Any] = {
    "title": "T", "cite": "C", "method": "inflora", "source": "primary", "read": "r", "checkpoint": "c", "unsaid": [],
    "protocol": "p", "split": "s", "order": "o", "seeds": "0",
    "rows": [{"method": "inflora", "config": "inflora-{benchmark}", "cells": {"cifar100-10": {"last": 50.0}}}],
}  # fmt: skip
STREAMS = {"cifar100-10": {"scenario": {"tasks": 10}}}


def test_the_nearest_to_the_cell_holds() -> None:
    row = {**PAPER["rows"][0], "name": "again", "source": "secondary", "settings": {"method": {"rank": 4, "lr": 0.1}}}
    row["cells"] = {"cifar100-10": {"last": 50.0, "read": "notes", "settings": {"method": {"lr": 0.2}}}}
    cell = parse_paper("t", {**PAPER, "rows": [*PAPER["rows"], row]}, STREAMS).cells["again-cifar100-10"]
    assert (cell.source, cell.read, cell.protocol, cell.config) == ("secondary", "notes", "p", "inflora-cifar100-10")
    assert cell.settings == {"scenario": {"tasks": 10}, "method": {"rank": 4, "lr": 0.2}}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"colour": 1}, "unknown key colour"),
        ({"source": "hearsay"}, "'primary' or 'secondary'"),
        ({"rows": [{**PAPER["rows"][0], "cells": {"cifar100-10": {}}}]}, "needs 'last'"),
        ({"rows": [{**PAPER["rows"][0], "cells": {"nowhere-3": {"last": 1.0}}}]}, "no known benchmark"),
        ({"rows": PAPER["rows"] * 2}, "is there twice"),
    ],
)
def test_a_file_with_a_mistake_is_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        parse_paper("t", {**PAPER, **change}, STREAMS)
    with pytest.raises(ValueError, match="lacks checkpoint, order"):
        parse_paper("t", {k: v for k, v in PAPER.items() if k not in ("order", "checkpoint")}, STREAMS)


# Reported against reproduced -----------------------------------------------------------------------------------------


def test_the_difference_and_its_standard_error(tmp_path: Path) -> None:
    finals = (0.74, 0.76, 0.75)
    runs = [result("inflora", seed, final_accuracy=final, average_accuracy=0.8) for seed, final in enumerate(finals)]
    done = compare(find_cell("inflora", "imagenet-r-10"), load_results([write(tmp_path, *runs)]))
    last = done.values["last"]
    assert done.seeds == (0, 1, 2)
    assert last.difference == pytest.approx(0.75 - 0.7565)
    assert last.deviation == pytest.approx(0.01)
    assert last.standard_error == pytest.approx(math.sqrt(0.0014**2 / 5 + 0.01**2 / 3))
    assert comparison_line(last) == (
        "reported 75.65 ± 0.14, reproduced 75.0 ± 1.0, difference \N{MINUS SIGN}0.7 (standard error 0.6)"
    )
    assert done.values["average"].difference == pytest.approx(0.8 - 0.8082)
    alone = compare(find_cell("slca", "imagenet-r-10"), load_results([write(tmp_path / "one", result("slca"))]))
    assert alone.values["last"].standard_error is None


def test_runs_of_another_method_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is of the method inflora, but the runs are of olora"):
        compare(find_cell("inflora", "imagenet-r-10"), load_results([write(tmp_path, result("olora"))]))


# The command ---------------------------------------------------------------------------------------------------------


def test_the_list_has_every_cell_and_says_which_was_never_run(
    lamella: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, shown, _ = lamella("reproduce")
    assert code == 0
    assert shown.count("never run here") == len(CELLS)
    code, shown, _ = lamella("reproduce", "inflora")
    assert "  imagenet-r-10: last 75.65 ± 0.14, average 80.82 ± 0.24, primary; never run here\n" in shown
    assert "left unsaid: two public readings disagree on the checkpoint" in shown
    rows = json.loads(lamella("reproduce", "--json")[1])
    assert [(row["paper"], row["name"]) for row in rows] == [(cell.paper, cell.name) for cell in CELLS]


def test_a_dry_run_prints_a_configuration_that_runs_as_it_is(lamella: Run, tmp_path: Path) -> None:
    code, shown, _ = lamella("reproduce", "sdlora", "imagenet-a-10", "--dry-run")
    assert code == 0
    (tmp_path / "my.toml").write_text(shown)
    assert load_config(tmp_path / "my.toml") == cell_config(find_cell("sdlora", "imagenet-a-10"))
    assert "# departure: the code's rate falls" in shown


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["inflor"], "no paper is called 'inflor'; did you mean 'inflora'"),
        (["inflora", "imagenet-r-11"], "no cell of inflora is called 'imagenet-r-11'; did you mean 'imagenet-r-10'"),
        (["inflora", "imagenet-r-10", "method.rnak=3"], "method.rnak"),
        (["--dry-run", "--seeds", "2"], "--seeds, --dry-run: of the run of a cell, and none is named"),
        (["inflora", "--resume"], "--resume: of the run of a cell"),
        (["inflora", "imagenet-r-10", "--json"], "--json prints the list of cells and runs none"),
    ],
)
def test_a_wrong_name_is_one_line(lamella: Run, words: list[str], match: str) -> None:
    code, out, err = lamella("reproduce", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert match in err


def test_without_the_data_one_line_says_how_to_get_them(
    lamella: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMELLA_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, _, err = lamella("reproduce", "inflora", "imagenet-r-10", "--out", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1)
    places = f"{tmp_path / 'imagenet-r'} or {tmp_path / 'lamella' / 'imagenet-r'}"
    assert f"imagenet-r is read from a local copy, and there is none: unpack it as {places}, or give root=" in err


def test_without_the_weights_one_line_says_where_to_put_them(
    lamella: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jpegs(tmp_path / "imagenet-r", classes=10, each=5)
    monkeypatch.setenv("LAMELLA_DATA", str(tmp_path))
    with without_hub():
        code, _, err = lamella("reproduce", "inflora", "imagenet-r-10", "--out", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "the weights of 'vit_base_patch16_224.augreg_in21k' are not on this machine" in err
    assert "put them into a folder" in err
    assert not (tmp_path / "out").exists(), "so the same command works once they are there"


def jpegs(folder: Path, classes: int, each: int) -> list[Path]:
    """Noisy images, whose brightness tells the classes of a folder with class folders apart."""
    rng = np.random.default_rng(0)
    made = []
    for label in range(classes):
        for i in range(each):
            made.append(folder / f"n{label:08}" / f"{i}.jpg")
            made[-1].parent.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(250 * label / classes + rng.normal(0, 20, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(made[-1])
    return made


def fake_cub(root: Path, classes: int, each: int) -> None:
    folder = root / "CUB_200_2011"
    files = [path.relative_to(folder / "images") for path in jpegs(folder / "images", classes, each)]
    numbered = list(enumerate(files, 1))
    lines = {
        "images.txt": [f"{i} {file}" for i, file in numbered],
        "image_class_labels.txt": [f"{i} {(i - 1) // each + 1}" for i, _ in numbered],
        "train_test_split.txt": [f"{i} {int(i % 4 > 0)}" for i, _ in numbered],
        "classes.txt": [f"{label + 1} n{label:08}" for label in range(classes)],
    }
    for name, text in lines.items():
        (folder / name).write_text("\n".join(text) + "\n")


def fake_cifar(root: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 6)
    images = rng.integers(0, 255, (60, 32, 32, 3)).astype(np.uint8)
    np.savez(root / "cifar100.npz", x_train=images, y_train=labels, x_test=images[::3], y_test=labels[::3])


STAND_IN = [
    "backbone.name=test_vit",
    "backbone.weights=random",
    "backbone.size=32",
    "method.epochs=1",
    "scenario.tasks=2",
]


@pytest.mark.parametrize(
    ("paper", "cell", "more", "seeds"),
    [
        ("inflora", "imagenet-r-10", ["method.rank=2"], 1),
        pytest.param("sdlora", "cub200-10", ["method.rank=2"], 1, marks=pytest.mark.slow),
        ("ranpac", "cifar100-10", ["method.projections=50"], 2),
    ],
)
def test_a_cell_runs_from_end_to_end_on_stand_ins(
    lamella: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paper: str, cell: str, more: list[str], seeds: int
) -> None:
    """Generated images in the real layouts and random weights: what is written says that it is another setting."""
    jpegs(tmp_path / "imagenet-r", classes=4, each=10)
    fake_cub(tmp_path, classes=4, each=8)
    fake_cifar(tmp_path)
    monkeypatch.setenv("LAMELLA_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    command = ["reproduce", paper, cell, *STAND_IN, *more, "--seeds", seeds, "--quiet"]
    code, shown, err = lamella(*command)
    assert (code, err) == (0, "")
    folder = Path("runs") / f"{paper}-{cell}"
    finals = [json.loads((folder / f"seed-{i}" / "results.json").read_text())["final_accuracy"] for i in range(seeds)]
    written = json.loads((folder / FILE).read_text())
    assert written["values"]["last"]["reproduced"] == pytest.approx(np.mean(finals))
    assert written["values"]["last"]["reported"] == pytest.approx(find_cell(paper, cell).last.mean / 100)
    assert {change.partition("=")[0] for change in written["changes"]} >= {"backbone.name", "backbone.weights"}
    assert "not the published setting, changed: backbone.name=test_vit" in shown

    code, listed, _ = lamella("reproduce", paper)
    assert f"reproduced {number(np.mean(finals))} (" in listed
    assert f"{many(seeds, 'seed')}), with changes" in listed
    code, _, err = lamella(*command, "--resume")
    assert (code, err.count("finished already")) == (0, seeds)
    assert read_comparison(folder) is not None
    assert json.loads((folder / FILE).read_text()) == written
