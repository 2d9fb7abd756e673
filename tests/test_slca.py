"""What SLCA's paper promises: a slow backbone, and heads that are aligned on samples of class Gaussians alone."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import Spy, configured, learn, tiny_backbone
from torch import Tensor

from lamella.common.randomness import generator
from lamella.methods.shared.pseudo_features import pseudo_features, roots_of
from lamella.methods.slca import COVARIANCE_FLOOR, SLCA, aged_scales, normalised_logits
from lamella.testing.tiny import tiny_tasks

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "samples": 16}


def build(**options: Any) -> Any:
    return configured(SLCA, tiny_backbone(), **QUICK | options)


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(0, name, *shape), dtype=torch.float64)


def copies(method: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


class Stages(Spy):
    """The real fit; keeps the state before and after each call of training, and what the call was given."""

    def __init__(self, method: Any) -> None:
        super().__init__(method)
        self.method, self.calls = method, dict[str, Any]()

    def __call__(self, data: Any, loss: Any, params: Any, training: Any, **options: Any) -> list[float]:
        groups, before = list(params), copies(self.method)
        losses = self.fit(data, loss, groups, training, **options)
        given = {"data": data, "loss": loss, "groups": groups, "training": training}
        self.calls[options.get("name", "train")] = given | {"before": before, "after": copies(self.method)}
        return losses


def stages(method: Any, number: int, task: Any) -> dict[str, Any]:
    fit = Stages(method)
    learn(method, number, task, fit)
    return fit.calls


# the units, each beside its formula written out in NumPy ------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.lists(st.integers(0, 3), min_size=1, max_size=7), st.floats(0.05, 3.0))
def test_logits_are_divided_by_the_mean_norm_of_the_tasks(n: int, tasks: list[int], temperature: float) -> None:
    h = draw(n, len(tasks))
    found = normalised_logits(h, torch.tensor(tasks), temperature)
    expected = np.empty((n, len(tasks)))
    for i, row in enumerate(h.numpy()):
        norms = [np.sqrt(sum(v * v for v, t in zip(row, tasks, strict=True) if t == task)) for task in set(tasks)]
        expected[i] = row / (np.mean(norms) + 1e-7) / temperature
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_logits_of_zero_have_gradients_that_are_numbers() -> None:
    h = torch.zeros(2, 3, requires_grad=True)
    normalised_logits(h, torch.tensor([0, 0, 1]), 0.1).sum().backward()
    assert h.grad is not None
    assert h.grad.isfinite().all()


def test_means_of_old_classes_are_shortened_by_their_age() -> None:
    found = aged_scales([0, 0, 3, 1, 2], 0.9)
    np.testing.assert_allclose(found.numpy(), [0.9 + 0.1 * (t + 1) / 4 for t in (0, 0, 3, 1, 2)], rtol=1e-12)
    assert torch.equal(aged_scales([0, 1], 1.0), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("counts", [(1, 2, 5), (40, 3, 1)])
def test_samples_have_the_class_covariance_with_its_floor_however_few_images_there_were(counts: Any) -> None:
    d, parts = 6, [draw(n, 6, name=f"class {n}") for n in counts]
    scatters = torch.stack([(x - x.mean(0)).T @ (x - x.mean(0)) for x in parts])
    roots = list(roots_of(scatters, torch.tensor(counts), COVARIANCE_FLOOR))
    means = torch.stack([x.mean(0) for x in parts])
    found = pseudo_features(means, roots, 7, generator(0, "draws"))
    again = generator(0, "draws")
    for i, (x, root) in enumerate(zip(parts, roots, strict=True)):
        covariance = np.cov(x.numpy().T) if len(x) > 1 else np.zeros((d, d))
        expected = covariance + COVARIANCE_FLOOR * np.eye(d)
        np.testing.assert_allclose((root @ root.T).numpy(), expected, rtol=1e-6, atol=1e-12)
        z = torch.randn(7, d, generator=again, dtype=torch.float64).numpy()
        samples = x.numpy().mean(0) + z @ np.linalg.cholesky(expected).T
        np.testing.assert_allclose(found[7 * i : 7 * i + 7].numpy(), samples, rtol=1e-5, atol=1e-6)


def test_alignment_minimises_the_cross_entropy_of_normalised_logits() -> None:
    method, tasks = build(), tiny_tasks([2, 3])
    learn(method, 0, tasks[0])
    call = stages(method, 1, tasks[1])["align"]
    x, y = call["data"].x, call["data"].labels
    weight, bias = (
        torch.cat([call["before"][f"heads.heads.{i}.{name}"] for i in (0, 1)]).double().numpy()
        for name in ("weight", "bias")
    )
    method.load_state_dict(call["before"])
    with torch.no_grad():
        found = float(call["loss"](x, y))
    ids, values = [c for task in tasks for c in task.classes], []
    for f, label in zip(x.double().numpy(), y.tolist(), strict=True):
        h = weight @ f + bias
        h /= 0.1 * (np.linalg.norm(h[:2]) + np.linalg.norm(h[2:]) + 2e-7) / 2
        values.append(np.log(np.exp(h - h.max()).sum()) + h.max() - h[ids.index(label)])
    assert found == pytest.approx(np.mean(values), rel=1e-5)
    assert np.bincount(y.numpy(), minlength=8)[list(ids)].tolist() == [16] * 5


# the steps -----------------------------------------------------------------------------------------------------------


def test_the_backbone_learns_a_hundred_times_slower_than_the_head() -> None:
    call = stages(build(), 0, tiny_tasks([2])[0])["train"]
    rates = [group.get("lr", call["training"].lr) for group in call["groups"]]
    assert rates == [pytest.approx(1e-4), pytest.approx(1e-2)]
    numbers = [sum(p.numel() for p in group["params"]) for group in call["groups"]]
    assert numbers == [sum(p.numel() for p in tiny_backbone().model.parameters()), 2 * (64 + 1)]


def test_alignment_moves_all_heads_and_nothing_else() -> None:
    method, tasks = build(), tiny_tasks([2, 2])
    assert list(stages(method, 0, tasks[0])) == ["train"], "one task needs no alignment"
    call = stages(method, 1, tasks[1])["align"]
    moved = {name for name, tensor in call["after"].items() if not torch.equal(tensor, call["before"][name])}
    assert moved == {f"heads.heads.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")}


def test_the_next_task_begins_with_the_heads_as_they_were_before_alignment() -> None:
    method, tasks = build(), tiny_tasks([2, 2, 2])
    after_first = stages(method, 0, tasks[0])["train"]["after"]
    stages(method, 1, tasks[1])
    aligned = method.heads[0].weight.clone()
    before_third = stages(method, 2, tasks[2])["align"]["before"]
    assert not torch.equal(aligned, after_first["heads.heads.0.weight"])
    assert torch.equal(before_third["heads.heads.0.weight"], after_first["heads.heads.0.weight"])


def test_the_gaussians_of_old_classes_stay_and_those_of_a_class_that_comes_back_are_new() -> None:
    method, (first, second) = build(), tiny_tasks([2, 2])
    learn(method, 0, first)
    learn(method, 1, second)
    statistics = method.kept.statistics
    before = {c: statistics.means[i].clone() for i, c in enumerate(statistics.classes)}
    learn(method, 2, second)
    after = dict(zip(statistics.classes, statistics.means, strict=True))
    assert set(after) == set(before) == {*first.classes, *second.classes}
    assert all(torch.equal(after[c], before[c]) for c in first.classes)
    assert not any(torch.equal(after[c], before[c]) for c in second.classes)
    assert statistics.counts.tolist() == [8, 8, 8, 8]


def test_without_epochs_of_alignment_the_heads_stay_as_they_were_trained() -> None:
    method, tasks = build(align_epochs=0), tiny_tasks([2, 2])
    learn(method, 0, tasks[0])
    assert list(stages(method, 1, tasks[1])) == ["train"]
    assert torch.equal(method.heads[0].weight, method.kept.heads[0].weight)


def test_alignment_makes_heads_comparable_that_were_not() -> None:
    """The head of the first task is made ten times as loud; on what it never saw it then wins, until alignment."""
    right = {}
    for epochs in (0, 20):
        method, tasks = build(align_epochs=epochs, samples=64, lr=1e-6, head_lr=0.1, epochs=20), tiny_tasks([2, 2])
        learn(method, 0, tasks[0])
        method.kept.heads[0].weight.mul_(10)
        learn(method, 1, tasks[1])
        statistics = method.kept.statistics
        with torch.no_grad():
            chosen = method.classify(statistics.means.float()).argmax(1)
        right[epochs] = sum(method.classes[i] == c for i, c in zip(chosen.tolist(), statistics.classes, strict=True))
    assert right[0] < right[20] == 4


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"samples": 0}, "samples 0 must be at least 1"),
        ({"align_epochs": -1}, "align_epochs -1 must be at least 0, and 0 leaves the heads alone"),
        ({"temperature": 0.0}, "temperature 0.0 must be above 0; leave it out for plain logits"),
        ({"oldest": 1.5}, r"oldest 1.5 is outside \(0, 1\]; the source has 0.9, and 1 leaves means as they are"),
        ({"align_lr": 0.0}, "align_lr 0.0 must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        build(**option)
