"""What O-LoRA's paper promises: new branches read what no older branch reads; the merged model is the sum of them."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import configured, draw, fit_for, images, task, tiny_backbone
from torch import Tensor

from lamella.adapters.adapter import Branch, grow
from lamella.common.randomness import generator
from lamella.data.transform import plain_view
from lamella.methods.olora import OLoRA, ReadRows
from lamella.methods.seq_lora import SeqLoRA

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 0.01, "rank": 4, "blocks": 2, "schedule": "constant"}
BACKBONE = tiny_backbone()


class Spy:
    """A fit that runs the real one, and keeps the branches as they were before and after it."""

    once = False

    def __init__(self, method: Any, **options: Any) -> None:
        self.method, self.fit, self.losses = method, fit_for(method, **options), []
        self.before: list[Branch] = []
        self.after: list[Branch] = []
        self.logits = torch.empty(0)

    def _branches(self) -> list[Branch]:
        return copy.deepcopy([b for site in self.method.sites for b in site.layer.of("new")])

    def __call__(self, data: Any, *args: Any, **options: Any) -> Any:
        self.before = self._branches()
        self.losses = self.fit(data, *args, **options)
        self.after = self._branches()
        with torch.no_grad():
            self.logits = self.method.predict(inputs(self.method))
        return self.losses


def inputs(method: Any) -> Tensor:
    return images(8, 2, "test").batch(torch.arange(16), plain_view(method.backbone.transform))


def learn(method: OLoRA, i: int, classes: tuple[int, ...]) -> Spy:
    spy = Spy(method)
    spy.fit.begin(str(i))
    method.learn(task(i, classes), spy)  # type: ignore[arg-type]
    return spy


def build(**options: Any) -> OLoRA:
    return configured(OLoRA, tiny_backbone(), **{**QUICK, **options})


def rows(method: OLoRA) -> list[Tensor]:
    return [read.rows for read in method.memory.values() if isinstance(read, ReadRows)]


# the penalty ---------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), st.integers(1, 4), st.integers(1, 6), st.sampled_from(["absolute", "squared"]))
def test_the_penalty_is_the_sum_over_tasks_layers_and_rows(older: int, rank: int, seed: int, kind: str) -> None:
    method = configured(OLoRA, BACKBONE, rank=rank, penalty=kind, orthogonality=0.7, blocks=2)
    branches = grow(method.sites, f"drawn{seed}{older}{rank}{kind}", rank, generator=generator(seed, "new"))
    history = [[draw(rank, 64, name=f"{seed} {t} {s}") for s in range(2)] for t in range(older)]
    for As in history:
        for read, A in zip(method.memory.values(), As, strict=True):
            read.add(A)  # type: ignore[operator]
    for i, branch in enumerate(branches):
        branch.B.data.copy_(draw(*branch.B.shape, name=f"{seed} {i}"))

    expected = 0.0  # one pair of rows after the other, in float64
    for As in history:
        for A, branch in zip(As, branches, strict=True):
            for a in A.double():
                for b in branch.A.double():
                    product = float((a * b).sum())
                    expected += 0.7 * (abs(product) if kind == "absolute" else product**2)
    assert float(method.penalties(branches)) == pytest.approx(expected, rel=1e-4)
    for site in method.sites:
        site.layer.branches.clear()


def test_the_first_task_has_no_penalty_and_zero_weights_leave_it_out() -> None:
    method = configured(OLoRA, BACKBONE, rank=2, blocks=1)
    branches = grow(method.sites, "new", 2, generator=generator(0, "new"))
    assert method.penalties(branches) == 0.0
    rows(method)[0].data = torch.ones(2, 64)
    method.orthogonality = 0.0
    assert method.penalties(branches) == 0.0
    method.sites[0].layer.branches.clear()


def test_the_penalty_stays_exact_under_autocast() -> None:
    read, A = ReadRows(64), draw(4, 64)
    read.add(draw(4, 64, name="old"))
    exact = read.overlap(A)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(read.overlap(A), exact)


# learning ------------------------------------------------------------------------------------------------------------


def test_the_first_task_is_plain_lora_given_equal_draws() -> None:
    ours, plain = build(), configured(SeqLoRA, tiny_backbone(), **QUICK)
    plain_branches = [b for site in plain.sites for b in site.layer.of("lora")]
    draws = grow(ours.sites, "draw", 4, generator=generator(0, "lora", 0))
    for theirs, drawn in zip(plain_branches, draws, strict=True):
        theirs.A.data.copy_(drawn.A)  # seq-lora draws under another name
    for site in ours.sites:
        site.layer.branches.clear()
    fit = fit_for(plain)
    spy = learn(ours, 0, (0, 1, 2))
    fit.begin("0")
    losses: list[Any] = []

    def keep(*args: Any, **options: Any) -> None:
        losses.extend(fit(*args, **options))

    keep.once = False  # type: ignore[attr-defined]
    plain.learn(task(0, (0, 1, 2)), keep)  # type: ignore[arg-type]
    assert spy.losses == losses
    for mine, theirs in zip(spy.after, plain_branches, strict=True):
        assert torch.equal(mine.A, theirs.A)
        assert torch.equal(mine.B, theirs.B)
        assert float(mine.B.abs().max()) > 1e-3  # it did learn
    x = inputs(ours)
    with torch.no_grad():
        assert torch.equal(spy.logits, plain.predict(x))
        assert torch.allclose(ours.predict(x), plain.predict(x), atol=1e-5)


@pytest.mark.parametrize("kind", ["absolute", "squared"])
def test_the_penalty_makes_new_rows_orthogonal_to_old_ones(kind: str) -> None:
    def overlaps(weight: float) -> tuple[float, float]:
        method = build(penalty=kind, orthogonality=weight, epochs=12)
        learn(method, 0, (0, 1, 2))
        old = [r.clone() for r in rows(method)]
        spy = learn(method, 1, (3, 4, 5))
        sizes = [
            sum(float((r @ b.A.T).abs().sum()) for r, b in zip(old, branches, strict=True))
            for branches in (spy.before, spy.after)
        ]
        assert all(float(b.B.abs().max()) > 1e-3 for b in spy.after)
        assert all(float(b.A.norm()) > 0.3 for b in spy.after)  # orthogonal, not just shrunk to nothing
        return sizes[0], sizes[1]

    start, free = overlaps(0.0)
    same_start, held = overlaps(0.5 if kind == "absolute" else 5.0)
    assert start == pytest.approx(same_start, rel=0.3)  # A is drawn the same, only the old rows differ a little
    assert held < 0.2 * free
    assert held < 0.2 * start


def test_a_step_along_the_penalty_lowers_every_overlap_of_the_squared_form() -> None:
    """Its gradient is 2 lambda R^T R A, so that A (I - eta R^T R) shrinks inside the span of R only."""
    read, A = ReadRows(16), draw(3, 16, name="A").requires_grad_(True)
    read.add(draw(4, 16, name="old"))
    (gradient,) = torch.autograd.grad(read.overlap(A).square().sum(), A)
    R = read.rows
    assert torch.allclose(gradient, 2 * A @ R.T @ R, atol=1e-4)
    outside = torch.eye(16) - torch.linalg.pinv(R) @ R
    assert float((gradient @ outside).abs().max()) < 1e-4


def test_the_merged_model_is_the_one_with_branches() -> None:
    method = build()
    before = {site.name: site.layer.weight.clone() for site in method.sites}
    spies = [learn(method, 0, (0, 1)), learn(method, 1, (2, 3))]
    x = inputs(method)
    with torch.no_grad():
        assert torch.allclose(method.predict(x), spies[1].logits, atol=1e-5)
    for i, site in enumerate(method.sites):
        delta = torch.stack([spy.after[i].B @ spy.after[i].A for spy in spies]).sum(0)
        moved = site.layer.weight - before[site.name]
        assert torch.allclose(moved[site.rows], delta, atol=1e-6)
        assert float(moved[: site.rows.start].abs().max()) == 0  # the query rows
        assert not site.layer.branches


def test_what_is_kept_of_old_tasks_is_their_trained_a_and_comes_back_from_the_state() -> None:
    method = build()
    spies = [learn(method, 0, (0, 1)), learn(method, 1, (2, 3))]
    for i, held in enumerate(rows(method)):
        assert torch.equal(held, torch.cat([spy.after[i].A for spy in spies]))
        assert not torch.equal(spies[0].before[i].A, spies[0].after[i].A)  # A is trained as well
    again = build()
    again.load_state_dict(method.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(rows(again), rows(method), strict=True))


def test_each_site_of_a_layer_has_its_own_memory() -> None:
    method = build(sites=("query", "value"), epochs=1)
    learn(method, 0, (0, 1))
    assert len(method.sites) == 4
    assert [len(r) for r in rows(method)] == [4] * 4
    assert not torch.equal(rows(method)[0], rows(method)[1])


def test_a_class_that_comes_back_is_scored_by_its_last_head() -> None:
    method = build(epochs=1)
    for i, classes in enumerate([(0, 1, 2), (3,), (4, 1)]):
        learn(method, i, classes)
    assert method.classes == (0, 1, 2, 3, 4)
    x = inputs(method)
    with torch.no_grad():
        logits, features = method.predict(x), method.features(x)
        assert torch.equal(logits[:, [4, 1]], method.heads[2](features))
        assert torch.equal(logits[:, [0, 2]], method.heads[0](features)[:, [0, 2]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": "l1"}, "penalty 'l1' is unknown; use one of absolute, squared"),
        ({"orthogonality": -1.0}, "orthogonality -1.0 is below 0"),
        ({"orthogonality": float("nan")}, "orthogonality (nan is below 0|= nan should be a finite number)"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configured(OLoRA, BACKBONE, **options)
