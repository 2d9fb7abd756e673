"""A stream without borders: samples come in small batches, once, and most classes come again at any time.

Si-Blurry: Moon, Park, Kim & Park, "Online Class Incremental Learning on Stochastic Blurry Task Boundary via Mask and
Visual Prompt Tuning", ICCV 2023, arXiv 2308.09303. Authors' code: github.com/KHU-AGI/Si-Blurry. It generalises
i-Blurry: Koh, Kim, Ha & Choi, "Online Continual Learning on Class Incremental Blurry Task Configuration with Anytime
Inference", ICLR 2022, arXiv 2110.10031.

    paper / code                    here
    disjoint class ratio / n        disjoint
    blurry sample ratio / m         blurry
    classes of a task, at random    cuts at random points

Departures (from the paper and its code, which leave empty tasks to chance):
- One cut divides all classes among the tasks, so that each begins at least one; the code cuts disjoint and blurry
  classes apart from each other, and a task may get neither.
- Every blurry class gives the same share of its samples, and each task gets the same number of them, as in i-Blurry;
  the code draws both. One sample of each class always stays in its own task, so that it is known when it is tested.
- Shares are rounded to whole classes and samples; the code rounds classes down to multiples of the number of tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lamella.common.randomness import generator
from lamella.data.answers import AnswerSet
from lamella.data.loading import Examples
from lamella.data.scenario import check_each_class, held_out, in_order, short, where
from lamella.data.splits import in_drawn_order
from lamella.data.tasks import Scenario, Source, Task

__all__ = ["ONLINE", "online"]

ONLINE = "online"
"""The kind of such a scenario."""


def online(
    source: Source,
    *,
    tasks: int,
    disjoint: float = 0.5,
    blurry: float = 0.1,
    batch: int = 64,
    order: str | Sequence[int | str] = "seeded",
    seed: int = 0,
    validation: float = 0.0,
) -> Scenario:
    """Classes begin at random times; some stay in their own task, of the others a share of the samples is everywhere.

    Test data of a task are those of the classes that begin in it. So the parts of all tasks are disjoint, and a class
    is tested where most of its samples come.

    Args:
        source: the data set.
        tasks: the number of tasks, among which the classes are divided by cuts at random points; each gets one or more.
        disjoint: the share of the classes of which all samples come in one task, 0..1.
        blurry: the share of the samples of all other classes that is scattered evenly over all tasks, 0..1.
        batch: how many samples come in together, at least 1.
        order: of the classes; "seeded" (shuffled by `seed`), "label", or every class once, by name or id.
        seed: of all draws.
        validation: fraction of each class's training samples to hold out, in [0, 1).

    Raises:
        ValueError: a share or a number is out of its range, the samples have no classes, or a class has no sample.
    """
    _check(source, tasks, disjoint, blurry, batch, validation)
    classes = in_order(source.class_names, order, "class", generator(seed, "class order"))
    check_each_class(source, classes)
    sizes = _random_sizes(len(classes), tasks, generator(seed, "online", "sizes"))
    own = torch.tensor(classes).split(sizes)
    out = held_out(source.train, validation, seed) if validation else torch.zeros(len(source.train), dtype=torch.bool)
    train, held = where(source.train, ~out), where(source.train, out)
    drawn = torch.randperm(len(classes), generator=generator(seed, "online", "disjoint"))
    mixed = [classes[i] for i in drawn.tolist()[round(disjoint * len(classes)) :]]
    place = _places(train, own, mixed, blurry, seed)
    built = []
    for i, members in enumerate(own):
        stream = in_drawn_order((place == i).nonzero()[:, 0].tolist(), train.keys, seed=seed, name="online stream")
        part = train.subset(stream)
        labels = tuple(dict.fromkeys(part.labels.tolist()))
        name = short([source.class_names[label] for label in members])
        validating = where(held, torch.isin(held.labels, members)) if validation else None
        built.append(Task(i, name, labels, tuple(source.class_names[c] for c in labels), part, validating))
    tests = [where(source.test, torch.isin(source.test.labels, members)) for members in own]
    return Scenario(ONLINE, source.class_names, built, tests, batch)


def _check(source: Source, tasks: int, disjoint: float, blurry: float, batch: int, validation: float) -> None:
    if isinstance(source.train, AnswerSet):
        raise ValueError(f"{source.name} holds answers, which have no classes to be mixed; use kind 'datasets'")
    for name, share in (("disjoint", disjoint), ("blurry", blurry)):
        if not 0 <= share <= 1:
            what = "classes that stay in one task" if name == "disjoint" else "samples that are scattered"
            raise ValueError(f"{name} is {share}, but it is a share of {what}; give 0 to 1, such as 0.5")
    if batch < 1:
        raise ValueError(f"batch is {batch}; it is how many samples come in together, so give 1 or more, such as 64")
    if not 1 <= tasks <= len(source.class_names):
        many = len(source.class_names)
        raise ValueError(
            f"tasks is {tasks}; {source.name} has {many} classes and each task begins one: give 1 to {many}"
        )
    if not 0 <= validation < 1:
        raise ValueError(f"validation is a fraction of the training part, in [0, 1), not {validation}")


def _random_sizes(classes: int, tasks: int, random: torch.Generator) -> list[int]:
    """Sizes of the tasks by cuts at distinct random points: each way to divide them is equally likely."""
    cuts = (torch.randperm(classes - 1, generator=random)[: tasks - 1] + 1).sort().values.tolist()
    return [end - start for start, end in zip([0, *cuts], [*cuts, classes], strict=True)]


def _places(train: Examples, own: Sequence[Tensor], mixed: Sequence[int], blurry: float, seed: int) -> Tensor:
    """(n,) the task of each sample: that of its class, but for the scattered share of the mixed classes."""
    place = torch.full((len(train),), -1)
    for i, members in enumerate(own):
        place[torch.isin(train.labels, members)] = i
    scattered: list[int] = []
    for label in sorted(mixed):
        every = (train.labels == label).nonzero()[:, 0].tolist()
        count = min(round(blurry * len(every)), len(every) - 1)
        scattered += in_drawn_order(every, train.keys, seed=seed, name="online blurry")[:count]
    for number, i in enumerate(in_drawn_order(scattered, train.keys, seed=seed, name="online scattered")):
        place[i] = number % len(own)
    return place
