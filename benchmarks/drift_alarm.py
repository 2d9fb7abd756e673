"""How often the drift alarm is wrong on a stream that stays as it is, and how soon it is right after a border.

    python benchmarks/drift_alarm.py
    python benchmarks/drift_alarm.py --method nearest-mean

A learner on the bundled network knows five of the ten digits; which ones, and which images, a seed draws. It learns
half of their images. Of the others an eighth of all is held back, in several draws, and what is left is the stream:

    stationary      all of it
    border          some of it, then images of digits that were never learned, alone or mixed with known ones

Nothing is chosen on them. `every` is what the alarm promises: at most one false alarm in so many samples, on average.
"""

import statistics
from dataclasses import dataclass, field
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lamella.common.randomness import generator
from lamella.data.images import concatenate
from lamella.data.scenario import Task
from lamella.data.sources.load import load_source
from lamella.learner.confidence import Confidence
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


def typicality(seed: int, method: str) -> tuple[Tensor, Tensor, int]:
    """The typicality of known and of new digits that were not learned, and how many are held back of the known ones."""
    source = load_source("digits")
    pool = concatenate([source.train, source.test])
    draws = torch.randperm(10, generator=generator(seed, "which digits")).tolist()
    known = torch.isin(pool.labels, torch.tensor(draws[:5]))
    order = torch.randperm(len(pool), generator=generator(seed, "which images"))
    inside, outside = order[known[order]], order[~known[order]]
    learner = Learner.create(backbone="fractal-vit-micro", method=method, seed=seed, fit={"device": "cpu"})
    classes = tuple(sorted(draws[:5]))
    half = len(inside) // 2
    learner.learn(Task(0, "known", classes, tuple(map(str, classes)), pool.subset(inside[:half])))

    def of(index: Tensor) -> Tensor:
        return learner.model.read(pool.subset(index), learner.fit(), "typicality")[1].double()

    return of(inside[half:]), of(outside), len(inside) // 8


def _familiarity(held: Confidence, values: Tensor) -> list[float]:
    found = held.familiarity(values)
    return [] if found is None else found.tolist()


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
    seeds: Annotated[int, typer.Option(help="So many learners.")] = 20,
    orders: Annotated[int, typer.Option(help="So many streams of each kind for a learner.")] = 50,
) -> None:
    """Learn, watch and count."""
    kinds = ["stationary", *(f"border, then {share:.0%} new" for share in SHARES)]
    found = {(every, kind): Found() for every in PROMISES for kind in kinds}
    counts: list[int] = []
    for seed in range(seeds):
        known, new, held_back = typicality(seed, method)
        counts.append(held_back)
        for number in range(orders):
            draws = generator(seed, "order", number)
            inside, outside = (part[torch.randperm(len(part), generator=draws)] for part in (known, new))
            held = Confidence(1.0, inside[:held_back])
            one, other = (_familiarity(held, values) for values in (inside[held_back:], outside))
            streams: dict[str, tuple[list[float], int | None]] = {kinds[0]: (one, None)}
            for kind, share in zip(kinds[1:], SHARES, strict=True):
                after = iter(one[BEFORE:])
                is_new = torch.rand(len(other), generator=draws) < share
                mixed = [value if is_new[i] else next(after, None) for i, value in enumerate(other)]
                whole = [value for value in mixed if value is not None]
                streams[kind] = one[:BEFORE] + whole, BEFORE
            for (every, kind), counted in found.items():
                watch(counted, DriftAlarm(held_back, every=every, seed=orders * seed + number), *streams[kind])
    mean = statistics.mean(counts)
    title = f"{method} on digits, {mean:.0f} samples held back, {seeds * orders} streams of each kind"
    page = Table("every", "stream", "false alarms", "promised at most", "noticed", "delay", "estimated", title=title)
    for (every, kind), counted in found.items():
        share, promised = counted.too_early / counted.streams, counted.samples / counted.streams / every
        error = (promised * (1 - promised) / counted.streams) ** 0.5
        delays = sorted(counted.delays)
        page.add_row(
            f"{every:,}",
            kind,
            f"{share:.1%} of streams",
            f"{promised:.1%} ± {error:.1%}",
            f"{len(delays) / max(len(delays) + counted.never, 1):.1%}" if kind != kinds[0] else "",
            f"{statistics.median(delays):.0f} (9 in 10: {delays[len(delays) * 9 // 10]})" if delays else "",
            f"{statistics.median(counted.off):+.0f}" if delays else "",
        )
    Console(width=130).print(page)
    print("promised: with the standard error of a share of so many independent streams")
    print("delay: samples after the border until the alarm, median; estimated: `since`, from the first sample after it")


if __name__ == "__main__":
    typer.run(main)
