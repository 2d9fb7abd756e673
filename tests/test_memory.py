"""Class statistics: exact under any split, moved by any affine map, and a discriminant by its textbook formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lamella.common.randomness import generator
from lamella.memory.gaussians import ClassGaussians, shrunk

D = 5


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(0, name, *shape), dtype=torch.float64)


def labelled(counts: dict[int, int]) -> tuple[Tensor, Tensor]:
    labels = torch.tensor([c for c, n in counts.items() for _ in range(n)])
    return draw(len(labels), D) + 3 * labels[:, None], labels


def gathered(x: Tensor, labels: Tensor, classes: tuple[int, ...]) -> ClassGaussians:
    statistics = ClassGaussians(x.shape[1])
    statistics.add(x, labels, classes)
    return statistics


def same(a: ClassGaussians, b: ClassGaussians) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return a.classes == b.classes and all(torch.allclose(x, y, atol=1e-9) for x, y in pairs)


def test_means_counts_and_covariance_by_hand() -> None:
    x, labels = labelled({7: 4, 2: 6})
    s = gathered(x, labels, (2, 7))
    assert s.classes == (2, 7)
    assert s.counts.tolist() == [6, 4]
    assert torch.allclose(s.means, torch.stack([x[labels == 2].mean(0), x[labels == 7].mean(0)]))
    within = sum(n * torch.cov(x[labels == c].T, correction=0) for c, n in ((2, 6), (7, 4)))
    assert torch.allclose(s.covariance, within / 10)


def test_two_halves_give_what_the_whole_gives() -> None:
    x, labels = labelled({0: 5, 1: 1, 2: 8})
    halves = ClassGaussians(D)
    for part in (slice(0, None, 2), slice(1, None, 2)):
        mine = tuple(dict.fromkeys(labels[part].tolist()))
        halves.add(x[part], labels[part], mine)
    assert same(halves, gathered(x, labels, (0, 2, 1)))  # the one image of class 1 is in the second half


@settings(max_examples=25, deadline=None)
@given(parts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=5))
def test_any_split_gives_what_the_whole_gives(parts: list[list[int]]) -> None:
    labels = torch.tensor([c for part in parts for c in part])
    x, streamed, start = draw(len(labels), D), ClassGaussians(D), 0
    for part in parts:
        stop = start + len(part)
        streamed.add(x[start:stop], labels[start:stop], tuple(dict.fromkeys(part)))
        start = stop
    assert same(streamed, gathered(x, labels, tuple(dict.fromkeys(labels.tolist()))))


def test_a_class_without_an_image_is_refused_and_nothing_is_taken_in() -> None:
    x, labels = labelled({0: 3})
    s = ClassGaussians(D)
    with pytest.raises(ValueError, match="class 4 has no sample"):
        s.add(x, labels, (0, 4))
    assert s.classes == ()
    assert float(s.scatter.abs().max()) == 0


def test_moving_the_statistics_is_moving_the_features() -> None:
    x, labels = labelled({0: 6, 1: 4})
    s, W, source, shift = gathered(x, labels, (0, 1)), 0.3 * draw(D, D, name="W"), draw(D, name="s"), draw(D, name="d")
    s.move(W, source, shift)
    assert same(s, gathered(x + (x - source) @ W + shift, labels, (0, 1)))


def test_the_discriminant_is_the_textbook_formula() -> None:
    x, labels = labelled({0: 6, 1: 4, 2: 9})
    s, f = gathered(x, labels, (0, 1, 2)), draw(7, D, name="f")
    S = 0.9 * s.covariance + 0.1 * s.covariance.trace() / D * torch.eye(D)
    # Equal priors: half the squared Mahalanobis distance, less what is common to all classes.
    distance = torch.stack([((f - m) @ S.inverse() * (f - m)).sum(1) for m in s.means], dim=1)
    scores = s.linear_discriminant(f, 0.1)
    expected = -distance / 2
    assert torch.allclose(scores - scores[:, :1], expected - expected[:, :1])
    assert s.linear_discriminant(f.float(), 0.1).dtype == torch.float32


def test_only_singletons_fall_back_to_the_identity_and_nearest_mean() -> None:
    x = draw(3, D)
    s = gathered(x, torch.arange(3), (0, 1, 2))
    assert float(s.covariance.abs().max()) == 0
    assert torch.equal(shrunk(s.covariance, 0.1), torch.eye(D, dtype=torch.float64))
    f = draw(20, D, name="f")
    assert torch.equal(s.linear_discriminant(f, 0.1).argmax(1), torch.cdist(f, x).argmin(1))


def test_a_covariance_that_is_no_number_is_not_taken_for_the_identity() -> None:
    s = gathered(torch.full((4, D), torch.nan), torch.arange(4) % 2, (0, 1))
    assert shrunk(s.covariance, 0.1).isnan().all()
    assert s.linear_discriminant(draw(2, D), 0.1).isnan().all()


@pytest.mark.parametrize("amount", [0.0, -0.1, 1.5])
def test_shrinkage_outside_its_range_is_refused(amount: float) -> None:
    with pytest.raises(ValueError, match=r"outside \(0, 1\]"):
        shrunk(torch.eye(2), amount)


def test_statistics_restore_themselves() -> None:
    x, labels = labelled({0: 6, 9: 4})
    s, fresh = gathered(x, labels, (9, 0)), ClassGaussians(D)
    fresh.load_state_dict(s.state_dict())
    assert same(fresh, s)
    shapes = [tuple(t.shape) for t in s.state_dict().values()]
    assert shapes == [(2,), (2,), (2, D), (D, D), (0, D, D)]  # no row an image


def quadratic(counts: dict[int, int]) -> tuple[ClassGaussians, Tensor, Tensor]:
    x, labels = labelled(counts)
    statistics = ClassGaussians(D, per_class=True)
    statistics.add(x, labels, tuple(counts))
    return statistics, x, labels


def test_the_quadratic_discriminant_is_the_likelihood_of_a_gaussian_per_class() -> None:
    s, x, labels = quadratic({0: 6, 1: 4, 2: 9})
    f, shared = draw(7, D, name="f"), shrunk(s.covariance, 0.1)
    for own in (0.0, 0.3):
        covariances = [0.7 * shared + 0.3 * torch.cov(x[labels == c].T, correction=0) for c in (0, 1, 2)]
        normal = torch.distributions.MultivariateNormal
        S = covariances if own else [shared] * 3
        expected = torch.stack([normal(m, c).log_prob(f) for m, c in zip(s.means, S, strict=True)], dim=1)
        scores = s.quadratic_discriminant(f, 0.1, own)
        assert torch.allclose(scores - scores[:, :1], expected - expected[:, :1], atol=1e-4)
    assert torch.allclose(scores.argmax(1), expected.argmax(1))
    linear, flat = s.linear_discriminant(f, 0.1), s.quadratic_discriminant(f, 0.1, 0.0)
    assert torch.allclose(linear - linear[:, :1], flat - flat[:, :1], atol=1e-5)


def test_with_a_prior_in_images_a_class_leans_on_the_shared_covariance_by_its_count() -> None:
    s, x, labels = quadratic({0: 6, 1: 4, 2: 90})
    f, shared, nu = draw(7, D, name="f"), shrunk(s.covariance, 0.1), 10.0
    own = [torch.cov(x[labels == c].T, correction=0) for c in range(3)]
    posterior = [(n * S + nu * shared) / (n + nu) for S, n in zip(own, (6, 4, 90), strict=True)]
    normal = torch.distributions.MultivariateNormal
    expected = torch.stack([normal(m, S).log_prob(f) for m, S in zip(s.means, posterior, strict=True)], dim=1)
    scores = s.quadratic_discriminant(f, 0.1, 0.0, nu)
    assert torch.allclose(scores - scores[:, :1], expected - expected[:, :1], atol=1e-3)


def test_with_equal_counts_a_prior_is_a_share_of_all_classes() -> None:
    s, *_ = quadratic({0: 6, 1: 6, 2: 6})
    f = draw(7, D, name="f")
    by_share, by_count = s.quadratic_discriminant(f, 0.1, 0.1), s.quadratic_discriminant(f, 0.1, 0.0, 9 * 6.0)
    assert torch.allclose(by_share, by_count, atol=1e-5)


def test_a_class_of_few_images_is_not_chosen_too_seldom_with_a_prior() -> None:
    """Classes of one true covariance: a fixed share of narrow ones costs the small class, a prior does not."""
    counts, width = {0: 300, 1: 10}, 24
    mean = 2 * draw(2, width, name="centres") / width**0.5
    labels = torch.tensor([c for c, n in counts.items() for _ in range(n)])
    s = ClassGaussians(width, per_class=True)
    s.add(mean[labels] + draw(len(labels), width, name="train"), labels, (0, 1))
    test = mean[1] + draw(2000, width, name="test")
    shared, fixed, by_count = (
        float((s.quadratic_discriminant(test, 0.1, own, prior).argmax(1) == 1).double().mean())
        for own, prior in ((0.0, None), (0.3, None), (0.0, 2700.0))
    )
    assert fixed < shared - 0.1
    assert by_count > shared - 0.02


def test_covariances_of_classes_add_up_and_move_as_the_features_do() -> None:
    s, x, labels = quadratic({0: 6, 1: 4})
    f, W, source, shift = draw(3, D, name="f"), 0.3 * draw(D, D, name="W"), draw(D, name="s"), draw(D, name="d")
    before = s.quadratic_discriminant(f, 0.1, 0.2)
    halves = ClassGaussians(D, per_class=True)
    for part in (slice(0, None, 2), slice(1, None, 2)):
        halves.add(x[part], labels[part], (0, 1))
    torch.testing.assert_close(halves.scatters, s.scatters, atol=1e-4, rtol=1e-4)
    s.move(W, source, shift)
    torch.testing.assert_close(s.scatters.sum(0).double(), s.scatter, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(s.quadratic_discriminant(f, 0.1, 0.2), before)  # nothing stale is kept
    fresh = ClassGaussians(D, per_class=True)
    fresh.load_state_dict(s.state_dict())
    assert torch.equal(fresh.quadratic_discriminant(f, 0.1, 0.2), s.quadratic_discriminant(f, 0.1, 0.2))


def test_discriminant_scores_of_narrow_features_are_float32() -> None:
    statistics = ClassGaussians(4)
    features = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    statistics.add(features, torch.tensor([0, 0, 0, 1, 1, 1]), [0, 1])
    narrow = features.bfloat16()
    scores = statistics.linear_discriminant(narrow, 0.1)
    assert torch.equal(scores, statistics.linear_discriminant(narrow.float(), 0.1))
