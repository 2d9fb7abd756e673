"""What SplitLoRA's specification says: how many directions are protected, and where the next random A lies."""

from typing import Any

import numpy as np
import pytest
import torch
from streams import (
    Spy,
    batch,
    configured,
    draw,
    learn,
    plain,
    task,
    tiny_backbone,
    tiny_residual_backbone,
)
from torch import Tensor

from lamella.adapters.adapter import watch
from lamella.common.randomness import generator
from lamella.memory.subspace import SecondMoment, Subspace
from lamella.methods.splitlora import SeenInputs, SplitLoRA, free_draw

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 0.01, "rank": 4, "blocks": 2}


def build(**options: Any) -> SplitLoRA:
    return configured(SplitLoRA, tiny_backbone(), **{**QUICK, **options})


def seen(method: SplitLoRA) -> list[SeenInputs]:
    return [module for module in method.memory.values() if isinstance(module, SeenInputs)]


def inputs(method: SplitLoRA, data: Any) -> list[np.ndarray]:
    """(tokens, d) float64 inputs of each adapted layer as the network is now."""
    found: list[list[Tensor]] = [[] for _ in method.sites]
    numbers = {site.layer: i for i, site in enumerate(method.sites)}
    with torch.no_grad(), watch(method.sites, lambda layer: found[numbers[layer]].append):
        method.features(batch(method, data))
    return [torch.cat(parts).flatten(0, -2).double().numpy() for parts in found]


def split_by_hand(X: np.ndarray, tasks: int, room: float) -> tuple[int, np.ndarray]:
    """k and the projection on the first k principal directions of inputs X (tokens, d), in NumPy."""
    d = X.shape[1]
    _, s, V = np.linalg.svd(X, full_matrices=False)
    energy = np.zeros(d)
    energy[: len(s)] = s**2 / (s**2).sum()
    costs = [tasks * (1 - energy[:k].sum()) - room * (d - k) / d for k in range(1, d + 1)]
    k = int(np.argmin(costs)) + 1
    return k, V[:k].T @ V[:k]


# the split -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [3, 10])
@pytest.mark.parametrize("tasks", [1, 4])
def test_the_split_is_that_of_the_written_out_form(rank: int, tasks: int) -> None:
    left, right = draw(40, rank, name="left"), draw(rank, 10, name="right")
    X = (left * 0.6 ** torch.arange(rank)) @ right  # at rank 3 most directions have no energy at all
    found = SeenInputs(10)
    found.moment(X)
    found.split(tasks, room=0.4, free=1)
    k, P = split_by_hand(X.double().numpy(), tasks, 0.4)
    assert found.space.dimension == k
    assert 1 < k <= min(rank, 9)
    identity = torch.eye(10, dtype=torch.float64)
    assert np.abs(found.space.inside(identity).numpy() - P).max() < 1e-6


def test_what_is_protected_is_split_anew_from_all_tokens_of_all_tasks() -> None:
    method = build(room=2.0)
    tokens: list[list[np.ndarray]] = []
    for i, classes in enumerate([(0, 1, 2), (3,), (4, 5)]):
        data = task(i, classes)
        learn(method, i, data, plain(method))
        tokens.append(inputs(method, data.train))
        for layer, found in enumerate(seen(method)):
            X = np.concatenate([of_task[layer] for of_task in tokens])
            assert np.abs(found.moment.mean.numpy() - X.T @ X / len(X)).max() < 1e-5 * np.abs(X.T @ X / len(X)).max()
            k, P = split_by_hand(X, i + 1, 2.0)
            assert found.space.dimension == k
            inside = found.space.inside(torch.eye(found.space.width, dtype=torch.float64)).numpy()
            assert np.abs(inside - P).max() < 1e-4


def test_more_tasks_or_less_room_protect_more_and_a_branch_always_has_its_rank() -> None:
    moment = SecondMoment(12)
    moment(draw(50, 12, name="tokens") * torch.linspace(1, 0.1, 12))

    def size(tasks: int, room: float, free: int = 0) -> int:
        found = SeenInputs(12)
        found.moment.add(moment)
        found.split(tasks, room, free)
        return found.space.dimension

    assert size(1, 1.0) < size(3, 1.0) < size(1, 0.01) == 12
    assert size(1, 0.01, free=4) == 8
    assert size(1, 0.01, free=20) == 0


def test_no_end_of_full_branches_is_forecast_because_fewer_directions_are_protected_before() -> None:
    method = build(room=2.0)
    learn(method, 0, task(0, (0, 1)), plain(method))
    assert method.protected()
    assert method.free_rank is None


# the next A ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [0, 3, 9])
def test_random_rows_are_a_gaussian_matrix_in_the_minor_directions(dimension: int) -> None:
    """U_minor U_minor^T R, written out; where the complement is stored too."""
    space = Subspace(12)
    Q = np.linalg.qr(draw(12, 12, name="frame").double().numpy())[0]
    space.extend(torch.tensor(Q[:, :dimension]).float())
    A = free_draw(space, 5, generator(1, "rows")).double().numpy()
    R = torch.randn(12, 5, generator=generator(1, "rows")).double().numpy()
    minor = Q[:, dimension:]
    assert np.abs(A - (minor @ (minor.T @ R)).T).max() < 1e-5
    assert np.abs(A @ Q[:, :dimension]).max(initial=0) < 1e-6


@pytest.mark.parametrize("shrinking", [True, False])
def test_a_new_branch_reads_free_directions_with_the_norm_that_is_told(shrinking: bool) -> None:
    method = build(shrinking=shrinking, room=2.0)
    usual = [b.A.norm() for b in method.lora.grow(method.sites, "draw", generator(0, "lora", 1))]
    for site in method.sites:
        site.layer.branches.clear()
    learn(method, 0, task(0, (0, 1, 2)))
    before = [site.layer.weight.clone() for site in method.sites]
    spaces = [found.space.inside(torch.eye(found.space.width)) for found in seen(method)]
    grown: list[tuple[Tensor, Tensor]] = []

    def look(loss: Any, data: Any, tensors: list[Tensor]) -> None:
        branches = [b for site in method.sites for b in site.layer.of("new")]
        grown.extend((b.A.clone(), b.B) for b in branches)
        assert all(any(t is b.B for t in tensors) for b in branches)
        assert not any(t is b.A for t in tensors for b in branches)

    learn(method, 1, task(1, (3, 4, 5)), Spy(method, look))
    for (A, _), P, norm, weight, site in zip(grown, spaces, usual, before, method.sites, strict=True):
        assert float(A.norm()) == pytest.approx(float(norm) / (2 if shrinking else 1), rel=1e-5)
        assert float((A @ P).abs().max()) < 1e-6 * float(A.norm())
        change = site.layer.weight - weight
        assert float(change.abs().max()) > 1e-4  # it did learn
        assert float((change @ P).abs().max()) < 1e-6  # and nothing about what old tasks need
        assert float(change[: site.rows.start].abs().max()) == 0


def test_the_first_task_has_the_usual_start_of_lora_and_layers_have_draws_of_their_own() -> None:
    method = build()
    firsts = [b.A.clone() for b in method._grow(0)]
    for site in method.sites:
        site.layer.branches.clear()
    usual = [b.A.clone() for b in method.lora.grow(method.sites, "draw", generator(0, "lora", 0))]
    assert all(torch.equal(a, b) for a, b in zip(firsts, usual, strict=True))
    for site in method.sites:
        site.layer.branches.clear()
    later = [b.A / b.A.norm() for b in method._grow(1)]
    assert float((later[0] - later[1]).abs().max()) > 0.1


# the loss ------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_of_logits_divided_by_the_temperature() -> None:
    method = build(temperature=7.0)
    losses: list[tuple[float, float]] = []

    def look(loss: Any, data: Any, tensors: list[Tensor]) -> None:
        x = batch(method, data)
        with torch.no_grad():
            value, logits = float(loss(x, data.labels)), method.heads[0](method.features(x)).double().numpy()
        z = logits / 7.0
        z = z - z.max(1, keepdims=True)
        own = z[np.arange(len(z)), data.labels.numpy()] - np.log(np.exp(z).sum(1))
        losses.append((value, -own.mean()))

    learn(method, 0, task(0, (0, 1, 2)), Spy(method, look))
    assert losses[0][0] == pytest.approx(losses[0][1], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"room": 0.0}, "room 0.0 must be above 0; the authors' code has 20, and less protects more"),
        ({"temperature": -1.0}, "temperature -1.0 must be above 0; the authors' script has 30, and 1 has none"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_residual_network_is_refused_when_the_method_is_built() -> None:
    with pytest.raises(ValueError, match=r"has no layer with the roles \['key\+value'\]"):
        configured(SplitLoRA, tiny_residual_backbone())
