"""Federated learning: what clients send adds up to what one owner of all samples computes; broken messages do not."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import build_shallow, draw, plain
from torch import Tensor

from lamella.federated.factors import joined_by_inputs, mean, residual, stacked
from lamella.federated.federation import Federation
from lamella.federated.fit import FederatedFit
from lamella.federated.messages import accepted, bytes_of, why_refused
from lamella.federated.partition import partition
from lamella.federated.privacy import clipped, epsilon_of
from lamella.federated.remote import AnsweringFit, AskingFit, Party, Question
from lamella.memory.feature_sums import class_sums, drift_sums
from lamella.memory.gaussians import ClassGaussians
from lamella.methods.parts.align import Aligned
from lamella.methods.parts.drift import affine_drift, drift_of_sums, mean_drift
from lamella.testing.tiny import tiny_tasks

WEIGHTS = (0.5, 0.2, 0.3)
TASKS = tiny_tasks((2, 2))
Spoil = Callable[[str, dict[int, Any]], dict[int, Any]]


class Watched(FederatedFit):
    """The loop, which remembers what arrived, after a test has spoiled it."""

    spoil: Spoil = staticmethod(lambda call, replies: replies)

    def ask(self, name: str, answer: Callable[[int], Any]) -> dict[int, Any]:
        arrived = self.spoil(name, super().ask(name, answer))
        self.__dict__.setdefault("arrived", []).append((name, arrived))
        return arrived


def loop(method: Any, spoil: Spoil | None = None, **plan: Any) -> Watched:
    fit = Watched(method, method.backbone.transform, device="cpu", federation=Federation(**{"rounds": 2} | plan))
    fit.spoil = spoil or fit.spoil
    return fit


def learn(method: Any, fit: Any, tasks: Sequence[Any] = TASKS) -> Any:
    for number, task in enumerate(tasks):
        fit.begin(str(number))
        if fit.divided:
            fit.divide(task.train)
        method.learn(task, fit)
    return method


def aligned(name: str = "inflora", **options: Any) -> Aligned:
    return Aligned(build_shallow(name, rank=2, lr=1e-2, **options))


def state(method: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


def pairs(rank: int = 2) -> tuple[list[Tensor], list[Tensor]]:
    return (
        [draw(rank, 6, name=f"A{k}").double() for k in range(3)],
        [draw(5, rank, name=f"B{k}").double() for k in range(3)],
    )


def products(As: Sequence[Tensor], Bs: Sequence[Tensor]) -> Tensor:
    return torch.stack([w * B @ A for w, A, B in zip(WEIGHTS, As, Bs, strict=True)]).sum(0)


# who has which samples


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.integers(1, 6),
    st.sampled_from([None, 0.05, 1.0, 1e3]),
    st.integers(0, 3),
)
def test_every_sample_has_one_client(labels: list[int], clients: int, alpha: float | None, seed: int) -> None:
    parts = partition(torch.tensor(labels), clients, alpha, seed, "0")
    assert len(parts) == clients
    assert torch.cat(parts).sort().values.tolist() == list(range(len(labels)))
    again = partition(torch.tensor(labels), clients, alpha, seed, "0")
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))


def test_small_concentrations_give_unlike_clients_and_large_ones_like_clients() -> None:
    labels = torch.arange(4).repeat_interleave(500)

    def largest_share(alpha: float | None) -> float:
        counts = torch.stack(
            [torch.bincount(labels[part], minlength=4) for part in partition(labels, 5, alpha, 0, "0")]
        )
        return float((counts / counts.sum(0)).amax(0).mean())

    assert largest_share(0.05) > 0.7
    assert largest_share(1e4) < 0.22
    assert 0.2 <= largest_share(None) < 0.25


def test_who_takes_part_follows_from_the_moments_that_are_named() -> None:
    plan = Federation(clients=3, lose=("2@2.2",), join=("0@2",))
    assert [plan.present(t, r) for t, r in [(1, 9), (2, 0), (2, 1), (2, 2), (3, 0)]] == [
        [1, 2], [0, 1, 2], [0, 1, 2], [0, 1], [0, 1]]  # fmt: skip


def test_a_lost_client_can_come_back_and_one_that_came_late_can_be_lost() -> None:
    plan = Federation(clients=2, lose=("0@2", "1@3"), join=("0@4", "1@2"))
    assert [plan.present(task, 0) for task in (1, 2, 3, 4)] == [[0], [1], [], [0]]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rule": "fedprox"}, "use one of fedavg"),
        ({"rounds": 0}, "at least 1"),
        ({"dirichlet": 0.0}, "above 0"),
        ({"lose": ("4@0",)}, "tasks count from 1"),
        ({"lose": ("5@1",)}, "0 to 4"),
        ({"lose": ("last",)}, "CLIENT@TASK"),
        ({"lose": ("4@1.11",)}, "1 to 10"),
        ({"join": ("4@1.0",)}, "1 to 10"),
        ({"quorum": 6}, "there are 5"),
        ({"noise": 1.0}, "federated.clip"),
        ({"clip": 1.0, "rule": "flora"}, "no plain mean"),
        ({"delta": 1.0}, "within"),
    ],
)
def test_a_wrong_federation_is_refused_in_one_line(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        Federation(**wrong)
    assert "\n" not in str(error.value)


# sums


def test_class_statistics_of_five_clients_are_those_of_one_owner() -> None:
    x, y = draw(60, 7) + 3, torch.arange(60) % 3
    pooled, summed = ClassGaussians(7), ClassGaussians(7)
    for rows, classes in ((slice(0, 40), (2, 0, 1)), (slice(40, 60), (1, 2, 0))):  # the classes come back
        pooled.add(x[rows], y[rows], classes)
        part = partition(y[rows], 5, 0.3, 0, "0")
        told = [class_sums(x[rows][p], y[rows][p], classes) for p in part]
        summed.add_sums({name: torch.stack([sums[name] for sums in told]).sum(0) for name in told[0]}, classes)
    assert summed.classes == pooled.classes
    for name, wanted in pooled.named_buffers():
        torch.testing.assert_close(summed.get_buffer(name), wanted, rtol=1e-12, atol=1e-12)


def test_a_class_of_no_client_is_refused() -> None:
    with pytest.raises(ValueError, match="class 3 has no sample"):
        ClassGaussians(2).add_sums(class_sums(draw(2, 2), torch.tensor([1, 1]), (1, 3)), (1, 3))


def test_the_drift_of_sums_is_that_of_all_features() -> None:
    before = draw(50, 6) + 5
    after = before @ (torch.eye(6) + 0.1 * draw(6, 6)) + 1
    told = [drift_sums(before[p], after[p]) for p in partition(torch.zeros(50), 5, None, 0, "0")]
    sums = {name: torch.stack([each[name] for each in told]).sum(0) for name in told[0]}
    for wanted, kind in ((affine_drift(before, after, 0.3), "affine"), (mean_drift(before, after), "mean")):
        for found, tensor in zip(drift_of_sums(sums, kind, 0.3), wanted, strict=True):
            torch.testing.assert_close(found, tensor, rtol=1e-10, atol=1e-10)


# joining factors, in float64


def test_the_mean_is_exact_where_a_factor_is_shared() -> None:
    As, Bs = pairs()
    torch.testing.assert_close(mean(Bs, WEIGHTS) @ As[0], products([As[0]] * 3, Bs), rtol=1e-12, atol=1e-12)
    assert (mean(Bs, WEIGHTS) @ mean(As, WEIGHTS) - products(As, Bs)).abs().max() > 0.1  # and is not where none is


def test_a_stack_and_a_residual_are_exact_always() -> None:
    As, Bs = pairs()
    A, B = stacked(As, Bs, WEIGHTS)
    assert A.shape == (6, 6)
    torch.testing.assert_close(B @ A, products(As, Bs), rtol=1e-12, atol=1e-12)
    whole = mean(Bs, WEIGHTS) @ mean(As, WEIGHTS) + residual(As, Bs, WEIGHTS)
    torch.testing.assert_close(whole, products(As, Bs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("inputs", [20, 1], ids=["full rank", "few inputs"])
def test_what_is_joined_by_inputs_answers_them_best(inputs: int) -> None:
    As, _ = pairs()
    X = [draw(6, inputs, name=f"X{k}").double() for k in range(3)]
    found = joined_by_inputs(As, [x @ x.T for x in X])

    def error(M: Tensor) -> float:
        return sum(float(((M - A) @ x).square().sum()) for A, x in zip(As, X, strict=True))

    best = error(found)
    assert best < error(mean(As, WEIGHTS))
    assert all(error(found + 1e-3 * draw(2, 6, name=f"near {i}").double()) > best for i in range(10))


def test_clients_that_agree_are_joined_to_what_they_agree_on() -> None:
    A = pairs()[0][0]
    moments = [torch.eye(6, dtype=torch.float64), torch.zeros(6, 6, dtype=torch.float64)]
    torch.testing.assert_close(joined_by_inputs([A, A], moments), A)


# messages

GOOD = {"l|total": torch.eye(3), "l|count": torch.tensor(4)}


@pytest.mark.parametrize(
    ("spoiled", "told"),
    [
        ({"l|total": torch.full((3, 3), math.nan)}, "not finite"),
        ({"l|total": torch.full((3, 3), math.inf)}, "not finite"),
        ({"l|total": torch.eye(4)}, "shape (4, 4) and not (3, 3)"),
        ({"l|total": torch.eye(3).double()}, "float64"),
        ({"l|total": torch.ones(3, 3).triu()}, "not symmetric"),
        ({"l|total": -torch.eye(3)}, "negative sum of squares"),
        ({"l|count": torch.tensor(-1)}, "below 0"),
        ({"m|count": torch.tensor(1)}, "'m|count' is unknown"),
    ],
)
def test_a_broken_message_is_refused(spoiled: dict[str, Tensor], told: str) -> None:
    assert why_refused(GOOD, GOOD) == ""
    assert told in why_refused(GOOD | spoiled, GOOD)
    assert "missing" in why_refused({"l|count": GOOD["l|count"]}, GOOD)


def test_an_absurd_scale_is_refused_and_the_median_is_of_whole_messages() -> None:
    replies = {k: {"x": torch.tensor([v])} for k, v in enumerate((1.0, 2.0, 3.0, 1e9, math.nan))}
    kept, refused = accepted(replies, replies[0], lambda m: float(m["x"].norm()), 10.0)
    assert set(kept) == {0, 1, 2}
    assert "1e+09" in refused[3]
    assert "median of all clients is 2" in refused[3]
    assert "not finite" in refused[4]


def test_of_symmetric_matrices_a_triangle_is_sent() -> None:
    assert bytes_of(GOOD) == 6 * 4 + 8
    assert bytes_of({"xy": torch.zeros(3, 3)}) == 36


# the loop


def test_one_client_in_one_round_learns_to_the_bit_what_one_owner_learns() -> None:
    central, alone = aligned(epochs=2), aligned(epochs=7)
    learn(central, plain(central))
    learn(alone, loop(alone, clients=1, rounds=1, epochs=2))
    wanted, found = state(central), state(alone)
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        if name.startswith("statistics."):  # from sums, in another order
            torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(found[name], tensor), name


def test_rounds_go_through_the_schedule_of_all_epochs() -> None:
    rates: list[float] = []
    method = build_shallow("seq-lora", rank=2, schedule="cosine")
    fit = loop(method, clients=1, rounds=2, epochs=2)
    step, task = torch.optim.Adam.step, TASKS[0]

    def spying(self: Any, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.optim.Adam, "step", spying)
        learn(method, fit, [task])
    recipe = build_shallow("seq-lora", schedule="cosine", epochs=4).recipe
    wanted = [recipe.lr * recipe.factor(epoch) for epoch in range(4) for _ in range(len(rates) // 4)]
    assert rates == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["nearest-mean", "streaming-lda"])
def test_frozen_features_of_five_unlike_clients_give_the_statistics_of_one_owner(name: str) -> None:
    central, parted = build_shallow(name), build_shallow(name)
    learn(central, plain(central))
    learn(parted, loop(parted, dirichlet=0.3))
    for key, tensor in state(central).items():
        torch.testing.assert_close(state(parted)[key], tensor, rtol=1e-6, atol=1e-6)


def test_inflora_designs_the_a_of_one_owner_and_its_mean_of_updates_is_exact() -> None:
    central, parted = build_shallow("inflora", rank=2, epochs=1), build_shallow("inflora", rank=2)
    learn(central, plain(central), TASKS[:1])
    before = {site.name: site.layer.weight.clone() for site in parted.sites}
    designs: dict[str, Tensor] = {}

    def keep(call: str, replies: dict[int, Any]) -> dict[int, Any]:
        branches = {s.name: b for s in parted.sites for b in s.layer.of("new")}
        designs.update({name: b.A.detach().clone() for name, b in branches.items()})
        return replies

    learn(parted, loop(parted, keep, rounds=1, dirichlet=0.5), TASKS[:1])
    for (name, A), site in zip(designs.items(), central.sites, strict=True):
        assert name == site.name
        update = site.layer.weight - before[name]  # B A of one owner: its rows are in the span of A
        rest = update - update @ A.T @ torch.linalg.inv(A @ A.T) @ A
        assert rest.norm() < 1e-4 * update.norm() > 0


def effective(method: Any) -> dict[str, Tensor]:
    """The weights with their branches."""
    return {
        f"{site.name}{site.rows}": (
            site.layer.weight[site.rows]
            + sum(branch.delta(site.layer.weight.shape) for branch in site.layer.of("lora"))
        ).detach()
        for site in method.sites
    }


@pytest.mark.parametrize("rule", ["ffa-lora", "fedex-lora", "flora", "fedavg"])
def test_joined_weights_are_the_mean_of_the_clients_weights(rule: str) -> None:
    method = build_shallow("seq-lora", rank=2, lr=1e-1, blocks=1, sites=["query"])
    fit = loop(method, rule=rule, rounds=1, clients=3, dirichlet=1.0)
    learn(method, fit, TASKS[:1])
    (site,) = method.sites
    ((_, replies),) = fit.__dict__["arrived"]
    (branch,), (frozen,) = site.layer.of("lora"), build_shallow("seq-lora", blocks=1, sites=["query"]).sites
    counts = {k: int(reply["count"]) for k, reply in replies.items()}
    prefix = next(iter(name for name in replies[0] if name.endswith(".B")))[:-1]
    wanted = frozen.layer.weight[frozen.rows].double().clone()
    for k, reply in replies.items():
        A = reply.get(f"{prefix}A", branch.A)
        wanted += counts[k] / sum(counts.values()) * (reply[f"{prefix}B"] @ A).double()
    assert (wanted - frozen.layer.weight[frozen.rows]).norm() > 1e-2
    (found,) = effective(method).values()
    difference = float((found - wanted).norm() / (wanted - frozen.layer.weight[frozen.rows]).norm())
    assert (difference > 1e-3) if rule == "fedavg" else (difference < 1e-5)


def test_lorm_trains_b_and_a_in_turn_and_joins_them_by_what_clients_read() -> None:
    method = build_shallow("seq-lora", rank=2, lr=1e-2, blocks=1, sites=["query"])
    fit = loop(method, rule="lorm", clients=3)
    learn(method, fit, TASKS[:1])
    (_, first), (_, second) = fit.__dict__["arrived"]
    factors = [{name.rpartition(".")[2] for name in replies[0] if ".branches." in name} for replies in (first, second)]
    assert factors == [{"B"}, {"A"}]
    (site,), names = method.sites, [*second[0]]
    total = next(name for name in names if name.endswith("|total"))
    name = next(name for name in names if name.endswith(".A"))
    joined = joined_by_inputs([second[k][name] for k in range(3)], [second[k][total] for k in range(3)])
    torch.testing.assert_close(site.layer.of("lora")[0].A.double(), joined, rtol=1e-4, atol=1e-6)


def nan(reply: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t * math.nan if t.is_floating_point() else t for name, t in reply.items()}


def shorter(reply: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t[:-1] if t.ndim else t for name, t in reply.items()}


def absurd(reply: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t * 1e6 if t.is_floating_point() else t for name, t in reply.items()}


def test_a_hostile_client_is_left_out_and_named_and_the_others_go_on() -> None:
    kinds = itertools.cycle((nan, shorter, absurd))  # another one in each call
    quiet, hostile = aligned(), aligned()
    learn(quiet, loop(quiet, lambda call, replies: {k: r for k, r in replies.items() if k != 1}, clients=4, rounds=3))
    fit = loop(hostile, lambda call, replies: replies | {1: next(kinds)(replies[1])}, clients=4, rounds=3)
    learn(hostile, fit)
    assert {entry["client"] for entry in fit.ledger.missing} == {1}
    told = " ".join(entry["why"] for entry in fit.ledger.missing)
    assert all(why in told for why in ("not finite", "has the shape", "its scale is"))
    wanted = state(quiet)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in state(hostile).items())


def test_a_lost_client_is_named_and_what_the_others_say_is_all_that_counts() -> None:
    method = aligned(epochs=1)
    fit = loop(method, clients=3, lose=("2@2.1",), join=("0@2",))
    fit.begin("0")
    fit.divide(TASKS[0].train)
    method.learn(TASKS[0], fit)
    assert [entry["client"] for entry in fit.ledger.missing] == [0]
    assert method.statistics.counts.sum() == sum(fit.ledger.samples[1:])
    fit.begin("1")
    fit.divide(TASKS[1].train)
    method.learn(TASKS[1], fit)
    assert fit.ledger.missing == [{"client": 2, "since": "train", "why": "no answer"}]
    assert fit.ledger.bytes["train"][2] == 2


def test_too_few_answers_stop_the_round() -> None:
    method = aligned()
    with pytest.raises(RuntimeError, match=r"1 answers to 'moment-before' of task 1 count.*quorum is 2.*--resume"):
        learn(method, loop(method, lambda call, replies: {0: replies[0]}, quorum=2))


def test_clients_without_samples_are_told_where_the_quorum_is_not_reached() -> None:
    method = aligned()
    few = len(TASKS[0].train)
    with pytest.raises(RuntimeError, match=rf"quorum is {few + 1} \(client {few}: no sample\)"):
        learn(method, loop(method, clients=few + 1, quorum=few + 1))


def test_a_class_that_no_client_has_stops_the_task_before_it_begins() -> None:
    method = aligned()
    with pytest.raises(ValueError, match="no client that takes part in task 1 has a sample of class"):
        loop(method, clients=2, dirichlet=1e-3, lose=("0@1", "1@1")).divide(TASKS[0].train)


def test_what_a_rule_cannot_join_is_refused() -> None:
    method = build_shallow("inflora", rank=2)
    with pytest.raises(ValueError, match="joins A and B"):
        learn(method, loop(method, rule="flora"))
    method = build_shallow("inflora", rank=2, statistics_images=4)
    with pytest.raises(ValueError, match="statistics_images"):
        learn(method, loop(method))
    method = build_shallow("duallora", rank=2)
    assert not method.federates
    with pytest.raises(ValueError, match="changes weights after each step"):
        learn(method, loop(method))
    method = build_shallow("ewc-lora", rank=2)
    with pytest.raises(ValueError, match="samples one by one"):
        learn(method, loop(method))


@pytest.mark.parametrize(
    "part", [{"drift": "local"}, {"own_covariance": 0.5}, {"means": 2}, {"head": "refit"}, {"compete": True}]
)
def test_alignment_by_more_than_sums_does_not_federate(part: dict[str, Any]) -> None:
    assert aligned().federates
    assert not Aligned(build_shallow("inflora"), **part).federates
    assert not Aligned(build_shallow("olora")).federates


# privacy


def test_a_clipped_update_is_as_long_as_allowed_and_points_where_it_did() -> None:
    update = {"a": draw(3, 2), "b": draw(4)}
    short = clipped(update, 0.5)
    assert math.sqrt(sum(float(t.square().sum()) for t in short.values())) == pytest.approx(0.5, rel=1e-5)
    torch.testing.assert_close(short["a"] / short["b"][0], update["a"] / update["b"][0])
    assert all(torch.equal(t, update[name]) for name, t in clipped(update, 1e3).items())


@pytest.mark.parametrize(("noise", "releases"), [(1.0, 1), (1.0, 50), (4.0, 10)])
def test_epsilon_is_where_the_hockey_stick_divergence_of_the_releases_is_delta(noise: float, releases: int) -> None:
    epsilon, m = epsilon_of(noise, releases, 1e-5), math.sqrt(releases) / noise
    lost = torch.linspace(m**2 / 2 - 12 * m, m**2 / 2 + 12 * m, 400_001, dtype=torch.float64)  # the privacy loss
    density = torch.exp(-((lost - m**2 / 2) ** 2) / (2 * m**2)) / (m * math.sqrt(2 * math.pi))
    delta = torch.trapezoid(density * (1 - torch.exp(epsilon - lost)).clamp_min(0), lost)
    assert float(delta) == pytest.approx(1e-5, rel=1e-3)


def test_without_noise_there_is_no_privacy_and_more_releases_cost_more() -> None:
    assert epsilon_of(0.0, 1, 1e-5) == math.inf
    assert epsilon_of(1.0, 0, 1e-5) == 0
    assert epsilon_of(1.0, 1, 1e-5) < epsilon_of(1.0, 4, 1e-5) == pytest.approx(epsilon_of(0.5, 1, 1e-5))


def test_noise_has_the_size_that_is_promised_and_one_client_moves_the_mean_by_its_share_of_the_clip() -> None:
    def update(**plan: Any) -> tuple[Tensor, int]:
        method = build_shallow("seq-lora", rank=2, lr=1e-1)
        fit = loop(method, clients=4, rounds=1, **plan)
        start: list[Tensor] = []

        def keep(call: str, replies: dict[int, Any]) -> dict[int, Any]:
            start.append(torch.cat([t.flatten() for n, t in replies[0].items() if n.endswith(".B")]) * 0)
            return replies

        fit.spoil = keep
        learn(method, fit, TASKS[:1])
        tensors = [b.B.detach().flatten() for s in method.sites for b in s.layer.of("lora")]
        return torch.cat(tensors) - start[0], len(start[0])

    short, _ = update(clip=1e-3)
    assert 0 < short.norm() <= 1e-3 * (1 + 1e-4)
    noisy, n = update(clip=1e-3, noise=2.0)
    assert float((noisy - short).norm()) == pytest.approx(2e-3 / 4 * math.sqrt(n), rel=0.2)


def test_no_client_decides_by_its_size_whether_a_clipped_one_counts() -> None:
    def missing(**plan: Any) -> list[Any]:
        method = build_shallow("seq-lora", rank=2)
        fit = loop(method, lambda call, replies: replies | {1: absurd(replies[1])}, clients=3, rounds=1, **plan)
        learn(method, fit, TASKS[:1])
        return fit.ledger.missing

    assert [entry["client"] for entry in missing()] == [1]
    assert missing(clip=1e-3) == []


# clients that are elsewhere


@pytest.mark.parametrize("rule", ["fedavg", "flora"])
def test_clients_that_are_elsewhere_and_know_nothing_between_questions_make_the_same_model(rule: str) -> None:
    name = "inflora" if rule == "fedavg" else "seq-lora"
    here, there = aligned(name), aligned(name)
    plan = Federation(clients=2, rounds=2, rule=rule)
    learn(here, loop(here, **vars(plan)))

    def make(method: Any, **own: Any) -> AnsweringFit:
        return AnsweringFit(method, method.backbone.transform, device="cpu", federation=plan, **own)

    parties = {client: Party(aligned(name), TASKS, make, client) for client in range(2)}
    asked: list[int] = []

    def send(question: Question, clients: Sequence[int]) -> dict[int, Any]:
        asked.append(question.task)
        if len(asked) == 5:
            parties[1] = Party(aligned(name), TASKS, make, 1)  # it was killed, and comes back with its samples alone
        return {client: parties[client].answer(question) for client in clients}

    results: list[list[dict[str, Tensor]]] = []
    for number, task in enumerate(TASKS):  # each with a loop of its own, as `Learner.learn` makes it
        kept = {"send": send, "results": results, "federation": plan}
        fit = AskingFit(there, there.backbone.transform, device="cpu", **kept)
        fit.begin(str(number))
        fit.divide(task.train)
        there.learn(task, fit)
    results.clear()
    with pytest.raises(ValueError, match="begin the run anew"):
        fit.divide(TASKS[1].train)
    assert asked.count(0) == (5 if name == "inflora" else 3)
    wanted = state(here)
    for key, tensor in state(there).items():
        largest = float(wanted[key].double().abs().amax()) if wanted[key].numel() else 0.0  # sums round by their size
        torch.testing.assert_close(tensor, wanted[key], rtol=1e-6, atol=1e-6 * max(largest, 1.0), msg=key)
