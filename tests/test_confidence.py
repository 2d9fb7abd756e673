"""Confidence: the temperature that fits, and a familiarity that known images have evenly."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import build, images, learn_all, stream

from lamella import Learner
from lamella.common.randomness import generator
from lamella.data.scenario import Scenario
from lamella.data.transform import plain_view
from lamella.learner.confidence import (
    FEWEST,
    UNKNOWN,
    Confidence,
    HeldBackScore,
    fitted_temperature,
    histogram,
    of_records,
)
from lamella.learner.held_back import LIMIT, HeldBack
from lamella.memory.gaussians import ClassGaussians, shrunk
from lamella.methods.parts import Aligned
from lamella.training.fit import Fit


@settings(deadline=None, max_examples=30)
@given(st.floats(0.2, 30), st.integers(0, 100))
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature: float, seed: int) -> None:
    draws = generator(seed, "logits")
    logits = torch.randn(4000, 5, generator=draws, dtype=torch.float64) * 2 * temperature
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=draws)[:, 0]
    assert fitted_temperature(logits, labels) == pytest.approx(temperature, rel=0.15)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(2, 12), st.floats(0.01, 1e4), st.integers(0, 1000))
def test_the_mean_confidence_is_the_accuracy_by_laplaces_rule(n: int, classes: int, unit: float, seed: int) -> None:
    draws = generator(seed, "logits")
    logits = torch.randn(n, classes, generator=draws, dtype=torch.float64) * unit
    labels = torch.where(torch.rand(n, generator=draws) < 0.6, logits.argmax(1), 0)
    T, right = fitted_temperature(logits, labels), int((logits.argmax(1) == labels).sum())
    sure = float((logits / T).softmax(1).amax(1).mean())
    assert sure == pytest.approx(max((right + 1) / (n + 2), 1 / classes + 0.05 * (1 - 1 / classes)), abs=1e-6)


def test_one_image_that_is_wrong_by_far_does_not_flatten_the_others() -> None:
    logits = torch.tensor([[9.0, 0, 0], [0, 8, 0], [0, 0, 7], [900, 0, 0]])
    T = fitted_temperature(logits, torch.tensor([0, 1, 2, 1]))
    assert (logits / T).softmax(1).amax(1).mean().item() == pytest.approx(4 / 6, abs=1e-6)
    assert fitted_temperature(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)) == 1


def test_known_images_have_every_familiarity_equally_often() -> None:
    held, new = (torch.randn(n, generator=generator(n, "scores")) for n in (3000, 2000))
    for sure in (Confidence(1.0, held), of_records([HeldBackScore(3000, 0, 1.0, histogram(held))])):
        familiarity = sure.familiarity(new)
        assert familiarity is not None
        for level in (0.05, 0.3, 0.8):
            assert float((familiarity < level).double().mean()) == pytest.approx(level, abs=0.03)
        assert sure.familiarity(torch.tensor([-99.0, 99.0])).tolist() == [1 / 3001, 1]  # type: ignore[union-attr]


def test_the_strangest_of_few_has_the_lowest_familiarity_that_there_is() -> None:
    sure = Confidence(1.0, torch.tensor([3.0, 1.0, 2.0]))
    assert sure.familiarity(torch.tensor([0.0, 1.0, 2.5, 9.0])).tolist() == [0.25, 0.5, 0.75, 1]  # type: ignore[union-attr]
    nothing = Confidence()
    assert (nothing.temperature, nothing.images, nothing.familiarity(torch.zeros(2))) == (1, 0, None)


@pytest.mark.parametrize(("held_back", "can"), [(FEWEST - 1, False), (FEWEST, True)])
def test_below_the_fewest_held_back_images_even_the_strangest_is_not_unknown(held_back: int, can: bool) -> None:
    familiarity = Confidence(1.0, torch.arange(float(held_back))).familiarity(torch.tensor([-1.0]))
    assert familiarity is not None
    assert (float(familiarity) < UNKNOWN) == can


def test_records_alone_give_the_temperature_of_the_newest_that_say_enough_and_the_newest_typicality() -> None:
    record = HeldBackScore(10, 0, 2.0, histogram(torch.full((10,), 5.0)))
    other = HeldBackScore(30, 0, 32.0, histogram(torch.arange(30.0) + 100))
    sure = of_records([record, other])
    assert (sure.temperature, sure.images) == (32, 30)
    assert of_records([other, record]).temperature == pytest.approx(2 ** (1 / 4) * 32 ** (3 / 4))
    assert of_records([record] * 9 + [replace(other, images=20), record]).temperature == pytest.approx(
        2 ** (1 / 3) * 32 ** (2 / 3)
    )
    assert of_records([HeldBackScore(3, 3)]).images == 0


def test_strangeness_compares_the_nearest_mean_with_the_mean_of_all() -> None:
    draws = generator(3, "features")
    statistics = ClassGaussians(4)
    x = torch.randn(60, 4, generator=draws)
    statistics.add(x, (torch.arange(60) % 7).clamp_max(2), [0, 1, 2])
    f = torch.randn(7, 4, generator=draws)
    inverse = torch.linalg.inv(shrunk(statistics.covariance, 0.1))

    def distance(to: torch.Tensor) -> torch.Tensor:
        apart = f.double()[:, None] - to
        return torch.einsum("ncd,de,nce->nc", apart, inverse, apart).amin(1)

    expected = 1.25 * distance(statistics.means).log() - distance(x.double().mean(0)[None]).log()
    torch.testing.assert_close(statistics.strangeness(f, 0.1), expected)
    assert statistics.strangeness(statistics.means, 0.1).isfinite().all(), "a distance of 0 has a logarithm too"


def test_one_class_alone_is_measured_by_the_distance() -> None:
    draws = generator(4, "features")
    statistics = ClassGaussians(4)
    statistics.add(torch.randn(60, 4, generator=draws), torch.zeros(60, dtype=torch.int64), [0])
    away = statistics.means + torch.arange(1, 9)[:, None] * torch.randn(1, 4, generator=draws)
    assert (statistics.strangeness(away, 0.1).diff() > 0).all()


def test_new_classes_beside_known_ones_and_noise_are_both_stranger() -> None:
    """Twelve classes in 30 dimensions, of which every second is known; images differ in how far they scatter."""
    draws = generator(5, "features")
    labels = torch.arange(12).repeat(80)
    spread = (0.5 * torch.randn(960, 1, generator=draws)).exp()
    x = 6 * torch.eye(12, 30)[labels] + spread * torch.randn(960, 30, generator=draws)
    known, first = labels % 2 == 0, torch.arange(960) < 480
    statistics = ClassGaussians(30)
    statistics.add(x[first & known], labels[first & known], list(range(0, 12, 2)))
    own, new, noise = x[~first & known], x[~first & ~known], 20 * torch.randn(200, 30, generator=draws)

    def area(strange: Callable[[torch.Tensor], torch.Tensor], others: torch.Tensor) -> float:
        return float((strange(others)[:, None] > strange(own)).double().mean())

    def nearest(f: torch.Tensor) -> torch.Tensor:
        root = torch.linalg.cholesky(torch.linalg.inv(shrunk(statistics.covariance, 0.1)))
        return torch.cdist(f.double() @ root, statistics.means @ root).amin(1)

    def strangeness(f: torch.Tensor) -> torch.Tensor:
        return statistics.strangeness(f, 0.1)

    assert area(strangeness, noise) > 0.99
    assert area(strangeness, new) > area(nearest, new) + 0.05 > 0.8


def test_alignment_says_how_near_features_are_and_other_methods_their_own_measure() -> None:
    method = learn_all(Aligned(build("nearest-mean")), stream(2, 1))
    x = images(2, 2, "test").batch(torch.arange(4), plain_view(method.backbone.transform))
    logits, typicality = method.logits_and_typicality(x)
    assert torch.equal(logits, method.predict(x))
    torch.testing.assert_close(typicality, -method.statistics.strangeness(method.features(x), method.shrinkage))
    assert float(method.logits_and_typicality(x + 9)[1].max()) < float(typicality.min())
    base = method.base
    torch.testing.assert_close(base.logits_and_typicality(x)[1], base.predict(x).amax(1))
    other = learn_all(build("linear-probe"), stream(2, 1))
    torch.testing.assert_close(other.logits_and_typicality(x)[1], other.predict(x).logsumexp(1))


def taught(method: str, tasks: int = 3) -> tuple[Learner, Scenario]:
    scenario = stream(classes=6, tasks=3, per_class=12, validation=0.25)
    backbone = {"name": "test_vit", "weights": "random", "size": 32, "crop": 1.0}
    learner = Learner.create(backbone=backbone, method={"name": method, **SHORT.get(method, {})})
    for i in range(tasks):
        learner.learn(scenario[i], held_back=scenario[i].validation)
    return learner, scenario


SHORT = {"inflora+align": {"epochs": 2, "lr": 3e-3, "batch_size": 8}, "seq-lora": {"epochs": 2}}


def test_features_of_held_back_images_move_as_the_statistics_do() -> None:
    learner, scenario = taught("inflora+align", tasks=2)
    method, held = learner.method, learner.model.held_back
    assert held.tasks.tolist() == [0] * 6 + [1] * 6
    assert isinstance(method, Aligned)
    before, means, told = held.features[:6].clone(), method.statistics.means.clone(), []
    with pytest.MonkeyPatch.context() as patched:
        tell = Fit.tell_drift
        patched.setattr(Fit, "tell_drift", lambda self, drift: (told.append(drift), tell(self, drift)))
        learner.learn(scenario[2])
    moved, (drift,) = held.features[:6], told
    assert not torch.equal(moved, before)
    torch.testing.assert_close(moved, drift(before).float())
    torch.testing.assert_close(method.statistics.means[:4], drift(means))


def test_frozen_features_stay_and_those_that_nobody_can_follow_go() -> None:
    frozen, _ = taught("nearest-mean")
    assert frozen.model.held_back.tasks.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    own_heads, _ = taught("seq-lora")
    assert own_heads.model.held_back.tasks.tolist() == [2] * 6
    assert own_heads.confidence.images == 6


def test_a_stored_model_is_as_sure_as_before_and_forgets_with_its_tasks(tmp_path: Path) -> None:
    learner, scenario = taught("inflora+align")
    learner.save(tmp_path / "model")
    again = Learner.load(tmp_path / "model")
    assert (again.confidence.temperature, again.confidence.images) == (learner.confidence.temperature, 18)
    assert again.predict(scenario.test(0)) == learner.predict(scenario.test(0))
    linear, _ = taught("linear-probe")
    linear.forget(linear.tasks[1].name)
    assert linear.model.held_back.tasks.tolist() == [0] * 6 + [1] * 6


def test_no_class_has_more_than_its_share() -> None:
    held = HeldBack()
    for task in range(3):
        held.add(torch.arange(3.0 * LIMIT).view(-1, 3), torch.full((LIMIT,), task), task)
    assert torch.bincount(held.labels).tolist() == [LIMIT // 3] * 3
    assert torch.equal(held.features[0], torch.arange(3.0)), "the first of each class stay"
