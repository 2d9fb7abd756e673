"""What a model is worth on a set of answers: their cost, what it writes, and which of given answers it chooses."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lamella.backbones.generating import Generating
from lamella.data.answer_tokens import AnswerTokens, fitting
from lamella.data.answers import PLAIN_TEXT, Answer, AnswerSet
from lamella.learner.answers.choosing import chosen_of_each
from lamella.learner.answers.costs import costs_of
from lamella.learner.answers.scores import SCORES, score_answers
from lamella.learner.answers.writing import write_answers
from lamella.methods import Method

__all__ = ["MeasuredAnswer", "MeasuredAnswers", "measure_answers"]


@dataclass(frozen=True)
class MeasuredAnswer:
    """What a model makes of one answer.

    Attributes:
        answer: the answer, with what it answers.
        nats: minus the logarithm of the probability of its target tokens.
        targets: how many these are.
        size: how many bytes its learned texts have.
        written: what the model writes itself; None where it was not asked, or nothing asks.
        chosen: which of the given answers it chooses; None where none are given.
        scores: those of SCORES that a single answer has.
    """

    answer: Answer
    nats: float
    targets: int
    size: int
    written: str | None
    chosen: str | None
    scores: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """What a person wants to look at, as JSON values."""
        turns = [{"role": turn.role, "content": turn.content} for turn in self.answer.prompt]
        alone = len(turns) == 1 and turns[0]["role"] == "user"
        asked = {"prompt": turns[0]["content"]} if alone else {"messages": turns}
        said = {"written": self.written, "chosen": self.chosen}
        return (
            asked
            | {key: value for key, value in said.items() if value is not None}
            | {"references": list(_references(self.answer)), "scores": dict(self.scores)}
        )


@dataclass(frozen=True)
class MeasuredAnswers:
    """What a model makes of a set of answers.

    Attributes:
        answers: those that were measured, in the order of the set.
        left_out: how many others do not fit into the model.
        cut: what was cut, in lines.
    """

    answers: tuple[MeasuredAnswer, ...]
    left_out: int
    cut: tuple[str, ...]

    @property
    def scores(self) -> dict[str, float]:
        """The scores of the whole set, by their names in SCORES, those that were measured."""
        nats = sum(answer.nats for answer in self.answers)
        targets, size = (sum(getattr(answer, of) for answer in self.answers) for of in ("targets", "size"))
        loss = nats / targets
        found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "bits_per_byte": nats / size / math.log(2)}
        return found | {name: sum(own) / len(own) for name in SCORES if name not in found and (own := self.of(name))}

    @property
    def errors(self) -> dict[str, float]:
        """The standard error over answers of each of these scores but for perplexity; none for a single answer."""
        scores = self.scores
        by_cost = {
            "loss": [(a.nats, a.targets) for a in self.answers],
            "bits_per_byte": [(a.nats / math.log(2), a.size) for a in self.answers],
        }
        means = {name: [(value, 1) for value in self.of(name)] for name in SCORES if name != "perplexity"}
        pairs = {name: own for name, own in (means | by_cost).items() if name in scores}
        return {name: _error(own, scores[name]) for name, own in pairs.items() if len(own) > 1}

    def of(self, name: str) -> list[float]:
        """The scores of this name of single answers, those that have it."""
        return [answer.scores[name] for answer in self.answers if name in answer.scores]


def measure_answers(
    method: Method,
    data: AnswerSet,
    how: Generating | None = Generating(),
    *,
    choices: Sequence[str] = (),
    device: str = "auto",
    precision: str = "float32",
) -> MeasuredAnswers:
    """Measure a model on a set of answers.

    Args:
        method: what has learned answers, or a method that has learned nothing yet.
        data: the answers. Those that do not fit into the model's `max_length` are left out and counted.
        how: how the model writes answers to the prompts; None where it should write none.
        choices: the answers to choose from, for all prompts that bring none of their own.
        device: where it is computed.
        precision: "float32" or "bf16".

    Raises:
        ValueError: the backbone is no language model, no answer fits, or `how` leaves no room for a prompt.
        ModuleNotFoundError: rouge-score or sacrebleu is not installed.
    """
    transform = method.backbone.transform
    if not isinstance(transform, AnswerTokens):
        raise ValueError(f"'{method.backbone.name}' is no language model, so it has no answers to measure")
    fits = fitting(data, transform)
    if not len(fits.data):
        why = fits.too_long[0].reason if fits.too_long else "there is none"
        raise ValueError(f"no answer can be measured: {why}")
    answers = fits.data.items
    options: dict[str, Any] = {"device": device, "precision": precision}
    costs = costs_of(method, fits.data, **options)
    written = _for_those(answers, _is_asked, lambda some: write_answers(method, some, how)) if how else {}
    scores = dict(
        zip(written, score_answers(list(written.values()), [_references(answers[i]) for i in written]), strict=True)
        if written
        else ()
    )
    given = {i: answer.choices or tuple(choices) for i, answer in enumerate(answers)}

    def choose(some: list[Answer]) -> list[str]:
        own = [a.choices or tuple(choices) for a in some]
        places, _ = chosen_of_each(method, some, own, **options)
        return [of[place] for of, place in zip(own, places, strict=True)]

    chosen = _for_those(answers, lambda a: _is_asked(a) and bool(a.choices or choices), choose)
    measured: list[MeasuredAnswer] = []
    for i, answer in enumerate(answers):
        own = {name: float(value) for name, value in scores[i]._asdict().items()} if i in scores else {}
        if i in chosen and given[i]:
            own["choice"] = float(chosen[i].strip() in [right.strip() for right in _references(answer)])
        nats, targets, size = float(costs.nats[i]), int(costs.targets[i]), int(costs.sizes[i])
        own = {"loss": nats / targets, **own}
        measured.append(MeasuredAnswer(answer, nats, targets, size, written.get(i), chosen.get(i), own))
    return MeasuredAnswers(tuple(measured), len(fits.too_long), tuple(fits.told))


def _is_asked(answer: Answer) -> bool:
    return answer.turns[0].role != PLAIN_TEXT


def _references(answer: Answer) -> tuple[str, ...]:
    return (answer.response, *answer.references)


def _for_those(
    answers: Sequence[Answer], which: Callable[[Answer], bool], make: Callable[[list[Answer]], list[str]]
) -> dict[int, str]:
    """Return by its place what is made for each of some answers."""
    places = [i for i, answer in enumerate(answers) if which(answer)]
    return dict(zip(places, make([answers[i] for i in places]), strict=True)) if places else {}


def _error(pairs: Sequence[tuple[float, int]], ratio: float) -> float:
    """The standard error of a ratio of two sums over n answers, linearised: Cochran, "Sampling Techniques", 1977, 6.4.

    Args:
        pairs: what is summed above and below, of each answer.
        ratio: of the two sums.
    """
    n, below = len(pairs), sum(weight for _, weight in pairs)
    return math.sqrt(n / (n - 1) * sum((value - ratio * weight) ** 2 for value, weight in pairs)) / below
