"""Local drift (HopDC): each part of a class moves as the new images most like it."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lamella.common.randomness import generator
from lamella.memory.gaussians import ClassGaussians, standard_noise
from lamella.memory.mixtures import ClassMixtures
from lamella.methods.parts.drift import LocalDrift, affine_drift

D = 6
Array = NDArray[np.float64]


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(0, name, *shape), dtype=torch.float64)


def moved(Z: Array, before: Array, after: Array, neighbours: int, temperature: float) -> Array:
    """The specification's words, one vector and one neighbour after the other."""
    out = []
    for z in Z:
        cosines = [float(z @ k) / float(np.linalg.norm(z) * np.linalg.norm(k)) for k in before]
        top = sorted(range(len(before)), key=lambda i: -cosines[i])[:neighbours]
        weights = np.exp([cosines[i] / temperature for i in top])
        out.append(z + sum(w / weights.sum() * (after[i] - before[i]) for w, i in zip(weights, top, strict=True)))
    return np.array(out)


@pytest.mark.parametrize("neighbours", [1, 5, 400])
def test_the_map_is_the_softmax_of_the_most_similar_shifts(neighbours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before, z = draw(30, D), draw(11, D, name="z")
    after = before + draw(30, D, name="shift")
    drift = LocalDrift.between(before, after)._replace(neighbours=neighbours)
    expected = moved(z.numpy(), before.numpy(), after.numpy(), neighbours, 0.05)
    np.testing.assert_allclose(drift(z).numpy(), expected, atol=1e-6)
    monkeypatch.setattr("lamella.methods.parts.drift.BLOCK", 60)  # two features at a time
    np.testing.assert_allclose(drift(z).numpy(), expected, atol=1e-6)


def statistics(kind: str) -> ClassGaussians:
    labels = torch.arange(40) % 4
    options = {"whole": {"per_class": True}, "directions": {"per_class": True, "directions": 2}}.get(kind, {})
    made = ClassMixtures(D, means=2) if kind == "mixtures" else ClassGaussians(D, **options)  # type: ignore[arg-type]
    made.add(draw(40, D) + 3 * labels[:, None], labels, (0, 1, 2, 3))
    return made


def root(S: Array) -> Array:
    e, U = np.linalg.eigh(S)
    return U @ np.diag(np.sqrt(np.clip(e, 0, None))) @ U.T


@pytest.mark.parametrize("kind", ["shared", "whole", "directions", "mixtures"])
def test_means_and_covariances_are_nine_tenths_those_of_moved_draws(kind: str) -> None:
    s, before = statistics(kind), draw(30, D, name="before") + 4
    after = before + draw(30, D, name="shift")
    noise = standard_noise(50, D, generator(0, "noise"))
    means, counts, scatter = s.means.numpy().copy(), s.counts.numpy(), s.scatter.numpy().copy()
    own = s.scatters.double().numpy().copy()
    kept = [] if s.low_rank is None else [s.low_rank.covariance(i).numpy() for i in range(len(means))]
    s.follow(LocalDrift.between(before, after), noise, 0.9)

    total = 0.1 * scatter
    for i, (m, n) in enumerate(zip(means, counts, strict=True)):
        S = own[i] / n if kind == "whole" else scatter / counts.sum()
        x = moved(m + noise.numpy() @ root(S), before.numpy(), after.numpy(), 400, 0.05)
        np.testing.assert_allclose(s.means[i].numpy(), 0.9 * x.mean(0) + 0.1 * m, atol=1e-6)
        total += 0.9 * n * np.cov(x.T, bias=True)
        if kind == "whole":
            expected = 0.9 * n * np.cov(x.T, bias=True) + 0.1 * own[i]
            np.testing.assert_allclose(s.scatters[i].numpy(), expected, rtol=1e-4, atol=1e-4)
        if s.low_rank is not None:
            x = moved(m + noise.numpy() @ root(kept[i]), before.numpy(), after.numpy(), 400, 0.05)
            trace = 0.9 * np.trace(np.cov(x.T, bias=True)) + 0.1 * np.trace(kept[i])
            assert float(s.low_rank.covariance(i).trace()) == pytest.approx(trace, rel=1e-5)
    np.testing.assert_allclose(s.scatter.numpy(), total, atol=1e-6)


@pytest.mark.parametrize("kind", ["shared", "whole", "directions", "mixtures"])
def test_without_drift_nothing_changes(kind: str) -> None:
    s, x = statistics(kind), draw(30, D, name="before")
    old = statistics(kind)
    s.follow(LocalDrift.between(x, x), standard_noise(50, D, generator(0, "noise")), 0.9)
    torch.testing.assert_close(s.means, old.means, atol=1e-9, rtol=0)
    torch.testing.assert_close(s.scatter, old.scatter, atol=1e-6 if kind == "whole" else 1e-9, rtol=0)  # float32
    torch.testing.assert_close(s.scatters, old.scatters, atol=1e-5, rtol=1e-5)
    if s.low_rank is not None and old.low_rank is not None:
        for i in range(len(s.means)):
            torch.testing.assert_close(s.low_rank.covariance(i).trace(), old.low_rank.covariance(i).trace())


def test_regions_that_move_apart_are_followed_where_one_affine_map_cannot() -> None:
    """Three directions of features; the first two move in opposite ways, and the third stays."""
    axes = 10 * torch.eye(D, dtype=torch.float64)[:3]
    shifts = torch.tensor([[0.0, 0, 0, 4], [0, 0, 0, -4], [0, 0, 0, 0]], dtype=torch.float64)
    shifts = torch.cat([torch.zeros(3, D - 4, dtype=torch.float64), shifts], 1)
    sides = torch.arange(300) % 3
    before = axes[sides] + 0.3 * draw(300, D, name="near")
    after = before + shifts[sides]
    old = torch.cat([0.5 * axes, 2 * axes])  # other lengths, the same directions
    expected = old + torch.cat([shifts, shifts])
    local = LocalDrift.between(before, after)(old)
    affine = affine_drift(before, after, 0.03)(old)
    assert float((local - expected).norm(dim=1).max()) < 0.1
    assert float((affine - expected).norm(dim=1).max()) > 1


def test_standard_draws_have_mean_zero_and_the_identity_as_covariance() -> None:
    noise = standard_noise(40, D, generator(0, "noise"))
    np.testing.assert_allclose(noise.mean(0).numpy(), 0, atol=1e-12)
    np.testing.assert_allclose((noise.T @ noise / 40).numpy(), np.eye(D), atol=1e-12)
