"""Reports: reading result files, grouping over seeds, tables, and the page."""

import csv
import doctest
import importlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lamella.common import words as number_words
from lamella.experiments.metrics import (
    DEFINITIONS,
    METRICS,
    accuracy_curve,
    average_accuracy,
    final_accuracy,
    forgetting,
)
from lamella.experiments.report import load_results, render_table, summarise, summary, words, write_html, write_report
from lamella.experiments.report.figures import draw_curves

NAN = float("nan")


def result(method: str = "inflora", seed: Any = 0, drop: float = 0.3, **changes: Any) -> dict[str, Any]:
    """A result of two tasks whose first task falls from 0.9 by `drop`."""
    matrix = [[0.9, NAN], [0.9 - drop, 0.8]]
    content = {
        "schema": 1,
        "method": method,
        "scenario": "digits",
        "kind": "class-incremental",
        "backbone": "bundled",
        "seed": seed,
        "final_accuracy": final_accuracy(matrix, [30, 10]),
        "final_accuracy_task_mean": final_accuracy(matrix),
        "average_accuracy": average_accuracy(matrix, [30, 10]),
        "forgetting": forgetting(matrix),
        "backward_transfer": -drop,
        "forward_transfer": None,
        "task_aware_accuracy": 0.95,
        "task_choice_accuracy": 0.75,
        "matrix": [[0.9, None], [0.9 - drop, 0.8]],
        "curve": list(accuracy_curve(matrix, [30, 10])),
        "task_names": ["0-1", "2-3"],
        "task_sizes": [30, 10],
        "classes": ["zero", "one", "two", "three"],
        "class_order": [0, 1, 2, 3],
        "split_sha256": "a" * 64,
        "weights_sha256": "b" * 64,
        "versions": {"torch": "2.15.0"},
        "seconds": {"learn": [30.0, 40.0], "evaluate": [1.0, 1.5]},
        "phase_seconds": {"train": 61.0, "scan": 9.0},
        "trainable_parameters": 12345,
        "stored_bytes": 2_500_000,
        "passes": 2.13,
        "evaluated_on": "test",
        "selection": "chosen on validation",
        "config": {"seed": seed, "method": {"name": method, "rank": 4}},
    }
    return content | changes


def joint() -> dict[str, Any]:
    nothing = dict.fromkeys(("average_accuracy", "forgetting", "backward_transfer"))
    return result("joint", matrix=[[None, None], [0.99, 0.99]], curve=[None, 0.99], final_accuracy=0.99, **nothing)


def write(folder: Path, *contents: dict[str, Any]) -> Path:
    for i, content in enumerate(contents):
        run = folder / f"run-{i}"
        run.mkdir(parents=True, exist_ok=True)
        (run / "results.json").write_text(json.dumps(content))
    return folder


def test_doctests_hold():
    for module in (summary, number_words):
        outcome = doctest.testmod(module)
        assert outcome.attempted > 0
        assert outcome.failed == 0


# Reading ------------------------------------------------------------------------------------------------------------


def test_files_are_found_at_any_depth_and_read_once(tmp_path: Path):
    write(tmp_path / "deep" / "er", result(seed=0), result(seed=1))
    (tmp_path / "deep" / "er" / "run-0" / "results-inflora.json").write_text(json.dumps(result("other")))
    results = load_results([tmp_path, tmp_path / "deep", tmp_path / "deep" / "er" / "run-0" / "results.json"])
    assert [(r.method, r.seed) for r in results] == [("other", 0), ("inflora", 0), ("inflora", 1)]
    assert results[1].seconds == {"learn": 70.0, "evaluate": 2.5}


def test_missing_and_empty_paths_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_results([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match=r"no results\*\.json"):
        load_results([tmp_path])
    with pytest.raises(FileNotFoundError, match="no run was given"):
        load_results([])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"schema": 1,', "JSON"),
        ("[1, 2]", "not a result file of lamella"),
        ('{"accuracy": 1}', "not a result file of lamella"),
        (json.dumps(result(schema="one")), "not a result file of lamella"),
        (json.dumps(result(schema=2)), "newer lamella"),
        (json.dumps({k: v for k, v in result().items() if k != "matrix"}), "it has no 'matrix'"),
        (json.dumps(result(final_accuracy=72.2)), "fractions from 0 to 1"),
        (json.dumps(result(final_accuracy=10**400)), "too large"),
        (json.dumps(result(matrix=[[0.5, None]])), "1 rows for 2 tasks"),
        (json.dumps(result(curve=[0.5])), "one entry per task"),
        (json.dumps(result(seed="0")), "seed"),
        (json.dumps(result(task_sizes=[1, 2, 3])), "task_sizes"),
        (json.dumps(result(config=[1])), "config is not a table"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, match: str):
    file = tmp_path / "results-bad.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=match) as refusal:
        load_results([tmp_path])
    assert "results-bad.json" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_nan_in_a_file_is_not_measured(tmp_path: Path):
    write(tmp_path, result(average_accuracy=NAN))
    assert load_results([tmp_path])[0].metrics["average_accuracy"] is None


# Grouping -----------------------------------------------------------------------------------------------------------


def test_seeds_become_mean_and_sample_deviation(tmp_path: Path):
    write(tmp_path, result(seed=2, drop=0.5), result(seed=0, drop=0.3), result(seed=1, drop=0.1))
    summed = summarise(load_results([tmp_path]))
    (row,) = summed.rows
    assert row.seeds == (0, 1, 2)
    value = row.metrics["forgetting"]
    assert value is not None
    assert (value.mean, value.deviation, value.n) == (pytest.approx(0.3), pytest.approx(0.2), 3)
    assert row.matrix()[1, 0] == pytest.approx(0.6)
    assert summed.notes == ()


def test_a_single_seed_has_no_deviation(tmp_path: Path):
    (row,) = summarise(load_results([write(tmp_path, result())])).rows
    assert row.metrics["final_accuracy"] is not None
    assert row.metrics["final_accuracy"].deviation is None
    assert row.curve_deviation() is None


def test_different_splits_are_kept_apart_and_noted(tmp_path: Path):
    write(tmp_path, result(seed=0), result(seed=1, split_sha256="c" * 64))
    results = load_results([tmp_path])
    summed = summarise(results)
    assert [row.seeds for row in summed.rows] == [(0,), (1,)]
    assert len(summed.boards()) == 2
    assert "2 different splits" in summed.notes[0]
    pooled = summarise(results, across_splits=True)
    assert [row.seeds for row in pooled.rows] == [(0, 1)]
    assert "averaged together" in pooled.notes[0]


@pytest.mark.parametrize(
    "change", [{"evaluated_on": "validation"}, {"weights_sha256": "d" * 64}, {"backbone": "other"}, {"kind": "other"}]
)
def test_what_was_not_made_alike_is_never_averaged(tmp_path: Path, change: dict[str, Any]):
    write(tmp_path, result(seed=0), result(seed=1, **change))
    assert len(summarise(load_results([tmp_path])).boards()) == 2


def test_other_settings_are_other_rows_that_say_which(tmp_path: Path):
    wide = {"seed": 0, "method": {"name": "inflora", "rank": 16}}
    write(tmp_path, result(seed=0), result(seed=0, config=wide), result("nearest-mean"))
    labels = {row.label for row in summarise(load_results([tmp_path])).rows}
    assert labels == {"inflora (rank=4)", "inflora (rank=16)", "nearest-mean"}


def test_settings_of_another_network_tell_no_rows_apart_since_its_board_names_it(tmp_path: Path):
    runs = []
    for backbone, pool in (("bundled", "token"), ("other", "mean")):
        own = {"backbone": {"name": backbone, "pool": pool}}
        runs += [result(m, backbone=backbone, config={**own, "method": {"name": m}}) for m in ("inflora", "olora")]
    rank = {"backbone": {"name": "other", "pool": "mean"}, "method": {"name": "olora", "rank": 2}}
    write(tmp_path, *runs, result("olora", backbone="other", config=rank))
    boards = summarise(load_results([tmp_path])).boards()
    labels = [{row.label for row in board} for board in boards]
    assert labels == [{"inflora", "olora"}, {"inflora", "olora (rank=unset)", "olora (rank=2)"}]


def test_where_a_run_was_made_makes_no_other_row(tmp_path: Path):
    configs = [
        {"run": {"seed": i, "selection": f"{i}"}, "fit": {"device": d, "measured": d}}
        for i, d in enumerate(("cpu", "cuda"))
    ]
    write(tmp_path, *[result(seed=i, config=config) for i, config in enumerate(configs)])
    assert [row.seeds for row in summarise(load_results([tmp_path])).rows] == [(0, 1)]


def test_a_seed_that_is_there_twice_counts_once_unless_it_differs(tmp_path: Path):
    write(tmp_path, result(), result(), result(drop=0.4))
    summed = summarise(load_results([tmp_path]))
    assert [row.seeds for row in summed.rows] == [(0, 0)]
    assert "1 of the result files" in summed.notes[0]
    assert "seed 0 is there with different outcomes" in summed.notes[1]
    assert words.seeds(summed.rows[0]) == "2 runs"


# Tables -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def several(tmp_path: Path) -> Path:
    runs = [result(seed=0, drop=0.1), result(seed=1, drop=0.3), result("seq|lora", drop=0.8), joint()]
    return write(tmp_path / "runs", *runs)


def test_markdown_marks_the_best_but_not_the_upper_bound(several: Path):
    lines = render_table(load_results([several]), "markdown").splitlines()
    inflora = next(line for line in lines if line.startswith("| inflora"))
    upper = next(line for line in lines if line.startswith("| joint"))
    assert "**72.5 ± 10.6**" in inflora
    assert "**20.0 ± 14.1**" in inflora
    assert "99.0" in upper
    assert "—" in upper
    assert "**" not in upper
    assert any(line.startswith("| seq\\|lora") for line in lines)
    header = next(line for line in lines if line.startswith("| method"))
    assert "forward transfer" not in header
    assert "nan" not in "".join(lines)


def test_the_terminal_table_is_whole(several: Path):
    text = render_table(load_results([several]))
    assert "72.5 ± 10.6" in text
    assert "joint *" in text
    assert "…" not in text


def test_costs_are_columns_where_they_are_asked_for(several: Path):
    results = load_results([several])
    lines = render_table(results, "markdown", costs=True).splitlines()
    header, rule, first = next(lines[i : i + 3] for i, line in enumerate(lines) if line.startswith("| method"))
    assert header.endswith("| trained parameters | stored | learning | passes |")
    assert first.endswith("| 12,345 | 2.5 MB | 1 min 10 s | 2.13 |")
    assert header.count("|") == rule.count("|") == first.count("|")
    assert "2.5 MB" in render_table(results, costs=True)
    assert "2.5 MB" not in render_table(results) + render_table(results, "markdown")
    assert render_table(results, "csv", costs=True) == render_table(results, "csv")


def test_csv_and_json_hold_fractions(several: Path):
    results = load_results([several])
    records = list(csv.DictReader(io.StringIO(render_table(results, "csv"))))
    assert [record["method"] for record in records] == ["inflora", "seq|lora", "joint"]
    assert float(records[0]["final_accuracy_mean"]) == pytest.approx(0.725)
    assert records[2]["forgetting_mean"] == ""
    rows = json.loads(render_table(results, "json"))["rows"]
    assert rows[0]["seeds"] == [0, 1]
    assert rows[2]["forgetting_mean"] is None
    assert rows[0]["learn_seconds"] == 70


def test_an_unknown_format_lists_the_known(several: Path):
    with pytest.raises(ValueError, match="table, markdown, csv, json"):
        render_table(load_results([several]), "xml")


def test_every_metric_is_read_and_defined(several: Path):
    assert {metric.name for metric in METRICS} == set(load_results([several])[0].metrics)
    assert all(metric.definition == DEFINITIONS[metric.name] for metric in METRICS)


# The page -----------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """What a page is made of, and whether its tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        self.ids += [named["id"] or ""] if "id" in named else []
        self.links += [value or "" for key, value in attrs if key in {"src", "href", "xlink:href"}]
        if tag not in {"meta", "br", "link", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read_page(path: Path) -> tuple[str, Reader]:
    text = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return text, reader


def test_the_page_is_whole_and_needs_no_network(several: Path, tmp_path: Path):
    path = write_report([several], html=tmp_path / "new" / "report.html")
    text, reader = read_page(path)
    assert reader.tags.count("svg") == 4 + 3  # curves, forgetting, confusion, costs, and a matrix per method
    assert not {"script", "link", "img", "iframe"} & set(reader.tags)
    assert all(link.startswith("#") for link in reader.links)
    assert {link[1:] for link in reader.links} <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids))
    assert "@import" not in text
    assert "72.5 ± 10.6" in text
    assert not re.search(r">\s*nan\b", text)
    assert "prefers-color-scheme: dark" in text
    for content in (
        "a" * 64,
        "b" * 64,
        "torch 2.15.0",
        "chosen on validation",
        "12,345",
        "2.5 MB",
        "1 min 10 s",
        "scan 9.0 s",
    ):
        assert content in text


def test_the_same_results_make_the_same_page(several: Path, tmp_path: Path):
    pages = [write_report([several], html=tmp_path / name).read_bytes() for name in ("one.html", "two.html")]
    assert pages[0] == pages[1]


def test_names_are_escaped_everywhere(tmp_path: Path):
    evil = "<script>alert('$x^2$')</script>"
    config = {"note": evil}
    content = result(evil, scenario=evil, backbone=evil, selection=evil, config=config, versions={evil: evil})
    content |= {"task_names": ["<b>", "$_{"], "classes": [evil], "evaluated_on": "<i>"}
    path = write_report([write(tmp_path / "runs", content)], html=tmp_path / "report.html")
    _, reader = read_page(path)
    assert not {"script", "i"} & set(reader.tags)
    assert reader.tags.count("b") == 2  # the page's own, beside the task confusion


@pytest.mark.parametrize("name", ["\x1b[31mred", "\0", "\u202egpj"])
def test_a_page_holds_no_sign_that_it_may_not(tmp_path: Path, name: str):
    content = result(name, scenario=name, backbone=name, selection=name, config={"note": name}, task_names=[name, "b"])
    runs = write(tmp_path / "runs", content, result())
    text, _ = read_page(write_report([runs], html=tmp_path / "report.html"))
    assert name not in text
    assert text.count(f"{ascii(name)[1:-1]}</text>") >= 3, "as a method and as a task"


def test_one_task_looks_right(tmp_path: Path):
    nothing = dict.fromkeys(("forgetting", "backward_transfer", "task_choice_accuracy"))
    content = result(matrix=[[0.9]], curve=[0.9], task_names=["all"], task_sizes=[40], **nothing)
    text, reader = read_page(write_report([write(tmp_path / "runs", content)], html=tmp_path / "report.html"))
    assert reader.tags.count("svg") == 1
    assert "1 task," in text
    assert not re.search(r">\s*nan\b", text)


def test_numbers_from_validation_data_say_so(tmp_path: Path):
    runs = write(tmp_path / "runs", result(evaluated_on="validation"))
    text, _ = read_page(write_report([runs], html=tmp_path / "report.html"))
    assert "from validation data, not from test data" in text


def test_a_folder_is_no_page(several: Path, tmp_path: Path):
    with pytest.raises(IsADirectoryError, match=r"report\.html"):
        write_html(load_results([several]), tmp_path)


def test_curves_take_many_methods_and_tasks(tmp_path: Path):
    tasks = 30
    matrix = [[0.5 if j <= i else None for j in range(tasks)] for i in range(tasks)]
    names = {"task_names": [f"a long name {i}" for i in range(tasks)], "task_sizes": [5] * tasks}
    methods = [result(f"method-{i}", matrix=matrix, curve=[0.5] * tasks, **names) for i in range(10)]
    rows = summarise(load_results([write(tmp_path, *methods)])).rows
    picture = draw_curves(rows, "curves")
    assert all(f"method-{i}<" in picture for i in range(10))
    assert 'id="curves-' in picture
    assert "var(--series-7)" in picture
    assert "#0101" not in picture


# The leaderboard ----------------------------------------------------------------------------------------------------


def test_the_leaderboard_has_a_row_for_each_variant_best_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "tools"))
    leaderboard = importlib.import_module("leaderboard")
    runs = tmp_path / "runs" / "digits"
    write(runs / "weak", result("olora", final_accuracy=0.5))
    write(runs / "strong", result("inflora+align", final_accuracy=0.9), result("inflora+align", 1, final_accuracy=0.8))
    for i, own in enumerate((0.4, 0.2)):
        (runs / "strong" / f"run-{i}" / "results-inflora.json").write_text(
            json.dumps(result("inflora", i, final_accuracy=own))
        )
    write(runs / "bound", joint())
    page = "before\n<!-- digits -->\nold\n<!-- end digits -->\nafter\n"
    found = leaderboard.tables(tmp_path / "runs", page)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines() if "`" in line]
    assert [row[0] for row in rows] == ["strong: `inflora+align`", "weak: `olora`", "bound: `joint`, all at once"]
    assert rows[0][1:4] == ["2", "85.0 ± 7.1", "30.0 ± 14.1"]
    assert rows[1][1:4] == ["1", "50.0", ""]
    assert rows[0][7:] == ["12,345", "2.5 MB", "70", "2.13"]
    assert found.startswith("before\n<!-- digits -->\n")
    assert found.endswith("<!-- end digits -->\nafter\n")
    assert leaderboard.tables(tmp_path / "runs", found) == found, "what is there is made anew"
    with pytest.raises(ValueError, match="the page has no marks '<!-- digits -->'"):
        leaderboard.tables(tmp_path / "runs", "nothing")
