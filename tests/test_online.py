"""Online streams: who comes when, what a method may see, and what is measured while samples come in."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import QUICK, colours_config, source

from lamella.data.online import online
from lamella.data.scenario import Scenario, Source, Task
from lamella.data.transform import plain_view
from lamella.experiments.online import area_under_curve
from lamella.experiments.report import load_results, write_html
from lamella.experiments.report.tables import render_table
from lamella.experiments.run import run
from lamella.learner.config.document import build_scenario, load_config
from lamella.learner.learner import Learner
from lamella.learner.streaming import Stream
from lamella.methods import METHODS, WHOLE_STREAM
from lamella.methods.method import Method
from lamella.training.fit import Fit

NAMES = tuple(f"class {i}" for i in range(6))
ABLE = ("linear-probe", "nearest-mean", "ranpac", "seq-finetune", "seq-lora", "streaming-lda")


def patterns(per_class: int = 10) -> Source:
    return source(6, per_class)


# The stream


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.floats(0, 1), st.floats(0, 1), st.integers(0, 3), st.sampled_from([0.0, 0.2]))
def test_every_sample_comes_once_and_shares_are_kept(
    tasks: int, disjoint: float, blurry: float, seed: int, validation: float
) -> None:
    data = patterns()
    stream = online(data, tasks=tasks, disjoint=disjoint, blurry=blurry, seed=seed, validation=validation)
    assert len(stream) == tasks
    came = [key for task in stream for key in task.train.keys]
    held = [key for task in stream for key in (task.validation.keys if task.validation is not None else ())]
    assert sorted(came + held) == sorted(data.train.keys)
    assert len(held) == (12 if validation else 0)
    assert sorted(key for i in range(tasks) for key in stream.test(i).keys) == sorted(data.test.keys)
    home = {label: i for i in range(tasks) for label in stream.test(i).labels.tolist()}
    assert set(home.values()) == set(range(tasks)), "each task begins a class"
    per_class = 8 if validation else 10
    away = Counter(label for i in range(tasks) for label in stream[i].train.labels.tolist() if home[label] != i)
    mixed = 6 - round(disjoint * 6)
    scattered = min(round(blurry * per_class), per_class - 1)
    assert len(away) <= mixed
    assert all(count <= scattered for count in away.values())
    for i, task in enumerate(stream):
        assert set(task.classes) == set(task.train.labels.tolist()) >= set(stream.test(i).labels.tolist())


def test_without_a_share_borders_are_sharp() -> None:
    for options in ({"blurry": 0.0}, {"disjoint": 1.0, "blurry": 0.9}):
        stream = online(patterns(), tasks=3, **options)
        assert not stream.shared_classes
        assert all(set(stream[i].classes) == set(stream.test(i).labels.tolist()) for i in range(3))


def test_the_scattered_share_is_spread_evenly() -> None:
    stream = online(patterns(20), tasks=4, disjoint=0.0, blurry=0.5, seed=2)
    home = {label: i for i in range(4) for label in stream.test(i).labels.tolist()}
    stays = [sum(home[c] == i for c in task.train.labels.tolist()) for i, task in enumerate(stream)]
    own = [10 * sum(home[c] == i for c in home) for i in range(4)]
    dealt = [len(task.train) - fixed for task, fixed in zip(stream, own, strict=True)]
    assert dealt == [15, 15, 15, 15], "60 of 120 samples, a quarter to each task"
    assert all(there >= fixed for there, fixed in zip(stays, own, strict=True))


def test_a_stream_is_drawn_from_its_seed_and_its_keys_alone() -> None:
    def keys(stream: Scenario) -> list[tuple[str, ...]]:
        return [task.train.keys for task in stream]

    data = patterns()
    backwards = Source("patterns", data.train.subset(range(len(data.train) - 1, -1, -1)), data.test, data.class_names)
    one, same, other = (keys(online(each, tasks=3, seed=seed)) for each, seed in ((data, 0), (backwards, 0), (data, 1)))
    assert one == same != other
    begin = [online(data, tasks=3, seed=seed) for seed in range(8)]
    sizes = {tuple(len(set(stream.test(i).labels.tolist())) for i in range(3)) for stream in begin}
    assert len(sizes) > 1, "how many classes begin in a task is left to chance"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"disjoint": 1.5}, r"disjoint is 1\.5, but it is a share of classes that stay in one task; give 0 to 1"),
        ({"blurry": -0.1}, r"blurry is -0\.1, but it is a share of samples that are scattered; give 0 to 1"),
        ({"blurry": float("nan")}, "blurry is nan"),
        ({"batch": 0}, "batch is 0; it is how many samples come in together"),
        ({"tasks": 7}, "patterns has 6 classes and each task begins one: give 1 to 6"),
        ({"tasks": 0}, "give 1 to 6"),
        ({"order": "random"}, "'label', 'seeded'"),
        ({"validation": 1.0}, r"\[0, 1\)"),
    ],
)
def test_what_is_no_stream_is_refused_with_advice(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        online(patterns(), **{"tasks": 3, **options})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scenario.blury=0.1"], "unknown key 'scenario.blury'.*blurry"),
        (["scenario.sizes=[2, 2]"], "'scenario.sizes' belongs to the kinds class-incremental"),
        (["run.measure_every=0"], "run.measure_every = 0 should be a number of samples, 1 or more"),
        (
            ["scenario.kind=", "run.measure_every=9"],
            "run.measure_every is for scenario.kind = 'online', and",
        ),
        (["scenario.kind=", "scenario.blurry=0.1"], "'scenario.blurry' belongs to the kinds online"),
    ],
)
def test_keys_are_those_of_the_kind(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config("digits", ["scenario.kind=online", *overrides])


# What a method sees


def in_pieces(method: str, *, batch: int, **more: Any) -> tuple[Learner, Scenario]:
    """A learner that has learned a mixed stream batch by batch."""
    table = {"name": method, **QUICK.get(method, {}), **more}
    learner = Learner.create(
        backbone={"name": "test_vit", "weights": "random", "size": 32}, method=table, fit={"device": "cpu"}
    )
    stream = online(patterns(), tasks=2, disjoint=0.0, blurry=0.5)
    for task in stream:
        learner.learn(task, stream=Stream(batch))
    return learner, stream


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("nearest-mean", {}),
        ("streaming-lda", {}),
        ("ranpac", {"adapt": "none", "ridge": 10.0}),
        ("ranpac", {"adapt": "none", "ridge": 10.0, "scatter": "within"}),
    ],
)
def test_sums_do_not_depend_on_how_samples_come_in(method: str, more: dict[str, Any]) -> None:
    one, stream = in_pieces(method, batch=7, **more)
    whole = Learner(one.config)
    whole.learn(stream.joined()[0])
    test = patterns().test
    inputs = test.batch(range(len(test)), plain_view(one.backbone.transform))
    order = [one.method.classes.index(label) for label in whole.method.classes]
    torch.testing.assert_close(one.logits(inputs)[:, order], whole.logits(inputs), atol=1e-4, rtol=1e-4)


class Watched(Fit):
    """Notes what is trained on."""

    keys: list[str]
    losses: list[int]

    def __call__(self, data: Any, *args: Any, **more: Any) -> list[float]:
        losses = super().__call__(data, *args, **more)
        Watched.keys += data.keys
        Watched.losses.append(len(losses))
        return losses


@pytest.mark.parametrize("method", ["linear-probe", "seq-lora", "seq-finetune"])
def test_what_trains_sees_each_sample_once_and_known_classes_go_on(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Watched.keys, Watched.losses = [], []
    monkeypatch.setattr("lamella.learner.model.Fit", Watched)
    learner, stream = in_pieces(method, batch=8, epochs=5, min_steps=9)
    assert set(Watched.losses) == {1}, "one epoch, whatever was asked for"
    assert len(Watched.losses) == sum(-(-len(task.train) // 8) for task in stream)
    if method != "linear-probe":  # whose training data are features, with keys of their own
        assert Counter(Watched.keys) == Counter(key for task in stream for key in task.train.keys)
    rows = [c for head in learner.method.heads.heads for c in head.classes]
    assert sorted(rows) == list(range(6)), "no class has begun anew"


def test_a_batch_of_one_class_does_not_undo_another() -> None:
    data = patterns()
    learner = Learner.create(
        backbone={"name": "test_vit", "weights": "random", "size": 32},
        method={"name": "linear-probe", "lr": 1e-3},
        fit={"device": "cpu"},
    )

    def of(*labels: int) -> Task:
        part = data.train.subset(torch.isin(data.train.labels, torch.tensor(labels)).nonzero()[:, 0])
        return Task(len(learner.tasks), str(len(learner.tasks)), labels, tuple(NAMES[c] for c in labels), part)

    learner.learn(of(0, 1), stream=Stream(20))
    before = learner.method.heads.as_linear().weight.detach().clone()
    learner.learn(of(0), stream=Stream(20))
    after = learner.method.heads.as_linear().weight.detach()
    assert 0 < float((after - before).abs().max()) < 0.01, "a step of Adam at 1e-3, and no new draw"


@pytest.mark.parametrize("name", sorted(set(METHODS) - WHOLE_STREAM))
def test_the_methods_that_can_are_those_that_say_so(name: str) -> None:
    assert (not getattr(METHODS[name], "not_online", "?")) == (name in ABLE)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ({"name": "inflora"}, "'inflora' cannot learn an online stream: what it trains or keeps is for one task"),
        (
            {"name": "icarl"},
            "a class that comes again would begin anew. Methods that can: linear-probe, n",
        ),
        ({"name": "nearest-mean+align"}, "what it trains or keeps is for one task"),
        ({"name": "ranpac"}, "set method.adapt=none"),
        ({"name": "seq-lora", "fresh": True}, "leave fresh out"),
    ],
)
def test_what_needs_tasks_says_why(method: dict[str, Any], reason: str) -> None:
    small = {"name": "test_vit", "weights": "random", "size": 32}
    learner = Learner.create(backbone=small, method=method, fit={"device": "cpu"})
    with pytest.raises(ValueError, match=reason):
        learner.learn(online(patterns(), tasks=2)[0], stream=Stream(8))
    assert not learner.tasks


# What is measured


def config(folder: Path, *overrides: str) -> dict[str, Any]:
    more = ["scenario.kind=online", "scenario.batch=5", "scenario.disjoint=0.25", "scenario.blurry=0.4"]
    return load_config(colours_config(folder), [*more, "run.measure_every=8", *overrides])


def test_a_run_measures_before_it_learns_and_tests_what_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[tuple[str, ...]] = []
    learn = METHODS["nearest-mean"].learn

    def noted(self: Method, task: Task, fit: Fit) -> None:
        learned.append(task.train.keys)
        learn(self, task, fit)

    monkeypatch.setattr(METHODS["nearest-mean"], "learn", noted)
    settings_ = config(tmp_path)
    found = json.loads((run(settings_, tmp_path / "run", quiet=True) / "results.json").read_text())
    stream = build_scenario(settings_)
    tests = {key for i in range(2) for key in stream.test(i).keys}
    assert [key for keys in learned for key in keys] == [key for task in stream for key in task.train.keys]
    assert not tests & {key for keys in learned for key in keys}, "test data are for testing alone"
    incoming, anytime = found["online"]["incoming"], found["online"]["anytime"]
    assert [count for count, _ in incoming] == [len(keys) for keys in learned]
    assert max(count for count, _ in incoming) == 5
    assert incoming[0][1] == 0, "nothing is known of the first batch"
    assert found["average_online_accuracy"] == sum(r for _, r in incoming) / 24
    label = {key: c for task in stream for key, c in zip(task.train.keys, task.train.labels.tolist(), strict=True)}
    total, seen, due = 0, set[int](), []
    for keys in learned:
        crossed = (total + len(keys)) // 8 > total // 8
        total += len(keys)
        seen |= {label[key] for key in keys}
        if crossed or total == 24:
            due.append([total, 2 * len(seen)])
    assert [row[:2] for row in anytime] == due, "two test images of each class seen"
    curve = [right / count for _, count, right in anytime]
    steps = [
        now - before
        for before, now in zip([0, *(row[0] for row in anytime)], (row[0] for row in anytime), strict=False)
    ]
    assert found["anytime_accuracy"] == pytest.approx(sum(s * a for s, a in zip(steps, curve, strict=True)) / 24)
    assert curve[-1] == found["final_accuracy"], "after the last sample both are all classes on all tests"
    assert found["task_aware_accuracy"] is None
    assert found["kind"] == "online"
    table = render_table(load_results([tmp_path / "run"]), "markdown")
    assert "average online accuracy | anytime accuracy" in table
    page = write_html(load_results([tmp_path / "run"]), tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Anytime accuracy" in page


def test_a_run_that_was_killed_goes_on_at_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("method.name=seq-lora", "method.batch_size=4")
    whole = json.loads((run(config(tmp_path, *overrides), tmp_path / "whole", quiet=True) / "results.json").read_text())
    calls, learn = 0, METHODS["seq-lora"].learn

    def killed(self: Method, task: Task, fit: Fit) -> None:
        nonlocal calls
        calls += 1
        if calls == len(whole["online"]["incoming"]):
            raise KeyboardInterrupt
        learn(self, task, fit)

    monkeypatch.setattr(METHODS["seq-lora"], "learn", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path, *overrides), tmp_path / "killed", quiet=True)
    run(config(tmp_path, *overrides), tmp_path / "killed", quiet=True, resume=True)
    again = json.loads((tmp_path / "killed" / "results.json").read_text())
    for key in ("online", "average_online_accuracy", "anytime_accuracy", "matrix"):
        assert again[key] == whole[key]
    assert whole["config"]["method"]["epochs"] == 1


def test_validation_samples_can_take_the_place_of_test_samples(tmp_path: Path) -> None:
    found = config(tmp_path, "scenario.validation=0.34", "run.evaluate_on=validation")
    result = json.loads((run(found, tmp_path / "run", quiet=True) / "results.json").read_text())
    assert result["evaluated_on"] == "validation"
    assert result["online"]["anytime"][-1][:2] == [16, 8]


def test_an_upper_bound_sees_the_stream_at_once(tmp_path: Path) -> None:
    found = config(tmp_path, "method.name=joint", "method.epochs=2")
    assert found["method"]["epochs"] == 2
    result = json.loads((run(found, tmp_path / "run", quiet=True) / "results.json").read_text())
    assert result["final_accuracy"] is not None
    assert "average_online_accuracy" not in result


def test_clients_and_answers_have_no_stream(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hold whole tasks, and an online stream has none"):
        run(config(tmp_path) | {"federated": {"clients": 2}}, tmp_path / "run", quiet=True)


def test_the_area_counts_what_was_learned_since_the_last_measurement() -> None:
    assert area_under_curve([10, 20, 30], [0.3, 0.6, 0.9]) == pytest.approx(0.6)
    assert area_under_curve([8], [0.5]) == 0.5
    assert area_under_curve([5, 20], [1.0, 0.0]) == 0.25
