"""How often the drift alarm is wrong on a stream that stays as it is, and how soon it is right after a border.

    python benchmarks/drift_alarm.py
    python benchmarks/drift_alarm.py --method nearest-mean

A learner on the bundled network knows five of the ten digits; which ones, and which images, a seed draws. Three fifths
of their images are learned, a fifth of these held back as by `lamella learn`. The others are the stream, in several
orders:

    stationary      all of these others
    border          some of them, then images of digits that were never learned, alone or mixed with known ones

Nothing is chosen on them. `every` is what the alarm promises: at most one false alarm in so many samples, on average.
"""

import statistics
from dataclasses import dataclass, field
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from lamella.common.randomness import generator
from lamella.data.images import concatenate
from lamella.data.scenario import Task
from lamella.data.sources.load import load_source
from lamella.learner.drift_alarm import DriftAlarm
from lamella.learner.learner import Learner

BEFORE = 150
"""Samples of known digits before the border."""
SHARES = (1.0, 0.5, 0.2)
"""Of new digits after it."""
PROMISES = (1000, 10_000)


@dataclass
class Found:
    """What an alarm did on all streams of one kind."""

    streams: int = 0
    samples: int = 0
    too_early: int = 0
    never: int = 0
    delays: list[int] = field(default_factory=list)
    off: list[int] = field(default_factory=list)


def familiarity(seed: int, method: str) -> tuple[list[float], list[float], int]:
    """The familiarity of known and of new digits that were not learned, and how many samples were held back."""
    source = load_source("digits")
    pool = concatenate([source.train, source.test])
    draws = torch.randperm(10, generator=generator(seed, "which digits")).tolist()
    known = torch.isin(pool.labels, torch.tensor(draws[:5]))
    order = torch.randperm(len(pool), generator=generator(seed, "which images"))
    inside, outside = order[known[order]], order[~known[order]]
    learned = len(inside) * 3 // 5
    held_back, taught, stream = inside[: learned // 5], inside[learned // 5 : learned], inside[learned:]
    learner = Learner.create(backbone="fractal-vit-micro", method=method, seed=seed, fit={"device": "cpu"})
    classes = tuple(sorted(draws[:5]))
    task = Task(0, "known", classes, tuple(map(str, classes)), pool.subset(taught))
    learner.learn(task, held_back=pool.subset(held_back))

    def of(index: torch.Tensor) -> list[float]:
        return [p.familiarity or 0.0 for p in learner.predict(pool.subset(index), top=1)]

    return of(stream), of(outside), len(held_back)


def watch(found: Found, alarm: DriftAlarm, stream: list[float], border: int | None) -> None:
    """Let an alarm watch a stream, and count."""
    alarm.observe(stream)
    found.streams += 1
    found.samples += len(stream) if border is None else border
    if alarm.raised_at is None:
        found.never += 1
    elif border is None or alarm.raised_at <= border:
        found.too_early += 1
    else:
        found.delays.append(alarm.raised_at - border)
        found.off.append(alarm.since - border - 1)


def main(
    method: Annotated[str, typer.Option(help="Which method has learned.")] = "streaming-lda",
    seeds: Annotated[int, typer.Option(help="So many learners.")] = 40,
    orders: Annotated[int, typer.Option(help="So many orders of each stream.")] = 10,
) -> None:
    """Learn, watch and count."""
    kinds = ["stationary", *(f"border, then {share:.0%} new" for share in SHARES)]
    found = {(every, kind): Found() for every in PROMISES for kind in kinds}
    counts: list[int] = []
    for seed in range(seeds):
        known, new, held_back = familiarity(seed, method)
        counts.append(held_back)
        for number in range(orders):
            draws = generator(seed, "order", number)
            one, other = (
                [values[i] for i in torch.randperm(len(values), generator=draws).tolist()] for values in (known, new)
            )
            streams: dict[str, tuple[list[float], int | None]] = {kinds[0]: (one, None)}
            for kind, share in zip(kinds[1:], SHARES, strict=True):
                after = iter(one[BEFORE:])
                is_new = torch.rand(len(other), generator=draws) < share
                mixed = [value if is_new[i] else next(after, None) for i, value in enumerate(other)]
                whole = [value for value in mixed if value is not None]
                streams[kind] = one[:BEFORE] + whole, BEFORE
            for (every, kind), counted in found.items():
                watch(counted, DriftAlarm(held_back, every=every, seed=orders * seed + number), *streams[kind])
    held = statistics.mean(counts)
    title = f"{method} on digits, {held:.0f} samples held back, {seeds * orders} streams of each kind"
    page = Table("every", "stream", "false alarms", "promised at most", "noticed", "delay", "estimated", title=title)
    for (every, kind), counted in found.items():
        share, promised = counted.too_early / counted.streams, counted.samples / counted.streams / every
        delays = sorted(counted.delays)
        page.add_row(
            f"{every:,}",
            kind,
            f"{share:.1%} of streams",
            f"{promised:.1%}",
            f"{len(delays) / max(len(delays) + counted.never, 1):.1%}" if kind != kinds[0] else "",
            f"{statistics.median(delays):.0f} (9 in 10: {delays[len(delays) * 9 // 10]})" if delays else "",
            f"{statistics.median(counted.off):+.0f}" if delays else "",
        )
    Console(width=130).print(page)
    print("delay: samples after the border until the alarm, median; estimated: `since`, from the first sample after it")


if __name__ == "__main__":
    typer.run(main)
