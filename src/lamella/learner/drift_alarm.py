"""An alarm for when what comes in, without labels, no longer looks like what was learned: time for a new task.

A conformal test for a change (Vovk, Petej, Nouretdinov, Ahlberg, Carlsson & Gammerman, "Retrain or not retrain:
Conformal test martingales for change-point detection", COPA 2021, arXiv 2102.10439), with the statistic of Shiryaev and
Roberts. Each sample gets the rank of its typicality among those of all held-back samples and of all that came before
it, ties broken at random:

    p_k = (samples less typical than sample k + U (1 + samples as typical)) / (samples so far, with k)
    R_k = (R_(k-1) + 1) f(p_k),    R_0 = 0,    f(p) = 1 / (2 sqrt(p)),    alarm when R_k reaches `every`

If samples come as the held-back ones were drawn, in any order, the p_k are independent and uniform on 0..1, whatever
the model is and however well it classifies. The mean of f is 1, so that R_k - k is a martingale. Hence, without a
change,

    the mean number of samples until a false alarm is at least `every`;
    the probability of one within the first m samples is at most m / `every`.

That earlier samples are ranked with the held-back ones is what makes this hold for streams of any length: against a
few held-back samples alone, a long stream would show how these few differ from all others.

Departures from the paper: one betting function, fixed, f above, whose wealth grows where typicality falls, not where it
rises; and typicality of a model that has learned all held-back samples' tasks takes the place of a nonconformity
measure. Nothing of a sample is kept but one count, at its place among the held-back samples.
"""

import math
from collections.abc import Iterable

import torch

from lamella.common.randomness import generator

__all__ = ["EVERY", "DriftAlarm"]

EVERY = 10_000
"""Samples between false alarms, at least and on average."""
LARGEST = 1e100
SMALLEST = 1e-12
BLOCK = 256
"""So many random numbers are drawn together."""


class DriftAlarm:
    """Watches the familiarity of incoming samples. Once raised, it stays so; what has learned more needs another.

    Args:
        held_back: how many held-back samples the familiarity is a rank among, at least 1; see `Confidence`.
        every: how many samples there are at least between two false alarms, on average; above 1.
        seed: of the numbers that break ties.

    Attributes:
        seen: how many samples were watched.
        raised_at: the number of the sample, from 1, at which it was raised; None if it was not.
        since: the number of the sample from which on samples are estimated to look otherwise (the last point at which
            the sum of log f(p) was at its lowest, Page 1954); it means little before the alarm is raised.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(self, held_back: int, *, every: float = EVERY, seed: int = 0) -> None:
        if held_back < 1:
            raise ValueError(
                "a drift alarm compares with held-back samples, and this model has none; teach it data with two or "
                "more samples of a class"
            )
        if not every > 1:
            raise ValueError(f"every is {every}; it is how many samples there are between false alarms, such as 10000")
        self.held_back, self.every, self.seed = held_back, every, seed
        self.seen = 0
        self.since = 1
        self.raised_at: int | None = None
        self._counts = [0] * (held_back + 1)  # between which held-back samples samples lie
        self._draws: list[float] = []
        self._level = 0.0  # R
        self._sum = 0.0  # of log f(p) since `since`

    @property
    def raised(self) -> bool:
        """Whether the alarm was raised."""
        return self.raised_at is not None

    def observe(self, familiarity: Iterable[float]) -> bool:
        """Watch some more samples.

        Args:
            familiarity: of each sample, above 0 and at most 1, as a prediction has it. The order must not depend on the
                samples: of a folder that is sorted by class, draw one.

        Returns:
            Whether the alarm is raised by now.
        """
        for value in familiarity:
            self.seen += 1
            if not self.raised:
                self._take(self._p(value))
        return self.raised

    def _p(self, familiarity: float) -> float:
        """The rank of a sample among all so far, 0..1, and count it."""
        place = min(max(round(familiarity * (self.held_back + 1)) - 1, 0), self.held_back)
        below, equal = sum(self._counts[:place]), self._counts[place]
        self._counts[place] += 1
        # Among samples between the same two held-back ones, any order is as likely as another: a random one does.
        return (place + below + self._draw() * (1 + equal)) / (self.held_back + self.seen)

    def _draw(self) -> float:
        """A number in [0, 1), which the seed and the number of the sample decide."""
        block, i = divmod(self.seen - 1, BLOCK)
        if i == 0:
            self._draws = torch.rand(
                BLOCK, generator=generator(self.seed, "drift alarm", block), dtype=torch.float64
            ).tolist()
        return self._draws[i]

    def _take(self, p: float) -> None:
        f = 0.5 * max(p, SMALLEST) ** -0.5
        self._level = min((self._level + 1) * f, LARGEST)
        if self._sum <= 0:
            self._sum, self.since = 0.0, self.seen
        self._sum += math.log(f)
        if self._level >= self.every:
            self.raised_at = self.seen

    def told(self, noun: str) -> str:
        """The alarm in a line for people.

        Args:
            noun: what one sample is called, such as "image".
        """
        if self.raised_at is None:
            return f"no drift in {self.seen:,} {noun}{'' if self.seen == 1 else 's'}"
        return (
            f"{noun}s look unlike what was learned, since about {noun} {self.since:,} (alarm at {noun} "
            f"{self.raised_at:,}): label some of them and teach them as a new task"
        )
