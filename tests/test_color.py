"""What CoLoR promises: old experts never change, tasks are told apart by centres, a mixed batch costs one pass."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import configured, draw, fit_for, images, tiny_backbone
from torch import Tensor

from lamella.adapters.adapter import using
from lamella.common.clusters import cluster_centres
from lamella.common.randomness import generator
from lamella.data.scenario import Task
from lamella.data.transform import plain_view
from lamella.memory.task_scores import TaskCentres
from lamella.methods.color import CoLoR
from lamella.methods.parts import Aligned
from lamella.methods.parts.drift import affine_drift

QUICK: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.01, "rank": 4, "blocks": 2, "schedule": "constant"}
TASKS = ((0, 1), (2, 3), (4, 5))


def part(classes: tuple[int, ...], name: str = "train", per_class: int = 6) -> Any:
    every = images(6, per_class, name)
    return every.subset(torch.isin(every.labels, torch.tensor(classes)).nonzero()[:, 0])


def learn(method: CoLoR | Aligned, i: int, classes: tuple[int, ...], data: Any = None) -> None:
    fit = fit_for(method)
    fit.begin(str(i))
    train = part(classes) if data is None else data
    method.learn(Task(i, f"task {i}", classes, tuple(map(str, classes)), train), fit)


def taught(tasks: tuple[tuple[int, ...], ...] = TASKS, **options: Any) -> CoLoR:
    method = configured(CoLoR, tiny_backbone(), **{**QUICK, **options})
    for i, classes in enumerate(tasks):
        learn(method, i, classes)
    return method.eval()


def inputs(method: CoLoR, classes: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> tuple[Tensor, Tensor]:
    """Test images in mixed order, and their classes."""
    data = part(classes, "test", 4)
    order = torch.randperm(len(data), generator=generator(0, "order"))
    return data.batch(order, plain_view(method.backbone.transform)), data.labels[order]


def alone(method: CoLoR, t: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features and logits of expert t with its head, in a pass of its own."""
    with torch.no_grad(), using(method.sites, f"task{t}"):
        features = method.backbone(x)
        return features, method.heads[t](features)


def read_by_router(method: CoLoR, x: torch.Tensor) -> torch.Tensor:
    experts = method._routed()
    return experts.features(x, experts.base)


@pytest.fixture(scope="module")
def method() -> CoLoR:
    return taught()


# nothing is forgotten ------------------------------------------------------------------------------------------------


def test_learning_a_task_changes_no_tensor_that_older_tasks_use() -> None:
    method = taught(TASKS[:2])
    before = {k: v.clone() for k, v in method.state_dict().items()}
    x, _ = inputs(method, TASKS[0])
    logits = [alone(method, t, x)[1] for t in (0, 1)]
    learn(method, 2, TASKS[2])
    after = method.state_dict()
    for key, value in before.items():
        now = after[key][: len(value)] if key.startswith("keys.") else after[key]
        assert torch.equal(now, value), key
    assert any(".branches.task1." in key for key in before)
    assert all(torch.equal(alone(method, t, x)[1], logits[t]) for t in (0, 1))


def test_features_of_old_images_do_not_drift_while_those_of_new_ones_jump() -> None:
    """So that a part which measures drift on the new task's images must not carry old statistics along."""
    method = taught(TASKS[:2])
    old, new = inputs(method, (0, 1, 2, 3))[0], inputs(method, TASKS[2])[0]
    with torch.no_grad():
        before = method.features(old), method.features(new)
    learn(method, 2, TASKS[2])
    with torch.no_grad():
        after = method.features(old), method.features(new)
    assert torch.allclose(before[0], after[0], atol=1e-5)
    assert float((before[1] - after[1]).abs().max()) > 1e-2


def test_alignment_leaves_the_means_of_old_experts_where_they_are() -> None:
    aligned = Aligned(configured(CoLoR, tiny_backbone(), rank=2, epochs=1, batch_size=8))
    means = []
    for i, classes in enumerate(TASKS):
        fit = fit_for(aligned)
        fit.begin(str(i))
        aligned.learn(Task(i, f"task {i}", classes, tuple(map(str, classes)), part(classes)), fit)
        means.append(aligned.statistics.means[:2].clone())
    assert all(torch.equal(means[0], later) for later in means)


def test_in_the_soft_choice_moved_means_would_be_further_off() -> None:
    aligned = Aligned(configured(CoLoR, tiny_backbone(), choice="soft", **QUICK))
    learn(aligned, 0, TASKS[0])
    learn(aligned, 1, TASKS[1])
    view = plain_view(aligned.backbone.transform)
    old, new = (data.batch(torch.arange(len(data)), view) for data in (part((0,)), part(TASKS[2])))
    kept = aligned.statistics.means[0].clone()
    with torch.no_grad():
        before = aligned.features(new)
    learn(aligned, 2, TASKS[2])
    with torch.no_grad():
        drift, true = affine_drift(before, aligned.features(new), aligned.ridge), aligned.features(old).mean(0)
    moved = kept + (kept - drift.source) @ drift.W + drift.shift
    assert torch.equal(aligned.statistics.means[0], kept)
    assert 10 * float((kept - true).norm()) < float((moved - true).norm())


def test_what_a_task_stores_is_the_formula() -> None:
    r, k, d = 5, 3, 64
    states = []
    for tasks in (TASKS[:1], TASKS[:2]):
        states.append(taught(tasks, rank=r, clusters=k, blocks=None, epochs=1).state_dict())
    added = {key: v for key, v in states[1].items() if key not in states[0]}
    floats = sum(v.numel() for key, v in added.items() if v.is_floating_point() and not key.endswith(".factor"))
    branch = r * (64 + 64)  # r (d_in + d_out), 64 inputs and 64 rows of query or value
    head = 2 * (d + 1)
    assert floats == 6 * 2 * branch + head  # six blocks, two branches in each
    assert states[1]["keys.centres"].numel() - states[0]["keys.centres"].numel() == k * d


# the choice of task --------------------------------------------------------------------------------------------------


def test_with_well_separated_tasks_the_choice_is_right_and_class_incremental_is_task_incremental(
    method: CoLoR,
) -> None:
    x, y = inputs(method)
    tasks = y // 2
    with torch.no_grad(), using(method.sites, ()):
        points = method.backbone(x)
    apart = torch.cdist(points, points)
    same = y[:, None] == y
    assert float(apart[same].max()) < float(apart[~same].min())  # what the claim supposes
    with torch.no_grad():
        assert torch.equal(method.choose_task(x), tasks)
        free = method.predict(x)
        for t, classes in enumerate(TASKS):
            mine = tasks == t
            told = method.predict(x[mine], classes)
            own = torch.tensor([c in classes for c in method.classes])
            assert torch.equal(told.argmax(1), free[mine].argmax(1))
            torch.testing.assert_close(told[:, own], free[mine][:, own], atol=1e-5, rtol=1e-5)
    predicted = torch.tensor(method.classes)[free.argmax(1)]
    assert float((predicted == y).float().mean()) > 0.9


def test_a_mixed_batch_is_what_every_expert_gives_alone(method: CoLoR) -> None:
    x, _ = inputs(method)
    with torch.no_grad():
        chosen, logits, features = method.choose_task(x), method.predict(x), method.features(x)
    assert len(chosen.unique()) == 3
    for t in range(3):
        mine = chosen == t
        expected, scores = alone(method, t, x[mine])
        columns = [method.classes.index(c) for c in TASKS[t]]
        torch.testing.assert_close(features[mine], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits[mine][:, columns], scores, atol=1e-5, rtol=1e-5)
        others = [i for i in range(6) if i not in columns]
        assert float(logits[mine][:, others].max()) < float(scores.min()) - 9000
    assert torch.isfinite(logits).all()
    wrong = alone(method, 0, x[chosen == 1])[0]
    assert float((wrong - features[chosen == 1]).abs().max()) > 1e-2  # experts do differ


@pytest.mark.parametrize("choice", ["hard", "soft"])
def test_a_mixed_batch_costs_two_passes(method: CoLoR, choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "choice", choice)
    sizes: list[int] = []
    hook = method.backbone.model.register_forward_hook(lambda _module, args, _out: sizes.append(len(args[0])))
    x, _ = inputs(method)
    with torch.no_grad():
        method.predict(x)
        assert sizes == [len(x), len(x)]  # one for the keys, one for all experts
        method.predict(x, TASKS[1])
    hook.remove()
    assert len(sizes) == 4


@pytest.mark.parametrize("choice", ["hard", "soft"])
def test_autocast_changes_neither_the_choice_nor_the_type_of_the_logits(method: CoLoR, choice: str) -> None:
    method = copy.deepcopy(method)
    method.choice = choice
    x, y = inputs(method)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, chosen = method.predict(x), method.choose_task(x)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert torch.equal(chosen, y // 2)


def test_a_given_task_restricts_the_choice_to_tasks_that_have_its_classes(method: CoLoR) -> None:
    x, _ = inputs(method)
    with torch.no_grad():
        assert (method.choose_task(x, (3,)) == 1).all()
        told = method.predict(x, (3,))
        expected = alone(method, 1, x)[1]
        torch.testing.assert_close(told[:, method.classes.index(3)], expected[:, 1], atol=1e-5, rtol=1e-5)
        assert (told.argmax(1) == method.classes.index(3)).all()
        between = method.choose_task(x, (0, 5))
        near = method.keys.distances(read_by_router(method, x))
        assert torch.equal(between, torch.where(near[:, 0] <= near[:, 2], 0, 2))


def test_keys_of_the_first_task_variant_are_features_of_its_expert(method: CoLoR) -> None:
    variant = taught(key_features="first_task", clusters=1)
    for t, classes in enumerate(TASKS):
        data = part(classes)
        x = data.batch(torch.arange(len(data)), plain_view(variant.backbone.transform))
        expected = alone(variant, 0, x)[0].mean(0)
        assert torch.allclose(variant.keys.centres[t], expected, atol=1e-4)
        with torch.no_grad(), using(variant.sites, ()):
            assert not torch.allclose(variant.backbone(x).mean(0), expected, atol=1e-2)
    plain = taught(TASKS[:1], clusters=1)
    data = part(TASKS[0])
    x = data.batch(torch.arange(len(data)), plain_view(plain.backbone.transform))
    with torch.no_grad(), using(plain.sites, ()):
        assert torch.allclose(plain.keys.centres[0], plain.backbone(x).mean(0), atol=1e-4)


# the soft choice -----------------------------------------------------------------------------------------------------


def test_the_soft_choice_is_the_mixture_of_the_heads(method: CoLoR) -> None:
    method = copy.deepcopy(method)
    method.choice = "soft"
    keys = TaskCentres(64)
    for i in range(3):  # near enough to each other for a real mixture
        keys.append(method.keys.centres.mean(0) + 0.5 * draw(2, 64, name=f"near {i}"))
    method.keys = keys
    x, _ = inputs(method)
    with torch.no_grad():
        logits, features = method.predict(x), method.features(x)
        points = read_by_router(method, x)
    total = torch.zeros_like(logits)
    for n in range(len(x)):
        nearest = [min(float((points[n] - c).norm()) for c in keys.centres[2 * t : 2 * t + 2]) for t in range(3)]
        mass = [math.exp(min(nearest) - v) for v in nearest]
        weights = [m / sum(mass) for m in mass]
        assert min(weights) > 1e-3
        with torch.no_grad(), using(method.sites, {f"task{t}": w for t, w in enumerate(weights)}):
            assert torch.allclose(method.backbone(x[n : n + 1])[0], features[n], atol=1e-4)
        for t in range(3):
            for i, p in enumerate(F.softmax(method.heads[t](features[n]), 0).tolist()):
                total[n, method.classes.index(TASKS[t][i])] += weights[t] * p
    assert torch.allclose(logits.exp(), total, atol=1e-4)
    assert torch.allclose(logits.exp().sum(1), torch.ones(len(x)), atol=1e-5)


def test_the_soft_choice_ends_in_the_hard_one_where_a_centre_is_much_nearer(
    method: CoLoR, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = copy.deepcopy(method)
    x, _ = inputs(method)
    with torch.no_grad():
        hard = method.predict(x)
        distances = method.keys.distances(read_by_router(method, x))
        monkeypatch.setattr(method.keys, "distances", lambda *_: 1e4 * distances)
        method.choice = "soft"
        soft, told = method.predict(x), method.predict(x, TASKS[2])
    assert torch.equal(soft.argmax(1), hard.argmax(1))
    own = hard > hard.amax(1, keepdim=True) - 5000
    expected = hard.masked_fill(~own, -torch.inf).log_softmax(1)
    assert torch.allclose(soft[own], expected[own], atol=1e-4)
    assert torch.isfinite(soft).all()
    assert torch.isfinite(told).all()
    assert (told.argmax(1) >= 4).all()


# classes that come back ----------------------------------------------------------------------------------------------


def test_domains_of_the_same_classes_are_each_scored_by_their_own_expert_and_head() -> None:
    """Task 1 has task 0's classes under other images: the chosen task's own head scores them."""
    method = configured(CoLoR, tiny_backbone(), **QUICK)
    learn(method, 0, (0, 1))
    other = part((2, 3))
    other.labels = other.labels - 2  # the same classes in another domain
    learn(method, 1, (1, 0), other)
    assert method.classes == (0, 1)
    x, y = inputs(method, (0, 1, 2, 3))
    with torch.no_grad():
        logits = method.eval().predict(x)
        assert torch.equal(method.choose_task(x), y // 2)
    for t in (0, 1):
        mine = y // 2 == t
        scores = alone(method, t, x[mine])[1]
        expected = scores if t == 0 else scores.flip(1)
        torch.testing.assert_close(logits[mine], expected, atol=1e-5, rtol=1e-5)


def test_a_class_outside_the_chosen_task_is_scored_by_its_last_head_below_the_penalty() -> None:
    method = taught(((0, 1), (2, 3), (1, 4)), epochs=1)
    x, _ = inputs(method, (2, 3))
    with torch.no_grad():
        assert (method.choose_task(x) == 1).all()
        logits, last = method.predict(x), method.heads[2](method.features(x))
    shared = logits[:, [method.classes.index(1), method.classes.index(4)]]
    assert float((last - shared).min()) > 9999
    assert torch.allclose(shared[:, 0] - shared[:, 1], last[:, 0] - last[:, 1], atol=0.01)
    assert set(torch.tensor(method.classes)[logits.argmax(1)].tolist()) <= {2, 3}


# centres and distances -----------------------------------------------------------------------------------------------


def test_centres_are_the_means_of_separated_groups_and_the_same_each_time() -> None:
    groups = [5.0 * draw(1, 8, name=f"middle {i}") * (i + 1) + 0.01 * draw(7, 8, name=f"group {i}") for i in range(4)]
    points = torch.cat(groups)[torch.randperm(28, generator=generator(0, "order"))]
    centres = cluster_centres(points, 4, seed=3)
    means = torch.stack([g.mean(0) for g in groups])
    matched = torch.cdist(means, centres).min(1)
    assert sorted(matched.indices.tolist()) == [0, 1, 2, 3]
    assert float(matched.values.max()) < 1e-5
    assert torch.equal(centres, cluster_centres(points, 4, seed=3))
    torch.manual_seed(5)
    assert torch.equal(centres, cluster_centres(points, 4, seed=3 + 2**32))


def test_there_are_never_more_centres_than_different_images() -> None:
    assert torch.equal(cluster_centres(torch.ones(1, 4), 2, seed=0), torch.ones(1, 4))
    points = torch.tensor([[0.0, 1.0], [2.0, 3.0], [0.0, 1.0]])
    assert sorted(cluster_centres(points, 5, seed=0).tolist()) == [[0.0, 1.0], [2.0, 3.0]]


def test_a_task_keeps_two_centres_a_class_by_default_and_a_single_image_is_enough() -> None:
    method = taught((), epochs=1)
    learn(method, 0, (0, 1, 2))
    learn(method, 1, (4,), part((4,), per_class=1))
    learn(method, 2, (5,))
    assert method.keys.tasks.tolist() == [0] * 6 + [1] + [2] * 2
    single = part((4,), per_class=1).batch(torch.arange(1), plain_view(method.backbone.transform))
    with torch.no_grad():
        assert method.eval().choose_task(single).tolist() == [1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 99))
def test_distances_are_to_the_nearest_centre_of_each_task(counts: list[int], n: int, seed: int) -> None:
    keys, points = TaskCentres(5), 100 + draw(n, 5, name=f"points {seed}")
    groups = [100 + draw(k, 5, name=f"centres {seed} {i}") for i, k in enumerate(counts)]
    for group in groups:
        keys.append(group)
    with torch.autocast("cpu", torch.bfloat16):
        found = keys.distances(points)
    for i in range(n):
        for t, group in enumerate(groups):
            expected = min(math.dist(points[i].tolist(), centre.tolist()) for centre in group)
            assert float(found[i, t]) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    again = TaskCentres(5)
    again.load_state_dict(keys.state_dict())
    assert torch.equal(again.distances(points), keys.distances(points))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_features": "last"}, "key_features 'last' is unknown; use one of plain, first_task"),
        ({"choice": "maybe"}, "choice 'maybe' is unknown; use one of hard, soft"),
        ({"clusters": 0}, "clusters 0 is too small"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configured(CoLoR, tiny_backbone(), **options)
