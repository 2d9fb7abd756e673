"""A case of a comparison: forms of the same computation that take turns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lamella.common.timing import interleaved

Form = Callable[[], object]
Seconds = Mapping[str, list[float]]
"""By form, in each round."""


@dataclass(frozen=True)
class Case:
    """Forms that take turns in one process.

    Attributes:
        name: what they compute, such as "resnet20, 28 px, bf16".
        forms: what is timed, by name.
        unit: the form that is 1.00.
        images: how many each of them works on.
        processor: whether processor time is taken, and not that by the clock: other work disturbs it less, but it does
            not see a GPU.
        notes: further columns of some forms, from the times.
        remark: a line about the whole case, from the times.
        aside: forms that are no rows of the table; notes are in proportion to them.
        times: takes the seconds of so many rounds, where forms cannot simply take turns.
    """

    name: str
    forms: Mapping[str, Form]
    unit: str
    images: int = 1
    processor: bool = True
    notes: Callable[[Seconds], Mapping[str, Mapping[str, str]]] = lambda seconds: {}
    remark: Callable[[Seconds], str] = lambda seconds: ""
    aside: tuple[str, ...] = ()
    times: Callable[[int], Seconds] | None = None

    def measure(self, rounds: int) -> Seconds:
        """Seconds of each form in each of so many rounds, after one that does not count."""
        return self.times(rounds) if self.times else interleaved(self.forms, rounds, processor=self.processor)
