"""Routers: every score equals its definition in NumPy, and `color` under each of them keeps its promises."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from streams import configured, draw, fit_for, tiny_backbone
from test_color import QUICK, TASKS, inputs, learn, part, taught
from torch import Tensor

from lamella.adapters.adapter import adapt, grow, using
from lamella.adapters.tokens import counting, mean_over_tokens
from lamella.common.randomness import generator
from lamella.learner.scores import score_task
from lamella.learner.store.state import learned_state, restore_state
from lamella.memory.arrow import TaskArrows, leading_input
from lamella.memory.task_scores import RIDGE, SHRINKAGE, TaskCentres, TaskGaussians, TaskRegression
from lamella.methods.color import CoLoR
from lamella.methods.shared.routing import ON_FEATURES, ROUTERS, Routing, entropy

Stream = list[tuple[Tensor, Tensor]]


def streamed(width: int = 7, counts: tuple[int, ...] = (9, 4, 12)) -> Stream:
    """Features and labels of three tasks of two classes, of unlike sizes; class 1 comes back in the last one."""
    found: Stream = []
    for t, classes in enumerate(((0, 1), (2, 3), (1, 4))):
        labels = torch.tensor([classes[i % 2] for i in range(counts[t])])
        centres = 2 * draw(5, width, name="class centres") + 3 * draw(1, width, name=f"domain {t}")
        found.append((centres[labels] + draw(counts[t], width, name=f"noise {t}"), labels))
    return found


def regression(projections: int = 20, width: int = 7) -> TaskRegression:
    return TaskRegression(width, projections, generator(0, "projections"))


def fed(keys: Any, tasks: Stream) -> Any:
    for features, labels in tasks:
        keys.add(features, labels)
    return keys


def columns(tasks: Stream) -> tuple[np.ndarray, np.ndarray]:
    """One-hot targets of every class of every task, and the task of each column."""
    owners = [(t, int(c)) for t, (_, labels) in enumerate(tasks) for c in labels.unique()]
    rows = [[float((t, int(y)) == owner) for owner in owners] for t, (_, labels) in enumerate(tasks) for y in labels]
    return np.array(rows), np.array([t for t, _ in owners])


# the scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projections", [0, 20])
def test_the_recursive_regression_is_the_one_of_all_data_at_once(projections: int) -> None:
    tasks = streamed()
    keys = fed(regression(projections), tasks)
    X = torch.cat([features for features, _ in tasks]).double().numpy()
    H = np.maximum(X @ keys.projection.numpy(), 0) if projections else np.hstack([X, np.ones((len(X), 1))])
    Y, owner = columns(tasks)
    weight = (Y / Y.sum(0)).sum(1)  # each column counts as one sample
    G = H.T @ (weight[:, None] * H)
    at_once = np.linalg.solve(G + RIDGE * np.trace(G) / len(G) * np.eye(len(G)), H.T @ (weight[:, None] * Y))
    np.testing.assert_allclose(keys.solution.numpy(), at_once, atol=1e-8, rtol=1e-8)
    U = draw(6, 7, name="test")
    K = np.maximum(U.double().numpy() @ keys.projection.numpy(), 0)
    K = K if projections else np.hstack([U.double().numpy(), np.ones((6, 1))])
    outputs = K @ at_once
    expected = np.stack([outputs[:, owner == t].max(1) for t in range(3)], 1)
    np.testing.assert_allclose(keys.scores(U).numpy(), expected, atol=1e-8)


def test_the_regression_equals_the_textbook_recursion_on_the_inverse() -> None:
    """Sherman, Morrison & Woodbury, one sample after the other, from the same l I."""
    tasks = streamed()
    keys = fed(regression(), tasks)
    H = keys.project(torch.cat([features for features, _ in tasks])).numpy()
    Y, _ = columns(tasks)
    weight = (Y / Y.sum(0)).sum(1)
    P = np.eye(H.shape[1]) / (RIDGE * float(keys.G.diagonal().mean()))
    W = np.zeros((H.shape[1], Y.shape[1]))
    for h, y, w in zip(H, Y, weight, strict=True):
        gain = P @ h / (1 / w + h @ P @ h)
        W += np.outer(gain, y - h @ W)
        P -= np.outer(gain, h @ P)
    np.testing.assert_allclose(keys.solution.numpy(), W, atol=1e-8)


def test_the_order_of_tasks_does_not_change_the_regression() -> None:
    tasks = streamed()
    there, back = fed(regression(), tasks), fed(regression(), tasks[::-1])
    U = draw(6, 7, name="test")
    torch.testing.assert_close(there.scores(U), back.scores(U).flip(1), atol=1e-8, rtol=0)


def test_the_gaussian_posterior_is_bayes_rule() -> None:
    tasks = streamed()
    keys = fed(TaskGaussians(7), tasks)
    X = np.concatenate([features.double().numpy() for features, _ in tasks])
    Y, owner = columns(tasks)
    means = (Y.T @ X) / Y.sum(0)[:, None]
    S = (X - Y @ means).T @ (X - Y @ means) / len(X)
    S = (1 - SHRINKAGE) * S + SHRINKAGE * np.trace(S) / 7 * np.eye(7)
    U = draw(6, 7, name="test")
    apart = U.double().numpy()[:, None] - means
    density = np.exp(-np.einsum("nci,ij,ncj->nc", apart, np.linalg.inv(S), apart) / 2)
    posterior = density / density.sum(1, keepdims=True)
    expected = np.stack([posterior[:, owner == t].sum(1) for t in range(3)], 1)
    np.testing.assert_allclose(keys.scores(U).exp().numpy(), expected, atol=1e-10)


def test_the_nearest_centre_is_the_smallest_distance() -> None:
    keys = TaskCentres(7, clusters=3)
    fed(keys, streamed())
    U, centres = draw(6, 7, name="test").double().numpy(), keys.centres.double().numpy()
    apart = np.linalg.norm(U[:, None] - centres, axis=2)
    expected = np.stack([apart[:, keys.tasks.numpy() == t].min(1) for t in range(3)], 1)
    assert keys.tasks.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    np.testing.assert_allclose(-keys.scores(torch.from_numpy(U)).numpy(), expected, atol=1e-10)


def test_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(entropy(logits), torch.tensor([np.log(4), 0.0], dtype=torch.float64))


@pytest.mark.parametrize("keys", [TaskCentres(7), TaskGaussians(7), regression()], ids=ON_FEATURES)
def test_what_is_cleared_can_be_learned_again(keys: Any) -> None:
    other = [(features + 1, labels) for features, labels in streamed()]
    fed(keys, other).clear()
    fed(keys, streamed())
    fresh = fed(type(keys)(7) if not isinstance(keys, TaskRegression) else regression(), streamed())
    U = draw(6, 7, name="test")
    assert torch.equal(keys.scores(U), fresh.scores(U))


def test_random_projections_of_another_seed_are_refused() -> None:
    state = fed(regression(), streamed()).state_dict()
    with pytest.raises(RuntimeError, match="random projections are not those of this seed"):
        TaskRegression(7, 20, generator(1, "projections")).load_state_dict(state)


# Arrow ---------------------------------------------------------------------------------------------------------------


def test_leading_inputs_are_the_first_right_singular_vectors() -> None:
    for A, B in [(draw(r, 12, name=f"A {r}"), draw(9, r, name=f"B {r}")) for r in (1, 3, 9)]:
        found = leading_input(A, B)
        v = np.linalg.svd((B.double() @ A.double()).numpy())[2][0]
        np.testing.assert_allclose(np.abs(found.numpy() @ v), 1, atol=1e-10)
    assert not leading_input(draw(2, 12), torch.zeros(9, 2)).any()


def test_arrow_is_the_mean_cosine_over_tokens_and_branches() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4))
    sites = adapt(model, ["0", "1"])
    arrows = TaskArrows(sites)
    for name in ("a", "gone", "b"):
        branches = grow(sites, name, 2, generator=generator(0, name))
        for branch in branches:
            branch.B.copy_(draw(*branch.B.shape, name=f"B {name} {branch.B.shape[0]}"))
        arrows.add(branches)
    arrows.drop(1)
    x = draw(3, 7, 6, name="tokens")
    with torch.no_grad(), using(sites, ()):
        found = arrows.scores(lambda: model(x))
        hidden = [x, model[0](x)]
    for i, name in enumerate(("a", "b")):
        cosines = []
        for site, h in zip(sites, hidden, strict=True):
            (branch,) = site.layer.of(name)
            v = np.linalg.svd((branch.B @ branch.A).detach().numpy())[2][0]
            cosines.append(np.abs(h.numpy() @ v / np.linalg.norm(h.numpy(), axis=2)).mean(1))
        np.testing.assert_allclose(found[:, i].numpy(), np.mean(cosines, 0), atol=1e-5)


def test_padding_is_no_token() -> None:
    values = draw(2, 4, 3, name="values")
    with counting(torch.tensor([[True, True, False, False], [True] * 4])):
        found = mean_over_tokens(values)
    torch.testing.assert_close(found, torch.stack([values[0, :2].mean(0), values[1].mean(0)]))
    assert torch.equal(mean_over_tokens(values[:, 0]), values[:, 0])


# weights -------------------------------------------------------------------------------------------------------------


def test_the_top_scores_alone_have_weights() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, -5.0], [0.0, 0.0, 4.0, 1.0]], dtype=torch.float64)
    weights = Routing(top=2).sharpened(scores).softmax(1)
    two = torch.tensor([1.0, 0.0]).sigmoid().double()  # of a lead of 1
    torch.testing.assert_close(weights[0], torch.tensor([two[0], 0, 1 - two[0], 0]))
    assert ((weights > 0).sum(1) == 2).all()
    assert torch.equal(Routing(top=9).sharpened(scores), scores)
    torch.testing.assert_close(Routing(router_temperature=0.5).sharpened(scores), 2 * scores)
    torch.testing.assert_close(Routing(router="entropy").sharpened(scores), 10 * scores)


# color under each router ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[r for r in ROUTERS if r != "nearest"])
def method(request: pytest.FixtureRequest) -> CoLoR:
    return taught(router=request.param, router_projections=50)


def test_a_prediction_takes_the_passes_that_its_router_states(method: CoLoR) -> None:
    begun: list[int] = []
    hook = method.backbone.model.register_forward_pre_hook(lambda *_: begun.append(1))
    with torch.no_grad():
        method.predict(inputs(method)[0])
    hook.remove()
    assert len(begun) == 1 + method.routing.passes(len(TASKS))
    assert method.routing.passes(3) == (3 if method.routing.router == "entropy" else 1)


def test_routers_on_features_tell_separated_tasks(method: CoLoR) -> None:
    x, y = inputs(method)
    with torch.no_grad():
        chosen, told = method.choose_task(x), method.choose_task(x, (0, 5))
    assert method.routing.router not in ON_FEATURES or torch.equal(chosen, y // 2)
    assert set(told.tolist()) <= {0, 2}


def test_a_batch_is_what_its_samples_are_alone(method: CoLoR) -> None:
    x, _ = inputs(method)
    with torch.no_grad():
        logits, alone = method.predict(x), torch.cat([method.predict(x[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)
    assert torch.isfinite(logits).all()


def test_a_loaded_model_chooses_alike(method: CoLoR) -> None:
    again = configured(CoLoR, tiny_backbone(), router=method.routing.router, router_projections=50, **QUICK)
    restore_state(again, learned_state(method))
    x, _ = inputs(method)
    with torch.no_grad():
        assert torch.equal(again.eval().predict(x), method.predict(x))


def test_least_entropy_is_the_surest_expert() -> None:
    method = taught(router="entropy")
    x, _ = inputs(method)
    sure = []
    with torch.no_grad():
        for t in range(3):
            with using(method.sites, f"task{t}"):
                p = method.heads(method.backbone(x)).double().softmax(1).numpy()
            sure.append((p * np.log(p)).sum(1))
        assert method.choose_task(x).tolist() == np.argmax(sure, 0).tolist()


def test_the_reported_task_choice_is_that_of_the_router(method: CoLoR) -> None:
    for t, classes in enumerate(TASKS):
        score = score_task(method, fit_for(method), part(classes, "test", 4), classes, shared_classes=False, name="t")
        x, _ = inputs(method, classes)
        with torch.no_grad():
            assert score[""].right_task == int((method.choose_task(x) == t).sum())


@pytest.mark.parametrize("router", ROUTERS)
def test_the_softest_choice_of_one_is_the_hard_choice(router: str) -> None:
    hard = taught(router=router, router_projections=50)
    x, _ = inputs(hard)
    with torch.no_grad():
        features, best = hard.features(x), hard.predict(x).argmax(1)
        hard.choice, hard.routing = "soft", Routing(router=router, top=1, router_projections=50)
        torch.testing.assert_close(hard.features(x), features)
        mixed = hard.predict(x)
    assert torch.equal(mixed.argmax(1), best)
    assert torch.isfinite(mixed).all()


def test_statistics_that_tasks_share_cannot_forget_one(method: CoLoR) -> None:
    if method.routing.router in ("gaussian", "least-squares"):
        with pytest.raises(ValueError, match="holds all tasks together"):
            method.forget(0)
        return
    fewer = taught(TASKS[:2], router=method.routing.router)
    fewer.forget(0)
    x, _ = inputs(fewer, TASKS[1])
    with torch.no_grad():
        assert not fewer.choose_task(x).any()


def test_a_class_in_two_domains_is_told_by_its_domain(method: CoLoR) -> None:
    two = configured(CoLoR, tiny_backbone(), router=method.routing.router, router_projections=50, **QUICK)
    other = part((2, 3))
    other.labels = other.labels - 2
    learn(two, 0, (0, 1))
    learn(two, 1, (1, 0), other)
    x, y = inputs(two, (0, 1, 2, 3))
    with torch.no_grad():
        chosen = two.eval().choose_task(x)
    assert method.routing.router not in ON_FEATURES or torch.equal(chosen, y // 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"router": "nearst"},
            "router 'nearst' is unknown; use one of nearest, gaussian, least-squares, arrow, entropy",
        ),
        ({"top": 0}, "top 0 is too small"),
        ({"top": 2}, "top 2 is for the choice 'soft', and choice is 'hard'"),
        ({"router_temperature": 0.0}, "router_temperature 0.0 must be a finite number above 0"),
        ({"router_projections": -1}, "router_projections -1 is below 0"),
        ({"router": "gaussian", "clusters": 3}, "clusters 3 is for the router 'nearest', and router is 'gaussian'"),
        ({"router": "entropy", "key_features": "first_task"}, "router 'entropy' reads no key_features"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        configured(CoLoR, tiny_backbone(), **options)
    assert "\n" not in str(refused.value)
