"""Directions: what is used, how alike tasks read, and how many more fit, against values by hand."""

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import build, learn_all, stream
from torch import Tensor, nn

from lamella.adapters.adapter import Adapted, adapt, grow
from lamella.adapters.branches import Branch
from lamella.common.randomness import generator
from lamella.learner.inspection.directions import Space, forecast, overlap, spaces, used_directions
from lamella.methods import Method
from lamella.methods.parts import Aligned, Calibrated


class Reads(Method):
    """A method whose backbone has layers "0" and "1" of eight inputs, with these adapters: {layer: {name: A}}.

    "x-3" and "y-3" are task 3's own.
    """

    def __init__(self, rows: dict[str, dict[str, Tensor]], rank: int | None = 2) -> None:
        super().__init__()
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        sites = {site.name: site for site in adapt(model, "*")}
        for layer, adapters in rows.items():
            for name, A in adapters.items():
                (branch,) = grow([sites[layer]], name, len(A))
                branch.A.data.copy_(A)
        self.backbone: Any = SimpleNamespace(model=model)
        self.free_rank = rank

    def adapters_of(self, task: int) -> tuple[str, ...]:
        return (f"x-{task}", f"y-{task}")

    def learn(self, task: Any, fit: Any) -> None: ...


def rows(*units: int) -> Tensor:
    return torch.eye(8)[list(units)]


def test_overlap_is_the_squared_cosines_over_the_smaller_rank() -> None:
    mixed = torch.randn(3, 3, generator=generator(0, "mix")) @ rows(1, 2, 3)  # another basis, the same span
    found = overlap(Reads({"0": {"x-0": rows(0, 1), "x-1": mixed}}), 2)
    assert found is not None
    assert found.tasks == (0, 1)
    torch.testing.assert_close(torch.tensor(found.values), torch.tensor([[1, 0.5], [0.5, 1]]))
    assert found.chance == 3 / 8
    slanted = (rows(0) + 2 * rows(1)) / 5**0.5
    found = overlap(Reads({"0": {"x-0": rows(0), "x-1": slanted}}), 2)
    assert found is not None
    assert found.values[0][1] == pytest.approx(0.2)


def test_it_is_the_mean_over_the_layers_that_both_tasks_have() -> None:
    method = Reads(
        {
            "0": {"x-1": rows(0), "x-2": rows(0), "x-3": rows(4)},
            "1": {"x-1": rows(5), "x-2": rows(6), "shared": rows(5)},
        }
    )
    found = overlap(method, 4)
    assert found is not None
    assert found.tasks == (1, 2, 3)
    torch.testing.assert_close(torch.tensor(found.values), torch.tensor([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]))


def test_the_pairs_of_one_task_on_a_layer_are_one_span_and_zeros_read_nothing() -> None:
    split = Reads({"0": {"x-0": rows(0), "y-0": rows(1), "x-1": rows(1), "x-2": torch.zeros(1, 8)}})
    found = overlap(split, 3)
    assert found is not None
    assert found.tasks == (0, 1)
    torch.testing.assert_close(torch.tensor(found.values), torch.ones(2, 2))
    assert overlap(Reads({"0": {"x-0": rows(0), "lora": rows(0)}}), 2) is None


@pytest.mark.parametrize("sites", [("key+value",), ("query", "value")])
def test_what_o_lora_merged_is_remembered(sites: tuple[str, ...]) -> None:
    method = build("olora", rank=2, epochs=1, blocks=1, sites=sites)
    first, second = (torch.eye(64)[[a, b]] for a, b in ((0, 1), (1, 2)))
    for read in method.memory.values():
        read.add(first)
        read.add(second)
    (layer,) = {site.name for site in method.sites}
    assert torch.equal(method.rows_read(1)[layer], torch.cat([second] * len(sites)))
    found = overlap(Aligned(method), 2)
    assert found is not None
    assert found.values[0][1] == pytest.approx(0.5)


def test_random_spans_overlap_by_chance() -> None:
    draws = generator(1, "spans")
    method = Reads({})
    model = method.backbone.model = nn.Sequential(nn.Linear(60, 1))
    (site,) = adapt(model, "0")
    for task in range(30):
        grow([site], f"x-{task}", 6, generator=draws)
    found = overlap(method, 30)
    assert found is not None
    values = torch.tensor(found.values)
    apart = values[~torch.eye(30, dtype=torch.bool)]
    assert found.chance == 0.1
    assert float(apart.mean()) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("name", ["color", "sdlora", "duallora", "dlc"])
def test_every_adapter_that_no_task_shares_is_one_tasks_own(name: str) -> None:
    method = learn_all(build(name, rank=2, epochs=1), stream(4, 2))
    layers = [m for m in method.backbone.model.modules() if isinstance(m, Adapted)]
    own = [adapter for task in range(2) for adapter in method.adapters_of(task)]
    assert len(own) == len(set(own))
    assert {adapter for layer in layers for adapter in layer.branches} <= set(own)
    assert method.rows_read(1)


@pytest.mark.parametrize("name", ["seq-lora", "ranpac", "inflora"])
def test_adapters_of_all_tasks_are_no_tasks_own(name: str) -> None:
    method = learn_all(build(name, rank=2, epochs=1), stream(4, 2))
    assert [method.adapters_of(task) for task in range(2)] == [(), ()]
    assert overlap(method, 2) is None


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(4, 60), st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_the_forecast_is_what_going_on_like_that_gives(rank: int, width: int, grown: list[int]) -> None:
    used = min(sum(grown), width)
    found = forecast(Reads({}, rank), [Space("layer", width, used, tuple(grown))])
    assert found is not None
    last = grown[1:][-3:] or grown
    free, tasks = Fraction(width - used), 0
    while free >= rank and tasks < 1000:
        free, tasks = free - Fraction(sum(last), len(last)), tasks + 1
    assert found.tasks == (None if tasks == 1000 else tasks)


def test_the_layer_that_runs_out_first_decides() -> None:
    wide, narrow = Space("wide", 100, 10, (4, 6)), Space("narrow", 100, 40, (39, 1))
    found = forecast(Reads({}, 4), [wide, narrow])
    assert found is not None
    assert (found.layer, found.tasks, found.pace, found.last) == ("wide", 15, 6, 1)  # 90, 84, .. 6: (90 - 4) // 6 + 1
    assert forecast(Reads({}, 4), []) is None
    assert forecast(Reads({}, 4), [Space("unrecorded", 8, 2)]) is None
    assert forecast(Reads({}, None), [wide]) is None
    assert forecast(build("duallora", orthogonal=False), [wide]) is None, "nothing is kept away from what it remembers"


def test_directions_that_are_given_back_end_no_forecast() -> None:
    found = forecast(Reads({}, 4), [Space("chosen anew", 20, 5, (9, -2, -2))])
    assert found is not None
    assert (found.tasks, found.pace) == (None, -2)


def test_what_inflora_protects_is_used_and_what_a_part_remembers_is_not() -> None:
    base: Any = build("inflora", rank=2, epochs=1, blocks=1)
    method = Calibrated(base)
    assert used_directions(method) == {"blocks.0.attn.qkv": 0}
    learn_all(method, stream(2, 1))
    used = {"blocks.0.attn.qkv": base.memory["blocks/0/attn/qkv"].dimension}
    assert used["blocks.0.attn.qkv"] > 0
    assert used_directions(method) == used
    (space,) = spaces(method, [used])
    assert (space.layer, space.width, space.grown) == ("blocks.0.attn.qkv", 64, tuple(used.values()))
    assert space.free == 64 - space.used
    assert spaces(method, [{}])[0].grown == (), "a task of an older version did not say"
    assert overlap(method, 1) is None


def test_tasks_with_experts_overlap() -> None:
    method = learn_all(build("color", rank=2, epochs=1, blocks=2), stream(4, 2))
    found = overlap(method, 2)
    assert found is not None
    values = torch.tensor(found.values)
    torch.testing.assert_close(values.diagonal(), torch.ones(2))
    assert 0 < float(values[0, 1]) < 1
    assert found.values[0][1] == found.values[1][0]
    layers = [m for m in method.backbone.model.modules() if isinstance(m, Adapted)]

    def first(layer: Adapted, name: str) -> Branch:
        return layer.of(name)[0]

    # By principal angles, in place of orthonormal bases and their product.
    expected = [_cosines(layer) for layer in layers]
    assert first(layers[0], "task0").rank == 2
    assert found.values[0][1] == pytest.approx(sum(expected) / len(expected))
    assert used_directions(method) == {}


def _cosines(layer: Adapted) -> float:
    """Mean squared cosine of the principal angles between what both tasks read: projections onto either span."""
    P, Q = (
        torch.linalg.pinv(A) @ A for A in (torch.cat([b.A for b in layer.of(f"task{t}")]).double() for t in range(2))
    )
    return float((P @ Q).trace()) / min(int(P.trace().round()), int(Q.trace().round()))
