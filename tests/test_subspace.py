"""Subspaces: whichever basis is stored, the projections are those of the mathematics."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lamella.common.randomness import generator
from lamella.memory import subspace
from lamella.memory.subspace import (
    SecondMoment,
    Subspace,
    count_by_share,
    count_by_trade_off,
    leading,
    leading_singular,
    left_singular,
    numerical_rank,
    orthonormal,
    project_out,
)


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(0, name, *shape), dtype=torch.float64)


def frame(d: int, k: int, name: str = "frame") -> Tensor:
    """(d, k) orthonormal columns."""
    return orthonormal(draw(d, k, name=name))


def spanned(columns: Tensor) -> Tensor:
    """The projection onto the span of columns, by the pseudo-inverse: independent of any basis."""
    return columns.double() @ torch.linalg.pinv(columns.double(), rtol=1e-6)


def projection(space: Subspace) -> Tensor:
    return space.inside(torch.eye(space.width, dtype=torch.float64))


def error(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0


# second moments ------------------------------------------------------------------------------------------------------


def test_a_second_moment_is_the_mean_outer_product_over_tokens() -> None:
    x = draw(5, 7, 6).float()
    moment = SecondMoment(6)
    moment(x)
    assert error(moment.mean, torch.einsum("nti,ntj->ij", x, x) / 35) < 1e-5
    assert int(moment.count) == 35


def test_second_moments_of_parts_add_up() -> None:
    x = draw(9, 6).float()
    whole, first, second = SecondMoment(6), SecondMoment(6), SecondMoment(6)
    whole(x)
    first(x[:2])
    first(x[2:3])
    second(x[3:])
    first.add(second)
    assert error(first.mean, whole.mean) < 1e-6
    assert int(first.count) == 9


def test_masked_tokens_do_not_count() -> None:
    x = draw(4, 5, 6).float()
    mask = torch.rand(4, 5, generator=generator(0, "mask")) > 0.4
    masked, kept = SecondMoment(6), SecondMoment(6)
    masked(x, mask)
    kept(x[mask])
    assert int(masked.count) == int(mask.sum()) < 20
    assert error(masked.mean, kept.mean) < 1e-6


def test_half_inputs_are_summed_in_float32_and_nothing_seen_is_an_error() -> None:
    moment = SecondMoment(2)
    with pytest.raises(ValueError, match="seen no input"):
        _ = moment.mean
    for _ in range(10):
        moment(torch.ones(1000, 2, dtype=torch.bfloat16))  # a sum in bfloat16 would stop at 256
    assert torch.equal(moment.total, torch.full((2, 2), 10_000.0))


# linear algebra ------------------------------------------------------------------------------------------------------


def test_a_wide_moment_of_few_tokens_has_the_vectors_of_its_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subspace, "WIDE", 64)
    x = draw(12, 64)
    moments = {
        "few tokens": x.T @ x / 12,
        "as many as fit": draw(16, 64).T @ draw(16, 64),
        "none": torch.zeros(64, 64, dtype=torch.float64),
    }
    for what, G in moments.items():
        (U, s), (V, t) = leading_singular(G), left_singular(G)
        assert (U.shape, s.shape) == ((64, 16), (16,)), what
        assert torch.allclose(s, t[:16], atol=1e-5 * max(float(t[0]), 1e-9)), what
        assert torch.allclose(U.T @ U, torch.eye(16, dtype=torch.float64), atol=1e-5), what
        rank = int((t > 1e-5 * t[0]).sum())
        assert torch.allclose(U[:, :rank] @ U[:, :rank].T, V[:, :rank] @ V[:, :rank].T, atol=1e-5), what
    many = draw(17, 64)
    for full in (many.T @ many, draw(64, 64)):
        assert all(map(torch.equal, leading_singular(full), left_singular(full)))


def test_left_singular_vectors_are_those_of_the_decomposition() -> None:
    M = draw(8, 8)
    U, s = left_singular(M)
    V, t, _ = torch.linalg.svd(M)
    assert error(s, t) < 1e-9
    assert error((U * V).sum(0).abs(), torch.ones(8)) < 1e-9
    assert error(leading(M, 3), U[:, :3]) == 0
    assert leading(M.float(), 3).dtype == torch.float32


def test_numerical_rank_counts_what_stands_out() -> None:
    _, s = left_singular(draw(8, 3) @ draw(3, 8, name="y"))
    assert numerical_rank(s, float(s[0])) == 3
    assert numerical_rank(s, float(s[0]) * 1e9) == 0


def test_project_out_leaves_only_what_is_orthogonal() -> None:
    basis, x = frame(10, 4), draw(10, 6)
    rest = project_out(x, basis)
    assert error(basis.T @ rest, torch.zeros(4, 6)) < 1e-12
    assert error(rest + spanned(basis) @ x, x) < 1e-9
    assert error(project_out(rest, basis), rest) < 1e-12


def test_orthonormal_keeps_the_span() -> None:
    columns = draw(9, 4) * torch.tensor([1e3, 1.0, 1e-3, 5.0])
    Q = orthonormal(columns)
    assert error(Q.T @ Q, torch.eye(4)) < 1e-12
    assert error(project_out(columns, Q), torch.zeros(9, 4)) < 1e-9
    assert orthonormal(columns[:, :0]).shape == (9, 0)


# growing -------------------------------------------------------------------------------------------------------------


def test_an_empty_subspace_holds_nothing() -> None:
    space, x = Subspace(6), draw(6, 3)
    assert space.dimension == 0
    assert torch.equal(space.outside(x), x)
    assert error(space.inside(x), torch.zeros(6, 3)) == 0
    space.extend(torch.zeros(6, 0))
    assert space.dimension == 0


@pytest.mark.parametrize("d", [10, 11])
def test_basis_and_complement_give_the_same_projections(d: int) -> None:
    steps, space, seen = frame(d, d), Subspace(d), 0
    for k in (1, 2, 2, 1, 3):
        seen, before = seen + k, space.complement
        space.extend(steps[:, seen - k : seen].float())
        assert error(projection(space), spanned(steps[:, :seen])) < 1e-5
        assert error(space.inside(steps) + space.outside(steps), steps) < 1e-6
        assert space.dimension == seen
        assert space.complement == (2 * seen > d)
        assert space.complement or not before  # it never switches back
        assert 2 * space.vectors.shape[1] <= d
    space.extend(steps[:, seen:].float())
    assert space.dimension == d
    assert space.vectors.shape == (d, 0)
    assert error(space.outside(steps), torch.zeros(d, d)) == 0


def test_the_switch_itself_changes_no_projection() -> None:
    d, k = 12, 6
    directions = frame(d, k)
    space = Subspace(d)
    space.extend(directions.float())
    assert not space.complement  # exactly half still is a basis
    before = projection(space)
    one = orthonormal(space.outside(draw(d, 1)))
    space.extend(one.float())
    assert space.complement
    assert error(projection(space), before + one @ one.T) < 1e-6


def test_a_first_extension_beyond_half_stores_the_complement_of_it() -> None:
    directions = frame(10, 8)
    space = Subspace(10)
    space.extend(directions.float())
    assert space.complement
    assert space.vectors.shape == (10, 2)
    assert error(directions.T @ space.vectors.double(), torch.zeros(8, 2)) < 1e-6
    assert error(space.inside(directions), directions) < 1e-6


def test_the_basis_stays_orthonormal_after_thirty_extensions() -> None:
    space = Subspace(96)
    for i in range(30):
        space.extend(orthonormal(space.outside(draw(96, 3, name=f"step{i}"))).float())
        vectors = space.vectors.double()
        assert error(vectors.T @ vectors, torch.eye(vectors.shape[1])) < 1e-6
        assert space.dimension == 3 * (i + 1)
        assert 2 * vectors.shape[1] <= 96
    assert space.complement


@pytest.mark.parametrize("start", [2, 7])
def test_directions_that_bring_nothing_new_add_nothing(start: int) -> None:
    space = Subspace(10)
    held = frame(10, start)
    space.extend(held.float())
    before = projection(space)
    space.extend((held @ draw(start, 3)).float())  # inside already
    space.extend(torch.zeros(10, 2))
    assert space.dimension == start
    assert error(projection(space), before) < 1e-6
    one = space.outside(draw(10, 1))
    space.extend(torch.cat([one, 2 * one, one + held[:, :1], held[:, :1]], dim=1).float())  # one direction, four times
    assert space.dimension == start + 1
    assert error(projection(space), spanned(torch.cat([held, one], dim=1))) < 1e-5


@pytest.mark.parametrize("start", [4, 30])
def test_directions_almost_inside_keep_the_basis_orthonormal(start: int) -> None:
    space, held = Subspace(48), frame(48, start)
    space.extend(held.float())
    for i in range(4):
        space.extend((held + 1e-4 * draw(48, start, name=f"new{i}"))[:, :2].float())
        vectors = space.vectors.double()
        assert space.dimension == start + 2 * (i + 1)
        assert error(vectors.T @ vectors, torch.eye(vectors.shape[1])) < 1e-6
        assert error(space.inside(held), held) < 1e-4


def test_more_directions_than_are_free_fill_the_space() -> None:
    for start in (2, 7):
        space = Subspace(10)
        space.extend(frame(10, start).float())
        space.extend(draw(10, 15).float())
        assert space.dimension == 10


def test_a_subspace_restores_itself_from_its_state() -> None:
    for k in (3, 8):
        space, fresh = Subspace(10), Subspace(10)
        space.extend(frame(10, k).float())
        fresh.load_state_dict(space.state_dict())
        assert fresh.dimension == k
        assert torch.equal(projection(fresh), projection(space))


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 14), steps=st.lists(st.integers(0, 5), max_size=6), lean=st.booleans())
def test_any_extensions_span_what_they_were_given(width: int, steps: list[int], lean: bool) -> None:
    space, given_columns = Subspace(width), torch.zeros(width, 0, dtype=torch.float64)
    for i, n in enumerate(steps):
        new = draw(width, n, name=f"step{i}")
        if lean and n > 1:
            new[:, -1] = new[:, 0]
        space.extend(new.float())
        given_columns = torch.cat([given_columns, new], dim=1)
        vectors = space.vectors.double()
        assert 2 * vectors.shape[1] <= width
        assert error(vectors.T @ vectors, torch.eye(vectors.shape[1])) < 1e-6
        assert space.dimension == int(torch.linalg.matrix_rank(given_columns, rtol=1e-6))
        assert error(projection(space), spanned(given_columns)) < 1e-3


# how many directions ------------------------------------------------------------------------------------------------

ENERGIES = st.lists(st.floats(0, 10, allow_subnormal=False), min_size=1, max_size=12).map(
    lambda values: sorted(values, reverse=True)
)


@settings(max_examples=80, deadline=None)
@given(energies=ENERGIES, tasks=st.integers(1, 5), room=st.floats(0.05, 30))
def test_the_trade_off_is_the_smallest_of_all_costs(energies: list[float], tasks: int, room: float) -> None:
    """Written out: for every number of directions, the unprotected energy of so many tasks minus the free share."""
    values, d = np.array(energies, dtype=np.float64), len(energies)
    total = values.sum() if values.sum() > 0 else 1.0
    costs = [tasks * (1 - values[:k].sum() / total) - room * (d - k) / d for k in range(1, d + 1)]
    found = count_by_trade_off(torch.tensor(energies, dtype=torch.float64), tasks, room)
    assert 1 <= found <= d
    assert costs[found - 1] <= min(costs) + 1e-9


def test_the_trade_off_protects_a_direction_whose_share_outweighs_its_room() -> None:
    values = torch.tensor([40.0, 30.0, 15.0, 10.0, 5.0, 0.0, 0.0, 0.0])
    for tasks in (1, 2, 4):
        above = int((values / 100 > 1.0 / (8 * tasks)).sum())
        assert count_by_trade_off(values, tasks, room=1.0) == above
    assert count_by_trade_off(values, 100, room=1.0) == 5  # never what has no energy at all
    assert count_by_trade_off(values, 1, room=1000.0) == 1


@settings(max_examples=60, deadline=None)
@given(energies=ENERGIES, share=st.floats(0.05, 1.0))
def test_a_share_is_reached_by_so_many_directions_and_not_by_fewer(energies: list[float], share: float) -> None:
    values = np.array(energies, dtype=np.float64)
    found = count_by_share(torch.tensor(energies, dtype=torch.float64), share)
    if values.sum() == 0:
        assert found == len(values)
        return
    assert values[:found].sum() / values.sum() >= share - 1e-9
    assert values[: found - 1].sum() / values.sum() < share
