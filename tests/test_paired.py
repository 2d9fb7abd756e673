"""Comparisons of a report: intervals equal a written-out computation, equal methods are noise at the stated rate."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from streams import colours_config
from test_report import joint, result, write

from lamella.experiments.report import load_results, render_table, summarise, write_html
from lamella.experiments.report.comparison_figures import draw_costs, draw_ranks
from lamella.experiments.report.paired import bootstrap, paired_t, pairs
from lamella.experiments.report.ranks import Ranks, critical_difference, groups, ranks
from lamella.experiments.right import read_right, write_right
from lamella.experiments.run import run
from lamella.learner.config.document import load_config

T_975 = {1: 12.706205, 2: 4.302653, 3: 3.182446, 4: 2.776445}
"""Student's t at 0.975 by degrees of freedom, from a printed table."""


def runs(folder: Path, finals: dict[str, list[float]], **changes: Any) -> Path:
    contents = [
        result(method, seed, final_accuracy=final, **changes)
        for method, values in finals.items()
        for seed, final in enumerate(values)
    ]
    return write(folder, *contents)


def board(folder: Path) -> Any:
    return summarise(load_results([folder])).boards()[0]


def test_the_interval_over_seeds_is_that_of_the_written_out_paired_t(tmp_path: Path) -> None:
    runs(tmp_path, {"b": [0.70, 0.72, 0.71, 0.74], "a": [0.74, 0.75, 0.74, 0.78]})
    (pair,) = pairs(board(tmp_path))
    differences = [0.04, 0.03, 0.03, 0.04]
    mean = sum(differences) / 4
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / 3)
    half = T_975[3] * deviation / math.sqrt(4)
    assert (pair.better.label, pair.worse.label, pair.verdict) == ("a", "b", "difference")
    assert pair.differences == pytest.approx(differences)
    assert pair.over_seeds == pytest.approx((mean - half, mean + half), abs=1e-6)
    unpaired = math.sqrt((np.var([0.70, 0.72, 0.71, 0.74], ddof=1) + np.var([0.74, 0.75, 0.74, 0.78], ddof=1)) / 4)
    assert half < T_975[3] * unpaired, "what both methods share of a seed is no part of the differences"


def test_only_runs_of_the_same_seed_and_split_are_pairs(tmp_path: Path) -> None:
    write(
        tmp_path,
        *(result("a", seed, final_accuracy=0.8) for seed in (0, 1, 2)),
        *(result("b", seed, final_accuracy=0.7 + seed / 100) for seed in (1, 2, 3)),
        joint(),
    )
    (pair,) = pairs(board(tmp_path))
    assert pair.differences == pytest.approx([0.09, 0.08])
    write(tmp_path / "order", result("a"), result("b", split_sha256="c" * 64))
    pooled = summarise(load_results([tmp_path / "order"]), across_splits=True)
    assert len(pooled.boards()) == 1
    assert pairs(pooled.boards()[0]) == []


def test_one_pair_says_nothing_of_seeds(tmp_path: Path) -> None:
    runs(tmp_path, {"a": [0.8], "b": [0.7]})
    (pair,) = pairs(board(tmp_path))
    assert (pair.over_seeds, pair.verdict) == (None, "one pair")


def test_noise_of_seeds_and_noise_of_images_are_both_noise(tmp_path: Path) -> None:
    runs(tmp_path / "seeds", {"a": [0.72, 0.70, 0.71], "b": [0.71, 0.72, 0.70]})
    assert pairs(board(tmp_path / "seeds"))[0].verdict == "noise"
    for finals, wanted in (([0.70, 0.70], "noise"), ([0.95, 0.95], "difference")):  # of 100 images
        folder = tmp_path / wanted
        runs(folder, {"a": finals, "b": [0.68, 0.68]}, task_sizes=[60, 40])
        for i, right in enumerate([*finals, 0.68, 0.68]):
            tasks = [{"": torch.arange(100) < round(100 * right)}]
            tasks[0][""] = tasks[0][""].roll(50 * (i > 1))  # other images than those of the other method
            write_right(folder / f"run-{i}", tasks, ["a" if i < 2 else "b"])
        (pair,) = pairs(board(folder))
        assert pair.over_seeds is not None
        assert pair.over_seeds[0] == pytest.approx(pair.over_seeds[1])
        assert pair.verdict == wanted


def test_two_methods_that_are_one_are_noise_at_the_stated_rate() -> None:
    """4,000 comparisons of five seeds: 5 % are called different, up to three standard errors (0.34 points)."""
    rng = np.random.default_rng(0)
    differences = rng.normal(0.7, 0.01, (4000, 5)) - rng.normal(0.7, 0.01, (4000, 5))
    half = T_975[4] * differences.std(axis=1, ddof=1) / math.sqrt(5)
    called = 0
    for row, expected in zip(differences, half, strict=True):
        low, high = paired_t(row) or (0, 0)
        assert (high - low) / 2 == pytest.approx(expected, rel=1e-5)
        called += not low <= 0 <= high
    assert called / 4000 == pytest.approx(0.05, abs=0.0103)


def test_the_bootstrap_agrees_with_the_normal_approximation_of_a_paired_difference() -> None:
    rng = np.random.default_rng(1)
    right = rng.random((2, 2000)) < np.array([[0.75], [0.7]])
    differences = right[0].astype(float) - right[1]
    low, high = bootstrap(differences)
    error = differences.std() / math.sqrt(2000)
    assert (low, high) == pytest.approx(
        (differences.mean() - 1.96 * error, differences.mean() + 1.96 * error), abs=0.1 * error
    )
    assert bootstrap(differences) == (low, high), "a report is the same when it is made again"
    assert bootstrap(np.zeros(10)) == (0.0, 0.0)


def test_a_run_keeps_which_images_were_right_and_pairs_use_it(tmp_path: Path) -> None:
    config = colours_config(tmp_path)
    for name in ("nearest-mean", "linear-probe"):
        changes = [f"method.name={name}"] + (["method.epochs=1"] if name == "linear-probe" else [])
        run(load_config(config, changes), tmp_path / "runs" / name, quiet=True)
    results = load_results([tmp_path / "runs"])
    kept = {each.method: each.right_images() for each in results}
    for each in results:
        right = kept[each.method]
        assert right is not None
        assert right.mean() == each.metrics["final_accuracy"]
        assert len(right) == sum(each.task_sizes)
    a, b = kept["nearest-mean"], kept["linear-probe"]
    assert a is not None
    assert b is not None
    (pair,) = pairs(board(tmp_path / "runs"))
    sign = 1 if pair.better.label == "nearest-mean" else -1
    assert pair.over_images == bootstrap(sign * (a.astype(float) - b))


def test_with_the_task_given_the_images_are_right_among_the_classes_of_their_task(tmp_path: Path) -> None:
    config, changes = colours_config(tmp_path), ["method.name=linear-probe", "method.epochs=1"]
    for kind in ("class-incremental", "task-incremental"):
        run(load_config(config, [*changes, f"scenario.kind={kind}"]), tmp_path / "runs" / kind, quiet=True)
    plain, given = load_results([tmp_path / "runs"])
    assert plain.metrics["final_accuracy"] != given.metrics["final_accuracy"], "else this shows nothing"
    for each in (plain, given):
        right = each.right_images()
        assert right is not None
        assert right.mean() == each.metrics["final_accuracy"]


def test_without_an_interval_over_images_the_report_says_why(lamella: Run, tmp_path: Path) -> None:
    runs(tmp_path, {"a": [0.8], "b": [0.7]})
    right = [{"": torch.arange(40) < 30}]
    for i, name in enumerate("ab"):
        write_right(tmp_path / f"run-{i}", right, [name])
    assert "No interval" not in lamella("report", tmp_path, "--pairs")[1]
    file = tmp_path / "run-1" / "right.npz"
    whole = file.read_bytes()
    for damaged in (b"", b"torn", whole[:-30], whole[:50] + bytes(30) + whole[80:]):
        file.write_bytes(damaged)
        text = lamella("report", tmp_path, "--pairs")[1]
        assert text.count(f"right.npz is missing or damaged in {tmp_path / 'run-1'}; a new run writes it") == 1
    write_right(tmp_path / "run-1", [{"": torch.ones(39, dtype=torch.bool)}], ["b"])
    assert "is missing or damaged" in lamella("report", tmp_path, "--pairs")[1], "not as many as test images"
    file.unlink()
    text = write_html(load_results([tmp_path]), tmp_path / "report.html").read_text()
    assert text.count("is missing or damaged") == 1

    results = [result(method, seed, split_sha256=str(seed) * 64) for method in "ab" for seed in (0, 1)]
    write(tmp_path / "orders", *results)
    for i in range(4):
        write_right(tmp_path / "orders" / f"run-{i}", right, [results[i]["method"]])
    text = lamella("report", tmp_path / "orders", "--pairs", "--across-splits")[1]
    assert text.count("No interval over images, since the pairs of runs have different test images.") == 1
    assert "damaged" not in text


def test_each_readout_has_its_own_images(tmp_path: Path) -> None:
    tasks = [{"": torch.tensor([True, False]), "base": torch.tensor([False, False])}] * 2
    write_right(tmp_path, tasks, ["a+align", "a"])
    kept = read_right(tmp_path, "a+align")
    assert kept is not None
    assert kept.tolist() == [True, False, True, False]
    assert read_right(tmp_path, "other") is None
    assert read_right(tmp_path / "nowhere", "a") is None


# Ranks ---------------------------------------------------------------------------------------------------------------


def streams(folder: Path, table: dict[str, dict[str, float]]) -> list[Any]:
    for scenario, finals in table.items():
        runs(folder / scenario, {name: [value] for name, value in finals.items()}, scenario=scenario)
    return summarise(load_results([folder])).boards()


def test_ranks_over_streams_share_ties_and_leave_out_who_is_not_everywhere(tmp_path: Path) -> None:
    table = {
        "s1": {"a": 0.9, "b": 0.8, "c": 0.7, "only-here": 0.99},
        "s2": {"a": 0.9, "b": 0.9, "c": 0.7},
        "s3": {"a": 0.6, "b": 0.7, "c": 0.5},
    }
    ranked = ranks(streams(tmp_path, table))
    assert ranked is not None
    assert (ranked.methods, ranked.streams) == (("a", "b", "c"), 3)
    assert ranked.means == pytest.approx(((1 + 1.5 + 2) / 3, (2 + 1.5 + 1) / 3, 3.0))
    assert ranked.critical == pytest.approx(2.343 * math.sqrt(3 * 4 / (6 * 3)), abs=1e-3)  # Demšar, table 5 (a)
    assert ranked.p is not None
    assert 0.05 < ranked.p < 0.2
    assert ranks(streams(tmp_path / "one", {"s1": table["s1"]})) is None


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_has_the_printed_quantiles(methods: int, q: float) -> None:
    assert critical_difference(methods, 7) == pytest.approx(q * math.sqrt(methods * (methods + 1) / 42), abs=1e-3)


def test_splits_of_one_stream_are_not_several_streams(tmp_path: Path) -> None:
    for split in "cd":
        runs(tmp_path / split, {"a": [0.8], "b": [0.7]}, split_sha256=split * 64)
    boards = summarise(load_results([tmp_path])).boards()
    assert len(boards) == 2
    assert ranks(boards) is None


def test_groups_are_the_largest_ones_within_the_critical_difference() -> None:
    assert groups([1.0, 2.0, 3.0], 0.5) == []
    assert groups([1.0, 1.2, 1.4, 2.9], 1.6) == [(0, 2), (2, 3)]
    assert groups([1.0, 1.0, 1.0], 0.1) == [(0, 2)]


# What is shown -------------------------------------------------------------------------------------------------------


def test_the_tables_the_json_and_the_page_have_the_pairs(lamella: Run, tmp_path: Path) -> None:
    table = {"s1": {"a|x": 0.9, "b": 0.8, "c": 0.7}, "s2": {"a|x": 0.9, "b": 0.85, "c": 0.7}}
    streams(tmp_path / "runs", table)
    code, text, _ = lamella("report", tmp_path / "runs", "--pairs")
    assert code == 0
    assert "s1: paired differences of final accuracy" in text
    assert "a|x     b     1      +10.0" in text
    assert "mean ranks over 2 streams: a|x 1.00, b 2.00, c 3.00; critical difference 2.34" in text
    assert "not told apart: a|x = b = c" in text
    _, markdown, _ = lamella("report", tmp_path / "runs", "--pairs", "--format", "markdown")
    assert "| a\\|x | b | 1 | +10.0 |" in markdown
    content = json.loads(lamella("report", tmp_path / "runs", "--format", "json")[1])
    assert len(content["pairs"]) == 6
    assert content["pairs"][0]["mean"] == pytest.approx(0.1)
    assert content["ranks"]["streams"] == 2
    code, _, err = lamella("report", tmp_path / "runs", "--pairs", "--format", "csv")
    assert (code, err.count("\n")) == (2, 1)
    assert "--format json" in err
    page = write_html(load_results([tmp_path / "runs"]), tmp_path / "report.html").read_text()
    assert page.count("<h2>Paired differences</h2>") == 2
    assert "<h2>Ranks over streams</h2>" in page
    assert "seconds of learning" in page
    assert "paired differences" not in render_table(load_results([tmp_path / "runs"]))


def test_without_two_methods_there_is_a_sentence(lamella: Run, tmp_path: Path) -> None:
    runs(tmp_path, {"a": [0.8, 0.7]})
    code, text, _ = lamella("report", tmp_path, "--pairs")
    assert code == 0
    assert "no two methods here have runs with the same seed and split" in text


def test_the_pictures_leave_out_what_was_not_recorded(tmp_path: Path) -> None:
    nothing = {"seconds": {}, "stored_bytes": None, "trainable_parameters": None}
    runs(tmp_path / "bare", {"a": [0.8], "b": [0.7]}, **nothing)
    assert draw_costs(board(tmp_path / "bare"), "x") is None
    runs(tmp_path / "some", {"a": [0.8], "b": [0.7]}, **nothing | {"stored_bytes": 0})
    assert draw_costs(board(tmp_path / "some"), "x") is None, "no cost to set apart"
    runs(tmp_path / "full", {"a": [0.8, 0.9], "b": [0.7, 0.7]})
    picture = draw_costs(board(tmp_path / "full"), "x") or ""
    assert all(label in picture for label in ("seconds of learning", "bytes stored", "numbers trained"))
    drawn = draw_ranks(Ranks(("a", "b", "c"), (1.2, 1.9, 2.9), 5, 1.0, 0.04), "r")
    assert "critical difference 1.00" in drawn
    assert "1.20  a" in drawn
