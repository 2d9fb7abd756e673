"""Own covariances as a few directions: the discriminant is that of the matrices written out."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.linalg import eigh, inv, slogdet
from numpy.typing import NDArray
from streams import build, images, learn_all, stream
from torch import Tensor

from lamella.common.randomness import generator
from lamella.data.transform import plain_view
from lamella.learner.config.document import complete, up_to_date
from lamella.learner.costs import parameter_counts
from lamella.memory.gaussians import ClassGaussians, shrunk
from lamella.memory.mixtures import ClassMixtures
from lamella.methods.parts import Aligned
from lamella.testing.checks import CHECKS
from lamella.testing.trial import Trial

D = 7
Array = NDArray[np.float64]


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(0, name, *shape), dtype=torch.float64)


def labelled(counts: dict[int, int], name: str = "x") -> tuple[Tensor, Tensor]:
    """Features with a strong axis a class; classes of fewer images than features have singular covariances."""
    labels = torch.tensor([c for c, n in counts.items() for _ in range(n)])
    stretched = draw(len(labels), D, name=name) * (1 + 2 * (torch.arange(D) == labels[:, None]))
    return stretched + 2 * labels[:, None], labels


def gathered(counts: dict[int, int], directions: int | None, name: str = "x") -> ClassGaussians:
    statistics = ClassGaussians(D, per_class=True, directions=directions)
    statistics.add(*labelled(counts, name), tuple(counts))
    return statistics


def kept(statistics: ClassGaussians) -> list[Array]:
    """R R^T + r I of each class, written out."""
    assert statistics.low_rank is not None
    pairs = zip(statistics.low_rank.roots.double().numpy(), statistics.low_rank.rests.double().numpy(), strict=True)
    return [R @ R.T + r * np.eye(D) for R, r in pairs]


def cut(S: Array, k: int) -> Array:
    """The k largest directions of S, and the rest as one number: trace kept, P1 written out."""
    e, U = eigh(S)
    top = sum((e[i] * np.outer(U[:, i], U[:, i]) for i in range(D - min(k, D), D)), np.zeros((D, D)))
    return top + (np.trace(S) - np.trace(top)) / D * np.eye(D)


def dense_scores(statistics: ClassGaussians, f: Array, shares: list[float]) -> Array:
    """log N(f; m, (1 - a) S + a S_c) less its constant, with d x d inverses."""
    S, columns = shrunk(statistics.covariance, 0.1).numpy(), []
    for m, own, a in zip(statistics.means.numpy(), kept(statistics), shares, strict=True):
        C = (1 - a) * S + a * own
        columns.append([-((x - m) @ inv(C) @ (x - m) + slogdet(C)[1]) / 2 for x in f])
    return np.array(columns).T


COUNTS = {0: 40, 1: 3, 2: 1, 3: 12}
"""More images than features, fewer than directions, one alone, and a few."""


@pytest.mark.parametrize("k", [1, 3, 5, D, 3 * D])
def test_the_scores_are_those_of_the_covariances_written_out(k: int) -> None:
    s = gathered(COUNTS, k)
    s.add(*labelled({0: 4, 2: 9}, "again"), (0, 2))
    s.move(0.3 * draw(D, D, name="W"), draw(D, name="s"), draw(D, name="d"))
    f = 3 * draw(9, D, name="f")
    counts = s.counts.tolist()
    for own, prior in ((0.3, None), (0.0, None), (0.0, 10.0)):
        shares = [own if prior is None else n / (n + prior) for n in counts]
        found = s.quadratic_discriminant(f, 0.1, own, prior).numpy()
        np.testing.assert_allclose(found, dense_scores(s, f.numpy(), shares), atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", [2, 5])
def test_a_class_keeps_its_largest_directions_and_its_trace(k: int) -> None:
    s, (x, labels) = gathered(COUNTS, k), labelled(COUNTS)
    for c, found in zip(COUNTS, kept(s), strict=True):
        S = np.cov(x[labels == c].numpy().T, bias=True)
        np.testing.assert_allclose(found, cut(S, k), atol=1e-5)
        assert np.trace(found) == pytest.approx(np.trace(S), abs=1e-4)


def test_the_shared_covariance_and_the_means_stay_exact() -> None:
    few, whole = (gathered(COUNTS, k) for k in (2, None))
    assert torch.equal(few.covariance, whole.covariance)
    assert torch.equal(few.means, whole.means)


def test_with_all_directions_it_is_the_whole_covariance() -> None:
    few, whole, f = gathered(COUNTS, D), gathered(COUNTS, None), draw(5, D, name="f")
    for own, prior in ((0.3, None), (0.0, 10.0)):
        scores = (s.quadratic_discriminant(f, 0.1, own, prior) for s in (few, whole))
        torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)


def test_a_class_that_comes_back_is_the_union_of_what_is_kept_and_what_is_new() -> None:
    s, k = gathered(COUNTS, 3), 3
    before, means = kept(s), s.means.numpy().copy()
    x, labels = labelled({0: 4, 2: 9}, "again")
    s.add(x, labels, (0, 2))
    for c, n in ((0, 40), (2, 1)):
        new = x[labels == c].numpy()
        m, N = len(new), n + len(new)
        shift = new.mean(0) - means[c]
        union = (n * before[c] + m * np.cov(new.T, bias=True) + n * m / N * np.outer(shift, shift)) / N
        # What was isotropic stays so: the directions are those of the other parts.
        rest = n / N * float(gathered(COUNTS, 3).low_rank.rests[c]) * np.eye(D)  # type: ignore[union-attr]
        np.testing.assert_allclose(kept(s)[c], cut(union - rest, k) + rest, atol=1e-5)


def test_directions_move_exactly_as_the_features_do_and_the_rest_keeps_its_size() -> None:
    s, W = gathered(COUNTS, 3), 0.3 * draw(D, D, name="W")
    assert s.low_rank is not None
    roots, rests = s.low_rank.roots.double().numpy(), s.low_rank.rests.double().numpy()
    s.move(W, draw(D, name="s"), draw(D, name="d"))
    M = np.eye(D) + W.numpy()
    for i, (R, r) in enumerate(zip(roots, rests, strict=True)):
        own = s.low_rank.roots[i].double().numpy()
        np.testing.assert_allclose(own @ own.T, M.T @ R @ R.T @ M, atol=1e-5)
        assert float(s.low_rank.rests[i]) == pytest.approx(r * np.trace(M.T @ M) / D, rel=1e-5)


def test_merged_classes_are_the_union_of_what_is_kept_of_both() -> None:
    s, k = gathered(COUNTS, 3), 3
    assert s.low_rank is not None
    (A, B), (a, b), (m, n) = (kept(s)[i] for i in (0, 3)), s.low_rank.rests[[0, 3]].tolist(), (40, 12)
    shift = (s.means[3] - s.means[0]).numpy()
    s.merge(3, 0)
    rest = (m * a + n * b) / (m + n) * np.eye(D)
    union = (m * A + n * B + m * n / (m + n) * np.outer(shift, shift)) / (m + n)
    np.testing.assert_allclose(kept(s)[0], cut(union - rest, k) + rest, atol=1e-5)
    assert s.classes == (0, 1, 2)
    assert len(s.low_rank.rests) == 3


def test_what_is_left_does_not_depend_on_a_class_that_was_dropped() -> None:
    """The shared covariance, too, is then made of what is kept of the others alone."""
    one, other = gathered(COUNTS, 3), ClassGaussians(D, per_class=True, directions=3)
    x, labels = labelled(COUNTS)
    other.add(torch.where((labels == 3)[:, None], 9 * x.flip(0), x), labels, tuple(COUNTS))
    for s in (one, other):
        s.drop(3)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    expected = sum(n * S for n, S in zip((40, 3, 1), kept(one), strict=True))
    np.testing.assert_allclose(one.scatter.numpy(), expected, atol=1e-9)


def test_they_are_stored_loaded_and_counted() -> None:
    s, fresh = gathered(COUNTS, 3), ClassGaussians(D, per_class=True, directions=3)
    fresh.load_state_dict(s.state_dict())
    f = draw(5, D, name="f")
    assert torch.equal(fresh.quadratic_discriminant(f, 0.1, 0.2), s.quadratic_discriminant(f, 0.1, 0.2))
    shapes = {name: tuple(t.shape) for name, t in s.state_dict().items()}
    assert shapes["scatters"] == (0, D, D)
    assert (shapes["low_rank.roots"], shapes["low_rank.rests"]) == ((4, D, 3), (4,))
    with pytest.raises(ValueError, match="keep no directions of their own"):
        gathered(COUNTS, None).low_rank_discriminant(0.1, 0.1)


def test_several_gaussians_a_class_keep_directions_too() -> None:
    x, labels = labelled({0: 30, 1: 30})
    plain, mixed = (kind(D, per_class=True, directions=3) for kind in (ClassGaussians, ClassMixtures))
    for s in (plain, mixed):
        s.add(x, labels, (0, 1))
    assert torch.equal(plain.quadratic_discriminant(x, 0.1, 0.5), mixed.quadratic_discriminant(x, 0.1, 0.5))
    mixed.add(x + 5, labels, (0, 1))
    assert mixed.low_rank is not None
    assert len(mixed.low_rank.rests) == 4
    mixed.drop(0)
    assert (mixed.classes, len(mixed.low_rank.rests)) == ((1,), 2)


# the part ------------------------------------------------------------------------------------------------------------


def carried(name: str = "nearest-mean", seed: int = 0, **options: Any) -> Aligned:
    return Aligned(build(name, seed), seed=seed, **options)


def test_eight_directions_are_kept_where_classes_have_covariances_of_their_own() -> None:
    own, shared = carried(own_covariance=0.1), carried()
    learn_all(own, stream(4, 2))
    assert own.statistics.low_rank is not None
    assert own.statistics.low_rank.roots.shape == (4, 64, 8)
    assert shared.statistics.low_rank is None
    whole = learn_all(carried(own_covariance=0.1, own_directions="all"), stream(4, 2))
    counts = [parameter_counts(method)["statistics"] for method in (own, whole)]
    assert counts[1] - counts[0] == 4 * (64 * 64 - (64 * 8 + 1))


@pytest.mark.parametrize("options", [{"own_covariance": 0.3}, {"own_covariance_prior": 20.0, "own_directions": 3}])
def test_its_plain_classifier_is_the_prediction(options: dict[str, Any]) -> None:
    method = learn_all(carried(**options), stream(4, 2)).eval()
    x = images(6, 4, "test").batch(torch.arange(8), plain_view(method.backbone.transform))
    with torch.no_grad():
        classifier = method.plain_classifier()
        torch.testing.assert_close(classifier(method.features(x)), method.predict(x), rtol=1e-5, atol=1e-3)
    for refused in (classifier.as_linear, method.linear_classifier):
        with pytest.raises(ValueError, match=r"more than one linear layer|covariances of their own"):
            refused()


@pytest.mark.parametrize(
    "options", [{"own_covariance": 0.3, "own_directions": "all"}, {"own_covariance": 0.3, "means": 1}]
)
def test_what_is_no_few_tensors_has_no_plain_classifier(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="which no linear layer holds"):
        learn_all(carried(**options), stream(4, 2)).plain_classifier()


def test_a_stored_model_keeps_the_whole_covariances_that_it_was_learned_with() -> None:
    for own, kept in (("own_covariance", "all"), ("own_covariance_prior", "all"), ("ridge", 8)):
        table = {"name": "inflora+align", "align": {own: 0.5}}
        new = complete({"backbone": {"name": "test_vit"}, "method": table})
        assert up_to_date(new) == new
        old = deepcopy(new)
        assert old["method"]["align"].pop("own_directions") == 8
        assert up_to_date(old)["method"]["align"]["own_directions"] == kept


@pytest.mark.parametrize("directions", [0, -1, "some", 2.5])
def test_a_number_of_directions_is_at_least_one(directions: Any) -> None:
    with pytest.raises(ValueError, match=r"own_directions is .*; give a whole number of at least 1, or 'all'"):
        carried(own_directions=directions)


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial(lambda seed: carried("seq-lora", seed, own_covariance=0.2, own_directions=4, drift="local"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_method_with_directions_and_local_drift_keeps_the_contract(trial: Trial, check: Any) -> None:
    check(trial)
