"""Learning from samples that are no images: batches of named tensors with padding, from data to the model's folder."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sequences import Encoder, Tokens, encoder, sequences, source
from streams import often, tiny_backbone
from torch import Tensor

from lamella.adapters.adapter import watch
from lamella.adapters.tokens import class_places, class_token, counted, counting
from lamella.backbones import Backbone
from lamella.backbones.feature_cache import FeatureCache
from lamella.common.options import Option, options_of
from lamella.data.images import TensorSet, concatenate
from lamella.data.loading import Examples
from lamella.data.samples import Batch, concatenate_samples
from lamella.data.scenario import class_incremental
from lamella.data.sending import send
from lamella.data.sources.readable import ReadableData
from lamella.experiments.bench.streams import synthetic_task
from lamella.learner.config import document
from lamella.learner.expected_costs import expect_costs
from lamella.learner.folder import ModelFolder
from lamella.learner.learner import Learner
from lamella.learner.store.state import learned_state
from lamella.memory.exemplars import Exemplars
from lamella.memory.inputs import Inputs
from lamella.memory.subspace import SecondMoment
from lamella.methods import METHODS
from lamella.training.fit import Fit

REFUSED = {
    "memo": "has no stages of convolutions",
    "dlc(seq-finetune)": "has no stages of convolutions",
    "replay": "a memory keeps images or texts, and this backbone takes sequences; set the memory to 0",
    "icarl": "a memory keeps images or texts",
    "wa": "a memory keeps images or texts",
    "der": "a memory keeps images or texts",
}
"""Why a method with its usual settings cannot learn from sequences; those with a memory do without it."""
CONVOLUTIONS = ("memo", "dlc")
SHORT = {"epochs": 2, "batch_size": 8, "rank": 2, "projections": 64, "memory": 0, "optimizer": "adam", "lr": 1e-3}
NAMES = [name for name in METHODS if name not in CONVOLUTIONS]
WITH_PARTS = [
    "inflora+mean_weights+align",
    "inflora+align",
    "seq-finetune+align",
    "inflora+calibrate",
    "seq-lora+calibrate",
    "inflora+align+calibrate",
]


def method_table(name: str) -> dict[str, Any]:
    known = options_of(METHODS[name.partition("+")[0]])
    return {"name": name} | {key: value for key, value in SHORT.items() if key in known}


@pytest.fixture(autouse=True)
def _encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration's [backbone] names the encoder of these tests."""
    monkeypatch.setattr(document, "load_backbone", encoder)
    monkeypatch.setattr(document, "backbone_options", lambda table: {"name": Option(str)} | options_of(encoder))


def new(name: str, **backbone: Any) -> Learner:
    """A learner on the encoder, whose features are its first token's: that is what some methods need."""
    table = {"name": "encoder", "pooling": "first", **backbone}
    return Learner.create(backbone=table, method=method_table(name), fit={"device": "cpu", "checkpoint_seconds": 0.0})


class Steps:
    """A progress bar that counts the steps, and interrupts at one of them."""

    def __init__(self, interrupt_at: int = -1) -> None:
        self.seen, self.interrupt_at = 0, interrupt_at

    @contextmanager
    def __call__(self, description: str, total: int) -> Iterator[Callable[[int, str], None]]:
        yield lambda steps, note: self.advance(steps)

    def advance(self, steps: int) -> None:
        self.seen += steps
        if 0 <= self.interrupt_at <= self.seen:
            raise KeyboardInterrupt


def learn(folder: Path, classes: tuple[int, ...], progress: Steps, learner: Learner | None = None) -> bool:
    """Learn a task into a model's folder; whether an interrupted learning went on."""
    model = learner.model if learner is not None else None
    with ModelFolder(folder).learning(lambda: ReadableData.of(source(*classes)), model=model) as learning:
        learning.run(progress)
        return learning.resumed.goes_on


def same_state(one: Learner, other: Learner) -> bool:
    first, second = learned_state(one.method), learned_state(other.method)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def padded(extra: int = 0) -> Batch:
    """Twelve sequences of all lengths in one batch."""
    return Tokens(extra).padded(sequences(range(6), 2, "test").raw)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found / wanted.abs().max(), wanted / wanted.abs().max(), rtol=1e-4, atol=1e-5)


# whole learners ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", often([*NAMES, *WITH_PARTS]))
def test_sequences_are_learned_stored_resumed_and_predicted(name: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    steps = Steps()
    learn(whole, (0, 1, 2), Steps(), new(name))
    learn(whole, (3, 4, 5), steps)
    learn(cut, (0, 1, 2), Steps(), new(name))
    for share in (0.3, 0.8):
        with pytest.raises(KeyboardInterrupt):
            learn(cut, (3, 4, 5), Steps(max(1, int(share * steps.seen))))
    learn(cut, (3, 4, 5), Steps())

    uninterrupted, resumed = Learner.load(whole), Learner.load(cut)
    assert same_state(resumed, uninterrupted), "an interruption changes what is learned"
    assert len(uninterrupted.tasks) == 2
    assert uninterrupted.tasks[1].held_back is not None

    logits = uninterrupted.logits(padded())
    assert logits.shape == (12, 6)
    assert torch.isfinite(logits).all()
    alone = [uninterrupted.logits(Tokens().padded([one])) for one in sequences(range(6), 2, "test").raw]
    close(torch.cat(alone), logits)
    close(uninterrupted.logits(padded(9)), logits)

    test = sequences(range(6), 2, "test")
    named = [prediction.classes[0] for prediction in uninterrupted.predict(test, top=1)]
    assert named == [uninterrupted.class_names[uninterrupted.method.classes[i]] for i in logits.argmax(1).tolist()]
    assert learn(whole, (6, 7), Steps()) is False
    assert Learner.load(whole).logits(padded()).shape == (12, 8)


@pytest.mark.parametrize("name", often([*NAMES, *WITH_PARTS]))
def test_what_is_learned_does_not_depend_on_padding(name: str) -> None:
    learners = [new(name, extra=extra) for extra in (0, 7)]
    for learner in learners:
        scenario = class_incremental(source(0, 1, 2, 3), tasks=2)
        for i in range(2):
            learner.learn(scenario[i])
    tight, loose = (learner.logits(padded()) for learner in learners)
    torch.testing.assert_close(tight / tight.abs().max(), loose / tight.abs().max(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_images_is_refused_in_one_line_when_it_is_made(name: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[name]) as refusal:
        Learner.create(backbone="encoder", method=name, fit={"device": "cpu"})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["duallora", "inflora+calibrate"])
def test_methods_that_read_a_class_token_need_one(name: str) -> None:
    with pytest.raises(ValueError, match="no class token"):
        new(name, pooling="mean")


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_learned_class_is_recognised(pooling: str) -> None:
    learner = new("seq-finetune+align", pooling=pooling)
    learner.learn(class_incremental(source(0, 1, 2, per_class=24), tasks=1)[0])
    test = sequences((0, 1, 2), 8, "test")
    scores = [learner.evaluate(test, (0, 1, 2), recall=recall)[""] for recall in (None, FeatureCache())]
    assert scores[0] == scores[1]
    assert scores[0].accuracy > 0.6  # a third by chance


def test_costs_are_foreseen() -> None:
    scenario = class_incremental(source(0, 1, 2, 3), tasks=2)
    assert expect_costs(new("inflora").model, scenario[0], 4).seconds > 0
    auto = Learner.create(
        backbone="encoder", method=method_table("seq-lora"), fit={"device": "cpu", "precision": "auto"}
    )
    assert auto.config["fit"]["measured"].startswith("a step")


def test_only_the_raw_tensors_can_be_exported(tmp_path: Path) -> None:
    learner = new("inflora")
    learner.learn(class_incremental(source(0, 1), tasks=1)[0])
    assert "random sequences" in learner.export(tmp_path / "raw", "adapters")[0]
    kinds = {
        "timm": "images",
        "hf": "texts and answers",
        "peft": "images, texts and answers",
        "onnx": "images and texts",
    }
    for format, kind in kinds.items():
        message = f"format {format} is for {kind}, and this backbone takes sequences; use --format adapters"
        with pytest.raises(ValueError, match=message):
            learner.export(tmp_path / format, format)
        assert not (tmp_path / format).exists()


def test_what_is_for_images_says_so() -> None:
    learner = new("nearest-mean")
    learner.learn(class_incremental(source(0, 1), tasks=1)[0])
    with pytest.raises(ValueError, match="a list of files is for images, and this backbone takes sequences"):
        learner.predict(["a.png"])
    with pytest.raises(ValueError, match="there is no sequence to predict"):
        learner.predict(sequences((), 1, "test"))
    with pytest.raises(ValueError, match="a benchmark is for images"):
        synthetic_task(0, 4, learner.backbone.transform)
    with pytest.raises(ValueError, match=r"fit\.compile is for batches of one shape, and sequences are padded to many"):
        Fit(learner.method, learner.backbone.transform, device="cpu", compile=True)
    model = encoder(pooling="first").model
    with pytest.raises(ValueError, match=r"pool 'class\+mean' is for images"):
        Backbone(model, name="encoder", width=16, transform=Tokens(), pool="class+mean")
    assert learner.method.what_more_images_do() == "their statistics take in the new sequences beside the old ones"


def test_a_model_of_another_kind_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = pytest.importorskip("lamella.serving.service")
    loaded = SimpleNamespace(learner=new("nearest-mean"))
    monkeypatch.setattr(service, "load", lambda *_, **__: loaded)
    with pytest.raises(ValueError, match="takes sequences, and models of images, texts, answers can be served"):
        service.Service(tmp_path, service.Limits())


# padding and what looks at layers ------------------------------------------------------------------------------------


def moments(backbone: Backbone, *batches: Batch, padding_too: bool = False) -> dict[str, Tensor]:
    sites = backbone.sites("key+value", "mlp")
    with watch(sites, lambda layer: SecondMoment(layer.weight.shape[1]), padding_too=padding_too) as seen:
        for x in batches:
            backbone.show(x, sites)
    return {name: moment.mean for name, moment in seen.items()}


@pytest.mark.parametrize("extra", [0, 8, 40])
def test_moments_are_those_of_real_tokens(extra: int) -> None:
    alone = [Tokens().padded([one]) for one in sequences(range(6), 2, "test").raw]
    wanted = moments(encoder(), *alone)
    assert len(wanted) == 6
    for name, found in moments(encoder(), padded(extra)).items():
        assert float((found - wanted[name]).norm() / wanted[name].norm()) < 1e-6
    for name, found in moments(encoder(), padded(extra), padding_too=True).items():
        assert float((found - wanted[name]).norm() / wanted[name].norm()) > 1e-2, "this test could not fail"


@pytest.mark.parametrize("basis", ["class_token", "tokens"])
def test_gathered_inputs_are_those_of_real_tokens(basis: str) -> None:
    found: list[Inputs] = []
    for extra in (0, 11):
        backbone = encoder(pooling="first")
        sites = backbone.sites("key+value")[-1:]
        with watch(sites, lambda _: Inputs(16, basis), padding_too=True) as inputs:
            backbone(padded(extra))
        found.append(next(iter(inputs.values())))
    torch.testing.assert_close(found[1].class_tokens, found[0].class_tokens, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1].moment, found[0].moment, rtol=1e-5, atol=1e-6)


def test_tokens_that_count_by_hand() -> None:
    x = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    assert counted(x) is x
    with counting(mask):
        assert counted(x).tolist() == [[0, 1], [2, 3], [8, 9], [10, 11]]
        assert counted(x.flatten(0, 1)).tolist() == counted(x).tolist()
        assert class_token(x).tolist() == [[0, 1], [8, 9]]
        assert class_places(x).tolist() == [0, 4]
        pooled = x[:, 0]
        assert counted(pooled) is pooled
        for other in (x[:, :2], x[:1], x[None]):
            with pytest.raises(RuntimeError, match="not known which of its rows are padding"):
                counted(other)
    assert counted(x) is x


# sets and batches ----------------------------------------------------------------------------------------------------


def test_a_batch_behaves_as_a_tensor_does_where_samples_are_meant() -> None:
    x = Batch({"ids": torch.arange(6).reshape(3, 2), "weight": torch.tensor([0.5, 1.0, 2.0])})
    assert len(x) == 3
    assert x[1:]["ids"].tolist() == x[torch.tensor([1, 2])]["ids"].tolist() == [[2, 3], [4, 5]]
    assert len(x[:0]) == 0
    assert x.device == torch.device("cpu")
    here = send(x, torch.device("cpu"))
    assert here["weight"].dtype == torch.float32
    assert here["ids"].dtype == torch.int64
    both = concatenate_samples([x, x[:1]])
    assert isinstance(both, Batch)
    assert both["weight"].tolist() == [0.5, 1.0, 2.0, 0.5]


def test_what_is_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="all of one length: ids 2, mask 3"):
        Batch({"ids": torch.zeros(2, 1), "mask": torch.zeros(3, 1)})
    with pytest.raises(ValueError, match="there are no tensors"):
        Batch({})
    x = Batch({"ids": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match="pad them to one length"):
        concatenate_samples([x, Batch({"ids": torch.zeros(2, 5)})])
    with pytest.raises(TypeError, match="a slice or an index"):
        x[0]  # pyright: ignore[reportArgumentType, reportCallIssue]
    with pytest.raises(TypeError, match="not iterable"):
        iter(x)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_all_sets_follow_one_protocol() -> None:
    batch = padded()
    prepared = TensorSet(batch, torch.arange(12), noun="sequence")
    for data in (sequences((0, 1), 3, "train"), prepared, TensorSet(torch.zeros(4, 2), torch.zeros(4))):
        assert isinstance(data, Examples)
        half, rest = data.subset(range(2)), data.subset(range(2, len(data)))
        whole = concatenate([half, rest])
        assert whole.keys == data.keys
        assert torch.equal(whole.labels, data.labels)
        assert [whole.identity(i) for i in range(len(whole))] == [data.identity(i) for i in range(len(data))]
        assert half.relabelled(torch.tensor([5, 6])).labels.tolist() == [5, 6]
        assert len(set(map(data.identity, range(2)))) == (1 if data.noun == "sample" else 2)
    with pytest.raises(ValueError, match="cannot become one set"):
        concatenate([prepared, sequences((0, 1), 3, "train")])
    assert torch.equal(prepared.subset([3, 1]).batch([0])["input_ids"], batch["input_ids"][3:4])  # pyright: ignore


def test_a_set_of_prepared_batches_is_learned_too() -> None:
    learner = new("inflora+align")
    task = class_incremental(source(0, 1), tasks=1)[0]
    view = learner.backbone.transform.view()
    data = task.train
    prepared = TensorSet(data.batch(range(len(data)), view), data.labels, data.keys, noun=data.noun)
    learner.learn(dataclasses.replace(task, train=prepared))
    assert learner.logits(padded()).shape == (12, 2)


def test_features_of_batches_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, x, memory, forward = encoder().eval(), padded(), FeatureCache(), Encoder.forward
    passes: list[Batch] = []
    monkeypatch.setattr(Encoder, "forward", lambda model, batch: passes.append(batch) or forward(model, batch))
    with torch.no_grad():
        for _ in range(2):
            with memory.reading(backbone):
                memory.turn_to(x)
                assert torch.equal(backbone(x), backbone(x))
        assert len(passes) == 1
        with memory.reading(backbone):
            memory.turn_to(x)
            before = backbone(x)
            x["input_ids"][0, 1] += 1  # it is another batch now
            assert not torch.equal(backbone(x), before)


def test_an_empty_memory_needs_no_images() -> None:
    assert len(Exemplars(Tokens(), total=0)) == 0
    with pytest.raises(ValueError, match="takes sequences; set the memory to 0"):
        Exemplars(Tokens(), per_class=3)


def test_images_are_examples_of_their_own_kind() -> None:
    backbone = tiny_backbone()
    assert torch.equal(backbone.example(2), torch.zeros(2, 3, 32, 32))
    assert backbone.transform.noun == "image"
    assert backbone.tokens_that_count(backbone.example(1)) is None
