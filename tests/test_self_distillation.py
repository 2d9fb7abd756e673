"""Self-distillation: the network without the branch in training is the teacher of the whole."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from streams import build, configured, draw, images, learn, stream, tiny_backbone
from torch import Tensor, nn

from lamella.adapters.adapter import grow
from lamella.common.randomness import generator
from lamella.data.transform import plain_view
from lamella.methods.inflora import InfLoRA
from lamella.methods.shared.self_distillation import SelfDistillation, SelfTeacher
from lamella.testing.checks import an_interrupted_learning_ends_with_the_same_bits
from lamella.testing.trial import Trial, difference

TASKS = stream(6, 3)
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 5e-3, "blocks": 2}
KEPT = ("inflora", "olora", "e2lora", "loda")
"""The methods with the option."""


def pixels(n: int = 6) -> Tensor:
    return images(6, 4, "test").batch(torch.arange(n), plain_view(tiny_backbone().transform))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_the_divergence_times_the_squared_temperature(temperature: float) -> None:
    student, teacher = draw(5, 7), draw(5, 7, name="teacher") * 3

    def softmax(logits: Tensor) -> np.ndarray:
        e = np.exp(logits.numpy().astype(np.float64) / temperature)
        return e / e.sum(1, keepdims=True)

    p, q = softmax(teacher), softmax(student)
    expected = 0.25 * temperature**2 * (p * np.log(p / q)).sum() / len(p)
    found = SelfDistillation(0.25, temperature).loss(student, teacher)
    assert float(found) == pytest.approx(expected, abs=1e-6)
    assert float(SelfDistillation(0.25, temperature).loss(student, student)) == pytest.approx(0, abs=1e-7)


def test_the_teacher_is_the_network_as_it_was_before_the_branch() -> None:
    method = build("olora", **QUICK)
    learn(method, 0, TASKS[0])
    before = copy.deepcopy(method)
    recipe = SelfDistillation(1.0)
    branches = grow(method.sites, "new", 4, generator=generator(0, "A"))
    for number, branch in enumerate(branches):
        branch.B.copy_(draw(*branch.B.shape, name=f"B{number}"))
    teacher = SelfTeacher(recipe, method.sites, ["new"], method.features, method.heads)
    x = pixels()
    with torch.no_grad():
        features = method.features(x)
        expected = recipe.loss(method.heads(features), before.heads(before.features(x)))
        found = teacher.loss(x, features)
    assert float(found) > 1e-3
    assert torch.equal(found, expected)


def test_other_branches_go_on_acting_in_the_teacher() -> None:
    method = build("olora", **QUICK)
    learn(method, 0, TASKS[0])
    for name in ("old", "new"):
        for number, branch in enumerate(grow(method.sites, name, 4, generator=generator(0, name))):
            branch.B.copy_(draw(*branch.B.shape, name=f"{name}{number}"))
    seen: list[Tensor] = []

    def features(x: Tensor) -> Tensor:
        seen.append(method.features(x))
        return seen[-1]

    SelfTeacher(SelfDistillation(1.0), method.sites, ["new"], features, method.heads).loss(pixels(), draw(6, 64))
    for site in method.sites:
        del site.layer.branches["new"]
    with torch.no_grad():
        assert torch.equal(seen[0], method.features(pixels()))


def test_no_gradient_reaches_the_teacher() -> None:
    method = build("olora", **QUICK)
    learn(method, 0, TASKS[0])
    branches = grow(method.sites, "new", 4, generator=generator(0, "A"))
    for number, branch in enumerate(branches):
        branch.B.copy_(draw(*branch.B.shape, name=f"B{number}"))
        branch.B.requires_grad_(True)
    teacher = SelfTeacher(SelfDistillation(1.0), method.sites, ["new"], method.features, method.heads)
    teacher.loss(pixels(), draw(6, 64).requires_grad_(True)).backward()
    assert all(branch.B.grad is None for branch in branches)


@pytest.mark.parametrize("name", KEPT)
def test_the_first_task_is_as_without_it_and_the_second_keeps_old_answers_better(name: str) -> None:
    options = QUICK | ({"head": "linear"} if name == "loda" else {}) | {"optimizer": "adam", "epochs": 6}
    plain, kept = (build(name, **options, distill=strength) for strength in (0.0, 20.0))
    for method in (plain, kept):
        learn(method, 0, TASKS[0])
    assert difference(plain.state_dict(), kept.state_dict()) == ""
    old = TASKS[0].classes
    x = TASKS[1].train.batch(torch.arange(len(TASKS[1].train)), plain_view(plain.backbone.transform))
    moved = []
    before = plain.predict(x).detach().log_softmax(1)
    for method in (plain, kept):
        learn(method, 1, TASKS[1])
        now = method.predict(x).detach()[:, : len(old)].log_softmax(1)
        moved.append(float((before.exp() * (before - now)).sum(1).mean()))
    assert moved[1] < 0.5 * moved[0]
    assert torch.equal(plain.heads[0].weight, kept.heads[0].weight), "old heads are not trained"


def test_a_class_that_comes_back_is_still_an_old_class() -> None:
    method = configured(InfLoRA, tiny_backbone(), **QUICK, distill=1.0)
    for number, task in enumerate((TASKS[0], TASKS[1], TASKS[0])):
        learn(method, number, task)
    assert method.classes == (*TASKS[0].classes, *TASKS[1].classes)


def test_it_keeps_no_second_network_and_costs_a_pass_only_where_it_is_wanted() -> None:
    passes = {}
    for strength in (0.0, 0.25):
        method = configured(InfLoRA, tiny_backbone(), **QUICK, distill=strength)
        learn(method, 0, TASKS[0])
        calls: list[int] = []
        handle = method.backbone.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        learn(method, 1, TASKS[1])
        handle.remove()
        passes[strength] = len(calls)
        assert sum(isinstance(module, nn.LayerNorm) for module in method.modules()) == sum(
            isinstance(module, nn.LayerNorm) for module in tiny_backbone().modules()
        )
    assert passes[0.25] == 2 * passes[0.0] > 0


def test_a_kill_changes_nothing() -> None:
    an_interrupted_learning_ends_with_the_same_bits(
        Trial(lambda seed: build("inflora", seed, distill=0.25, design="ratio", shrink=True))
    )


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^distill is -1; it must be 0 or more, and 0 leaves the teacher out$"):
        SelfDistillation(-1)
    with pytest.raises(ValueError, match=r"^distill_temperature is 0; it must be above 0, and 2 is usual$"):
        SelfDistillation(0.25, 0)
