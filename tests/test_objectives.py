"""Methods on answers: what they train for, what stays exact, and what refuses a language model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lamella.backbones import Backbone
from lamella.data.answers import Answer, AnswerSet
from lamella.data.scenario import Source, Task, as_task, dataset_incremental
from lamella.learner.config.method_tables import build_method
from lamella.learner.store.state import restore_state
from lamella.methods import METHODS, Method
from lamella.methods.gainlora import GainLoRA
from lamella.methods.inflora import InfLoRA
from lamella.methods.olora import OLoRA
from lamella.methods.parts import PARTS
from lamella.methods.sdlora import SDLoRA
from lamella.methods.seq_lora import SeqLoRA
from lamella.methods.shared.self_distillation import SelfDistillation
from lamella.testing import tiny_bert
from lamella.testing.answers import tiny_causal
from lamella.testing.trial import Killed, KilledAfter, learn, learned_tensors
from lamella.training.fit import Fit
from lamella.training.recipe import LoRA, Training

LORA = LoRA(rank=2, sites=("key", "value"))
RECIPE = Training(epochs=2, batch_size=4, lr=3e-3)
ANSWERING: dict[str, Callable[..., Method]] = {
    "seq-lora": SeqLoRA,
    "inflora": lambda backbone, **options: InfLoRA(backbone, energy=0.8, energy_of="data", **options),
    "olora": OLoRA,
    "sdlora": SDLoRA,
    "gainlora": lambda backbone, **options: GainLoRA(backbone, energy=0.8, gate_width=8, **options),
}
"""Methods that learn answers, with settings that leave something free in 32 directions."""


def answers(name: str, count: int = 10) -> AnswerSet:
    """Answers of many lengths; another name has others."""
    return AnswerSet([Answer.to(f"{name}{i}", f"{name * (1 + i % 5)}!") for i in range(count)])


def task(number: int, name: str, count: int = 10) -> Task:
    return Task(number, name, (), (), answers(name, count))


def new(name: str, backbone: Backbone | None = None, **options: Any) -> Method:
    return ANSWERING[name](backbone or tiny_causal(), **{"lora": LORA, "training": RECIPE, **options})


@torch.no_grad()
def cost(method: Method, data: AnswerSet) -> float:
    """Nats a target token."""
    return float(method.losses(data.batch(range(len(data)), method.backbone.transform.view())).mean())


# learning


@pytest.mark.parametrize("name", ANSWERING)
def test_a_task_is_learned_and_the_next_one_too(name: str) -> None:
    method = new(name, training=Training(epochs=15, batch_size=5, lr=1e-2))
    for number, letters in enumerate(("ab", "xyz")):
        before = cost(method, answers(letters))
        learn(method, number, task(number, letters))
        assert cost(method, answers(letters)) < 0.75 * before
    assert not any(p.requires_grad for p in method.parameters())


@pytest.mark.parametrize("name", ANSWERING)
def test_what_was_learned_travels_in_the_state(name: str) -> None:
    method = new(name)
    for number, letters in enumerate(("ab", "xyz")):
        learn(method, number, task(number, letters))
    again = new(name)
    restore_state(again, learned_tensors(method))
    assert cost(again, answers("ab")) == cost(method, answers("ab"))
    for one in (method, again):
        learn(one, 2, task(2, "q"))
    assert cost(again, answers("q")) == cost(method, answers("q")), "and it knows how many tasks there were"


@pytest.mark.parametrize("name", ["seq-lora", "inflora"])
def test_a_killed_learning_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    whole = learn(new(name), 0, task(0, "ab"), counting := KilledAfter(tmp_path / "whole", None))
    for left in (counting.written // 2, counting.written - 1):
        folder = tmp_path / str(left)
        with pytest.raises(Killed):
            learn(new(name), 0, task(0, "ab"), KilledAfter(folder, left))
        resumed = learn(new(name), 0, task(0, "ab"), KilledAfter(folder, None))
        expected, found = learned_tensors(whole), learned_tensors(resumed)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def weights_after(batch_size: int, accumulate: int, *, penalty: bool = False, counted: bool = True) -> Tensor:
    """The weights of the branches after two steps of eight answers each."""
    method = OLoRA(tiny_causal(), lora=LORA, training=Training(epochs=1, lr=0.1, optimizer="sgd", momentum=0.0))
    branches = LORA.grow(method.sites, "new", torch.Generator().manual_seed(0))
    data, fit = answers("ab", 16), Fit(method.eval(), method.backbone.transform, device="cpu")
    fit.begin("0")

    def loss(x: Any, _: Tensor) -> Tensor:
        value = method.losses(x).mean()
        return value + 10 * sum(branch.A.square().sum() for branch in branches) if penalty else value

    count = (lambda x, y: len(method.losses(x))) if counted else None
    settings = {"epochs": 1, "lr": 0.1, "optimizer": "sgd", "momentum": 0.0, "schedule": "constant"}
    factors = [factor for branch in branches for factor in branch.factors]
    fit(data, loss, factors, Training(**settings, batch_size=batch_size, accumulate=accumulate), count=count)
    return torch.cat([factor.detach().flatten() for factor in factors])


@pytest.mark.parametrize("penalty", [False, True])
def test_four_batches_make_the_step_of_one_with_answers_of_unequal_length(penalty: bool) -> None:
    one, four = weights_after(8, 1, penalty=penalty), weights_after(2, 4, penalty=penalty)
    torch.testing.assert_close(four, one, rtol=0, atol=1e-6)
    means = weights_after(2, 4, penalty=penalty, counted=False)
    assert (means - one).abs().max() > 1e-4, "means of means are another step"


def test_a_method_counts_its_targets() -> None:
    losses: list[list[float]] = []
    for batch_size, accumulate in ((8, 1), (2, 4)):
        sizes: dict[str, Any] = {"batch_size": batch_size, "accumulate": accumulate}
        training = Training(epochs=2, lr=0.1, optimizer="sgd", momentum=0.0, **sizes)
        method = new("seq-lora", training=training)
        learn(method, 0, task(0, "ab", 16))
        losses.append([cost(method, answers(letters)) for letters in ("ab", "xyz")])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


# the rule about weights


@pytest.mark.parametrize("family", ["Llama", "T5"])
def test_inflora_leaves_what_protected_inputs_give(family: str) -> None:
    backbone = tiny_causal(family)
    method = InfLoRA(backbone, lora=LORA, training=RECIPE, energy=0.9, energy_of="data")
    learn(method, 0, task(0, "ab"))
    before = {site.name: site.layer.weight.clone() for site in method.sites}
    eye = torch.eye(32, dtype=torch.float64)
    spaces = {name: eye - space.outside(eye) for name, space in method.protected().items()}
    learn(method, 1, task(1, "xyz"))
    for site in method.sites:
        moved = site.layer.weight - before[site.name]
        protected = spaces[site.name].to(moved)
        assert 2 <= float(protected.trace()) <= 30, "some directions are protected, and some are free"
        assert float((moved @ protected).abs().max()) < 1e-5
        assert float(moved.abs().max()) > 1e-3


def test_keys_and_values_share_one_moment() -> None:
    method = InfLoRA(tiny_causal(), lora=LORA, training=RECIPE)
    assert len(set(method.reads_as.values())) == 2, "one for each block"
    assert len(method.sites) == 4


# what needs classes


def table(name: str, *parts: str) -> dict[str, Any]:
    return {"method": {"name": name} | {part: {} for part in parts}, "run": {"seed": 0}}


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_need_classes_refuse_a_language_model(name: str) -> None:
    kind: Any = METHODS[name]
    if kind.answers:
        assert isinstance(build_method(table(name), tiny_causal()), kind)
        return
    with pytest.raises(ValueError, match="needs classes, and the language model 'tiny-llama'") as refused:
        build_method(table(name), tiny_causal())
    assert "\n" not in str(refused.value)


def test_some_methods_learn_answers() -> None:
    assert {name for name, kind in METHODS.items() if kind.answers} == {*ANSWERING, "joint"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("part", PARTS)
def test_parts_that_need_classes_refuse_a_language_model(part: str) -> None:
    kind: Any = PARTS[part]
    if kind.answers:
        assert isinstance(build_method(table("inflora", part), tiny_causal()), kind)
        return
    with pytest.raises(ValueError, match="needs classes, and the language model"):
        build_method(table("inflora", part), tiny_causal())


def test_what_keeps_answers_for_classes_is_refused() -> None:
    for kind in (InfLoRA, OLoRA):
        with pytest.raises(ValueError, match=r"distill is 0.25, which keeps the answers for old classes"):
            kind(tiny_causal(), distillation=SelfDistillation(0.25))


def test_a_method_of_answers_has_no_classes() -> None:
    method = new("seq-lora")
    with pytest.raises(ValueError, match="'tiny-llama' learns answers, which have no classes: there is no `classes`"):
        _ = method.classes
    with pytest.raises(ValueError, match="a loss of answers needs a language model"):
        SeqLoRA(tiny_bert()).losses(tiny_bert().example(1))


# streams


def source(name: str) -> Source:
    return Source(name, answers(name), answers(name.upper(), 3), ())


def test_data_sets_of_answers_are_a_stream() -> None:
    stream = dataset_incremental([source("ab"), source("xyz")], validation=0.2)
    assert (len(stream), stream.class_names, stream[1].classes) == (2, (), ())
    assert (len(stream[0].train), len(stream.test(1))) == (8, 3)
    assert all(key.startswith("xyz/") for key in stream.test(1).keys)
    assert len(stream.joined()[0].train) == 16
    assert stream.split_sha256 == dataset_incremental([source("ab"), source("xyz")], validation=0.2).split_sha256
    assert stream.split_sha256 != dataset_incremental([source("ab"), source("xyz")], validation=0.3).split_sha256
    assert as_task(source("ab")).classes == ()
