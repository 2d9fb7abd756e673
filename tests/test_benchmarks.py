"""Every benchmark script runs, on the smallest input that it takes; what it measures is no test's business."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lamella.experiments.run import run
from lamella.experiments.sweep.plan import read_sweep
from lamella.learner.config.document import load_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Imports a script by its name; it runs in a folder of its own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    return importlib.import_module


def comparisons() -> list[str]:
    """Read without importing: collecting tests should stay quick."""
    text = (BENCHMARKS / "ratios.py").read_text(encoding="utf-8")
    return [line.split('"')[1] for line in text.splitlines() if ": Comparison(" in line]


LONG = {"compilation", "training-step"}
"""Comparisons whose tiny form takes seconds too; `pytest -m slow` runs them."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in comparisons()])
def test_a_comparison_prints_a_table_and_keeps_its_times(
    script: Any, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    script("ratios").app([name, "--tiny", "--out", "times.json"], standalone_mode=False)
    found = json.loads(Path("times.json").read_text())
    assert found["setting"]["torch"]
    assert found["cases"]
    for case in found["cases"]:
        assert case["unit"] in case["seconds"]
        assert {len(seconds) for seconds in case["seconds"].values()} == {3}
    assert name in capsys.readouterr().out


def test_the_script_of_comparisons_has_all_of_them(script: Any) -> None:
    assert list(script("ratios").COMPARISONS) == comparisons()


def test_predicting(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    script("predicting").main(method="nearest-mean", backbone="test_vit", size=32, images=3, classes=2, rounds=2)
    assert "predict / plain" in capsys.readouterr().out


@pytest.mark.slow
def test_many_files(script: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script("many_files").main(images=[3], out=tmp_path / "found.json")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["3 images, --csv", "3 images, --out"]


@pytest.mark.slow
def test_many_files_on_ray(script: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    pytest.importorskip("psutil")
    script("many_files").main(images=[3], ray=True, out=tmp_path / "found.json")
    assert capsys.readouterr().out.splitlines()[2].startswith("3 images, --engine ray: ")
    assert json.loads((tmp_path / "found.json").read_text())[2]["MB"] > 100


def test_weights_apart(script: Any, taught: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apart = script("weights_apart").apart
    a = torch.tensor([[2.0, 0.0], [0.0, 4.0], [1.0, 1.0]])
    assert apart("weight", a, a + torch.tensor([[0.0, 0.0], [0.0, -2.0], [1.0, 0.0]])).tolist() == [0.5, 0.25, 0.0]
    assert apart("layer.vectors", a, -a).tolist() == [0.0, 0.0, 0.0], "a basis may be turned"
    assert apart("bias", a[0], a[1]).tolist() == [2.0]
    assert apart("share", a[0, 0], a[0, 1]).tolist() == [1.0]
    script("weights_apart").main(taught, taught, 8)
    assert "0.0e+00" in capsys.readouterr().out


@pytest.mark.slow
def test_serving(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fastapi")
    script("serving").main(backbone="test_vit", size=32, images=3, clients=2, rounds=1)
    assert "served / alone" in capsys.readouterr().out


@pytest.mark.slow
def test_serving_texts(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fastapi")
    script("serving_texts").main(backbone="hashed-words", texts=5, clients=2, rounds=1)
    assert "served / alone" in capsys.readouterr().out


def test_words(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    script("words").main("requests", ["scenario.per_class=4"])
    assert "words, all texts at once: " in capsys.readouterr().out


@pytest.mark.slow
def test_all_merging_rules_are_read_from_one_training(script: Any, tmp_path: Path) -> None:
    tiny = ["scenario.per_class=8", "method.epochs=1"]
    merging_rules = script("merging_rules")
    merging_rules.main(tiny, config="digits", rule=["last", "ties"], out=tmp_path / "once")
    trained = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "once" / "trained").iterdir()}
    assert len(trained) == 5
    same = ["scenario.validation=0.25", "run.evaluate_on=validation", "method.fresh=true", "method.merge.rule=ties"]
    run(load_config("digits", [*tiny, *same, "method.name=seq-lora+merge+align"]), tmp_path / "run", quiet=True)
    alone = json.loads((tmp_path / "run" / "results.json").read_text())["final_accuracy"]
    found = json.loads((tmp_path / "once" / "ties.json").read_text())
    assert found["aligned"] == pytest.approx(100 * alone)
    assert found != json.loads((tmp_path / "once" / "last.json").read_text())


@pytest.mark.slow
def test_all_routers_are_read_from_one_training(script: Any, tmp_path: Path) -> None:
    tiny = ["scenario.per_class=8", "method.epochs=1"]
    routers = script("routers")
    routers.main("color", tiny, config="digits", router=["nearest", "gaussian"], out=tmp_path / "once")
    trained = {path.name for path in (tmp_path / "once" / "trained").iterdir()}
    assert len(trained) == 5
    same = ["scenario.validation=0.25", "run.evaluate_on=validation", "method.name=color", "method.router=gaussian"]
    run(load_config("digits", [*tiny, *same]), tmp_path / "run", quiet=True)
    alone = json.loads((tmp_path / "run" / "results.json").read_text())
    found = json.loads((tmp_path / "once" / "gaussian.json").read_text())
    assert found["right class"] == pytest.approx(100 * alone["final_accuracy"])
    assert found["right task"] == pytest.approx(100 * alone["task_choice_accuracy"])
    assert found["passes"] == alone["passes"]
    assert found != json.loads((tmp_path / "once" / "nearest.json").read_text())


@pytest.mark.slow
def test_all_gates_of_dlc_are_trained_on_one_base(script: Any, tmp_path: Path) -> None:
    tiny = ["scenario.source=digits", "scenario.per_class=8", "fit.precision=float32"]
    tiny += ["method.epochs=2", "method.base.epochs=2", "method.base.memory=10", "method.base.name=wa"]
    routers = script("routers")
    routers.main("dlc", tiny, config="mnist-5-scratch", router=["unit", "gaussian"], out=tmp_path / "once", test=True)
    assert len(list((tmp_path / "once" / "trained").iterdir())) == 5
    run(load_config("mnist-5-scratch", [*tiny, "method.router=gaussian"]), tmp_path / "run", quiet=True)
    alone = json.loads((tmp_path / "run" / "results.json").read_text())
    found = json.loads((tmp_path / "once" / "gaussian.json").read_text())
    assert found["right class"] == pytest.approx(100 * alone["final_accuracy"])
    assert found["passes"] == alone["passes"]
    own, task, oracle = script("dlc_gates").shares(tmp_path / "run")
    wanted = [100 * own, 100 * task, 100 * oracle]
    assert [found[what] for what in ("right class", "right task", "given the task")] == pytest.approx(wanted)


@pytest.mark.slow
def test_dlc_plugins(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["scenario.source=digits", "scenario.per_class=4", "scenario.tasks=2", "fit.precision=float32"]
    short += ["method.epochs=1", "method.base.epochs=1", "method.base.memory=10"]
    run(load_config("mnist-5-scratch", short), Path("run"), quiet=True)
    script("dlc_plugins").main(Path("run"), images=4)
    assert "features" in capsys.readouterr().out
    own, task, oracle = script("dlc_gates").shares(Path("run"))
    assert own == pytest.approx(json.loads(Path("run/results.json").read_text())["final_accuracy"])
    assert 0 <= task <= 1
    assert 0 <= oracle <= 1


def test_protected_answers(script: Any) -> None:
    protected, draws = script("protected_answers"), torch.Generator().manual_seed(0)
    seen = protected.Sums(6)
    directions = torch.linalg.qr(torch.randn(6, 6, generator=draws, dtype=torch.float64))[0]
    scales = torch.tensor([4.0, 2, 1, 0, 0, 0], dtype=torch.float64)
    seen(3 * directions[3] + (torch.randn(500, 6, generator=draws, dtype=torch.float64) * scales) @ directions)
    found = {rule: protected.basis(rule, seen, 0.9) for rule in protected.RULES}
    assert [found[rule].shape[1] for rule in ("moment", "data", "centred")] == [2, 3, 3]
    for U in found.values():
        torch.testing.assert_close(U.T @ U, torch.eye(U.shape[1], dtype=torch.float64))
    whole = torch.cat([directions[:4].T], 1)
    assert protected.held_in(whole, seen) == pytest.approx(1)
    assert protected.held_in(found["moment"], seen) < protected.held_in(found["data"], seen) < 1


def test_unknown(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    script("unknown").main(["method.name=nearest-mean", "backbone.weights=random", "scenario.tasks=2"])
    assert "area under the ROC curve" in capsys.readouterr().out


def test_drift_alarm(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    script("drift_alarm").main(method="nearest-mean", seeds=1, orders=1)
    assert "border, then 20% new" in capsys.readouterr().out


def test_first_days(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["method.name=nearest-mean", "backbone.weights=random"]
    script("first_days").main(settings, stream=["digits"], per_class=6, days=2, validation=True, out=Path("days"))
    assert len(json.loads(Path("days/digits-6-validation.json").read_text())) == 2
    assert "area under the curve" in capsys.readouterr().out


def test_the_bootstrap_interval_of_a_small_test_set_holds_its_calibration_error(script: Any) -> None:
    confidence, right = torch.linspace(0.5, 1, 200), torch.arange(200) % 4 > 0
    found = script("first_days").calibration(confidence, right)
    assert found["from"] < found["calibration error"] < found["to"]
    assert list(script("first_days").calibration(confidence.repeat(5), right.repeat(5))) == ["calibration error"]


def test_first_days_of_domains(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_days = script("first_days")
    monkeypatch.setitem(first_days.STREAMS, "digits", ("digits", 8, {"changes": ["as-is", "negative"]}))
    settings = ["method.name=nearest-mean", "backbone.weights=random"]
    first_days.main(settings, config="small-images", stream=["digits"], validation=True, out=tmp_path)
    days = json.loads((tmp_path / "digits-validation.json").read_text())
    assert ["area under the curve" in day for day in days] == [False, False]


@pytest.mark.parametrize("file", sorted((BENCHMARKS / "sweeps").glob("*.toml")), ids=lambda file: file.stem)
def test_a_sweep_file_plans_its_runs(file: Path) -> None:
    assert read_sweep(file).trials()
