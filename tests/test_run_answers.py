"""Runs on streams of answers: what is measured before, between and after, what is written, and how a run goes on."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assistants import answers_file, llama_folder
from conftest import Run

from lamella import Learner
from lamella.backbones.generating import Generating
from lamella.data.answers import AnswerSet
from lamella.data.sources.load import load_source
from lamella.experiments.answering import AnswerRun
from lamella.experiments.metrics import METRICS
from lamella.experiments.report import load_results, render_table, write_html
from lamella.experiments.run import run
from lamella.experiments.score_metrics import score_final, score_forgetting, score_forward_transfer
from lamella.learner.config.document import load_config

SIZES = {"ab": (9, 3), "xyz": (9, 4), "mn": (9, 2)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, three sets of answers, rows of no task, and a configuration."""
    place = tmp_path_factory.mktemp("streams")
    llama_folder(place / "base")
    for letters, (train, test) in SIZES.items():
        answers_file(place / f"{letters}.jsonl", letters, train, test=test)
    (place / "held.jsonl").write_text("".join(f'{{"prompt": "who {i}?", "response": "me"}}\n' for i in range(6)))
    sources = [str(place / f"{letters}.jsonl") for letters in SIZES]
    (place / "stream.toml").write_text(
        f"""[scenario]
kind = "datasets"
sources = {json.dumps(sources)}
[backbone]
name = "{place / "base"}"
output = "tokens"
max_length = 64
[method]
name = "inflora"
energy = 0.8
energy_of = "data"
sites = ["key", "value"]
rank = 4
lr = 0.02
epochs = 2
batch_size = 4
[fit]
device = "cpu"
[run]
max_tokens = 6
stop = ["\\n"]
probe = "{place / "held.jsonl"}"
"""
    )
    return place


def config(place: Path, *changes: str) -> dict[str, Any]:
    return load_config(place / "stream.toml", changes)


@pytest.fixture(scope="module")
def done(place: Path) -> Path:
    """A finished run."""
    return run(config(place), place / "done", quiet=True)


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in ("seconds", "phase_seconds")}


def test_the_matrix_has_every_named_score_and_a_row_before_anything_was_learned(place: Path, done: Path) -> None:
    found = results(done)
    assert found["task_names"] == list(SIZES)
    assert found["task_sizes"] == [3, 4, 2]
    assert set(found["scores"]) == {
        *("loss", "perplexity", "bits_per_byte", "exact", "exact_casefold", "rouge_l", "chrf", "choice")
    }
    for scores in found["scores"].values():
        assert [[value is None for value in row] for row in scores["matrix"]] == [
            [False, False, True],
            [False] * 3,
            [False] * 3,
        ]
        assert None not in scores["before"]
    tables = {key: value for key, value in config(place).items() if key != "scenario"}
    how = Generating(6, stop=("\n",))
    for learner, row in (
        (Learner(tables), [scores["before"] for scores in found["scores"].values()]),
        (Learner.load(done / "model", device="cpu"), [scores["matrix"][-1] for scores in found["scores"].values()]),
    ):
        for j, letters in enumerate(SIZES):
            test = load_source(place / f"{letters}.jsonl").test
            assert isinstance(test, AnswerSet)
            measured = learner.evaluate_answers(test, how).scores
            assert [own[j] for own in row] == pytest.approx([measured[name] for name in found["scores"]], rel=1e-6)
    losses = np.array([found["scores"]["loss"]["before"], *found["scores"]["loss"]["matrix"]], dtype=float)
    assert all(losses[j + 1, j] < losses[0, j] for j in range(3)), "each task is learned"


def test_metrics_are_those_of_the_matrix(done: Path) -> None:
    found = results(done)
    for name, key in (("loss", "loss"), ("rouge_l", "rouge_l")):
        matrix, before = np.array(found["scores"][name]["matrix"], float), np.array(found["scores"][name]["before"])
        sign = -1 if name == "loss" else 1
        assert found[f"final_{key}"] == pytest.approx(matrix[-1].mean())
        best = [max(sign * v for v in (before[j], *matrix[:2, j]) if not np.isnan(v)) for j in range(2)]
        assert found[f"{key}_forgetting"] == pytest.approx(np.mean([best[j] - sign * matrix[2, j] for j in range(2)]))
        gain = np.mean([sign * (matrix[j - 1, j] - before[j]) for j in (1, 2)])
        assert found[f"{key}_forward_transfer"] == pytest.approx(gain)
    exact = found["scores"]["exact"]
    assert found["matrix"] == exact["matrix"]
    assert found["final_accuracy"] == pytest.approx(np.average(exact["matrix"][-1], weights=[3, 4, 2]))
    assert found["forward_transfer"] == pytest.approx(
        np.mean([exact["matrix"][0][1] - exact["before"][1], exact["matrix"][1][2] - exact["before"][2]])
    )
    probe = found["probe"]
    assert (probe["before"]["answers"], set(probe["after"]["scores"])) == (6, set(probe["before"]["scores"]))
    change = probe["after"]["scores"]["loss"] - probe["before"]["scores"]["loss"]
    assert found["probe_loss_change"] == pytest.approx(change)
    assert change != 0


def test_samples_stand_beside_the_results(done: Path) -> None:
    found = results(done)
    for name, row in (
        ("samples.jsonl", [s["matrix"][-1] for s in found["scores"].values()]),
        ("samples-before.jsonl", [s["before"] for s in found["scores"].values()]),
    ):
        lines = [json.loads(line) for line in (done / name).read_text().splitlines()]
        assert [line["task"] for line in lines if line["task"] in SIZES] == ["ab"] * 3 + ["xyz"] * 4 + ["mn"] * 2
        assert sum(line["task"].startswith("probe: ") for line in lines) == 6
        chrf = dict(zip(found["scores"], row, strict=True))["chrf"]
        for j, letters in enumerate(SIZES):
            own = [line for line in lines if line["task"] == letters]
            assert all(line["references"][0].endswith("!") for line in own)
            assert all(line["prompt"].startswith(letters) for line in own)
            assert sum(line["scores"]["chrf"] for line in own) / len(own) == pytest.approx(chrf[j])
            assert all(isinstance(line["written"], str) for line in own)
    with np.load(done / "right.npz") as right:
        assert right["inflora"].mean() == pytest.approx(found["final_accuracy"])


def test_a_run_that_was_stopped_goes_on_to_the_same_results(
    place: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = AnswerRun.measure

    def stopped(self: AnswerRun, i: int, *, last: bool) -> dict[str, Any]:
        if i == 1:
            raise KeyboardInterrupt
        return plain(self, i, last=last)

    with monkeypatch.context() as patch:
        patch.setattr(AnswerRun, "measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(config(place), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "results.json").exists()
    before = (tmp_path / "run" / "before.json").read_bytes()
    run(config(place), tmp_path / "run", resume=True, quiet=True)
    assert without_times(results(tmp_path / "run")) == without_times(results(done))
    assert (tmp_path / "run" / "before.json").read_bytes() == before
    for name in ("samples.jsonl", "samples-before.jsonl", "right.npz"):
        assert (tmp_path / "run" / name).read_bytes() == (done / name).read_bytes()


def test_a_run_does_not_go_on_with_another_probe(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = tmp_path / "probe.jsonl"
    probe.write_text('{"prompt": "a", "response": "b"}\n')

    def stopped(self: AnswerRun, i: int, *, last: bool) -> dict[str, Any]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AnswerRun, "measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(config(place, f"run.probe={probe}", "scenario.first_tasks=1"), tmp_path / "run", quiet=True)
    probe.write_text('{"prompt": "a", "response": "other"}\n')
    with pytest.raises(ValueError, match=r"the rows of run\.probe of '.*' are not those it was started with"):
        run(config(place, f"run.probe={probe}", "scenario.first_tasks=1"), tmp_path / "run", resume=True, quiet=True)


def test_all_at_once_is_measured_before_and_at_the_end(place: Path, done: Path) -> None:
    found = results(run(config(place, "method.name=joint"), place / "joint", quiet=True))
    losses = found["scores"]["loss"]
    assert losses["before"] == results(done)["scores"]["loss"]["before"]
    assert [row[0] is None for row in losses["matrix"]] == [True, True, False]
    assert found["loss_forgetting"] is None
    assert load_results([place / "joint"])[0].at_once
    assert not load_results([done])[0].at_once


def test_a_report_shows_the_scores_and_what_was_written(lamella: Run, place: Path, done: Path, tmp_path: Path) -> None:
    table = render_table(load_results([done]), "markdown")
    head = table.splitlines()[2]
    for label in (
        "final accuracy",
        "final rouge-l",
        "final loss",
        "loss forgetting",
        "loss forward transfer",
        "probe loss change",
    ):
        assert f" {label} " in head
    assert "Percent, losses in nats a token" in table
    found = results(done)
    assert f"{found['final_loss']:.3f}" in table
    (row,) = json.loads(render_table(load_results([done]), "json"))["rows"]
    assert row["final_loss_mean"] == found["final_loss"]
    page = write_html(load_results([done]), tmp_path / "page.html").read_text()
    text = re.sub("<style>.*?</style>", "", page, flags=re.DOTALL)
    assert "Scores of answers" in text
    assert "What was written" in text
    first = json.loads((done / "samples.jsonl").read_text().splitlines()[0])
    assert f"<td>{first['prompt']}</td>" in text
    assert (
        "images"
        not in re.sub("<(details|dl)[^>]*>.*?</\\1>", "", text, flags=re.DOTALL)
        .partition("What was written")[0]
        .partition("Scores of answers")[2]
    )
    code, _, err = lamella("report", done)
    assert code == 0, err


def test_a_stream_of_plain_texts_has_losses_alone(done: Path, tmp_path: Path) -> None:
    found = results(done)
    found["scores"] = {name: found["scores"][name] for name in ("loss", "perplexity", "bits_per_byte")}
    nothing = [[None] * 3] * 3
    metrics = {metric.name: None for metric in METRICS if metric.of != "loss"}
    texts = found | metrics | {"matrix": nothing, "task_aware_matrix": nothing, "curve": [None] * 3}
    (tmp_path / "results.json").write_text(json.dumps(texts))
    page = write_html(load_results([tmp_path]), tmp_path / "page.html").read_text()
    assert "Final loss" in page
    assert (
        "Final accuracy"
        not in re.sub("<style>.*?</style>", "", page, flags=re.DOTALL).partition("Summary")[2].partition("</table>")[0]
    )
    assert not load_results([tmp_path])[0].at_once
    assert "final loss" in render_table(load_results([tmp_path]), "markdown")


def test_settings_for_answers_are_refused_where_classes_are_learned(place: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"run\.max_tokens is for runs on answers, and this one learns texts; take it away"
    ):
        run(load_config("requests", ["run.max_tokens=3"]), tmp_path / "run", quiet=True)
    with pytest.raises(ValueError, match=r"run\.probe = 'requests' holds texts; name a file of answers"):
        run(config(place, "run.probe=requests"), tmp_path / "run", quiet=True)
    with pytest.raises(ValueError, match="max_tokens is 0; an answer has at least 1"):
        run(config(place, "run.max_tokens=0"), tmp_path / "run", quiet=True)


def test_scores_of_matrices_by_hand() -> None:
    nan = float("nan")
    accuracy = np.array([[0.9, 0.2, nan], [0.5, 0.8, 0.4], [0.4, 0.9, 0.6]])
    before = np.array([0.1, 0.3, 0.5])
    assert score_final(accuracy, before, False) == pytest.approx(1.9 / 3)
    assert score_forgetting(accuracy, before, False) == pytest.approx(((0.9 - 0.4) + (0.8 - 0.9)) / 2)
    assert score_forward_transfer(accuracy, before, False) == pytest.approx(((0.2 - 0.3) + (0.4 - 0.5)) / 2)
    assert score_forgetting(accuracy, np.array([1.0, 0, 0]), False) == pytest.approx((0.6 - 0.1) / 2), "before counts"
    assert score_forgetting(-accuracy, -before, True) == pytest.approx(score_forgetting(accuracy, before, False))
    assert score_forward_transfer(-accuracy, -before, True) == pytest.approx(-0.1)
    assert np.isnan(score_forgetting(np.array([[0.5]]), np.array([0.1]), False))
    assert {metric.of for metric in METRICS} == {"", "stream", "rouge_l", "choice", "loss"}
