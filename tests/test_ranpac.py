"""RanPAC: the ridge solution of projected features, whatever the order in which they came."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from streams import configured, fit_for, images, tiny_backbone
from torch import Tensor
from torch.distributions import MultivariateNormal

from lamella.backbones import Backbone
from lamella.common.randomness import generator
from lamella.data.scenario import Task
from lamella.data.transform import plain_view
from lamella.learner.store.state import learned_state, restore_state
from lamella.memory.random_projections import RIDGES, best_ridge
from lamella.methods.ranpac import RanPAC
from lamella.training.checkpoints import Checkpoints

SMALL: dict[str, Any] = {"projections": 96, "adapt": "none"}
ADAPTED: dict[str, Any] = {"projections": 96, "epochs": 2, "batch_size": 8, "lr": 0.02, "rank": 4, "blocks": 2}
EVERY = images(12, 10, "train")


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(0, name, *shape), dtype=torch.float64)


def task(i: int, classes: tuple[int, ...], first: int = 0, last: int = 10) -> Task:
    """Images `first` to `last` of each class."""
    mine = torch.isin(EVERY.labels, torch.tensor(classes))
    place = torch.arange(len(EVERY.labels)) % 10
    index = (mine & (place >= first) & (place < last)).nonzero()[:, 0]
    return Task(i, f"task {i}", classes, tuple(map(str, classes)), EVERY.subset(index))


def learn(method: RanPAC, *tasks: Task) -> RanPAC:
    fit = fit_for(method)
    for number, each in enumerate(tasks):
        fit.begin(str(number))
        method.learn(each, fit)
    return method


def inputs(backbone: Backbone, n: int = 12) -> Tensor:
    return images(12, 4, "test").batch(torch.arange(n), plain_view(backbone.transform))


def features(backbone: Backbone, data: Any) -> Tensor:
    return backbone(data.batch(torch.arange(len(data)), plain_view(backbone.transform)))


# the closed form -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [1e-2, 1.0, 1e3])
def test_scores_are_those_of_ridge_regression_on_the_same_projected_features(ridge: float) -> None:
    method = learn(
        configured(RanPAC, tiny_backbone(), ridge=ridge, **SMALL), task(0, (3, 1)), task(1, (5,)), task(2, (0, 4))
    )
    seen = torch.isin(EVERY.labels, torch.tensor([3, 1, 5, 0, 4]))
    data = EVERY.subset(seen.nonzero()[:, 0])
    h = torch.relu(features(method.backbone, data).double() @ method.projection)  # all tasks at once
    y = (data.labels[:, None] == torch.tensor([3, 1, 5, 0, 4])).double()
    reference = Ridge(alpha=ridge, fit_intercept=False, solver="cholesky").fit(h.numpy(), y.numpy())
    x = inputs(method.backbone)
    tested = torch.relu(method.backbone(x).double() @ method.projection)
    assert method.classes == (3, 1, 5, 0, 4)
    assert torch.allclose(method.predict(x).double(), torch.from_numpy(reference.predict(tested.numpy())), atol=1e-5)


def test_within_classes_scores_are_log_likelihood_ratios_of_gaussians_that_share_their_covariance() -> None:
    tasks = task(0, (3, 1), last=7), task(1, (5,)), task(2, (0, 4))
    again = task(3, (1,), first=7)  # a class that comes back
    method = learn(configured(RanPAC, tiny_backbone(), ridge=2.0, scatter="within", **SMALL), *tasks, again)
    assert method.classes == (3, 1, 5, 0, 4)
    h: dict[int, list[Tensor]] = {c: [] for c in method.classes}
    for each in (*tasks, again):
        for label, row in zip(each.train.labels.tolist(), features(method.backbone, each.train).double(), strict=True):
            h[label].append(torch.relu(row @ method.projection))
    rows = {c: torch.stack(own) for c, own in h.items()}
    whole = torch.cat(list(rows.values()))
    centred = torch.cat([own - own.mean(0) for own in rows.values()])
    S = (centred.T @ centred + 2.0 * torch.eye(96)) / len(whole)
    x = inputs(method.backbone)
    tested = torch.relu(method.backbone(x).double() @ method.projection)
    nobody = MultivariateNormal(whole.mean(0), S).log_prob(tested)
    expected = torch.stack([MultivariateNormal(own.mean(0), S).log_prob(tested) for own in rows.values()], 1)
    scores = method.predict(x)
    assert torch.allclose(scores.double(), expected - nobody[:, None], rtol=1e-4, atol=1e-4)
    relative = -2 * (expected.max(1).values - nobody)  # distance to the nearest class minus distance to all samples
    typical = method.typicality(method.features(x), scores)
    assert torch.allclose(typical.double(), -relative / 2, rtol=1e-4, atol=1e-4)
    assert torch.allclose(method.plain_classifier()(method.features(x)), scores, atol=1e-4)


def test_the_order_of_tasks_does_not_matter_at_a_given_ridge() -> None:
    tasks = [task(0, (0, 1)), task(1, (2,)), task(2, (3, 4, 5))]
    x = inputs(tiny_backbone())
    logits = {}
    for order in [(0, 1, 2), (2, 0, 1), (1, 2, 0)]:
        method = learn(configured(RanPAC, tiny_backbone(), ridge=10.0, **SMALL), *(tasks[i] for i in order))
        columns = [method.classes.index(c) for c in range(6)]
        logits[order] = method.predict(x)[:, columns]
        assert torch.allclose(method.G, method.G.T)
    first = logits[0, 1, 2]
    assert float(first.abs().max()) > 0.1
    assert all(torch.allclose(other, first, atol=1e-6) for other in logits.values())


def test_classes_that_come_back_add_to_their_columns() -> None:
    """Images of the same classes in two tasks, with a stranger between, are as good as in one."""
    parts = [task(0, (0, 1), 0, 7), task(1, (2,)), task(2, (1, 0), 7, 10)]
    split = learn(configured(RanPAC, tiny_backbone(), ridge=1.0, **SMALL), *parts)
    whole = learn(configured(RanPAC, tiny_backbone(), ridge=1.0, **SMALL), task(0, (0, 1)), task(1, (2,)))
    assert split.classes == whole.classes == (0, 1, 2)
    assert torch.allclose(split.G, whole.G)
    assert torch.allclose(split.Q, whole.Q)
    x = inputs(split.backbone)
    assert torch.allclose(split.predict(x), whole.predict(x), atol=1e-6)


def test_sums_do_not_depend_on_how_a_pass_is_cut_into_batches() -> None:
    sums = []
    for size in (3, 64):
        method = configured(RanPAC, tiny_backbone(), ridge=1.0, **SMALL)
        fit = fit_for(method, scan_batch_size=size)
        method.learn(task(0, (0, 1, 2)), fit)
        sums.append((method.G, method.Q))
    for parts, whole in zip(*sums, strict=True):  # features of other batches are rounded otherwise
        assert float((parts - whole).abs().max()) < 1e-6 * float(whole.abs().max())


def test_without_a_spread_the_solution_is_finite() -> None:
    """One image, seen twice: G has rank one, and the smallest lambda lies below its rounding."""
    method = learn(configured(RanPAC, tiny_backbone(), ridge=1e-30, **SMALL), task(0, (0,), 0, 1), task(1, (0,), 0, 1))
    h = method.project(features(method.backbone, task(0, (0,), 0, 1).train))
    assert torch.isfinite(method.predict(inputs(method.backbone))).all()
    assert float(h @ method.solution) == pytest.approx(1.0, abs=1e-3)


# lambda --------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 14), held=st.integers(1, 6), M=st.integers(1, 9), noise=st.floats(0.0, 3.0))
def test_the_best_ridge_is_that_of_seventeen_solutions(n: int, held: int, M: int, noise: float) -> None:
    h, W = draw(n + held, M), draw(M, 3, name="W")
    y = h @ W + noise * draw(n + held, 3, name="noise")
    errors = []
    for ridge in RIDGES:
        solution = torch.linalg.solve(h[:n].T @ h[:n] + ridge * torch.eye(M).double(), h[:n].T @ y[:n])
        errors.append(float((h[n:] @ solution - y[n:]).square().mean()))
    best = best_ridge(h[:n], y[:n], h[n:], y[n:])
    assert best in RIDGES
    assert errors[RIDGES.index(best)] <= min(errors) * (1 + 1e-4) + 1e-10  # many are equal where there is no noise


def test_lambda_is_chosen_on_a_fifth_of_the_tasks_own_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, ...]] = []
    given_back = iter([100.0, 0.1])

    def spy(*parts: Tensor) -> float:
        seen.append(parts)
        return next(given_back)

    monkeypatch.setattr("lamella.methods.ranpac.best_ridge", spy)
    tasks = [task(0, (0, 1)), task(1, (2, 3, 4))]
    method = learn(configured(RanPAC, tiny_backbone(), **SMALL), *tasks)
    for each, (h, y, h_held, y_held) in zip(tasks, seen, strict=True):
        own = method.project(features(method.backbone, each.train))
        assert (len(h), len(h_held)) == (len(own) * 4 // 5, len(own) // 5)
        found = torch.cdist(torch.cat([h, h_held]), own).argmin(1)
        assert found.sort().values.tolist() == list(range(len(own)))  # each image once, on one side
        assert torch.allclose(torch.cat([h, h_held]), own[found], rtol=1e-4, atol=1e-4)
        columns = [method.classes.index(int(c)) for c in each.train.labels[found]]
        assert torch.cat([y, y_held]).argmax(1).tolist() == columns
    assert float(method.chosen) == 0.1  # the last choice holds for all classes
    level = 0.1 * torch.eye(96).double()
    assert torch.allclose((method.G + level) @ method.solution, method.Q, atol=1e-6)


def test_too_few_images_for_a_fifth_keep_the_value_before() -> None:
    method = learn(configured(RanPAC, tiny_backbone(), **SMALL), task(0, (0, 1), 0, 2))
    assert float(method.chosen) == 1.0
    learn(method, task(1, (2, 3)))
    chosen = float(method.chosen)
    assert chosen in RIDGES
    learn(method, task(2, (4,), 0, 1))
    assert float(method.chosen) == chosen
    assert method.predict(inputs(method.backbone)).shape == (12, 5)


# the first task ------------------------------------------------------------------------------------------------------


def test_only_the_first_task_adapts_the_backbone() -> None:
    method = learn(configured(RanPAC, tiny_backbone(), **ADAPTED), task(0, (0, 1)))
    x = inputs(method.backbone)
    adapted = method.features(x)
    assert float((adapted - tiny_backbone()(x)).abs().max()) > 1e-2
    fit = fit_for(method)
    fit.begin("1")
    method.learn(task(1, (2, 3)), fit)
    assert fit.trained == {}
    assert torch.equal(method.features(x), adapted)
    factors = {name: p for name, p in method.named_parameters() if ".branches." in name}
    assert len(factors) == 2 * len(method.sites) == 4


def test_without_adaptation_nothing_is_trained_and_features_are_the_backbones() -> None:
    method = configured(RanPAC, tiny_backbone(), **SMALL)
    fit = fit_for(method)
    method.learn(task(0, (0, 1)), fit)
    x = inputs(method.backbone)
    assert fit.trained == {}
    assert torch.equal(method.features(x), tiny_backbone()(x))


# state and precision -------------------------------------------------------------------------------------------------


def test_the_projection_is_drawn_from_the_seed_and_not_stored() -> None:
    a, b, other = (configured(RanPAC, tiny_backbone(), seed=seed, **SMALL) for seed in (3, 3, 4))
    assert torch.equal(a.projection, b.projection)
    assert not torch.allclose(a.projection, other.projection)
    assert abs(float(a.projection.std()) - 1) < 0.05
    assert "projection" not in a.state_dict()


def test_statistics_of_another_seed_are_refused() -> None:
    state = learned_state(learn(configured(RanPAC, tiny_backbone(), **SMALL), task(0, (0, 1))))
    restore_state(configured(RanPAC, tiny_backbone(), **SMALL), state)
    with pytest.raises(ValueError, match=r"random projections are not those of this seed"):
        restore_state(configured(RanPAC, tiny_backbone(), seed=1, **SMALL), state)


def test_a_restored_method_adds_on_where_the_original_stood() -> None:
    method = learn(configured(RanPAC, tiny_backbone(), **ADAPTED), task(0, (0, 1)), task(1, (2,)))
    again = configured(RanPAC, tiny_backbone(), **ADAPTED)
    restore_state(again, {k: v.clone() for k, v in learned_state(method).items()})
    x = inputs(method.backbone)
    assert torch.equal(again.predict(x), method.predict(x))
    learn(method, task(2, (0, 3)))
    learn(again, task(2, (0, 3)))
    assert torch.equal(again.predict(x), method.predict(x))


def test_an_interrupted_first_task_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    def first_task(stop: int | None, checkpoints: Checkpoints | None) -> RanPAC:
        method = configured(RanPAC, tiny_backbone(), **ADAPTED)
        fit = fit_for(method, checkpoints=checkpoints)
        fit.begin("0")
        plain, calls = method.features, count(1)

        def features(x: Tensor) -> Tensor:
            if next(calls) == stop:
                raise KeyboardInterrupt
            return plain(x)

        method.features = features  # type: ignore[method-assign]
        method.learn(task(0, (0, 1)), fit)
        return method

    for stop in (2, 7):  # within the training of six steps, and in the pass over features after it
        with pytest.raises(KeyboardInterrupt):
            first_task(stop, Checkpoints(tmp_path / str(stop), 0.0))
        resumed, undisturbed = first_task(None, Checkpoints(tmp_path / str(stop), 0.0)), first_task(None, None)
        x = inputs(resumed.backbone)
        assert torch.equal(resumed.predict(x), undisturbed.predict(x))


def test_bfloat16_autocast_leaves_statistics_and_scores_wide() -> None:
    method = configured(RanPAC, tiny_backbone(), **SMALL)
    f = torch.randn(6, method.backbone.width, generator=generator(0, "f"))
    with torch.autocast("cpu", torch.bfloat16):
        within = method.project(f)
    assert torch.equal(within, torch.relu(f.double() @ method.projection))
    fit = fit_for(method, precision="bf16")
    method.learn(task(0, (0, 1)), fit)
    assert {method.G.dtype, method.Q.dtype, method.solution.dtype} == {torch.float64}
    x = inputs(method.backbone)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = method.predict(x)
        hand = method.project(method.backbone(x)) @ method.solution
    assert scores.dtype == torch.float32
    assert torch.allclose(scores.double(), hand, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapt": "all"}, r"adapt 'all' is unknown; use one of first-task, none"),
        ({"projections": 0}, r"projections 0 is too small"),
        ({"ridge": 0.0}, r"ridge 0\.0 must be above 0; leave it out"),
        ({"scatter": "between"}, r"scatter 'between' is unknown; use one of all, within"),
        ({"scatter": "within"}, r"scatter 'within' needs a ridge"),
    ],
)
def test_mistakes_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        configured(RanPAC, tiny_backbone(), **options)
    assert "\n" not in str(caught.value)
