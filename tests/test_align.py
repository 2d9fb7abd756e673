"""Alignment: drift is measured on new images, and old statistics follow it."""

from typing import Any

import pytest
import torch
from streams import configured, fit_for, learn_all, stream, tiny_backbone
from torch import Tensor, nn

from lamella.common.randomness import generator
from lamella.data.images import TensorSet
from lamella.data.scenario import Task
from lamella.data.transform import InputTransform
from lamella.methods import Method
from lamella.methods.nearest_mean import NearestMean
from lamella.methods.parts import Aligned
from lamella.methods.parts.drift import affine_drift, mean_drift
from lamella.methods.seq_finetune import SeqFinetune
from lamella.methods.streaming_lda import StreamingLDA
from lamella.training.fit import Fit

D = 6


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(0, name, *shape), dtype=torch.float64)


M = torch.eye(D, dtype=torch.float64) + 0.3 * draw(D, D, name="map")
SHIFT = draw(D, name="shift")


def moved(x: Tensor) -> Tensor:
    """The known affine drift."""
    return x @ M + SHIFT


# the drift map -------------------------------------------------------------------------------------------------------


def test_a_known_affine_drift_is_recovered_without_ridge() -> None:
    x, far = draw(50, D), 5 + draw(9, D, name="far")
    W, source, shift = affine_drift(x, moved(x), 1e-9)
    assert torch.allclose(torch.eye(D) + W, M, atol=1e-6)
    assert torch.allclose(far + (far - source) @ W + shift, moved(far), atol=1e-5)


@pytest.mark.parametrize("ridge", [0.03, 3.0])
def test_the_ridge_map_is_the_least_squares_solution(ridge: float) -> None:
    """min |Yc - Xc (I + W)|^2 + k |W|^2 as one plain least-squares problem with d more rows."""
    x = draw(40, D)
    y = moved(x) + 0.1 * draw(40, D, name="noise")
    W, source, shift = affine_drift(x, y, ridge)
    Xc, Yc = x - x.mean(0), y - y.mean(0)
    k = ridge * Xc.square().sum(0).mean()
    rows = torch.cat([Xc, k.sqrt() * torch.eye(D)])
    goal = torch.cat([Yc - Xc, torch.zeros(D, D)])
    assert torch.allclose(W, torch.linalg.lstsq(rows, goal).solution, atol=1e-8)
    assert torch.allclose(source, x.mean(0))
    assert torch.allclose(shift, y.mean(0) - x.mean(0))
    assert 0.01 < float(W.norm()) < float((M - torch.eye(D)).norm())  # shrunk towards no change


def test_without_drift_nothing_moves() -> None:
    x = draw(40, D)
    for drift in (affine_drift(x, x, 3.0), mean_drift(x, x)):
        assert float(drift.W.abs().max()) < 1e-12
        assert float(drift.shift.abs().max()) == 0


def test_one_image_gives_a_pure_shift() -> None:
    x = draw(1, D)
    W, _, shift = affine_drift(x, moved(x), 3.0)
    assert float(W.abs().max()) == 0
    assert torch.allclose(shift, (moved(x) - x)[0])


def test_the_mean_drift_is_the_shift_of_the_mean() -> None:
    x = draw(30, D)
    W, _, shift = mean_drift(x, moved(x))
    assert float(W.abs().max()) == 0
    assert torch.allclose(shift, (moved(x) - x).mean(0))


def test_a_ridge_must_be_positive() -> None:
    with pytest.raises(ValueError, match="ridge 0 must be above 0"):
        affine_drift(draw(3, D), draw(3, D), 0)


# the part around a method whose features drift as we say -------------------------------------------------------------


class Drifting(Method):
    """A method whose features are its inputs, moved by the known map once for each task after the first."""

    def __init__(self, drifts: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Identity()
        self.backbone.width = D  # type: ignore[assignment]
        self.drifts, self.tasks = drifts, 0

    def features(self, x: Tensor) -> Tensor:
        x = x.double()
        for _ in range(self.tasks - 1 if self.drifts else 0):
            x = moved(x)
        return x.float()

    def learn(self, task: Task, fit: Fit) -> None:
        self.tasks += 1


CENTRES = 4 * draw(7, D, name="centres")


def gaussians(classes: tuple[int, ...], n: int = 60, part: str = "train", i: int = 0) -> Task:
    labels = torch.tensor([c for c in classes for _ in range(n)])
    x = CENTRES[labels] + draw(len(labels), D, name=f"{part}{i}{classes}")
    return Task(i, "gaussians", classes, tuple(map(str, classes)), TensorSet(x, labels))


def inputs(task: Task) -> Tensor:
    assert isinstance(task.train, TensorSet)
    return task.train.x


def taught(tasks: list[Task], drifts: bool = True, **options: Any) -> Aligned:
    method = Aligned(Drifting(drifts), **options)
    fit = Fit(method, InputTransform(1, (0.0,) * 3, (1.0,) * 3, "bicubic", 1.0), device="cpu")
    for task in tasks:
        fit.begin(str(task.id))
        method.learn(task, fit)
    return method


def score(method: Aligned, classes: tuple[int, ...]) -> float:
    test = gaussians(classes, 40, "test")
    columns = torch.tensor([method.classes.index(c) for c in test.train.labels.tolist()])
    return float((method.predict(inputs(test)).argmax(1) == columns).double().mean())


STREAM = [gaussians((0, 1, 2), i=0), gaussians((3, 4), i=1), gaussians((5, 6), i=2)]
EVERY = tuple(range(7))


def test_old_statistics_follow_a_known_drift_exactly_as_the_ridge_vanishes() -> None:
    method = taught(STREAM, ridge=1e-9)
    fresh = Aligned(Drifting())
    fresh.base.tasks = 3
    for task in STREAM:  # statistics of the old images on the final features: what a replay would give
        fresh.statistics.add(fresh.features(inputs(task)), task.train.labels, task.classes)
    assert torch.allclose(method.statistics.means, fresh.statistics.means, atol=1e-4)
    assert torch.allclose(method.statistics.covariance, fresh.statistics.covariance, atol=1e-4)


@pytest.mark.parametrize("drift", ["affine", "mean", "local"])
def test_old_means_follow_a_share_of_the_drift_that_few_images_show(drift: str) -> None:
    """n = 120 images of the second task, weighed against 40 without drift: three quarters of the way."""
    stay, follow, part = (
        taught(STREAM[:2], drift=kind, drift_prior=prior).statistics.means[:3]
        for kind, prior in (("none", 0), (drift, 0), (drift, 40))
    )
    assert float((follow - stay).norm()) > 1
    torch.testing.assert_close(part, stay + 0.75 * (follow - stay), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prior", [-1, float("inf"), float("nan")])
def test_a_prior_of_the_drift_is_a_number_of_images(prior: float) -> None:
    with pytest.raises(ValueError, match=r"drift_prior .* must be a finite number from 0"):
        Aligned(Drifting(), drift_prior=prior)


def test_following_the_drift_is_what_keeps_old_classes_apart() -> None:
    affine, mean, none = (score(taught(STREAM, drift=d, ridge=0.03), EVERY) for d in ("affine", "mean", "none"))
    assert affine > 0.95
    assert max(mean, none) < 0.8


def test_features_that_do_not_drift_leave_the_statistics_alone() -> None:
    method = taught(STREAM[:1], drifts=False)
    means, scatter = method.statistics.means.clone(), method.statistics.scatter.clone()
    after = taught(STREAM[:2], drifts=False)
    assert torch.allclose(after.statistics.means[:3], means, atol=1e-9)
    own = taught([gaussians((3, 4), i=1)], drifts=False)
    assert torch.allclose(after.statistics.scatter - own.statistics.scatter, scatter, atol=1e-6)


def test_a_class_that_comes_back_is_moved_before_it_is_merged() -> None:
    back = gaussians((1, 5), 30, i=1)
    method = taught([STREAM[0], back], ridge=1e-9)
    assert method.classes == (0, 1, 2, 5)
    assert method.statistics.counts.tolist() == [60, 90, 60, 30]
    first, second = (inputs(t)[t.train.labels == 1] for t in (STREAM[0], back))
    assert torch.allclose(method.statistics.means[1], moved(torch.cat([first, second])).mean(0), atol=1e-5)


def test_a_class_with_one_image_works_and_only_singletons_do_too() -> None:
    method = taught([gaussians((0, 1), 1, i=0), gaussians((2,), 1, i=1)])
    assert float(method.statistics.covariance.abs().max()) == 0
    logits = method.predict(method.statistics.means.float())
    assert logits.isfinite().all()
    mixed = taught([STREAM[0], gaussians((3,), 1, i=1)], drifts=False)
    assert score(mixed, (0, 1, 2)) > 0.9
    assert mixed.statistics.counts.tolist() == [60, 60, 60, 1]


def test_the_refitted_head_classifies_the_gaussians_and_is_saved() -> None:
    method = taught(STREAM, head="refit", ridge=0.03, epochs=20, lr=0.03)
    assert score(method, EVERY) > 0.9
    assert method.refitted.classes == EVERY
    assert not any(p.requires_grad for p in method.parameters())
    again = taught(STREAM, head="refit", ridge=0.03, epochs=20, lr=0.03)
    other = taught(STREAM, head="refit", ridge=0.03, epochs=20, lr=0.03, seed=1)
    assert torch.equal(again.refitted[0].weight, method.refitted[0].weight)
    assert not torch.equal(other.refitted[0].weight, method.refitted[0].weight)
    fresh = Aligned(Drifting(), head="refit")
    fresh.load_state_dict(method.state_dict())
    fresh.base.tasks = 3
    x = draw(5, D, name="test")
    assert torch.equal(fresh.predict(x), method.predict(x))


def test_nothing_of_an_old_image_is_kept() -> None:
    for head in ("lda", "refit"):
        few, many = ([gaussians((0, 1), n, i=0), gaussians((2,), n, i=1)] for n in (2, 90))
        shapes = [
            {k: tuple(v.shape) for k, v in taught(tasks, head=head, epochs=1).state_dict().items()}
            for tasks in (few, many)
        ]
        assert shapes[0] == shapes[1]  # whatever the number of images
        method = taught(few, head=head, epochs=1)
        assert not any(isinstance(v, Tensor | TensorSet | Task) for v in vars(method).values())


@pytest.mark.parametrize("drift", ["affine", "mean", "none"])
def test_on_nearest_mean_with_a_frozen_backbone_it_is_streaming_lda_exactly(drift: str) -> None:
    scenario, backbone = stream(), tiny_backbone()
    aligned = learn_all(Aligned(NearestMean(backbone), shrinkage=0.2, drift=drift), scenario)
    plain = learn_all(StreamingLDA(backbone, shrinkage=0.2), scenario)
    x = torch.randn(5, 3, 32, 32, generator=generator(0, "images"))
    scores = plain.predict(x)
    assert torch.allclose(aligned.predict(x), scores, rtol=1e-5, atol=1e-4 * float(scores.abs().max()))
    assert torch.allclose(aligned.statistics.means, plain.statistics.means, atol=1e-6)


def test_both_readouts_come_from_one_pass() -> None:
    backbone = tiny_backbone()
    method = Aligned(configured(SeqFinetune, backbone, epochs=1, batch_size=8))
    learn_all(method, stream(tasks=2), fit_for(method))
    x = torch.randn(3, 3, 32, 32, generator=generator(0, "images"))
    readouts = method.readouts(x)
    assert torch.equal(readouts[""], method.predict(x))
    assert torch.equal(readouts["base"], method.base.predict(x))
    headless = learn_all(Aligned(NearestMean(backbone)), stream(tasks=2))
    assert torch.equal(headless.readouts(x)["base"], headless.base.predict(x))


def test_a_class_may_have_a_covariance_of_its_own() -> None:
    whole: dict[str, Any] = {"own_directions": "all"}
    shared, own = (Aligned(NearestMean(tiny_backbone()), own_covariance=share, **whole) for share in (0.0, 0.2))
    for method in (shared, own):
        learn_all(method, stream(4, 2))
    features = own.features(torch.rand(5, 3, 32, 32))
    torch.testing.assert_close(own.classify(features), own.statistics.quadratic_discriminant(features, 0.1, 0.2))
    assert own.statistics.scatters.shape == (4, 64, 64)
    assert shared.statistics.scatters.shape == (0, 64, 64)
    assert not torch.allclose(own.classify(features), shared.classify(features))
    by_count = Aligned(own.base, own_covariance_prior=32.0, **whole)
    by_count.load_state_dict(own.state_dict())
    torch.testing.assert_close(by_count.classify(features), own.classify(features))  # 8 images: 8 / (8 + 32) = 0.2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"drift": "linear"}, "drift 'linear' is unknown"),
        ({"head": "ncm"}, "head 'ncm' is unknown"),
        ({"ridge": 0.0}, "ridge 0.0 must be above 0"),
        ({"shrinkage": 0.0}, r"shrinkage 0.0 is outside"),
        ({"own_covariance": 1.0}, r"own_covariance 1.0 must be within \[0, 1\)"),
        ({"own_covariance": 0.1, "head": "refit"}, "0 for head 'refit'"),
        ({"own_covariance_prior": 0.0}, "own_covariance_prior 0.0 must be above 0"),
        (
            {"own_covariance_prior": 500.0, "own_covariance": 0.1},
            "cannot stand beside own_covariance = 0.1; leave one out",
        ),
        ({"own_covariance_prior": 500.0, "head": "refit"}, "cannot stand beside head = 'refit'"),
    ],
)
def test_bad_settings_are_refused_at_once(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Aligned(Drifting(), **options)


def test_features_that_widen_are_refused() -> None:
    class Widening(Drifting):
        widens = True

    with pytest.raises(ValueError, match="those of Widening widen with each task"):
        Aligned(Widening())
