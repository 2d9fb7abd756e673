"""Confidence: the temperature that fits, and a familiarity that known images have evenly."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import build, images, learn_all, stream

from lamella.common.randomness import generator
from lamella.data.transform import plain_view
from lamella.learner.confidence import Confidence, HeldOut, fitted_temperature, histogram
from lamella.memory.gaussians import ClassGaussians, shrunk
from lamella.methods.parts import Aligned


@settings(deadline=None, max_examples=30)
@given(st.floats(0.2, 30), st.integers(0, 100))
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature: float, seed: int) -> None:
    draws = generator(seed, "logits")
    logits = torch.randn(4000, 5, generator=draws, dtype=torch.float64) * 2 * temperature
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=draws)[:, 0]
    assert fitted_temperature(logits, labels) == pytest.approx(temperature, rel=0.15)


def test_it_fits_better_than_its_neighbours() -> None:
    draws = generator(0, "logits")
    logits, labels = torch.randn(300, 4, generator=draws) * 7, torch.randint(4, (300,), generator=draws)
    labels[:200] = logits[:200].argmax(1)
    T, spread = fitted_temperature(logits, labels), 1 / 302

    def entropy(T: float) -> float:
        log_p = (logits.double() / T).log_softmax(1)
        return float(-((1 - spread) * log_p[torch.arange(300), labels] + spread * log_p.mean(1)).mean())

    assert entropy(T) < min(entropy(0.99 * T), entropy(1.01 * T))


def test_where_all_is_right_it_stays_above_zero_and_where_nothing_is_told_it_is_one() -> None:
    logits = torch.eye(3).repeat(5, 1) * 20
    T = fitted_temperature(logits, torch.arange(3).repeat(5))
    sure = (logits / T).softmax(1).amax(1)
    # n = 15 right of 15, by Laplace's rule: the true class has 1 - 1/17 + 1/51 of the target.
    assert sure.mean().item() == pytest.approx(1 - 2 / 51, abs=1e-6)
    assert fitted_temperature(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)) == 1


def test_known_images_have_every_familiarity_equally_often() -> None:
    held, new = (torch.randn(n, generator=generator(n, "scores")) for n in (3000, 2000))
    sure = Confidence([HeldOut(3000, 0, 1.0, histogram(held))])
    familiarity = sure.familiarity(new)
    assert familiarity is not None
    for level in (0.05, 0.3, 0.8):
        assert float((familiarity < level).double().mean()) == pytest.approx(level, abs=0.03)
    assert sure.familiarity(torch.tensor([-99.0, 99.0])).tolist() == [0, 1]  # type: ignore[union-attr]


def test_familiarity_is_of_all_tasks_and_the_temperature_of_the_newest_that_say_enough() -> None:
    record = HeldOut(10, 0, 2.0, histogram(torch.full((10,), 5.0)))
    other = HeldOut(30, 0, 32.0, histogram(torch.arange(30.0) + 100))
    sure = Confidence([record, other])
    assert sure.temperature == 32
    assert Confidence([other, record]).temperature == pytest.approx(2 ** (1 / 4) * 32 ** (3 / 4))
    assert Confidence([record] * 9 + [replace(other, images=20), record]).temperature == pytest.approx(
        2 ** (1 / 3) * 32 ** (2 / 3)
    )
    assert sure.familiarity(torch.tensor([4.0, 5.0, 200.0])).tolist() == [0, 0.25, 1]  # type: ignore[union-attr]
    nothing = Confidence([])
    assert (nothing.temperature, nothing.familiarity(torch.zeros(2))) == (1, None)


def test_the_distance_is_mahalanobis_to_the_nearest_mean() -> None:
    draws = generator(3, "features")
    statistics = ClassGaussians(4)
    statistics.add(torch.randn(60, 4, generator=draws), torch.arange(60) % 3, [0, 1, 2])
    f = torch.randn(7, 4, generator=draws)
    inverse = torch.linalg.inv(shrunk(statistics.covariance, 0.1))
    apart = f.double()[:, None] - statistics.means
    expected = torch.einsum("ncd,de,nce->nc", apart, inverse, apart).amin(1)
    torch.testing.assert_close(statistics.distance(f, 0.1), expected)


def test_alignment_says_how_near_features_are_and_other_methods_their_energy() -> None:
    method = learn_all(Aligned(build("nearest-mean")), stream(2, 1))
    x = images(2, 2, "test").batch(torch.arange(4), plain_view(method.backbone.transform))
    logits, typicality = method.logits_and_typicality(x)
    assert torch.equal(logits, method.predict(x))
    torch.testing.assert_close(typicality, -method.statistics.distance(method.features(x), method.shrinkage))
    assert float(method.logits_and_typicality(x + 9)[1].max()) < float(typicality.min())
    base = method.base
    torch.testing.assert_close(base.logits_and_typicality(x)[1], base.predict(x).logsumexp(1))
