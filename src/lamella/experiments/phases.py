"""Where the time of learning went."""

from collections import defaultdict
from collections.abc import Sequence

from lamella.learner.records import TaskRecord

__all__ = ["phase_shares", "phases_line"]

OTHER = "other"


def phase_shares(tasks: Sequence[TaskRecord], evaluation: float = 0.0) -> tuple[dict[str, float], float]:
    """Shares of the whole time, the largest first, and the share in which training waited for data.

    Calls of one name within a task ("gather", "gather-1") count together; what no call accounts for is "other".

    Args:
        tasks: the records of a learner's tasks.
        evaluation: the seconds of testing.

    >>> seconds = {"train": 6.0, "scan": 1.0, "scan-1": 1.0, "total": 10.0}
    >>> phase_shares([TaskRecord("digits", (0, 1), 20, seconds, trainable_parameters=5, waited=1.0)], 10.0)
    ({'evaluation': 0.5, 'train': 0.3, 'scan': 0.1, 'other': 0.1}, 0.05)
    """
    seconds: dict[str, float] = defaultdict(float, evaluation=evaluation)
    for task in tasks:
        calls = {name: spent for name, spent in task.seconds.items() if name != "total"}
        for name, spent in calls.items():
            plain, _, number = name.rpartition("-")
            seconds[plain if number.isdigit() else name] += spent
        seconds[OTHER] += max(task.seconds["total"] - sum(calls.values()), 0.0)
    whole = sum(seconds.values()) or 1.0
    waited = sum(task.waited for task in tasks)
    largest_first = sorted(seconds, key=lambda name: -seconds[name])
    return {name: seconds[name] / whole for name in largest_first if seconds[name]}, waited / whole


def phases_line(tasks: Sequence[TaskRecord], evaluation: float = 0.0) -> str:
    """The same for people."""
    shares, waited = phase_shares(tasks, evaluation)
    return f"time: {', '.join(f'{name} {share:.0%}' for name, share in shares.items())}; waiting for data {waited:.1%}"
