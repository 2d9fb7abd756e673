"""What answers cost a model: perplexity and bits a byte, and the choice among given answers, without writing any."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lamella.data.answer_tokens import TARGET
from lamella.data.answers import ASSISTANT, PLAIN_TEXT, USER, Answer, AnswerSet, Turn
from lamella.methods import Method
from lamella.training.passes import Passes

__all__ = ["Costs", "chosen", "chosen_of_each", "costs_of"]

BATCH = 8
"""Answers of a pass: the logits of the vocabulary at all of their targets are in memory at once."""


@dataclass(frozen=True)
class Costs:
    """What answers cost a model.

    Attributes:
        nats: (n,) float64, minus the logarithm of the probability of each answer's targets, with what ends it.
        targets: (n,) int64, how many tokens those are.
        sizes: (n,) int64, how many bytes the answers have in UTF-8.
    """

    nats: Tensor
    targets: Tensor
    sizes: Tensor

    @property
    def loss(self) -> float:
        """Nats a target token, over all answers."""
        return float(self.nats.sum() / self.targets.sum())

    @property
    def perplexity(self) -> float:
        """exp(loss). Models with other tokenizers cannot be compared by it."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits for each byte of the answers, by which models with other tokenizers can be compared."""
        return float(self.nats.sum() / self.sizes.sum()) / math.log(2)


def costs_of(
    method: Method, data: AnswerSet, *, last: bool = False, device: str = "auto", precision: str = "float32"
) -> Costs:
    """Return what each answer of a set costs a model.

    Args:
        method: what has learned answers, or a method that has learned nothing yet.
        data: the answers, each of which fits into the model's `max_length`.
        last: whether only the last answer of a conversation counts.
        device: where it is computed.
        precision: "float32" or "bf16".

    Raises:
        ValueError: the backbone is no language model, or an answer does not fit.
    """
    passes = Passes(method.eval(), method.backbone.transform, device=device, precision=precision, scan_batch_size=BATCH)
    nats: list[Tensor] = []
    targets: list[Tensor] = []

    def observe(x: Any, _: Tensor) -> None:
        every = x[TARGET].sum(1)
        counts = torch.tensor([_last(row) for row in x[TARGET]]) if last else every
        whole = method.losses(x).double().split(every.tolist())
        parts = [part[-count:] for part, count in zip(whole, counts.tolist(), strict=True)]
        nats.append(torch.stack([part.sum() for part in parts]).cpu())
        targets.append(counts.cpu())

    passes.begin("evaluation")
    order = passes.scan(data, observe, any_order=True, name="costs")
    place = order.argsort()
    sizes = torch.tensor([_bytes(answer) for answer in data.items])
    return Costs(torch.cat(nats)[place], torch.cat(targets)[place], sizes)


def chosen(
    method: Method, prompts: Sequence[Answer], choices: Sequence[str], **options: Any
) -> tuple[list[int], Tensor]:
    """Return which of given answers a model would rather give to each prompt; nothing is written.

    Args:
        method: what has learned answers.
        prompts: conversations, whose last answers are not read.
        choices: the answers to choose from; at least one.
        options: `device` and `precision` of `costs_of`.

    Returns:
        The place of the answer with the lowest mean cost of its tokens for each prompt; and these mean costs,
        (n, choices), in nats.

    Raises:
        ValueError: there are no choices, or one comes twice.
    """
    places, means = chosen_of_each(method, prompts, [choices] * len(prompts), **options)
    return places, torch.stack(means) if means else torch.zeros(0, len(choices))


def chosen_of_each(
    method: Method, prompts: Sequence[Answer], choices: Sequence[Sequence[str]], **options: Any
) -> tuple[list[int], list[Tensor]]:
    """Return the same as `chosen` where each prompt has answers of its own to choose from.

    Args:
        method: what has learned answers.
        prompts: conversations, whose last answers are not read.
        choices: the answers to choose from of each prompt.
        options: `device` and `precision` of `costs_of`.

    Returns:
        The places of the chosen answers; and the mean costs of the choices of each prompt, (choices,), in nats.

    Raises:
        ValueError: a prompt has no choices, or one comes twice.
    """
    for own in choices:
        if not own or len(set(own)) != len(own):
            raise ValueError(f"the answers to choose from must be there and differ, not {list(own)}")
    pairs = list(zip(prompts, choices, strict=True))
    answers = [Answer((*_asked(prompt), Turn(ASSISTANT, choice))) for prompt, own in pairs for choice in own]
    if not answers:
        return [], []
    costs = costs_of(method, AnswerSet(answers, keys=[str(i) for i in range(len(answers))]), last=True, **options)
    means = (costs.nats / costs.targets).split([len(own) for own in choices])
    return [int(own.argmin()) for own in means], list(means)


def _asked(prompt: Answer) -> tuple[Turn, ...]:
    return prompt.prompt or (Turn(USER, ""),)


def _last(target: Tensor) -> int:
    """How many targets (tokens,) of a sample are behind the last token before them that is none."""
    places = target.nonzero()[:, 0]
    gaps = (places.diff() != 1).nonzero()[:, 0]
    return len(places) - (int(gaps[-1]) + 1 if len(gaps) else 0)


def _bytes(answer: Answer) -> int:
    learned = (turn.content for turn in answer.turns if turn.role in (ASSISTANT, PLAIN_TEXT))
    return sum(len(content.encode()) for content in learned)
