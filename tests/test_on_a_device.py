"""What is learned, stored and predicted on an accelerator is what a CPU makes of it.

The accelerator is pretended (see pretended.py): it computes on the CPU, and refuses tensors in two places.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pretended import DEVICE, pretending
from safetensors.torch import load_file
from streams import OFTEN, QUICK, RESIDUAL, cut, stream
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lamella.backbones import Backbone
from lamella.backbones.feature_cache import FeatureCache
from lamella.common.files import read_json
from lamella.data import resampling
from lamella.data.transform import InputTransform
from lamella.experiments.bench.growth import follow
from lamella.experiments.bench.speed import measure_speed
from lamella.experiments.bench.streams import synthetic_task
from lamella.experiments.run import run
from lamella.learner.config import document
from lamella.learner.config.document import load_config
from lamella.learner.expected_costs import expect_costs
from lamella.learner.inspection.facts import inspect
from lamella.learner.learner import Learner, Prediction
from lamella.learner.scores import Score
from lamella.learner.store.state import learned_state, restore_state
from lamella.learner.store.versions import load_model
from lamella.methods import METHODS, WHOLE_STREAM
from lamella.training.checkpoints import Checkpoints

EVERY = [*sorted(set(METHODS) - {"inflora", *WHOLE_STREAM}), "inflora+align", "inflora+calibrate+align"]
TASKS = stream(classes=6, tasks=3, per_class=4)
SELDOM = {"inflora+align", "seq-lora", "nearest-mean", "der"}
"""Of the usual methods, those that do nothing there that inflora+calibrate+align and streaming-lda do not."""
UNDIVIDED = {"nearest-mean", "ranpac", "streaming-lda"}
"""After the first task, they only scan, and begin anew when interrupted."""


class Life(NamedTuple):
    """What became of a learner: all it has learned, and what it says of test images."""

    state: dict[str, Tensor]
    predictions: list[Prediction]
    scores: dict[str, Score]


class Interrupted(Checkpoints):
    """After every batch; the first batch that is trained on ends the learning."""

    def save(self, task: str, call: str, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        super().save(task, call, tensors, position)
        if position.get("step") == 1:
            raise KeyboardInterrupt


@contextmanager
def as_there() -> Iterator[None]:
    """On the CPU, but as an accelerator computes: attention as products, images resampled by whole matrices."""
    with pytest.MonkeyPatch.context() as patch, sdpa_kernel(SDPBackend.MATH):
        patch.setattr(resampling, "ON_CPU", resampling.ON_ACCELERATOR)
        patch.setattr(resampling, "_blockwise", lambda matrix, multiply, dim: multiply(matrix, slice(None)))
        yield


def new(name: str) -> Learner:
    base, *parts = name.split("+")
    table: dict[str, Any] = {"name": base, **QUICK.get(base, {"epochs": 1}), **{part: {} for part in parts}}
    if "epochs" in table:
        table |= {"epochs": 1, "batch_size": 16 if "memory" in table else 4}
    if base == "dlc":
        table["base"] = {"name": "replay", "epochs": 1, "batch_size": 8}
    vit = {"name": "test_vit", "weights": "random", "size": 32}
    backbone = {"name": "resnet20", "weights": "random", "size": 16} if base in RESIDUAL else vit
    return Learner.create(backbone=backbone, method=table, fit={"device": "cpu"})


def outcome(learner: Learner) -> Life:
    state = {key: tensor.cpu() for key, tensor in learner.method.state_dict().items()}
    recall = FeatureCache()
    scores = [learner.evaluate(TASKS.test(0), TASKS[0].classes, recall=recall) for _ in range(2)]
    assert scores[0] == scores[1]
    return Life(state, learner.predict(TASKS.test(1)), scores[0])


def undisturbed(name: str) -> Life:
    learner = new(name)
    for i in range(3):
        learner.learn(TASKS[i], held_back=TASKS.test(i))
    return outcome(learner)


def interrupted(name: str, folder: Path) -> Life:
    """Stored and loaded between tasks; the second is interrupted, and goes on where it was."""
    learner = new(name)
    learner.learn(TASKS[0], held_back=TASKS.test(0))
    learner.save(folder / "model")
    with nullcontext() if name in UNDIVIDED else pytest.raises(KeyboardInterrupt):
        learner.learn(TASKS[1], held_back=TASKS.test(1), checkpoints=Interrupted(folder / "calls", 0.0))
    learner = Learner.load(folder / "model")
    for i in (1, 2):
        learner.learn(TASKS[i], held_back=TASKS.test(i), checkpoints=Checkpoints(folder / "calls"))
    assert {tensor.device for tensor in learner.method.state_dict().values()} == {DEVICE}
    learner.save(folder / "model")
    return outcome(learner)


def assert_same(one: Life, other: Life) -> None:
    assert one.state.keys() == other.state.keys()
    assert [name for name, tensor in one.state.items() if not torch.equal(tensor, other.state[name])] == []
    assert one == other._replace(state=one.state)


@pytest.fixture
def _cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vision transformers have two blocks."""
    build = document.load_backbone

    def load(name: str, **options: Any) -> Backbone:
        return cut(build(name, **options)) if name == "test_vit" else build(name, **options)

    monkeypatch.setattr(document, "load_backbone", load)


def seldom(name: str) -> Any:
    return name if name in OFTEN - SELDOM else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.usefixtures("_cut")
@pytest.mark.parametrize("name", list(map(seldom, EVERY)))
def test_a_life_on_an_accelerator_is_that_on_a_cpu(name: str, tmp_path: Path) -> None:
    with as_there():
        expected = undisturbed(name)
    with pretending():
        assert_same(interrupted(name, tmp_path), expected)
    with as_there():
        assert_same(outcome(Learner.load(tmp_path / "model")), expected)


def small(name: str = "inflora", tasks: int = 2) -> Learner:
    learner = new(name)
    for i in range(tasks):
        learner.learn(TASKS[i])
    return learner


@pytest.mark.parametrize("name", ["sdlora", "color", "dlc"])
def test_what_was_stored_is_restored_into_a_learner_there(name: str) -> None:
    with pretending():
        learner, other = small(name), new(name)
        other.fit()  # moves it there
        restore_state(other.method, {key: tensor.cpu() for key, tensor in learned_state(learner.method).items()})
        found, expected = other.method.state_dict(), learner.method.state_dict()
        assert {tensor.device for tensor in found.values()} == {DEVICE}
        assert [key for key, tensor in expected.items() if not torch.equal(tensor, found[key])] == []


@pytest.mark.parametrize("form", ["timm", "peft"])
def test_a_learner_there_is_exported_as_one_on_the_cpu_and_stays_there(form: str, tmp_path: Path) -> None:
    if form == "peft":
        pytest.importorskip("peft")
    with as_there():
        small().export(tmp_path / "expected", form)
    with pretending():
        learner = small()
        learner.export(tmp_path / "found", form)
        assert {tensor.device for tensor in learner.method.state_dict().values()} == {DEVICE}
    files = sorted(path.relative_to(tmp_path / "found") for path in (tmp_path / "found").rglob("*.safetensors"))
    assert files
    for file in files:
        found, expected = (load_file(tmp_path / out / file) for out in ("found", "expected"))
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


@pytest.mark.parametrize("name", ["color", "linear-probe"])
def test_a_task_is_forgotten_there(name: str) -> None:
    def without_the_first() -> Life:
        learner = small(name, 3)
        learner.forget(TASKS[0].name)
        state = {key: tensor.cpu() for key, tensor in learner.method.state_dict().items()}
        return Life(state, learner.predict(TASKS.test(1)), {})

    with as_there():
        expected = without_the_first()
    with pretending():
        assert_same(without_the_first(), expected)


def test_logits_come_back_to_where_the_images_are() -> None:
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with as_there():
        expected = small("nearest-mean").logits(x)
    with pretending():
        learner = small("nearest-mean")
        assert torch.equal(learner.logits(x), expected)
        assert torch.equal(learner.logits(x.to(DEVICE)).cpu(), expected)
        assert learner.logits(x.to(DEVICE)).device == DEVICE


def test_a_run_there_has_the_results_of_a_run_on_the_cpu(tmp_path: Path) -> None:
    few = ["scenario.classes=4", "scenario.tasks=2", "scenario.per_class=8", "method.epochs=1"]
    config = load_config("digits", ["backbone.weights=random", "fit.device=cpu", *few])
    with as_there():
        run(config, tmp_path / "expected", quiet=True)
    with pretending():
        run(config, tmp_path / "found", quiet=True)
    for name in ("results.json", "results-inflora.json"):
        expected, found = (read_json(tmp_path / out / name) for out in ("expected", "found"))
        assert {**found, "seconds": 0, "phase_seconds": 0} == {**expected, "seconds": 0, "phase_seconds": 0}
    expected, found = (load_model(tmp_path / out / "model")[0] for out in ("expected", "found"))
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []


@pytest.mark.slow
def test_what_measures_a_learner_runs_there() -> None:
    with pretending():
        backbone = {"name": "test_vit", "weights": "random", "size": 32}
        assert set(measure_speed(backbone, "inflora", batch=4, images=8, repeats=1).phases) == {"float32", "bf16"}
        costs = follow(new("linear-probe"), [synthetic_task(i, 8, InputTransform(32)) for i in range(2)])
        assert [cost["pass"] > 0 for cost in costs] == [True, True]
        assert expect_costs(new("inflora"), TASKS[0], held_back=4).seconds > 0
        assert inspect(small("olora")).overlap is not None


@pytest.mark.parametrize(
    "refused",
    [
        lambda x: x + torch.ones(4),
        lambda x: torch.cat([x, torch.ones(1, 4)]),
        lambda x: x @ torch.ones(4, 1),
        lambda x: torch.ones(3)[x[0].long()],
        lambda x: torch.zeros(()).add_(x[0, 0]),
        lambda x: x.gather(1, torch.zeros(3, 1, dtype=torch.int64)),
        lambda x: nn.Linear(4, 2)(x),
        lambda x: torch.rand(3, device=DEVICE),
    ],
    ids=["sum", "cat", "product", "index", "number", "gather", "module", "random"],
)
def test_the_pretended_accelerator_refuses(refused: Callable[[Tensor], Any]) -> None:
    with pretending():
        x = torch.arange(12.0).view(3, 4)
        with pytest.raises(RuntimeError, match=r"two devices|random numbers"):
            refused(x.to(DEVICE))


def test_it_takes_what_a_gpu_takes_from_the_cpu() -> None:
    with pretending():
        x = torch.arange(12.0).view(3, 4)
        there = x.to(DEVICE)
        kept = there[torch.tensor([2, 0])]
        kept[:, [1, 3]] = 2 * torch.tensor(3.0)
        assert kept.device == DEVICE
        assert kept.tolist() == [[8, 6, 10, 6], [0, 6, 2, 6]]
        assert there.cpu().equal(x)
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
