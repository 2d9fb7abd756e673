"""Merging of low-rank updates: linear rules equal sums of whole matrices, spectral ones stay in what the updates span.

Every definition is written out here a second time, in NumPy.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lamella.adapters.merging import RULES, Merging, merged, regmean
from lamella.adapters.pairs import Pair, compact, rank_of_energy, spectrum, tolerance, truncated, truncated_for

D_OUT, D_IN, RANK, TASKS = 128, 96, 4, 5
Matrix = np.ndarray[Any, np.dtype[np.float64]]
LINEAR, BY_ENTRIES, SPECTRAL = (
    ("sum", "mean", "weighted"),
    ("ties", "dare", "elect"),
    ("iso-c", "iso-cts", "tsv", "opcm"),
)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def random_pairs() -> list[Pair]:
    return [Pair(normal(RANK, D_IN, seed=i) / D_IN**0.5, normal(D_OUT, RANK, seed=50 + i)) for i in range(TASKS)]


def deficient_pairs() -> list[Pair]:
    """Factors of rank 4 whose products have rank 3, 2, 2, 1 and 0."""
    pairs: list[Pair] = []
    for i, (A, B) in enumerate(random_pairs()):
        A, B = A.clone(), B.clone()
        if i in (1, 2):
            A[3] = A[0] + A[1]
            A[2] = A[0]
        if i in (0, 3):
            B[:, 3] = 2 * B[:, 2]
        if i == 3:
            B[:, 1:] = B[:, :1]
        pairs.append(Pair(A, torch.zeros_like(B) if i == 4 else B))
    return pairs


def shared_pairs() -> list[Pair]:
    """All tasks read the same directions, as branches with a fixed A do."""
    pairs = random_pairs()
    return [Pair(pairs[0].A, B) for _, B in pairs]


INPUTS: dict[str, Callable[[], list[Pair]]] = {
    "random": random_pairs,
    "rank-deficient": deficient_pairs,
    "shared A": shared_pairs,
}
of_all_inputs = pytest.mark.parametrize("inputs", INPUTS)


def deltas(pairs: list[Pair]) -> list[Matrix]:
    return [pair.B.numpy() @ pair.A.numpy() for pair in pairs]


def by_rule(pairs: list[Pair], rule: str, **numbers: Any) -> Matrix:
    weights = numbers.pop("weights", None)
    return merged([{"layer": p} for p in pairs], Merging(rule, **numbers), weights=weights)["layer"].delta().numpy()


def near(found: Matrix, wanted: Matrix, tolerance: float = 1e-10) -> bool:
    return bool(np.abs(found - wanted).max() < tolerance)


def ranked_svd(M: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    U, s, Vh = np.linalg.svd(M, full_matrices=False)
    rank = int((s > 1e-9 * s[0]).sum())
    return U[:, :rank], s[:rank], Vh[:rank].T


def polar(M: Matrix) -> Matrix:
    P, _, Q = ranked_svd(M)
    return P @ Q.T


def spans(pairs: list[Pair]) -> tuple[Matrix, Matrix]:
    """Orthonormal bases of all columns and of all rows."""
    D = deltas(pairs)
    scaled = [d / np.linalg.norm(d) for d in D if d.any()]
    return ranked_svd(np.concatenate(scaled, 1))[0], ranked_svd(np.concatenate(scaled))[2]


# linear rules


@of_all_inputs
def test_linear_rules_equal_the_sums_of_whole_matrices(inputs: str) -> None:
    pairs = INPUTS[inputs]()
    D = deltas(pairs)
    weights = [0.5, -1.0, 2.0, 0.0, -0.25]
    assert near(by_rule(pairs, "sum"), sum(D))
    assert near(by_rule(pairs, "mean"), sum(D) / TASKS)
    assert near(by_rule(pairs, "sum", scale=0.3), 0.3 * sum(D))
    assert near(by_rule(pairs, "weighted", weights=weights), sum(w * d for w, d in zip(weights, D, strict=True)))


@of_all_inputs
def test_a_merged_pair_has_the_rank_of_the_merged_matrix(inputs: str) -> None:
    pairs = INPUTS[inputs]()
    found = merged([{"layer": p} for p in pairs], Merging("sum"))["layer"]
    assert len(found.A) == np.linalg.matrix_rank(sum(deltas(pairs)))


def test_an_adapter_minus_itself_is_nothing() -> None:
    pair = random_pairs()[0]
    found = merged([{"layer": pair}, {"layer": pair}], Merging("weighted"), weights=[1.0, -1.0])["layer"]
    assert found.delta().abs().max() < 1e-14


def test_a_layer_that_an_adapter_lacks_is_one_that_it_does_not_change() -> None:
    a, b, _, _, _ = random_pairs()
    zero = Pair(a.A, torch.zeros_like(a.B))
    for rule in ("mean", "elect", "iso-c", "iso-cts", "tsv", "opcm", "ties"):
        without = merged([{"x": a, "y": b}, {"x": b}], Merging(rule))
        with_zero = merged([{"x": a, "y": b}, {"x": b, "y": zero}], Merging(rule))
        assert near(without["y"].delta().numpy(), with_zero["y"].delta().numpy()), rule


# rules on entries, one entry at a time


def elected(values: Matrix) -> float:
    sign = np.sign(values.mean())
    return sign * max([abs(v) for v in values if np.sign(v) == sign], default=0.0) if sign else 0.0


@of_all_inputs
def test_elect_takes_the_largest_value_of_the_sign_of_the_mean(inputs: str) -> None:
    pairs = INPUTS[inputs]()
    assert near(by_rule(pairs, "elect"), np.apply_along_axis(elected, 0, np.stack(deltas(pairs))))


@of_all_inputs
def test_ties_trims_all_layers_of_an_adapter_together_elects_signs_and_averages_who_agrees(inputs: str) -> None:
    pairs = INPUTS[inputs]()
    small = [Pair(pair.A[:, :40], 0.1 * pair.B[:30]) for pair in pairs]
    found = merged([{"x": p, "y": q} for p, q in zip(pairs, small, strict=True)], Merging("ties", keep=0.3))
    kept: list[tuple[Matrix, Matrix]] = []
    for x, y in zip(deltas(pairs), deltas(small), strict=True):
        every = np.sort(np.abs(np.concatenate([x.ravel(), y.ravel()])))[::-1]
        least = every[round(0.3 * len(every)) - 1]
        kept.append((np.where(np.abs(x) >= least, x, 0), np.where(np.abs(y) >= least, y, 0)))

    def averaged(values: Matrix) -> float:
        agreeing = [v for v in values if v * np.sign(values.sum()) > 0]
        return float(np.mean(agreeing)) if agreeing else 0.0

    for k, name in enumerate(("x", "y")):
        wanted = np.apply_along_axis(averaged, 0, np.stack([own[k] for own in kept]))
        assert near(found[name].delta().numpy(), wanted)
    assert (found["y"].delta() == 0).double().mean() > 0.9, "the small layer is trimmed away, beside the large one"


def test_dare_drops_entries_at_random_and_keeps_the_expectation() -> None:
    pairs = random_pairs()[:1]
    (D,) = deltas(pairs)
    found = by_rule(pairs, "dare", drop=0.75)
    kept = found != 0
    assert near(found[kept], 4 * D[kept])
    assert abs(kept.mean() - 0.25) < 0.02
    assert near(by_rule(pairs, "dare", drop=0.0), D)


def test_draws_of_dare_depend_on_the_seed_the_layer_and_the_adapter_alone() -> None:
    a, b, _, _, _ = random_pairs()
    both = merged([{"x": a, "y": b}], Merging("dare"), seed=3)
    assert torch.equal(both["y"].delta(), merged([{"y": b}], Merging("dare"), seed=3)["y"].delta())
    assert not torch.equal(both["y"].delta(), merged([{"y": b}], Merging("dare"), seed=4)["y"].delta())
    zero = Pair(a.A, torch.zeros_like(a.B))
    second = merged([{"x": zero}, {"x": a}], Merging("dare"), seed=3)["x"].delta() * 2
    assert not torch.equal(second, both["x"].delta())


# spectral rules, defined over the span of the updates


def iso_c(pairs: list[Pair]) -> Matrix:
    U, s, V = ranked_svd(sum(deltas(pairs)))
    return s.mean() * U @ V.T


def iso_cts(pairs: list[Pair], common: float = 0.8) -> Matrix:
    D, (columns, rows) = deltas(pairs), spans(pairs)
    room = min(columns.shape[1], rows.shape[1])
    each = round((room - int(common * room)) / TASKS)
    U, s, V = (x[..., : room - each * TASKS] for x in ranked_svd(sum(D)))
    parts = [(U, s, V)]
    for d in D:
        if d.any() and np.abs(rest := d - U @ U.T @ d).max() > 1e-12:
            parts.append(tuple(x[..., :each] for x in ranked_svd(rest)))
    left, values, right = (np.concatenate(x, -1) for x in zip(*parts, strict=True))
    return values.mean() * polar(left) @ polar(right).T


def tsv(pairs: list[Pair]) -> Matrix:
    U, s, V = (np.concatenate(x, -1) for x in zip(*(ranked_svd(d) for d in deltas(pairs) if d.any()), strict=True))
    return polar(U) * s @ polar(V).T


def opcm(pairs: list[Pair], strong: float = 0.5) -> Matrix:
    D = deltas(pairs)
    M, factor = D[0], 1.0
    for t in range(1, TASKS):
        U, s, V = ranked_svd(M)
        k = int(np.argmax(s.cumsum() / s.sum() > strong))
        P = U.T @ D[t] @ V
        X = np.diag(np.diag(P)).copy()
        X[:k, :k] = P[:k, :k]
        total = factor * M + D[t] - U @ X @ V.T
        factor = np.linalg.norm(total) / np.mean([np.linalg.norm(d) for d in D[: t + 1]])
        M = total / factor
    return M


DEFINED = {"iso-c": iso_c, "iso-cts": iso_cts, "tsv": tsv, "opcm": opcm}
of_spectral_rules = pytest.mark.parametrize("rule", SPECTRAL)


@of_all_inputs
@of_spectral_rules
def test_spectral_rules_equal_their_definitions_over_the_span_of_the_updates(rule: str, inputs: str) -> None:
    pairs = INPUTS[inputs]()
    assert near(by_rule(pairs, rule), DEFINED[rule](pairs))


@of_all_inputs
@of_spectral_rules
def test_spectral_rules_put_nothing_outside_the_span_of_the_updates(rule: str, inputs: str) -> None:
    pairs = INPUTS[inputs]()
    columns, rows = spans(pairs)
    found = by_rule(pairs, rule)
    assert near(columns @ columns.T @ found @ rows @ rows.T, found, 1e-12)


@of_spectral_rules
def test_spectral_rules_follow_rotations_of_inputs_and_outputs(rule: str) -> None:
    pairs = random_pairs()
    Q = np.linalg.qr(normal(D_IN, D_IN, seed=8).numpy())[0]
    P = np.linalg.qr(normal(D_OUT, D_OUT, seed=9).numpy())[0]
    turned = [Pair(A @ torch.from_numpy(Q), torch.from_numpy(P) @ B) for A, B in pairs]
    assert near(by_rule(turned, rule), P @ by_rule(pairs, rule) @ Q)


@of_spectral_rules
def test_the_factors_of_an_update_do_not_matter_to_spectral_rules(rule: str) -> None:
    pairs = random_pairs()
    M = normal(RANK, RANK, seed=3)
    others = [Pair(M @ A, B @ torch.linalg.inv(M)) for A, B in pairs]
    assert near(by_rule(others, rule), by_rule(pairs, rule))


def test_what_an_update_has_left_by_rounding_is_no_direction_of_its_own() -> None:
    """The first update lies in the common directions, so that nothing but rounding is left of it beside them."""
    Q = torch.linalg.qr(normal(D_IN, D_IN, seed=8))[0]
    P = torch.linalg.qr(normal(D_OUT, D_OUT, seed=9))[0]
    values = torch.arange(8.0, 0, -1).double()
    pairs = [Pair(Q[:1], P[:, :1] * 10), Pair(Q[1:8], P[:, 1:8] * values[1:])]
    found = spectrum(merged([{"x": pair} for pair in pairs], Merging("iso-cts", common=0.8))["x"], 1e-9).S
    assert torch.allclose(found, ((10 + values[1:7].sum()) / 7).expand(7))


@pytest.mark.parametrize("rule", ["sum", "mean", "iso-c", "iso-cts", "tsv"])
def test_updates_that_cancel_out_leave_no_rank(rule: str) -> None:
    pair = random_pairs()[0]
    assert not len(merged([{"x": pair}, {"x": Pair(pair.A, -pair.B)}], Merging(rule))["x"].A)


def test_opcm_leaves_out_all_that_the_merge_has_where_all_of_it_is_strong() -> None:
    first, second = shared_pairs()[:2]
    inside = Pair(second.A, first.B @ normal(RANK, RANK, seed=4))  # in the span of the first
    found = merged([{"x": first}, {"x": inside}], Merging("opcm", strong=1.0))["x"].delta()
    direction = first.delta() / first.delta().norm()
    assert near((found / found.norm()).numpy(), direction.numpy())
    weaker = merged([{"x": first}, {"x": inside}], Merging("opcm", strong=0.0))["x"].delta()
    assert (weaker / weaker.norm() - direction).norm() > 0.1


def test_of_entries_that_are_equally_large_trimming_keeps_all() -> None:
    even = Pair(torch.ones(1, 6), torch.ones(5, 1))
    assert near(merged([{"x": even}] * 2, Merging("ties"))["x"].delta().numpy(), even.delta().numpy())


def test_tsv_leaves_updates_that_share_no_direction_as_their_sum() -> None:
    Q = torch.linalg.qr(normal(D_IN, D_IN, seed=8))[0]
    P = torch.linalg.qr(normal(D_OUT, D_OUT, seed=9))[0]
    apart = [slice(i * RANK, (i + 1) * RANK) for i in range(TASKS)]
    pairs = [Pair(Q[own], P[:, own] * torch.arange(1.0, 5.0)) for own in apart]
    assert near(by_rule(pairs, "tsv"), sum(deltas(pairs)))


def test_opcm_scales_all_layers_together() -> None:
    pairs = random_pairs()
    adapters = [{"x": p, "y": Pair(p.A, 3 * q.B)} for p, q in zip(pairs, pairs[::-1], strict=True)]
    found = merged(adapters, Merging("opcm"))
    norm = sum(pair.delta().square().sum() for pair in found.values()).sqrt()
    norms = [sum(pair.delta().square().sum() for pair in adapter.values()).sqrt() for adapter in adapters]
    assert abs(norm - sum(norms) / TASKS) < 1e-10
    alone = merged([{"x": adapter["x"]} for adapter in adapters], Merging("opcm"))
    assert not torch.allclose(alone["x"].delta(), found["x"].delta(), rtol=1e-6)


def test_rounding_to_float32_adds_no_direction() -> None:
    """A fixed A that was stored in other factors for each task differs by rounding; no rule may raise what differs."""
    pairs = shared_pairs()
    turned = [Pair((normal(RANK, RANK, seed=20 + i) @ p.A), p.B) for i, p in enumerate(pairs)]
    rounded = [Pair(p.A.float(), p.B.float()) for p in turned]
    for rule in SPECTRAL:
        found, exact = by_rule(rounded, rule), by_rule(turned, rule)
        assert np.linalg.norm(found - exact) < 1e-4 * np.linalg.norm(exact), rule
        assert np.linalg.matrix_rank(found, 1e-6 * np.linalg.norm(found)) <= RANK, rule


# what goes wrong where these rules see whole matrices, as in tools for full fine-tuning


def test_in_whole_matrices_iso_c_puts_most_of_its_energy_outside_of_what_was_learned() -> None:
    pairs = random_pairs()
    columns, rows = spans(pairs)
    U, s, Vh = np.linalg.svd(sum(deltas(pairs)), full_matrices=False)
    naive = s.mean() * U @ Vh
    inside = np.linalg.norm(columns.T @ naive @ rows) ** 2 / np.linalg.norm(naive) ** 2
    assert 0.78 < 1 - inside < 0.80  # 76 of 96 directions belong to singular values of zero
    assert 4.7 < s.mean() ** -1 * np.linalg.norm(by_rule(pairs, "iso-c"), 2) < 4.9


def test_in_whole_matrices_tsv_takes_in_vectors_of_the_null_space() -> None:
    pairs = random_pairs()
    width, each = min(D_OUT, D_IN), min(D_OUT, D_IN) // TASKS
    U, s, Vh = np.zeros((D_OUT, width)), np.zeros(width), np.zeros((width, D_IN))
    for i, d in enumerate(deltas(pairs)):
        own = slice(i * each, (i + 1) * each)
        u, values, vh = np.linalg.svd(d, full_matrices=False)
        U[:, own], s[own], Vh[own] = u[:, :each], values[:each], vh[:each]
    naive, found = polar(U) * s @ polar(Vh), by_rule(pairs, "tsv")
    assert 0.5 < np.linalg.norm(found - naive) / np.linalg.norm(naive) < 0.7


def test_in_whole_matrices_opcm_takes_away_diagonals_of_the_null_space() -> None:
    first, second, third = deltas(random_pairs())[:3]
    U, s, Vh = np.linalg.svd(first + second)
    k = int(np.argmax(s.cumsum() / s.sum() > 0.5))
    P = U.T @ third @ Vh.T
    np.fill_diagonal(P, 0)
    P[:k, :k] = 0
    naive = U @ P @ Vh
    u, _, v = ranked_svd(first + second)
    X = np.diag(np.diag(p := u.T @ third @ v)).copy()
    X[:k, :k] = p[:k, :k]
    exact = third - u @ X @ v.T
    assert 0.05 < np.linalg.norm(exact - naive) / np.linalg.norm(exact) < 0.2


# RegMean


def inputs_of(task: int, count: int = 300) -> Matrix:
    return normal(D_IN, count, seed=70 + task).numpy()


@of_all_inputs
def test_regmean_equals_the_least_squares_solution(inputs: str) -> None:
    pairs = INPUTS[inputs]()
    X = [inputs_of(i) for i in range(TASKS)]
    moments = [torch.from_numpy(x @ x.T) for x in X]
    outputs = np.concatenate([d @ x for d, x in zip(deltas(pairs), X, strict=True)], 1)
    wanted = np.linalg.lstsq(np.concatenate(X, 1).T, outputs.T, rcond=None)[0].T
    assert near(regmean(pairs, moments).delta().numpy(), wanted, 1e-10)


def test_regmean_of_tasks_with_orthogonal_inputs_computes_what_each_computed_on_its_own() -> None:
    pairs = random_pairs()[:2]
    Q = torch.linalg.qr(normal(D_IN, D_IN, seed=8))[0]
    X = [Q[:, :20] @ normal(20, 50, seed=1), Q[:, 20:50] @ normal(30, 50, seed=2)]  # 46 directions have no input
    found = merged([{"x": p} for p in pairs], Merging("regmean"), moments=[{"x": x @ x.T} for x in X])["x"].delta()
    for pair, x in zip(pairs, X, strict=True):
        assert (found @ x - pair.delta() @ x).abs().max() < 1e-9
    assert (found @ Q[:, 50:]).abs().max() < 1e-10


# what all rules have in common


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule not in ("weighted", "regmean", "iso-c", "iso-cts", "dare")]
)
def test_one_adapter_alone_stays_as_it_is(rule: str) -> None:
    pair = random_pairs()[0]
    assert near(by_rule([pair], rule, **({"keep": 1.0} if rule == "ties" else {})), deltas([pair])[0])


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("weighted", "regmean")])
def test_adapters_that_have_learned_nothing_stay_so(rule: str) -> None:
    zeros = [Pair(p.A, torch.zeros_like(p.B)) for p in random_pairs()]
    assert not by_rule(zeros, rule).any()


@pytest.mark.parametrize("rule", ["sum", "elect", "tsv", "opcm"])
def test_factors_wider_than_the_weight_are_taken(rule: str) -> None:
    pairs = [Pair(normal(9, 6, seed=i), normal(5, 9, seed=40 + i)) for i in range(3)]
    found = merged([{"x": p} for p in pairs], Merging(rule))["x"]
    assert found.delta().shape == (5, 6)
    assert len(found.A) <= 5


def test_truncation_is_the_nearest_of_its_rank_and_says_what_it_keeps() -> None:
    (pair,) = random_pairs()[:1]
    U, s, Vh = np.linalg.svd(deltas([pair])[0], full_matrices=False)
    found, kept = truncated(pair, 2)
    assert near(found.delta().numpy(), U[:, :2] * s[:2] @ Vh[:2])
    assert abs(kept - (s[:2] ** 2).sum() / (s**2).sum()) < 1e-12
    assert truncated(Pair(pair.A, 0 * pair.B), 2)[1] == 1.0
    assert near(compact(pair).delta().numpy(), deltas([pair])[0])
    with pytest.raises(ValueError, match="rank 0 is too small"):
        truncated(pair, 0)


def root(G: Matrix) -> Matrix:
    values, vectors = np.linalg.eigh(G)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


def few_inputs(directions: int) -> Matrix:
    """Inputs (samples, D_IN) of unequal strength that span so many directions."""
    strength = torch.logspace(1, -1, directions, dtype=torch.float64)
    return (normal(200, directions, seed=70) * strength @ normal(directions, D_IN, seed=71)).numpy()


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("inputs", ["random", "deficient"])
def test_truncation_for_inputs_is_the_nearest_on_them(inputs: str, rank: int) -> None:
    (pair,) = (random_pairs() if inputs == "random" else deficient_pairs())[:1]
    X = few_inputs(D_IN)
    G, M = X.T @ X, deltas([pair])[0]
    U, s, Vh = np.linalg.svd(M @ root(G))
    nearest = U[:, :rank] * s[:rank] @ Vh[:rank] @ np.linalg.inv(root(G))
    found, kept = truncated_for(pair, rank, torch.from_numpy(G))
    assert near(found.delta().numpy(), nearest, 1e-8)
    assert abs(kept - (s[:rank] ** 2).sum() / (s**2).sum()) < 1e-10
    off = np.linalg.norm(X @ (M - found.delta().numpy()).T) ** 2 / np.linalg.norm(X @ M.T) ** 2
    assert abs(off - (1 - kept)) < 1e-10
    plain = np.linalg.norm(X @ (M - truncated(pair, rank)[0].delta().numpy()).T) ** 2 / np.linalg.norm(X @ M.T) ** 2
    assert off < plain or off < 1e-12, "what the inputs use is not what is large in the weight"


@pytest.mark.parametrize("rank", [1, 2, RANK, RANK + 3])
def test_truncation_for_white_inputs_is_plain_truncation(rank: int) -> None:
    for pair in [*random_pairs(), *deficient_pairs()]:
        plain, share = truncated(pair, rank)
        found, kept = truncated_for(pair, rank, 7.0 * torch.eye(D_IN))
        assert near(found.delta().numpy(), plain.delta().numpy(), 1e-7)
        assert abs(kept - share) < 1e-10


def test_inputs_of_few_directions_need_only_as_much_rank() -> None:
    (pair,) = random_pairs()[:1]
    X = few_inputs(2)
    found, kept = truncated_for(pair, RANK, torch.from_numpy(X.T @ X))
    assert len(found.A) == 2
    assert kept == 1.0
    assert near(X @ found.delta().numpy().T, X @ deltas([pair])[0].T, 1e-8)


def test_an_update_that_its_inputs_do_not_see_is_truncated_to_nothing() -> None:
    (pair,) = random_pairs()[:1]
    for of, G in ((pair, torch.zeros(D_IN, D_IN)), (Pair(pair.A, 0 * pair.B), torch.eye(D_IN))):
        found, kept = truncated_for(of, 2, G)
        assert found.delta().shape == (D_OUT, D_IN)
        assert not found.delta().any()
        assert kept == 1.0


def test_the_rank_of_an_energy_is_the_smallest_that_keeps_it() -> None:
    pair = Pair(torch.eye(4, 6), torch.eye(5, 4) * torch.tensor([2.0, 1.0, 1.0, 0.0]))  # squares 4, 1, 1, 0
    assert [rank_of_energy(pair, share) for share in (0.5, 0.7, 0.83, 0.84, 1.0)] == [1, 2, 2, 3, 3]
    assert rank_of_energy(Pair(pair.A, 0 * pair.B), 0.9) == 1
    with pytest.raises(ValueError, match="energy 0 must be above 0"):
        rank_of_energy(pair, 0)


def test_the_spectrum_of_a_pair_is_that_of_its_matrix() -> None:
    (pair,) = random_pairs()[:1]
    found = spectrum(pair, tolerance(*pair))
    assert near(found.S.numpy(), np.linalg.svd(deltas([pair])[0])[1][:RANK])
    assert near((found.U * found.S @ found.V.T).numpy(), deltas([pair])[0])


A, B = torch.ones(2, 6), torch.ones(5, 2)
OK: dict[str, Pair] = {"x": Pair(A, B)}
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no adapter": (lambda: merged([]), "there is no adapter to merge"),
    "no layer": (lambda: merged([{}, {}]), "change no layer"),
    "another rank": (lambda: merged([{"x": Pair(A, B[:, :1])}]), r"adapter 0 has A \(2, 6\) and B \(5, 1\)"),
    "another shape": (lambda: merged([OK, {"x": Pair(A[:, :4], B)}]), r"adapter 1 changes layer 'x' of .* \(5, 4\)"),
    "a convolution": (lambda: merged([{"x": Pair(A[:, :, None], B)}]), "must be"),
    "NaN": (lambda: merged([OK, {"x": Pair(A * float("nan"), B)}]), "adapter 1 has numbers on layer 'x' that are not"),
    "unknown rule": (lambda: Merging("average"), "rule 'average' is unknown; use one of sum, mean"),
    "scale": (lambda: Merging(scale=float("inf")), "scale is inf"),
    "keep": (lambda: Merging(keep=0.0), "keep is 0.0"),
    "drop": (lambda: Merging(drop=1.0), "drop is 1.0"),
    "common": (lambda: Merging(common=1.5), "common is 1.5"),
    "of ties": (lambda: Merging("regmean", keep=0.1), "keep is a number of rule 'ties', and the rule is 'regmean'"),
    "no weights": (lambda: merged([OK], Merging("weighted")), "needs weights, one for each adapter"),
    "weights": (lambda: merged([OK], Merging("mean"), weights=[1.0]), "rule 'mean' takes no weights"),
    "count": (lambda: merged([OK], Merging("weighted"), weights=[1.0, 2.0]), "2 weights were given for 1 adapters"),
    "finite": (lambda: merged([OK], Merging("weighted"), weights=[float("nan")]), "the weight nan is not finite"),
    "no moments": (lambda: merged([OK], Merging("regmean")), "needs the second moments"),
    "moments": (lambda: merged([OK], Merging("sum"), moments=[{}]), "takes no second moments"),
    "of few": (lambda: merged([OK, OK], Merging("regmean"), moments=[{}]), "1 sets of second moments were given for 2"),
    "of others": (lambda: merged([OK], Merging("regmean"), moments=[{"x": A}]), r"finite second moment \(6, 6\)"),
    "rank": (lambda: truncated_for(OK["x"], 0, torch.eye(6)), "rank 0 is too small"),
    "NaN, cut": (lambda: truncated(Pair(A * float("nan"), B), 1), "factors have numbers that are not finite"),
    "NaN, cut for inputs": (lambda: truncated_for(Pair(A, B * float("inf")), 1, torch.eye(6)), "are not finite"),
    "moment": (lambda: truncated_for(OK["x"], 1, torch.eye(5)), r"shape \(5, 5\); a layer with 6 inputs"),
    "NaN in G": (lambda: truncated_for(OK["x"], 1, torch.eye(6) * float("nan")), "numbers that are not finite"),
    "no moment": (lambda: truncated_for(OK["x"], 1, torch.ones(6, 6).triu()), "must be symmetric"),
    "negative": (lambda: truncated_for(OK["x"], 1, -torch.eye(6)), "a diagonal of at least 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_merged_is_refused_in_one_line(case: str) -> None:
    attempt, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        attempt()
    assert "\n" not in str(error.value)
