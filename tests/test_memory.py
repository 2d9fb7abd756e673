"""Class statistics: exact under any split, moved by any affine map, and a discriminant by its textbook formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lamella.memory import ClassGaussians, shrunk
from lamella.randomness import generator

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
    with pytest.raises(ValueError, match="class 4 has no image"):
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


@pytest.mark.parametrize("amount", [0.0, -0.1, 1.5])
def test_shrinkage_outside_its_range_is_refused(amount: float) -> None:
    with pytest.raises(ValueError, match=r"outside \(0, 1\]"):
        shrunk(torch.eye(2), amount)


def test_statistics_restore_themselves() -> None:
    x, labels = labelled({0: 6, 9: 4})
    s, fresh = gathered(x, labels, (9, 0)), ClassGaussians(D)
    fresh.load_state_dict(s.state_dict())
    assert same(fresh, s)
    assert [tuple(t.shape) for t in s.state_dict().values()] == [(2,), (2,), (2, D), (D, D)]  # no row an image


def test_discriminant_scores_of_narrow_features_are_float32() -> None:
    statistics = ClassGaussians(4)
    features = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    statistics.add(features, torch.tensor([0, 0, 0, 1, 1, 1]), [0, 1])
    narrow = features.bfloat16()
    scores = statistics.linear_discriminant(narrow, 0.1)
    assert torch.equal(scores, statistics.linear_discriminant(narrow.float(), 0.1))
