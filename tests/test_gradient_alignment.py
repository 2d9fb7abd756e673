"""Gradient alignment: a step of each half of the classes, from where the other half moved the weights."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from streams import Spy, configured, draw, fit_for, learn, stream, tiny_backbone
from torch import Tensor, nn

from lamella import Learner
from lamella.learner.expected_costs import expect_costs
from lamella.methods.loda import LoDA
from lamella.methods.shared.gradient_alignment import GradientAlignment
from lamella.testing.checks import CHECKS, Trial

X = draw(12, 4)
Y = torch.tensor([5, 7, 2] * 4)
COLUMNS = {2: 0, 5: 1, 7: 2}


def gradient(W: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of the mean cross-entropy of some samples, written out."""
    x, columns = X.numpy()[rows], [COLUMNS[c] for c in Y.numpy()[rows]]
    p = np.exp(x @ W.T)
    p /= p.sum(1, keepdims=True)
    return (p - np.eye(3)[columns]).T @ x / len(x)


def test_a_batch_gives_two_steps_each_from_where_the_other_half_moved_the_weights() -> None:
    layer, alignment = nn.Linear(4, 3, bias=False), GradientAlignment(0.3)
    W = layer.weight.detach().numpy().astype(np.float64)
    draws = torch.Generator().manual_seed(3)
    order, u = torch.randperm(3, generator=draws), float(torch.rand((), generator=draws))
    classes = Y.unique()[order].numpy()
    halves = [np.isin(Y.numpy(), classes[:1]), np.isin(Y.numpy(), classes[1:])]
    engine = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.01)

    def loss(x: Any, y: Tensor) -> Tensor:
        return F.cross_entropy(layer(x), torch.tensor([COLUMNS[c] for c in y.tolist()]))

    for turn, aligned in enumerate(alignment.losses(loss, [layer.weight])):
        alignment.generator = torch.Generator().manual_seed(3)
        engine.zero_grad()
        aligned(X, Y).backward()
        engine.step()
        alignment.move_back()
        g = gradient(W, halves[turn])
        moved = W - 0.3 * u * g / np.linalg.norm(g)
        moved -= 0.1 * (gradient(moved, halves[1 - turn]) + 0.01 * moved)
        W = moved + 0.3 * u * g / np.linalg.norm(g)
        assert np.allclose(layer.weight.detach().numpy(), W, atol=1e-6)


def test_a_batch_of_one_class_has_nothing_to_align() -> None:
    weight, alignment = nn.Parameter(torch.ones(2)), GradientAlignment(0.3)
    for aligned in alignment.losses(lambda x, y: (weight * x).sum(), [weight]):
        assert aligned(torch.ones(3, 2), torch.tensor([4, 4, 4])).item() == 6
        assert torch.equal(weight, torch.ones(2))


def test_there_is_none_without_a_distance() -> None:
    assert configured(LoDA, tiny_backbone()).alignment is None
    for rho in (0.0, -0.1, float("nan")):
        with pytest.raises(
            ValueError, match=rf"^rho {rho} must be above 0, or 0 in the settings for no gradient align"
        ):
            GradientAlignment(rho)


def test_a_weight_that_the_loss_does_not_read_stays_where_it_is() -> None:
    weight, idle, alignment = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2)), GradientAlignment(0.3)
    alignment.generator = torch.Generator().manual_seed(0)
    aligned = alignment.losses(lambda x, y: (weight * x).sum(), [idle, weight])[0]
    aligned(torch.ones(4, 2), torch.tensor([0, 0, 1, 1])).backward()
    assert torch.equal(idle, torch.ones(2))
    assert idle.grad is None  # which the training loop tells, with the name of the weight
    assert not torch.equal(weight, torch.ones(2))
    alignment.move_back()
    assert torch.allclose(weight, torch.ones(2))


def test_a_method_does_what_it_does_after_a_step_when_the_weights_are_moved_back(monkeypatch: Any) -> None:
    told = list[str]()
    back = GradientAlignment.move_back
    monkeypatch.setattr(GradientAlignment, "move_back", lambda self: (told.append("back"), back(self)))
    method = configured(LoDA, tiny_backbone(), rho=0.3, rank=6, epochs=1, batch_size=64)
    task, fit = stream()[0], fit_for(method)
    fit.begin("0")
    branches = method.grow_new("new", torch.Generator(), task, fit)
    after = {"after_step": lambda: told.append("after")}
    method.train_head(task, fit, [b.B for b in branches], alignment=method.alignment, **after)
    # Each of the two losses begins where the last one left the weights.
    assert told == ["back", "back", "after"] * 2
    with pytest.raises(ValueError, match=r"^LoDA looks at its weights before each step, when gradient alignment has m"):
        method.train_head(task, fit, [], alignment=method.alignment, before_step=lambda: None)


def test_under_autocast_the_other_half_sees_the_moved_weights() -> None:
    weight, alignment = nn.Parameter(torch.ones(4, 4)), GradientAlignment(2.0)
    alignment.generator = torch.Generator().manual_seed(0)

    def loss(x: Any, y: Tensor) -> Tensor:
        return F.linear(x, weight).float().square().mean()

    x, y = torch.ones(4, 4), torch.tensor([0, 0, 1, 1])
    with torch.autocast("cpu", torch.bfloat16):
        found = alignment.losses(loss, [weight])[0](x, y)
        assert found.item() == pytest.approx(float(loss(x[:2], y).detach()), rel=1e-2)
    assert found.item() < 0.9 * 16


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (
            {"accumulate": 2},
            r"^rho 0.3 divides the classes of a whole batch, and accumulate 2 computes it in parts; le",
        ),
        ({"rho": -1}, r"^rho -1 must be above 0, or 0 in the settings"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        configured(LoDA, tiny_backbone(), **{"rho": 0.3} | options)


def test_several_steps_a_batch_are_refused_where_no_batch_can_give_them() -> None:
    method = configured(LoDA, tiny_backbone(), rho=0.3, rank=6)
    with pytest.raises(
        ValueError, match=r"^a batch gives 2 steps here, by parts of it, and fit.compile is for batches"
    ):
        learn(method, 0, stream()[0], fit_for(method, compile=True))
    with pytest.raises(ValueError, match=r"^fit was given no loss; give a function, or a list of functions"):
        fit_for(method)(stream()[0].train, [], [nn.Parameter(torch.ones(1))])


def test_what_it_will_cost_can_be_told() -> None:
    table = {"name": "loda", "rho": 0.3, "rank": 6, "epochs": 1, "batch_size": 8}
    backbone = {"name": "test_vit", "weights": "random", "size": 32, "crop": 1.0}
    learner = Learner.create(backbone=backbone, method=table, fit={"device": "cpu"})
    assert expect_costs(learner.model, stream()[0], held_back=4).seconds > 0


def test_in_loda_the_branches_are_moved_and_nothing_else() -> None:
    method = configured(LoDA, tiny_backbone(), rho=0.3, epochs=1, batch_size=8, blocks=2, rank=6)
    seen: list[bool] = []

    def look(losses: Any, data: Any, params: list[Tensor]) -> None:
        x, y = draw(4, 3, 32, 32), torch.tensor(task.classes).repeat_interleave(2)
        before = [p.detach().clone() for p in params]
        for p in params:
            p.requires_grad_()
        assert len(losses) == 2
        losses[0](x, y)
        seen.extend(not torch.equal(p, old) for p, old in zip(params, before, strict=True))
        method.alignment.move_back()
        assert all(torch.allclose(p, old, atol=1e-6) for p, old in zip(params, before, strict=True))

    for number in range(2):
        task = stream()[number]
        learn(method, number, task, Spy(method, look))
    assert len(method.sites) == 2
    # Of the first task A and B; B is 0 at first, so that A has no gradient and stays. Of the second both B. Head last.
    assert seen == [False, True] * 2 + [False] + [True] * 4 + [False]


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial(lambda seed: configured(LoDA, tiny_backbone(seed), seed=seed, rho=0.3, epochs=2, batch_size=8, rank=6))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_the_contract(trial: Trial, check: Any) -> None:
    """Above all: a training that is interrupted draws what it would have drawn."""
    check(trial)
