"""Distillation by hand, and what Learning without Forgetting promises."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import Spy, build, learn, stream
from torch import Tensor, nn

from lamella.common.randomness import generator
from lamella.data.transform import plain_view
from lamella.methods.shared.distillation import distillation, frozen_copy

PROBABILITY = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
GUESS = torch.tensor([[0.25, 0.75], [0.5, 0.5]])


def draw(*shape: int, seed: int = 0, name: str = "logits") -> Tensor:
    return 3 * torch.randn(shape, generator=generator(seed, name, *shape), dtype=torch.float64).float()


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(1).mean()


# distillation --------------------------------------------------------------------------------------------------------


def test_distillation_by_hand() -> None:
    """Logits 2 ln p at temperature 2 are the probabilities p."""
    first = -(0.5 * math.log(0.25) + 0.5 * math.log(0.75))
    second = -(0.25 * math.log(0.5) + 0.75 * math.log(0.5))
    loss = distillation(2 * GUESS.log() + 5, 2 * PROBABILITY.log() - 1, 2.0)
    assert float(loss) == pytest.approx((first + second) / 2, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.floats(0.5, 8), st.integers(0, 99))
def test_distillation_is_the_divergence_above_the_teachers_entropy(n: int, c: int, T: float, seed: int) -> None:
    student, teacher = draw(n, c, seed=seed), draw(n, c, seed=seed, name="teacher")
    p = (teacher.double() / T).softmax(1)
    divergence = F.kl_div((student.double() / T).log_softmax(1), p, reduction="batchmean")
    assert float(distillation(student, teacher, T)) == pytest.approx(float(divergence + entropy(p)), rel=1e-4, abs=1e-5)
    assert distillation(student, teacher, T) >= distillation(teacher + 7, teacher, T) - 1e-5  # least where they agree


def test_only_the_student_gets_a_gradient() -> None:
    student, teacher = draw(4, 3).requires_grad_(), draw(4, 3, name="teacher").requires_grad_()
    distillation(student, teacher, 2.0).backward()
    assert teacher.grad is None
    assert student.grad is not None
    expected = ((student / 2).softmax(1) - (teacher / 2).softmax(1)) / (2 * 4)  # (q - p) / (T n)
    assert torch.allclose(student.grad, expected.detach(), atol=1e-6)


def test_distillation_keeps_its_precision_under_autocast() -> None:
    student, teacher = draw(4, 3), draw(4, 3, name="teacher")
    with torch.autocast("cpu", torch.bfloat16):
        narrow = distillation(student, teacher, 2.0)
    assert narrow.dtype == torch.float32
    assert torch.allclose(narrow, distillation(student, teacher, 2.0), rtol=1e-6)


@pytest.mark.parametrize(("columns", "temperature", "message"), [(3, 0.0, "above 0"), (2, 2.0, "same samples")])
def test_what_cannot_be_distilled_is_refused(columns: int, temperature: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distillation(draw(4, 3), draw(4, columns), temperature)


def test_a_frozen_copy_stays_what_it_was() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    x, copied = draw(8, 3), frozen_copy(module)
    before = copied(x)
    module[0].weight.data.zero_()
    module(x)  # moves the statistics of the original
    assert torch.equal(copied(x), before)
    torch.testing.assert_close(copied(x[:1]), before[:1])  # no batch statistics either
    assert module.training
    assert not [p for p in copied.parameters() if p.requires_grad]


# the method ----------------------------------------------------------------------------------------------------------


def inputs(method: Any, number: int) -> Tensor:
    """Test images of a task."""
    test = stream().test(number)
    return test.batch(torch.arange(len(test)), plain_view(method.backbone.transform))


@torch.no_grad()
def old_answers(method: Any, images_of: int = 0) -> Tensor:
    """(n, 2) what a method says of a task's test images among the first task's classes."""
    return method.predict(inputs(method, images_of))[:, :2].softmax(1)


def test_the_loss_is_cross_entropy_of_the_new_head_and_distillation_of_all_older_classes() -> None:
    method = build("lwf", strength=3.0)
    scenario = stream()
    for i in range(2):
        learn(method, i, scenario[i])
    before = frozen_copy(method)
    seen: list[tuple[float, float]] = []

    @torch.no_grad()
    def look(loss: Any, data: Any, params: Any) -> None:
        for weight in method.backbone.model.parameters():  # away from where the teacher is
            weight += 0.02 * torch.randn(weight.shape, generator=generator(0, "noise"))
        x = data.batch(torch.arange(8), plain_view(method.backbone.transform))
        logits, old = method.predict(x).double(), before.predict(x).double()
        columns = torch.tensor([method.classes.index(c) - 4 for c in data.labels[:8].tolist()])
        divergence = F.kl_div((logits[:, :4] / 2).log_softmax(1), (old / 2).softmax(1), reduction="batchmean")
        expected = F.cross_entropy(logits[:, 4:], columns) + 3 * (divergence + entropy((old / 2).softmax(1)))
        seen.append((float(loss(x, data.labels[:8])), float(expected)))
        assert float(divergence) > 1e-4
        heads = sum(head.weight.numel() + head.bias.numel() for head in method.heads.heads)
        assert sum(p.numel() for p in params) == heads + sum(p.numel() for p in method.backbone.model.parameters())

    learn(method, 2, scenario[2], Spy(method, look))
    assert seen[0][0] == pytest.approx(seen[0][1], rel=1e-4)


def test_old_answers_move_less_than_those_of_fine_tuning() -> None:
    """Most on new images, whose old answers are distilled; on old ones too, which are not there."""
    moved: dict[float, list[float]] = {}
    for strength in (0.0, 3.0):
        method = learn(build("lwf", strength=strength, epochs=10), 0, stream()[0])
        before = [old_answers(method, i) for i in (0, 1)]
        learn(method, 1, stream()[1])
        moved[strength] = [float((old_answers(method, i) - before[i]).abs().mean()) for i in (0, 1)]
    assert moved[3.0][1] < moved[0.0][1] / 2, moved
    assert moved[3.0][0] < moved[0.0][0], moved


def test_the_first_task_is_plain_training() -> None:
    first, second = (learn(build("lwf", strength=s), 0, stream()[0]) for s in (0.0, 3.0))
    assert torch.equal(old_answers(first), old_answers(second))


def test_the_first_task_may_have_epochs_of_its_own() -> None:
    method = build("lwf", first_epochs=3, epochs=1)
    spies = [Spy(method) for _ in range(2)]
    for i, spy in enumerate(spies):
        learn(method, i, stream()[i], spy)
    assert [spy.options["epochs"] for spy in spies] == [3, 1]


def test_the_teacher_is_not_stored() -> None:
    method = build("lwf")
    for i in range(2):
        learn(method, i, stream()[i])
    kinds = {key.split(".")[0] for key in method.state_dict()}
    assert kinds == {"backbone", "heads"}


def test_a_strength_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="strength -1 is below 0"):
        build("lwf", strength=-1)
