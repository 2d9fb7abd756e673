"""What EWC-LoRA's specification says: importance of whole weights, summed over tasks, and the penalty on B A."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from streams import (
    Spy,
    batch,
    configured,
    draw,
    images,
    learn,
    plain,
    task,
    tiny_backbone,
    tiny_residual_backbone,
)
from torch import Tensor, nn

from lamella.adapters.adapter import adapt, grow
from lamella.common.randomness import generator
from lamella.data.images import TensorSet
from lamella.methods.ewc_lora import EWCLoRA
from lamella.methods.seq_lora import SeqLoRA
from lamella.methods.shared.fishers import DiagonalFisher, diagonal_fishers
from lamella.methods.shared.heads import Head

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 0.01, "rank": 4, "blocks": 2, "schedule": "constant"}


def build(**options: Any) -> EWCLoRA:
    return configured(EWCLoRA, tiny_backbone(), **{**QUICK, **options})


def importance(method: EWCLoRA) -> list[Tensor]:
    return [method._importance(site).total for site in method.sites]


def squared_gradients(method: EWCLoRA, data: Any, head: Head) -> list[Tensor]:
    """The mean over samples of the squared gradient by the weights themselves, one sample and one pass at a time."""
    weights = [site.layer.weight for site in method.sites]
    totals = [torch.zeros_like(w, dtype=torch.float64) for w in weights]
    for weight in weights:
        weight.requires_grad_(True)
    for i in range(len(data)):
        x = batch(method, data.subset(torch.tensor([i])))
        loss = F.cross_entropy(head(method.features(x)), head.columns(data.labels[i : i + 1]))
        for total, slope in zip(totals, torch.autograd.grad(loss, weights), strict=True):
            total += slope.double().square()
    for weight in weights:
        weight.requires_grad_(False)
    return [total[site.rows] / len(data) for total, site in zip(totals, method.sites, strict=True)]


# importance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 5])
def test_the_fisher_of_a_layer_is_the_written_out_form(rank: int) -> None:
    """Entry by entry: the mean over samples of (sum over tokens of slope times input) squared; of low rank too."""
    x = draw(6, 4, rank, name="left") @ draw(rank, 5, name="right")
    slopes = draw(6, 4, 3, name="slopes")
    site = adapt(nn.Sequential(nn.Linear(5, 3)), "0", slice(1, 3))[0]
    fisher = DiagonalFisher(site)
    fisher.add(x[:4], slopes[:4])
    fisher.add(x[4:], slopes[4:])
    a, s = x.double().numpy(), slopes.double().numpy()
    expected = np.zeros((2, 5))
    for n in range(6):
        for o in range(2):
            for i in range(5):
                expected[o, i] += sum(s[n, t, o + 1] * a[n, t, i] for t in range(4)) ** 2 / 6
    assert np.abs(fisher.mean.numpy() - expected).max() < 1e-6 * max(expected.max(), 1)


def test_importance_is_the_sum_over_tasks_of_squared_gradients_of_single_samples() -> None:
    method = build(sites=("key+value", "query"))
    expected = [torch.zeros_like(total, dtype=torch.float64) for total in importance(method)]
    for i, classes in enumerate([(0, 1, 2), (3, 4)]):
        data = task(i, classes)
        learn(method, i, data, plain(method))
        for total, found in zip(expected, squared_gradients(method, data.train, method.heads[i]), strict=True):
            total += found
        for found, total in zip(importance(method), expected, strict=True):
            assert float(total.max()) > 0
            assert float((found - total).abs().max()) < 1e-5 * float(total.max())


def test_a_layer_that_is_called_twice_has_the_squares_of_summed_gradients() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.tanh(self.layer(x))).mean(1)

    model, head = Twice().requires_grad_(False), Head(4, (0, 1), generator(0, "head"))
    model.layer.weight.copy_(draw(4, 4, name="weight"))
    sites = adapt(model, "layer")
    fit = plain(build())
    data = TensorSet(draw(5, 3, 4), torch.arange(5) % 2)
    (fisher,) = diagonal_fishers(fit, data, model, head, sites)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    weight = sites[0].layer.weight.requires_grad_(True)
    for i in range(5):
        loss = F.cross_entropy(head(model(draw(5, 3, 4)[i : i + 1])), torch.tensor([i % 2]))
        expected += torch.autograd.grad(loss, weight)[0].double().square() / 5
    assert torch.allclose(fisher.mean.double(), expected, atol=1e-6)


def test_measuring_importance_leaves_no_gradient_and_no_hook_behind() -> None:
    method = build()
    learn(method, 0, task(0, (0, 1)))
    assert not any(p.requires_grad or p.grad is not None for p in method.parameters())
    assert not any(site.layer._forward_hooks for site in method.sites)


# the penalty ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 8.0])
def test_the_penalty_is_the_written_out_form(alpha: float | None) -> None:
    method = build(strength=30.0, alpha=alpha)
    branches = method.lora.grow(method.sites, "drawn", generator(0, "A"))
    expected = 0.0
    for i, (site, branch) in enumerate(zip(method.sites, branches, strict=True)):
        branch.B.copy_(draw(*branch.B.shape, name=f"B{i}"))
        branch.B[:, 1:] = 0  # of rank 1
        total = method._importance(site).total
        total.copy_(draw(*total.shape, name=f"F{i}").square())
        dW = (1 if alpha is None else alpha / 4) * branch.B.double().numpy() @ branch.A.double().numpy()
        expected += 15.0 * float((total.double().numpy() * dW**2).sum())
    assert float(method.penalty(branches)) == pytest.approx(expected, rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(method.penalty(branches)) == pytest.approx(expected, rel=1e-6)


def test_the_first_task_is_plain_lora_given_equal_draws() -> None:
    ours, theirs = build(), configured(SeqLoRA, tiny_backbone(), **QUICK)
    draws = grow(ours.sites, "draw", 4, generator=generator(0, "lora", 0))
    for site, drawn in zip(theirs.sites, draws, strict=True):
        site.layer.of("lora")[0].A.copy_(drawn.A)  # seq-lora draws under another name
    for site in ours.sites:
        site.layer.branches.clear()
    learn(ours, 0, task(0, (0, 1, 2)))
    learn(theirs, 0, task(0, (0, 1, 2)))
    x = batch(ours, images(3, 4, "test"))
    with torch.no_grad():
        assert torch.allclose(ours.predict(x), theirs.predict(x), atol=1e-5)


def test_the_penalty_is_part_of_the_loss_from_the_second_task_on() -> None:
    method = build(strength=1e4)
    added: list[float] = []

    def look(loss: Any, data: Any, tensors: list[Tensor]) -> None:
        branches = [b for site in method.sites for b in site.layer.of("new")]
        for branch in branches:
            branch.B.copy_(0.1 * draw(*branch.B.shape, name="B"))
        x = batch(method, data)
        head = method.heads[len(method.heads) - 1]
        with torch.no_grad():
            plain_loss = F.cross_entropy(head(method.features(x)), head.columns(data.labels))
            added.append(float(loss(x, data.labels) - plain_loss))
            added.append(float(method.penalty(branches)))
        for branch in branches:
            branch.B.zero_()

    learn(method, 0, task(0, (0, 1)), Spy(method, look))
    assert added == [0.0, 0.0]
    learn(method, 1, task(1, (2, 3)), Spy(method, look))
    assert added[2] == pytest.approx(added[3], rel=1e-4)
    assert added[3] > 1e-3


def test_a_stronger_penalty_moves_the_weights_that_matter_less() -> None:
    def moved(strength: float) -> tuple[float, float]:
        method = build(strength=strength, epochs=8)
        learn(method, 0, task(0, (0, 1, 2)))
        held = [total.clone() for total in importance(method)]
        before = [site.layer.weight.clone() for site in method.sites]
        learn(method, 1, task(1, (3, 4, 5)))
        changes = [(site.layer.weight - weight)[site.rows] for site, weight in zip(method.sites, before, strict=True)]
        weighed = sum(float((f * c.square()).sum()) for f, c in zip(held, changes, strict=True))
        return weighed, sum(float(c.square().sum()) for c in changes)

    free, held = moved(0.0), moved(1e5)
    assert held[0] < 0.1 * free[0]
    assert held[0] / held[1] < free[0] / free[1]  # it turns towards what matters less, and does not only shrink
    assert held[1] > 0


@pytest.mark.parametrize("strength", [-1.0, float("nan")])
def test_bad_arguments_are_named(strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength (-1.0|nan) is below 0|= nan should be a finite number"):
        build(strength=strength)


def test_a_residual_network_is_refused_when_the_method_is_built() -> None:
    with pytest.raises(ValueError, match=r"has no layer with the roles \['key\+value'\]"):
        configured(EWCLoRA, tiny_residual_backbone())
