"""What answers cost a model: nats, perplexity and bits a byte."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lamella.data.answer_tokens import TARGET
from lamella.data.answers import ASSISTANT, PLAIN_TEXT, Answer, AnswerSet
from lamella.methods import Method
from lamella.training.passes import Passes

__all__ = ["Costs", "costs_of"]

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


def costs_of(method: Method, data: AnswerSet, *, device: str = "auto", precision: str = "float32") -> Costs:
    """Return what each answer of a set costs a model.

    Args:
        method: what has learned answers, or a method that has learned nothing yet.
        data: the answers, each of which fits into the model's `max_length`.
        device: where it is computed.
        precision: "float32" or "bf16".

    Raises:
        ValueError: the backbone is no language model, or an answer does not fit.
    """
    passes = Passes(method.eval(), method.backbone.transform, device=device, precision=precision, scan_batch_size=BATCH)
    nats: list[Tensor] = []
    targets: list[Tensor] = []

    def observe(x: Any, _: Tensor) -> None:
        counts = x[TARGET].sum(1)
        nats.append(torch.stack([part.sum() for part in method.losses(x).double().split(counts.tolist())]).cpu())
        targets.append(counts.cpu())

    passes.begin("evaluation")
    order = passes.scan(data, observe, any_order=True, name="costs")
    place = order.argsort()
    sizes = torch.tensor([_bytes(answer) for answer in data.items])
    return Costs(torch.cat(nats)[place], torch.cat(targets)[place], sizes)


def _bytes(answer: Answer) -> int:
    learned = (turn.content for turn in answer.turns if turn.role in (ASSISTANT, PLAIN_TEXT))
    return sum(len(content.encode()) for content in learned)
