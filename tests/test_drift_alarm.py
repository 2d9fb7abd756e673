"""The drift alarm: how often it is wrong on a stream that stays as it is, and how soon it is right at a border."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lamella.common.randomness import generator
from lamella.learner.confidence import Confidence
from lamella.learner.drift_alarm import DriftAlarm

STREAMS = 300


def normal(*names: str | int, n: int, mean: float = 0.0) -> Tensor:
    return torch.randn(n, generator=generator(0, *names), dtype=torch.float64) + mean


def familiarity(held: Tensor, samples: Tensor) -> list[float]:
    found = Confidence(1.0, held).familiarity(samples)
    assert found is not None
    return found.tolist()


def watched(number: int, *, held: int, n: int, every: float, then: Tensor | None = None) -> DriftAlarm:
    """An alarm on a stream of n samples like the held-back ones, and of others after them."""
    known = normal("held", number, n=held)
    samples = normal("stream", number, n=n)
    alarm = DriftAlarm(held, every=every, seed=number)
    alarm.observe(familiarity(known, samples if then is None else torch.cat([samples, then])))
    return alarm


def test_false_alarms_are_as_rare_as_it_is_said() -> None:
    every, length = 1000.0, 250
    false = sum(watched(i, held=40, n=length, every=every).raised for i in range(STREAMS))
    bound = length / every
    assert false / STREAMS <= bound + 3 * math.sqrt(bound * (1 - bound) / STREAMS)
    eager = sum(watched(i, held=40, n=length, every=20.0).raised for i in range(20))
    assert eager > 5, "an alarm that could not be raised would pass, too"


def test_ranks_are_uniform_and_their_bets_are_fair() -> None:
    ranks: list[float] = []

    class Kept(DriftAlarm):
        def _take(self, p: float) -> None:
            ranks.append(p)

    for i in range(100):
        held = normal("held", i, n=7)
        Kept(7, seed=i).observe(familiarity(held, normal("stream", i, n=60)))
    p = torch.tensor(ranks, dtype=torch.float64).sort().values
    n = len(p)
    distance = float((p - (torch.arange(n) + 0.5) / n).abs().max()) + 0.5 / n
    assert n == 6000
    assert distance < 1.95 / math.sqrt(n), "Kolmogorov and Smirnov, at 1 in 1000"
    pairs = torch.corrcoef(torch.tensor(ranks, dtype=torch.float64).reshape(100, 60)[:, :2].T)[0, 1]
    assert abs(float(pairs)) < 0.33, "the second rank does not depend on the first"


def test_few_held_back_samples_alone_would_not_do() -> None:
    """Why earlier samples are ranked too: against the same few, a long stream betrays how these differ from all."""

    class Naive(DriftAlarm):
        def _p(self, familiarity: float) -> float:
            p = super()._p(familiarity)
            self._counts = [0] * (self.held_back + 1)
            return p * (self.held_back + self.seen) / (self.held_back + 1)

    def share(kind: type[DriftAlarm]) -> float:
        raised = 0
        for i in range(STREAMS):
            held = normal("held", i, n=4)
            raised += kind(4, every=3000, seed=i).observe(familiarity(held, normal("stream", i, n=300)))
        return raised / STREAMS

    limit = 0.1 + 3 * math.sqrt(0.1 * 0.9 / STREAMS)
    assert share(DriftAlarm) <= limit < share(Naive)


def test_a_border_is_noticed_within_some_dozens_of_samples() -> None:
    delays: list[int] = []
    for i in range(30):
        alarm = watched(i, held=100, n=200, every=10_000, then=normal("new", i, n=100, mean=-3.0))
        assert alarm.raised_at is not None
        if alarm.raised_at > 200:
            assert alarm.since > 150, "it says about where the border is"
            delays.append(alarm.raised_at - 200)
    assert len(delays) >= 27, "200 samples in 10,000 are one false alarm in 50 streams at most, on average"
    assert sorted(delays)[len(delays) // 2] < 25
    assert max(delays) < 60


def test_what_looks_more_typical_than_ever_raises_nothing() -> None:
    assert not watched(0, held=100, n=100, every=1000, then=normal("typical", n=300, mean=3.0)).raised


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.0, 1.0), max_size=30), st.lists(st.floats(0.0, 1.0), max_size=30), st.integers(1, 20))
def test_it_does_not_matter_in_which_calls_samples_come(one: list[float], two: list[float], held: int) -> None:
    parts, whole = DriftAlarm(held, every=50), DriftAlarm(held, every=50)
    parts.observe(one)
    parts.observe(two)
    whole.observe([*one, *two])
    assert (parts.raised_at, parts.since, parts.seen) == (whole.raised_at, whole.since, whole.seen)
    assert parts.seen == len(one) + len(two)
    assert parts.raised_at is None or parts.since <= parts.raised_at <= parts.seen


def test_it_keeps_nothing_but_counts() -> None:
    alarm = watched(0, held=12, n=500, every=1e9)
    state = {name: value for name, value in vars(alarm).items() if not isinstance(value, int | float | None)}
    assert state.keys() == {"_counts", "_draws"}
    assert (len(alarm._counts), sum(alarm._counts)) == (13, 500)


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match="compares with held-back samples, and this model has none"):
        DriftAlarm(0)
    with pytest.raises(ValueError, match=r"every is 1; it is how many samples there are between false alarms"):
        DriftAlarm(10, every=1)
    assert DriftAlarm(10).told("image") == "no drift in 0 images"
