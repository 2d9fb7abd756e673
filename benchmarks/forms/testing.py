"""The accuracy matrix, with and without remembered features of test images."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any

import typer
from torch import Tensor, nn

from forms.case import Case, Form, Seconds
from lamella.backbones.feature_cache import FeatureCache
from lamella.common.timing import interleaved
from lamella.data.samples import Samples
from lamella.experiments.bench.streams import quick_learner, synthetic_task
from lamella.learner.learner import Learner

NAMES = "nearest-mean,linear-probe,ranpac,color,inflora"
ANEW, REMEMBERED = "anew", "remembered"


class Never(FeatureCache):
    """Remembers nothing at all, also not within a batch."""

    passes = 0

    def features(self, backbone: nn.Module, compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        self.passes += 1
        return compute(x)


class Counting(FeatureCache):
    """Counts what it had to compute."""

    passes = 0

    def features(self, backbone: nn.Module, compute: Callable[[Samples], Tensor], x: Samples) -> Tensor:
        def counted(images: Samples) -> Tensor:
            self.passes += 1
            return compute(images)

        return super().features(backbone, counted, x)


def evaluation_cost(
    methods: Annotated[str, typer.Option(help="Names, separated by commas.")] = NAMES,
    backbone: str = "fractal-vit-micro",
    size: Annotated[int | None, typer.Option(help="Side of the images; the backbone's own where left out.")] = None,
    tasks: int = 10,
    images: Annotated[int, typer.Option(help="Test images of a task, in one batch.")] = 64,
    device: str = "cpu",
) -> Iterator[Case]:
    """The accuracy matrix while features of test images are remembered; 1.00 is computing them all anew.

    After each task of a synthetic stream all tasks so far are scored in both forms, in turn. Beside the time stand the
    passes through the backbone over a task's test images.
    """
    table: dict[str, Any] = {"name": backbone, "weights": "random"} | ({} if size is None else {"size": size})
    for name in methods.split(","):
        learner = quick_learner(table, name, 32, {"device": device})
        passes: dict[str, int] = {}
        notes = lambda seconds, passes=passes: {f: {"passes": str(n)} for f, n in passes.items()}  # noqa: E731
        times = partial(_measure, learner, tasks, images, passes)
        pixels = images * tasks * (tasks + 1) // 2
        yield Case(name, dict[str, Form](), ANEW, pixels, notes=notes, times=times)


def _measure(learner: Learner, tasks: int, images: int, passes: dict[str, int], rounds: int) -> Seconds:
    """Seconds of the whole matrix in each round; `passes` gets the passes that each form made."""
    kinds: dict[str, type[Never] | type[Counting]] = {ANEW: Never, REMEMBERED: Counting}
    memories = {form: [[kind() for _ in range(tasks)] for _ in range(rounds)] for form, kind in kinds.items()}
    seconds = {form: [0.0] * rounds for form in kinds}
    tests = [synthetic_task(i, images, learner.backbone.transform) for i in range(tasks)]
    processor = learner.fit().device.type == "cpu"

    def row(memory: list[Any], seen: int) -> None:
        for test, own in zip(tests[:seen], memory, strict=False):
            learner.evaluate(test.train, test.classes, recall=own)

    for i, task in enumerate(tests):
        learner.learn(task)
        for r in range(rounds):
            forms = {form: partial(row, memories[form][r], i + 1) for form in kinds}
            times = interleaved(forms, 1, 0, processor=processor)
            for form in kinds:
                seconds[form][r] += times[form][0]
    passes |= {form: sum(memory.passes for memory in memories[form][0]) for form in kinds}
    return seconds
