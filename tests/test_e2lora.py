"""What E2-LoRA promises: each step of its specification, written out again in NumPy, and what holds after it."""

from typing import Any

import numpy as np
import pytest
import torch
from streams import Spy, configured, learn, stream, tiny_backbone
from torch import Tensor

from lamella.adapters.adapter import Branch
from lamella.common.randomness import generator
from lamella.memory.output_budget import InputCovariance, OutputBudget, Update, keep_counts, rotated
from lamella.methods.e2lora import E2LoRA
from lamella.methods.parts import Aligned
from lamella.testing import tiny_bert, tiny_resnet

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "optimizer": "adam", "lr": 5e-3, "blocks": 1}
TASKS = stream(8, 4)


def draw(*shape: int, name: str = "x") -> np.ndarray:
    return torch.randn(shape, generator=generator(0, name, *shape), dtype=torch.float64).numpy()


def built(**options: Any) -> E2LoRA:
    return configured(E2LoRA, tiny_backbone(), **QUICK | options)


# rotation ------------------------------------------------------------------------------------------------------------


def written_out(X: np.ndarray, A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The specification, word by word: right singular vectors of the centred outputs D, and s^2 / (n - 1)."""
    D = X @ (B @ A).T
    D = D - D.mean(0)
    _, s, Vt = np.linalg.svd(D, full_matrices=False)
    return Vt.T, s**2 / (len(X) - 1)


def dependent(columns: int, of: np.ndarray) -> np.ndarray:
    """So many combinations of the columns of a matrix."""
    return of @ draw(of.shape[1], columns, name="mix")


CASES = {  # X (n, d), A (r, d), B (R, r)
    "more inputs than ranks": (draw(200, 12) * np.linspace(1, 3, 12) + 5, draw(5, 12), draw(7, 5)),
    "fewer inputs than outputs": (draw(200, 6) + 1, draw(14, 6), draw(14, 14)),
    "fewer tokens than ranks": (draw(4, 12), draw(9, 12), draw(10, 9)),
    "inputs of low rank": (dependent(12, draw(200, 3)) + 2, draw(6, 12), draw(8, 6)),
    "dependent columns of B": (draw(200, 12), draw(6, 12), dependent(6, draw(9, 2, name="B"))),
    "a single token": (draw(1, 5), draw(3, 5), draw(4, 3)),
    "an update that does nothing": (draw(50, 5), draw(3, 5), np.zeros((4, 3))),
}


@pytest.mark.parametrize("case", CASES)
def test_rotation_is_that_of_the_specification_and_leaves_the_product(case: str) -> None:
    X, A, B = CASES[case]
    seen = InputCovariance(X.shape[1])
    for part in np.array_split(X, 3):
        seen(torch.tensor(part))
    update = rotated(torch.tensor(A), torch.tensor(B), seen.covariance)
    found_A, found_B, variances = (t.numpy() for t in update)
    U, expected = written_out(X, A, B) if len(X) > 1 else (np.zeros((len(B), 0)), np.zeros(0))
    size = max(expected.max(initial=0), 1e-300)
    count = min(len(expected), len(A))
    assert np.allclose(variances[:count] / size, expected[:count] / size, atol=1e-6)
    assert not (variances[count:] / size > 1e-6).any()
    rank = int((expected > 1e-10 * size).sum())
    assert np.allclose(abs((U[:, :rank] * found_B[:, :rank]).sum(0)), 1, atol=1e-6), "the same columns, up to sign"
    signs = np.sign((U[:, :rank] * found_B[:, :rank]).sum(0))
    assert np.allclose(found_A[:rank], signs[:, None] * (U[:, :rank].T @ B @ A), atol=1e-6)
    assert np.allclose(found_B.T @ found_B, np.eye(len(A)), atol=1e-6)
    assert np.allclose(found_B @ found_A, B @ A, atol=1e-6)


def test_rotation_stays_among_the_directions_that_the_update_had() -> None:
    B = np.linalg.qr(draw(20, 9))[0]
    update = rotated(torch.tensor(draw(9, 4)), torch.tensor(B), torch.eye(4))
    outside = update.B.numpy() - B @ (B.T @ update.B.numpy())
    assert abs(outside).max() < 1e-9, "nine directions for an update of rank four: the other five are its own too"


@pytest.mark.parametrize("n", [2, 50])
def test_the_covariance_of_inputs_is_numpys(n: int) -> None:
    x = draw(n, 3, 6) + 100.0
    seen = InputCovariance(6)
    seen(torch.tensor(x[:1]))
    seen(torch.tensor(x[1:]))
    assert np.allclose(seen.covariance.numpy(), np.cov(x.reshape(-1, 6).T), atol=1e-8)


# counts --------------------------------------------------------------------------------------------------------------


def searched(variances: list[np.ndarray], limit: float, totals: list[float] | None = None) -> list[int]:
    """One threshold after the other, from 0.99999 down by 1e-5."""
    for step in range(99_999, -1, -1):
        counts = []
        for v, total in zip(variances, totals or [v.sum() for v in variances], strict=True):
            share, kept = 0.0, 1
            for value in v:
                share += value / total
                kept += share <= step / 100_000
            counts.append(min(kept, len(v)))
        if sum(counts) <= limit:
            return counts
    raise AssertionError("no threshold")


@pytest.mark.parametrize("limit", [pytest.param(3, marks=pytest.mark.slow), 6, 9, 10.5, 13, 100])
def test_counts_are_those_of_the_search_step_by_step(limit: float) -> None:
    variances = [2.0 ** -np.arange(8), np.array([5.0, 4, 3, 2, 1, 0, 0]), np.array([1.0, 0, 0])]
    found = keep_counts([torch.tensor(v) for v in variances], limit)
    assert found == searched(variances, limit)
    assert sum(found) <= limit


@pytest.mark.parametrize("limit", [7, 9.5, 13])
def test_counts_may_be_by_shares_of_what_an_update_once_had(limit: float) -> None:
    variances, totals = [2.0 ** -np.arange(8), np.array([5.0, 4, 3, 2, 1])], [2.0, 40.0]
    found = keep_counts([torch.tensor(v) for v in variances], limit, totals)
    assert found == searched(variances, limit, totals)
    assert (found != searched(variances, limit)) == (limit == 7)


def test_an_update_that_did_nothing_keeps_one_rank() -> None:
    assert keep_counts([torch.zeros(5), torch.ones(4)], 9) == [1, 4]


def test_a_budget_with_no_room_for_another_task_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"^the budget of ranks has no room for 4 tasks, .* give a larger `budget`$"):
        keep_counts([torch.ones(1)] * 3, 2.25)


def test_what_is_cut_comes_oldest_first_and_the_rest_stays_as_it_is() -> None:
    memory = OutputBudget(4, 6)
    A, B = torch.tensor(draw(6, 4)).float(), torch.tensor(draw(6, 6)).float()
    memory.add(Update(A[:4], B[:, :4], torch.tensor([8.0, 4.0, 1e-9, 1e-9])))
    memory.add(Update(A[4:], B[:, 4:], torch.tensor([1.0, 1e-9])))
    cut_A, cut_B = memory.release(4)
    kept, cut = [0, 1, 4], [2, 3, 5]
    assert memory.ranks.tolist() == [2, 1]
    assert torch.equal(memory.A, A[kept])
    assert torch.equal(memory.B, B[:, kept])
    assert torch.equal(cut_A, A[cut])
    assert torch.equal(cut_B, B[:, cut])


def test_what_an_update_had_before_it_was_cut_is_remembered() -> None:
    """It was cut at a share of 0.99999 once; cut so again, it loses a rank only if the share is of what is left."""
    kept = {}
    for of_whole in (True, False):
        memory = OutputBudget(4, 30)
        memory.add(Update(torch.zeros(30, 4), torch.eye(30), 0.5 ** torch.arange(30)))
        for _ in range(2):
            memory.release(29, of_whole=of_whole)
        kept[of_whole] = memory.ranks.tolist()
        assert memory.totals.tolist() == pytest.approx([2.0])
    assert kept == {True: [17], False: [16]}


def test_a_memory_that_was_stored_without_totals_counts_what_its_updates_still_have() -> None:
    memory, again = OutputBudget(4, 10), OutputBudget(4, 10)
    for seed in (1, 2):
        memory.add(Update(torch.zeros(5, 4), torch.eye(10)[:, :5], seed * 0.5 ** torch.arange(5)))
    again.load_state_dict({name: tensor for name, tensor in memory.state_dict().items() if name != "totals"})
    assert torch.equal(again.totals, memory.totals)
    assert len(again.totals) == 2
    again.release(6, of_whole=True)
    memory.release(6, of_whole=True)
    assert torch.equal(again.ranks, memory.ranks)
    empty = OutputBudget(4, 10)
    empty.load_state_dict({name: tensor for name, tensor in empty.state_dict().items() if name != "totals"})
    assert not len(empty.totals)


# the method ----------------------------------------------------------------------------------------------------------


class Recorded(Spy):
    """A fit that keeps the branches as they were before and after training, and what was trained."""

    def __init__(self, method: E2LoRA) -> None:
        super().__init__(method, self._before)
        self.method = method

    def _before(self, loss: Any, data: Any, params: list[Tensor]) -> None:
        self.params = params
        self.start = [(b.A.clone(), b.B.clone()) for b in self.branches()]

    def branches(self) -> list[Branch]:
        return [branch for site in self.method.sites for branch in site.layer.of("new")]

    def __call__(self, *args: Any, **options: Any) -> list[float]:
        losses = super().__call__(*args, **options)
        self.trained = [(b.A.clone(), b.B.clone()) for b in self.branches()]
        return losses


def memories(method: E2LoRA) -> list[OutputBudget]:
    return [method._budget(site) for site in method.sites]


@pytest.fixture(scope="module", params=[None, 16])
def life(request: pytest.FixtureRequest) -> list[tuple[E2LoRA, Recorded, list[dict[str, Tensor]], list[Tensor]]]:
    """By task: the method as it is in the end, what its fit saw, the memories and the weights after the task."""
    method = built(budget=request.param)
    tasks = []
    for number in range(4):
        spy = Recorded(method)
        learn(method, number, TASKS[number], spy)
        states = [{k: v.clone() for k, v in memory.state_dict().items()} for memory in memories(method)]
        tasks.append((method, spy, states, [site.layer.weight.clone() for site in method.sites]))
    return tasks


def test_the_budget_is_constant_and_full(life: Any) -> None:
    method = life[0][0]
    for _, _, states, _ in life:
        for site, state in zip(method.sites, states, strict=True):
            assert int(state["ranks"].sum()) == len(state["A"]) == state["B"].shape[1] == method.ranks(site)


def test_the_weight_is_that_of_the_start_and_all_updates_as_they_are_now(life: Any) -> None:
    start = [site.layer.weight for site in built().sites]
    for _, _, states, weights in life:
        for before, now, state in zip(start, weights, states, strict=True):
            assert torch.allclose(now - before, state["B"] @ state["A"], atol=2e-6)
            assert float((now - before).abs().max()) > 1e-4


def test_the_first_task_trains_both_factors_and_later_ones_a_alone(life: Any) -> None:
    for number, (_, spy, _, _) in enumerate(life):
        for (A, B), (A_trained, B_trained) in zip(spy.start, spy.trained, strict=True):
            assert not torch.equal(A, A_trained)
            assert torch.equal(B, B_trained) == (number > 0)
            assert bool((A if number else B).eq(0).all()), "the product is zero at the start"
        assert len(spy.params) == (2 if number == 0 else 1) * len(spy.start) + 2


def test_a_task_writes_into_what_old_tasks_gave_up(life: Any) -> None:
    for number in range(1, 4):
        before, (_, spy, after, _) = life[number - 1][2], life[number]
        for old, new, (_, B) in zip(before, after, spy.start, strict=True):
            total, left = old["B"].shape[1], new["ranks"][:-1]
            assert int(left.sum()) <= number * total / (number + 1)
            keeps, start = [], 0
            for rank, kept in zip(old["ranks"].tolist(), left.tolist(), strict=True):
                keeps += [*range(start, start + kept)]
                start += rank
            cut = [i for i in range(total) if i not in keeps]
            assert torch.equal(B, old["B"][:, cut])
            for name in ("A", "variances"):
                assert torch.equal(new[name][: len(keeps)], old[name][keeps])
            assert torch.equal(new["B"][:, : len(keeps)], old["B"][:, keeps])


def test_the_memory_holds_the_update_that_was_trained(life: Any) -> None:
    for _, spy, states, _ in life:
        for (A, B), state in zip(spy.trained, states, strict=True):
            rank = int(state["ranks"][-1])
            product = state["B"][:, -rank:] @ state["A"][-rank:]
            assert torch.allclose(product, B @ A, atol=1e-6)
            assert torch.allclose(state["B"][:, -rank:].T @ state["B"][:, -rank:], torch.eye(rank), atol=1e-5)
            assert bool((state["variances"][-rank:].diff() <= 0).all())


@pytest.mark.parametrize("shares", ["left", "whole"])
def test_the_shares_by_which_old_updates_are_cut_are_of_what_the_option_says(shares: str) -> None:
    method = built(shares=shares, budget=16)
    wholes = [[] for _ in method.sites]
    for number in range(4):
        before = [memory.variances.split(memory.ranks.tolist()) for memory in memories(method)]
        learn(method, number, TASKS[number])
        for memory, own, old in zip(memories(method), wholes, before, strict=True):
            if number:
                totals = own if shares == "whole" else None
                expected = keep_counts(old, number * 16 / (number + 1), totals)
                assert memory.ranks.tolist()[:-1] == expected
            own.append(float(memory.variances[-int(memory.ranks[-1]) :].sum()))


def test_the_last_ranks_of_the_first_update_move_its_outputs_least() -> None:
    method = built()
    learn(method, 0, TASKS[0])
    memory, site = memories(method)[0], method.sites[0]
    x = torch.randn(500, site.layer.weight.shape[1], generator=generator(0, "inputs"))
    outputs = x @ memory.A.T
    spread = outputs.std(0)
    assert float(spread[:8].min()) > 10 * float(spread[-8:].max())


def test_query_key_value_and_the_first_layer_of_the_mlp_are_adapted() -> None:
    assert [site.name for site in built().sites] == ["blocks.0.attn.qkv", "blocks.0.mlp.fc1"]
    names = [site.name.partition("layer.0.")[2] for site in E2LoRA(tiny_bert(), blocks=1).sites]
    attention = "attention.self."
    assert names == [f"{attention}query", f"{attention}key", f"{attention}value", "intermediate.dense"]


def test_what_cannot_be_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^budget 0 is too small; give at least one rank for each task, or leave"):
        built(budget=0)
    with pytest.raises(ValueError, match=r"^shares"):
        built(shares="all")
    with pytest.raises(ValueError, match=r"^statistics_images 0 is too small; give at least 1$"):
        built(statistics_images=0)
    with pytest.raises(ValueError, match="has no layer with the roles"):
        E2LoRA(tiny_resnet())


def test_a_budget_of_fewer_ranks_than_tasks_ends_with_its_reason() -> None:
    method = built(budget=2)
    for number in range(2):
        learn(method, number, TASKS[number])
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    with pytest.raises(ValueError, match=r"a budget of 2 ranks a layer has no room for task 3, as each task needs one"):
        learn(method, 2, TASKS[2])
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    assert Aligned(method).most_tasks == method.most_tasks == 2
