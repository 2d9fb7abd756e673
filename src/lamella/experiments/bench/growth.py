"""The costs of each task of a long stream: time, bytes of the learned state, and the time of a prediction."""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from lamella.common.timing import interleaved, ratio
from lamella.data.scenario import Task
from lamella.learner.config.document import build_backbone
from lamella.learner.learner import Learner
from lamella.learner.store.state import learned_state
from lamella.training.footprint import peak_bytes

__all__ = ["follow", "slope"]

PROBE = 64  # samples of a prediction that is timed


def follow(
    learner: Learner, tasks: Iterable[Task], each: Callable[[int, dict[str, float]], None] = lambda i, cost: None
) -> list[dict[str, float]]:
    """Learn tasks and measure the costs of each.

    Args:
        learner: the learner.
        tasks: the tasks.
        each: called with the number and the costs of each task after it is learned.

    Returns:
        For each task the "bytes" of all that has been learned, the "seconds_per_image" of learning, the "peak" memory
        of the process in bytes, and "pass", the time of a prediction as a multiple of a plain forward pass of the same
        backbone. Both passes are timed in turn.
    """
    device = learner.fit().device
    plain = build_backbone(learner.config).to(device)
    x = plain.example(PROBE, torch.Generator().manual_seed(0))
    costs: list[dict[str, float]] = []
    for i, task in enumerate(tasks):
        started = time.perf_counter()
        record = learner.learn(task)
        seconds = time.perf_counter() - started
        with torch.no_grad():
            forms: dict[str, Callable[[], Any]] = {"ours": lambda: learner.logits(x), "plain": lambda: plain(x)}
            times = interleaved(forms, repeats=5)
        costs.append(
            {
                "bytes": sum(t.numel() * t.element_size() for t in learned_state(learner.method).values()),
                "seconds_per_image": seconds / record.images,
                "peak": peak_bytes(device),
                "pass": ratio(times["ours"], times["plain"]),
            }
        )
        each(i, costs[-1])
    return costs


def slope(values: list[float]) -> float:
    """Return the slope per task of the least-squares line over the second half of a stream.

    >>> slope([9.0, 9.0, 1.0, 3.0])
    2.0
    """
    late = values[len(values) // 2 :]
    return statistics.linear_regression(range(len(late)), late).slope if len(late) > 1 else 0.0
