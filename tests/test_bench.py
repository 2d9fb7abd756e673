"""`lamella bench`: what is counted is what it says, by hand where that can be."""

import itertools
import json
import os
import time
from pathlib import Path

import pytest
import torch
from conftest import Run

from lamella.common.timing import interleaved, ratio, ratio_text
from lamella.data.transform import InputTransform
from lamella.experiments.bench import memory
from lamella.experiments.bench.growth import follow, slope
from lamella.experiments.bench.growth_figure import growth_png
from lamella.experiments.bench.memory import AS_KEPT, kept_activations, measure_memory
from lamella.experiments.bench.speed import Phase, Speed, measure_speed
from lamella.experiments.bench.streams import quick_learner, synthetic_task
from lamella.experiments.phases import phase_shares, phases_line
from lamella.learner.records import TaskRecord
from lamella.training.footprint import kept_for_backward

TINY = {"name": "test_vit", "weights": "random", "size": 32}


def test_forms_take_turns_and_warm_rounds_do_not_count() -> None:
    order: list[str] = []
    seconds = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warm=2)
    assert order == ["a", "b"] * 5
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_taken_within_rounds() -> None:
    # A machine that is ten times slower in the second round changes nothing.
    assert ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == 2.0
    assert ratio_text([1.0, 20.0, 4.0], [1.0, 10.0, 1.0]) == "2.00 (1.00 to 4.00)"


def test_seconds_are_those_of_the_clock_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, step in (("perf_counter", 10.0), ("process_time", 1.0)):
        monkeypatch.setattr(time, name, itertools.count(0.0, step).__next__)
    assert interleaved({"a": lambda: None}, repeats=2) == {"a": [10.0, 10.0]}
    assert interleaved({"a": lambda: None}, repeats=2, processor=True) == {"a": [1.0, 1.0]}


def test_synthetic_tasks_repeat_and_can_be_told_apart() -> None:
    first, again, other = (synthetic_task(number, 8, InputTransform(16)) for number in (1, 1, 2))
    assert first.classes == (2, 3)
    assert other.classes == (4, 5)
    index = torch.arange(8)
    pixels = torch.stack(first.train.pixels(index)).float()
    assert torch.equal(pixels, torch.stack(again.train.pixels(index)).float())
    a, b = (pixels[first.train.labels == c].mean((0, 2, 3)) for c in first.classes)
    assert float((a - b).abs().max()) > 20
    with pytest.raises(ValueError, match="at least 2 images, not 1"):
        synthetic_task(0, 1, InputTransform(16))


def test_every_phase_stands_beside_the_frozen_forward_pass() -> None:
    speed = measure_speed(TINY, "inflora", batch=4, images=8, repeats=1, device="cpu")
    assert set(speed.phases) == {"float32", "bf16"}
    assert {"frozen forward", "prediction", "train", "moment-before", "moment-after"} <= set(speed.phases["bf16"])
    assert speed.phases["float32"]["frozen forward"].ratio == 1.0
    unit = speed.phases["float32"]["frozen forward"].milliseconds
    train = speed.phases["float32"]["train"]
    assert train.ratio == pytest.approx(train.milliseconds / unit)  # with one round
    assert all(0 <= share <= 1 for share in speed.waited.values())


def test_the_faster_precision_is_the_one_that_learns_faster() -> None:
    def phases(forward: float, train: float) -> dict[str, Phase]:
        return {"frozen forward": Phase(forward, 1), "train": Phase(train, 1), "prediction": Phase(forward, 1)}

    speed = Speed({"float32": phases(1, 9), "bf16": phases(7, 5)}, {})
    assert speed.fastest == "bf16"


def test_what_autograd_keeps_by_hand() -> None:
    x, w = torch.randn(8, 4), torch.randn(4, 16, requires_grad=True)
    # x for the gradient of w, and the output of the exponential: 8 x 4 and 8 x 16 numbers of 4 bytes.
    for own, numbers in (([w], 8 * 4 + 8 * 16), ([w, x], 8 * 16)):
        with kept_for_backward(own) as kept:
            (x @ w).exp()
        assert kept() == 4 * numbers


def test_activations_grow_in_step_with_the_batch() -> None:
    sizes = [kept_activations(quick_learner(TINY, "inflora", n, {"device": "cpu"}), n) for n in (4, 8, 12)]
    assert sizes[0] > 4 * 3 * 32 * 32
    assert sizes[2] - sizes[1] == pytest.approx(sizes[1] - sizes[0], rel=0.01)


def test_memory_is_measured_form_by_form(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(memory, "_in_a_process", lambda form, setting: asked.append(form) or len(asked))
    found = measure_memory(TINY, "inflora", batch=16, device="cpu")
    assert found == {"frozen forward": 1, "training": 2, AS_KEPT: 3, "activations": 4}
    with pytest.raises(ValueError, match="unknown method 'inflorra'"):
        measure_memory(TINY, "inflorra")
    assert len(asked) == 4, "no process is started for a wrong setting"


@pytest.mark.slow
def test_a_form_is_measured_in_a_process_of_its_own() -> None:
    before, setting = dict(os.environ), (TINY, "inflora", 16, {"precision": "float32", "device": "cpu"})
    assert memory._in_a_process("training", setting) > 0
    assert dict(os.environ) == before


def test_what_a_task_adds_by_hand() -> None:
    learner = quick_learner(TINY, "nearest-mean", 4, {"device": "cpu"})
    seen: list[int] = []
    tasks = (synthetic_task(i, 4, InputTransform(32)) for i in range(3))
    costs = follow(learner, tasks, lambda i, cost: seen.append(i))
    assert seen == [0, 1, 2]
    steps = {costs[i + 1]["bytes"] - costs[i]["bytes"] for i in range(2)}
    assert len(steps) == 1, "two class means, whatever came before"
    assert steps.pop() >= 2 * 4 * learner.backbone.width
    assert all(cost["pass"] > 0 and cost["seconds_per_image"] > 0 and cost["peak"] > 0 for cost in costs)
    assert growth_png(costs).startswith(b"\x89PNG")


def test_a_slope_is_that_of_the_second_half() -> None:
    assert slope([100.0, 50.0, 1.0, 3.0]) == 2.0
    assert slope([1.0, 1.0]) == 0.0


def record(seconds: dict[str, float], waited: float = 0.0) -> TaskRecord:
    return TaskRecord("digits", (0, 1), 20, seconds, trainable_parameters=5, waited=waited)


def test_phases_of_one_name_count_together() -> None:
    tasks = [
        record({"train": 5.0, "gather": 1.0, "gather-1": 2.0, "total": 9.0}, waited=0.5),
        record({"train": 1.0, "total": 1.0}),  # of a model from before waiting was counted
    ]
    shares, waited = phase_shares(tasks, evaluation=10.0)
    assert shares == {"evaluation": 0.5, "train": 0.3, "gather": 0.15, "other": 0.05}
    assert waited == 0.025
    assert phases_line(tasks, 10.0).startswith("time: evaluation 50%, train 30%")
    assert phase_shares([]) == ({}, 0.0)


def test_the_commands(lamella: Run, tmp_path: Path) -> None:
    out, png = tmp_path / "growth.json", tmp_path / "growth.png"
    code, text, _ = lamella("bench", "growth", "--tasks", 3, "--images", 4, "--backbone", "test_vit", "--size", 32,
                            "--method", "nearest-mean", "--out", out, "--png", png)  # fmt: skip
    assert code == 0
    assert "learning (ms an image)" in text
    assert len(json.loads(out.read_text())) == 3
    assert png.is_file()
    code, text, _ = lamella("bench", "speed", "--images", 8, "--batch", 4, "--repeats", 1, "--backbone", "test_vit",
                            "--size", 32)  # fmt: skip
    assert code == 0
    assert "moment-before" in text
    assert "fit.precision=" in text
    code, _, error = lamella("bench", "speed", "--method", "inflorra")
    assert (code, error.count("\n")) == (2, 1)
    assert "unknown method 'inflorra'" in error
