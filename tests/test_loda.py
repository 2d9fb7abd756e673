"""What LoDA promises: each step of its specification, written out a second time in NumPy; its steps in InfLoRA."""

from typing import Any

import numpy as np
import pytest
import torch
from streams import Spy, configured, learn, stream, tiny_backbone
from torch import Tensor

from lamella.common.randomness import generator
from lamella.data.transform import plain_view
from lamella.memory.old_moments import OldMoment, ratio_directions, shrinkage
from lamella.memory.subspace import Subspace, leading
from lamella.methods.inflora import InfLoRA
from lamella.methods.loda import LoDA
from lamella.methods.shared.cosine_heads import CosineHeads

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "blocks": 2, "rank": 6, "optimizer": "adam", "lr": 5e-3}
TASKS = stream(6, 3)


def draw(*shape: int, name: str = "x") -> np.ndarray:
    return torch.randn(shape, generator=generator(0, name, *shape), dtype=torch.float64).numpy()


def moment(d: int, n: int, name: str) -> np.ndarray:
    """The second moment of n inputs, (d, d), of rank n at most."""
    X = draw(n, d, name=name) * np.linspace(1, 3, d)
    return X.T @ X / n


def onto(columns: Any) -> np.ndarray:
    Q = np.linalg.qr(np.asarray(columns))[0]
    return Q @ Q.T


# directions ----------------------------------------------------------------------------------------------------------


def written_out(M: np.ndarray, N: np.ndarray, rank: int) -> np.ndarray:
    """The specification, word by word."""
    jitter = 1e-12
    while True:
        try:
            L = np.linalg.cholesky(N + jitter * np.eye(len(N)))
            break
        except np.linalg.LinAlgError:
            jitter *= 10
    inverse = np.linalg.inv(L)
    V = np.linalg.svd(inverse @ M @ inverse.T)[0][:, :rank]
    return np.linalg.qr(inverse.T @ V)[0]


def silent_in_some(d: int) -> np.ndarray:
    """An old moment of rank d - 3, whose silent directions are coordinates."""
    N = np.zeros((d, d))
    N[3:, 3:] = moment(d - 3, 50, "old")
    return N


@pytest.mark.parametrize("new_inputs", [100, 5])
@pytest.mark.parametrize("old", ["full", "silent in some", "indefinite by rounding"])
def test_the_isolated_directions_are_those_of_the_specification(old: str, new_inputs: int) -> None:
    M, N = moment(10, new_inputs, "new"), moment(10, 100, "old") if old == "full" else silent_in_some(10)
    if old == "indefinite by rounding":
        N[0, 0] = -1e-7
    U = ratio_directions(torch.tensor(M), torch.tensor(N), 4).numpy()
    assert np.allclose(U.T @ U, np.eye(4), atol=1e-9)
    assert np.allclose(onto(U), onto(written_out(M, N, 4)), atol=1e-6)


def test_no_direction_has_a_larger_ratio_than_the_first() -> None:
    M, N = moment(10, 100, "new"), moment(10, 100, "old")
    a = ratio_directions(torch.tensor(M), torch.tensor(N), 1).numpy()[:, 0]
    tried = draw(10, 1000, name="tried")
    ratios = ((tried.T @ M) * tried.T).sum(1) / ((tried.T @ N) * tried.T).sum(1)
    largest = np.linalg.eigvals(np.linalg.solve(N, M)).real.max()
    assert a @ M @ a / (a @ N @ a) == pytest.approx(largest, rel=1e-6)
    assert ratios.max() < largest


def test_directions_that_old_inputs_do_not_use_come_first() -> None:
    Q = np.linalg.qr(draw(10, 10))[0]
    N = Q[:, 3:] @ moment(7, 50, "old") @ Q[:, 3:].T
    U = ratio_directions(torch.tensor(moment(10, 100, "new")), torch.tensor(N), 3).numpy()
    assert np.allclose(onto(U), Q[:, :3] @ Q[:, :3].T, atol=1e-4)


@pytest.mark.parametrize("n", [100, 5])
def test_the_shared_directions_are_the_leading_eigenvectors(n: int) -> None:
    M = moment(10, n, "new")
    U = leading(torch.tensor(M), 4).numpy()
    assert np.allclose(onto(U), onto(np.linalg.svd(M)[0][:, :4]), atol=1e-6)
    assert leading(torch.tensor(M), 30).shape == (10, 10), "no more than there are inputs"


def test_the_closed_form_of_the_shrinking() -> None:
    A, M, N = draw(5, 8, name="A"), moment(8, 50, "new"), moment(8, 3, "old")
    A[3] = 0
    eta = shrinkage(torch.tensor(A), torch.tensor(N), torch.tensor(M)).numpy()
    for a, found in zip(A[[0, 1, 2, 4]], eta[[0, 1, 2, 4]], strict=True):
        assert found == pytest.approx((a @ N @ a) / (a @ N @ a + 3 * (a @ M @ a)), abs=1e-6)
    assert eta[3] == 0
    assert not shrinkage(torch.tensor(A), torch.zeros(8, 8), torch.tensor(M)).any(), "nothing old, nothing shrunk"


def test_it_minimises_what_it_was_derived_from() -> None:
    """Scaling by 1 - eta is the best of all scalings between what the new inputs lose and what old ones suffer."""
    a, M, N = draw(8, name="a"), moment(8, 50, "new"), moment(8, 50, "old")
    kept = 1 - float(shrinkage(torch.tensor(a[None]), torch.tensor(N), torch.tensor(M)))
    cost = [s**2 * (a @ N @ a) + 3 * (1 - s) ** 2 * (a @ M @ a) for s in (kept - 0.01, kept, kept + 0.01)]
    assert cost[1] == min(cost)


# cosine heads --------------------------------------------------------------------------------------------------------


def test_cosine_heads_score_by_scaled_cosines_and_are_exported_alike() -> None:
    heads = CosineHeads(8, "uniform", 0, 20.0)
    heads.grow((3, 1))
    heads.grow((2, 3))
    f = draw(5, 8)
    rows = [heads[1].weight[1], heads[0].weight[1], heads[1].weight[0]]
    expected = [[20 * (x @ w.numpy()) / np.linalg.norm(x) / np.linalg.norm(w.numpy()) for w in rows] for x in f]
    found = heads(torch.tensor(f).float())
    assert heads.classes == (3, 1, 2)
    assert np.allclose(found.numpy(), expected, atol=1e-5)
    assert torch.allclose(heads.as_plain()(torch.tensor(f).float()), found, atol=1e-5)
    with pytest.raises(ValueError, match=r"^a model with cosine heads does not classify by one linear layer on"):
        heads.as_linear()


def test_the_margin_lowers_the_cosine_of_the_right_class_in_training_alone() -> None:
    method = configured(LoDA, tiny_backbone(), **QUICK, margin=0.2)
    data, found = TASKS[0].train, []
    x, y = data.batch(torch.arange(6), plain_view(method.backbone.transform)), data.labels[:6]

    def look(loss: Any, *_: Any) -> None:
        cosines = method.heads[0](method.features(x)).numpy() / 20
        right = [TASKS[0].classes.index(c) for c in y.tolist()]
        z = 20 * (cosines - 0.2 * np.eye(len(TASKS[0].classes))[right])
        expected = np.mean([np.log(np.exp(row).sum()) - row[c] for row, c in zip(z, right, strict=True)])
        found.append((float(loss(x, y)), expected))

    learn(method, 0, TASKS[0], Spy(method, look))
    assert found[0][0] == pytest.approx(found[0][1], abs=1e-5)
    assert float(method.predict(x).abs().max()) <= 20.0 + 1e-4


# the method ----------------------------------------------------------------------------------------------------------


class Recorded(Spy):
    """A fit that keeps what was trained, and A and B of each branch before it and after it."""

    def __init__(self, method: Any) -> None:
        super().__init__(method, self._before)
        self.method = method

    def _before(self, loss: Any, data: Any, params: list[Tensor]) -> None:
        self.trainable, self.start = len(params), self.branches()

    def branches(self) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
        names = {name for site in self.method.sites for name in site.layer.branches}
        return {
            name: [
                (b.A.detach().double().numpy().copy(), b.B.detach().double().numpy().copy())
                for site in self.method.sites
                for b in site.layer.of(name)
            ]
            for name in names
        }

    def __call__(self, *args: Any, **options: Any) -> list[float]:
        losses = super().__call__(*args, **options)
        self.end = self.branches()
        return losses


def watched(kind: type, **options: Any) -> tuple[Any, list[Any]]:
    """A method after three tasks; of each its fit, its moments before and after, M_prev before it, and the weights."""
    method = configured(kind, tiny_backbone(), **QUICK | options)
    moments = method.moments_of
    seen: dict[str, dict[str, Tensor]] = {}

    def keep(task: Any, fit: Any, name: str) -> dict[str, Tensor]:
        seen[name] = moments(task, fit, name)
        return seen[name]

    method.moments_of = keep
    tasks = []
    for number in range(3):
        seen.clear()
        old = {site.name: method._old(site.name).moment.numpy().copy() for site in method.sites}
        before = [site.layer.weight.double().numpy().copy() for site in method.sites]
        spy = Recorded(method)
        learn(method, number, TASKS[number], spy)
        after = [site.layer.weight.double().numpy().copy() for site in method.sites]
        found = {name: {k: v.double().numpy() for k, v in m.items()} for name, m in seen.items()}
        tasks.append((spy, found, old, list(zip(before, after, strict=True))))
    return method, tasks


@pytest.fixture(scope="module")
def life() -> tuple[LoDA, list[Any]]:
    return watched(LoDA)


def test_the_first_task_trains_both_factors_of_the_shared_branch_alone(life: Any) -> None:
    method, tasks = life
    spy, moments, _, weights = tasks[0]
    assert spy.trainable == 2 * len(method.sites) + 1
    assert set(spy.start) == {"shared"}
    for site, (A, B), (end_A, end_B), (before, after) in zip(
        method.sites, spy.start["shared"], spy.end["shared"], weights, strict=True
    ):
        M = moments["moment-before"][site.name]
        assert np.allclose(3 * A.T @ A, onto(np.linalg.svd(M)[0][:, :6]), atol=1e-5)
        assert not B.any()
        assert abs(end_B).max() > 1e-4
        assert abs(end_A - A).max() > 1e-4
        assert np.allclose(after, before + 0.25 * end_B @ end_A, atol=1e-6)


def test_later_tasks_train_b_of_a_shared_and_an_isolated_branch(life: Any) -> None:
    method, tasks = life
    for spy, moments, old, _ in tasks[1:]:
        assert spy.trainable == 2 * len(method.sites) + 1
        assert set(spy.start) == {"shared", "isolated"}
        for i, site in enumerate(method.sites):
            M, N = moments["moment-before"][site.name], old[site.name]
            shared, isolated = spy.start["shared"][i][0], spy.start["isolated"][i][0]
            assert np.allclose(3 * shared.T @ shared, onto(np.linalg.svd(M + N)[0][:, :6]), atol=1e-5)
            expected = ratio_directions(torch.tensor(M), torch.tensor(N), 6).numpy()
            assert np.allclose(isolated, expected.T / 3**0.5, atol=1e-6)
            for name in ("shared", "isolated"):
                assert np.array_equal(spy.start[name][i][0], spy.end[name][i][0]), "A is fixed"
                assert abs(spy.end[name][i][1]).max() > 1e-4


def test_what_is_merged_is_the_isolated_update_and_the_shrunk_shared_one(life: Any) -> None:
    method, tasks = life
    for spy, moments, old, weights in tasks[1:]:
        for i, (site, (before, after)) in enumerate(zip(method.sites, weights, strict=True)):
            M, N = moments["moment-before"][site.name], old[site.name]
            (A_S, B_S), (A_P, B_P) = spy.end["shared"][i], spy.end["isolated"][i]
            kept = [3 * (a @ M @ a) / (a @ N @ a + 3 * (a @ M @ a)) for a in A_S]
            assert 0 < min(kept)
            assert max(kept) < 1
            assert np.allclose(after, before + 0.25 * (B_S * kept) @ A_S + 0.5 * B_P @ A_P, atol=1e-6)


@pytest.mark.parametrize("which", ["before", "after", "both"])
def test_old_moments_are_the_sum_of_those_of_old_tasks(which: str, life: Any) -> None:
    method, tasks = life if which == "before" else watched(LoDA, moments=which)
    passes = {"before": ["before"], "after": ["after"], "both": ["trained", "after"]}[which]
    for site in method.sites:
        expected = sum(moments[f"moment-{p}"][site.name] for _, moments, _, _ in tasks for p in passes)
        assert np.allclose(method._old(site.name).moment.numpy(), expected, rtol=1e-9)


def test_with_both_the_shared_update_is_shrunk_by_the_moments_after_training_as_in_the_authors_code() -> None:
    method, tasks = watched(LoDA, moments="both")
    for spy, moments, old, weights in tasks[1:]:
        for i, (site, (before, after)) in enumerate(zip(method.sites, weights, strict=True)):
            M, N = moments["moment-trained"][site.name], old[site.name]
            (A_S, B_S), (A_P, B_P) = spy.end["shared"][i], spy.end["isolated"][i]
            kept = [3 * (a @ M @ a) / (a @ N @ a + 3 * (a @ M @ a)) for a in A_S]
            assert np.allclose(after, before + 0.25 * (B_S * kept) @ A_S + 0.5 * B_P @ A_P, atol=1e-6)
            if i:  # the first layer reads what no branch has changed, but for random crops
                assert not np.allclose(M, moments["moment-before"][site.name], rtol=1e-3)


def test_a_loda_of_linear_heads_is_one_linear_classifier_and_one_of_cosines_a_plain_one(life: Any) -> None:
    cosines = life[0]
    linear = configured(LoDA, tiny_backbone(), **QUICK, head="linear", head_start="zero")
    learn(linear, 0, TASKS[0])
    features = torch.tensor(draw(4, cosines.backbone.width)).float()
    assert torch.allclose(linear.linear_classifier()(features), linear.classify(features), atol=1e-5)
    assert torch.allclose(cosines.plain_classifier()(features), cosines.classify(features), atol=1e-4)
    assert torch.allclose(linear.plain_classifier()(features), linear.classify(features), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"head_start": "zero"}, "head_start 'zero' gives a cosine head no direction to start from; use 'uniform' or"),
        ({"cosine_scale": 0.0}, "the scale of cosine heads is 0.0; it must be above 0, and 20 is usual"),
        ({"shared_scale": 0.0}, "shared_scale 0.0 must be above 0; the authors have 0.25 and 0.5"),
        ({"margin": -0.1}, "margin -0.1 must be 0 or more; the authors have 0 to 0.15"),
        ({"statistics_images": 0}, "statistics_images 0 is too small; give at least 1, or leave it out"),
        ({"moments": "twice"}, "moments"),
        ({"head": "round"}, "head"),
    ],
)
def test_values_that_cannot_be_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=f"^{why}"):
        configured(LoDA, tiny_backbone(), **QUICK | options)


# as options of InfLoRA -----------------------------------------------------------------------------------------------


def test_inflora_with_the_ratio_start_and_the_shrinking() -> None:
    method, tasks = watched(InfLoRA, design="ratio", shrink=True)
    assert method.protected() == {}
    assert method.free_rank is None
    assert all(space.dimension == 0 for space in method.memory.values() if isinstance(space, Subspace))
    for number, (spy, moments, old, weights) in enumerate(tasks):
        for i, (site, (before, after)) in enumerate(zip(method.sites, weights, strict=True)):
            M, N = moments["moment-before"][site.name], old[site.name]
            A, B = spy.end["new"][i]
            U = ratio_directions(torch.tensor(M), torch.tensor(N), 6).numpy() if number else np.linalg.svd(M)[0][:, :6]
            assert np.allclose(3 * A.T @ A, onto(U), atol=1e-5)
            kept = [3 * (a @ M @ a) / (a @ N @ a + 3 * (a @ M @ a)) for a in A]
            assert max(kept) < 1 if number else min(kept) == 1
            added = (after - before)[site.rows]
            assert np.allclose(added, (B * kept) @ A, atol=1e-6)
            expected = N + moments["moment-after"][site.name]
            later = tasks[number + 1][2][site.name] if number < 2 else method._old(site.name).moment.numpy()
            assert np.allclose(later, expected, rtol=1e-9)


def test_inflora_without_them_keeps_no_moment() -> None:
    method = configured(InfLoRA, tiny_backbone(), **QUICK)
    assert not any(isinstance(module, OldMoment) for module in method.modules())
    shrinking = configured(InfLoRA, tiny_backbone(), **QUICK, shrink=True)
    learn(shrinking, 0, TASKS[0])
    assert len(shrinking.protected()) == 2, "the subspace is kept beside the moments"
