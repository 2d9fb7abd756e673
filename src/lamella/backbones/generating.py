"""Answers that a language model writes: the likeliest token each time, or tokens that are drawn."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lamella.backbones.backbone import Backbone
from lamella.backbones.language_model import LanguageModel, language_model
from lamella.common.randomness import generator
from lamella.data.answer_tokens import AnswerTokens
from lamella.data.answers import Answer, keys_of_answers
from lamella.data.lengths import of_like_length
from lamella.data.samples import Batch
from lamella.data.tokens import IDS, MASK

__all__ = ["Acting", "Generating", "Hear", "Written", "generate", "go_on", "keys_of_prompts", "prompt_cuts"]

SAMPLES, SIZE = 32, 8192
"""The largest number of prompts in a batch, and of its tokens, those still to be written among them."""


@dataclass(frozen=True)
class Generating:
    """How answers are written.

    Args:
        max_tokens: the largest number of tokens of an answer, with the one that ends it; at least 1.
        temperature: what logits are divided by before a token is drawn, at least 0; at 0 the likeliest token is taken.
        top_p: only the likeliest tokens are drawn that together have this probability; above 0, at most 1, and 1 where
            nothing is drawn.
        stop: texts that end an answer, and are no part of it.
        seed: of what is drawn. Each prompt has draws of its own, whatever stands beside it in a batch.

    Raises:
        ValueError: a value is out of its range, or `top_p` is below 1 where nothing is drawn.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; an answer has at least 1")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature is {self.temperature}; it must be 0, for the likeliest, or a finite number above"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_p < 1 and not self.temperature:
            raise ValueError(f"top_p is {self.top_p}, but at temperature 0 nothing is drawn; give a higher one")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop is {self.stop!r}; it must be a list of texts that are not empty")


class Written(NamedTuple):
    """What a model has written to one prompt, so far or in the end.

    Attributes:
        text: without what ended it.
        tokens: how many it took, with the one that ended it.
        why: "stop" where the model or one of the texts of `stop` ended it, "length" where it reached `max_tokens`, and
            "" while it goes on, or where a listener ended it.
    """

    text: str
    tokens: int
    why: str


Hear = Callable[[int, Written], bool]
"""(place of a prompt, what is written to it so far) -> whether it goes on."""
Acting = Callable[[Batch], AbstractContextManager[None]]
"""The context in which the backbone goes on with a batch of prompts; see `Method.acting`."""


def _as_it_is(_: Batch) -> AbstractContextManager[None]:
    return nullcontext()


def generate(
    backbone: Backbone, prompts: Sequence[Answer], how: Generating = Generating(), *, acting: Acting = _as_it_is
) -> list[str]:
    """Return an answer to each prompt. A last answer that is there is not read.

    Prompts of like lengths share a batch. So an answer differs from the one that a prompt gets
    alone only where two tokens are equally likely but for rounding.

    Args:
        backbone: a language model.
        prompts: conversations, or plain texts to begin with nothing.
        how: how answers are written.
        acting: the context in which the backbone goes on with a batch of prompts; see `Method.acting`.

    Raises:
        ValueError: the backbone is no language model, `max_tokens` leaves no room for a prompt, or its chat template
            refuses a conversation.
    """
    _, transform, room = _room(backbone, how)
    rows = transform.prompts(prompts, room)
    return [written.text for written in go_on(backbone, rows, keys_of_prompts(prompts), how, acting=acting)]


def keys_of_prompts(prompts: Sequence[Answer]) -> list[str]:
    """Return what the draws of each prompt are named by."""
    return keys_of_answers([prompt._replace(turns=prompt.prompt or prompt.turns) for prompt in prompts])


@torch.no_grad()
def go_on(
    backbone: Backbone,
    rows: Sequence[Sequence[int]],
    keys: Sequence[str],
    how: Generating = Generating(),
    *,
    acting: Acting = _as_it_is,
    hear: Hear | None = None,
    size: int = SIZE,
) -> list[Written]:
    """Return what a model writes behind rows of tokens.

    Args:
        backbone: a language model.
        rows: the ids of each prompt, which with `max_tokens` are not more than the network takes.
        keys: what the draws of each prompt are named by.
        how: how it writes.
        acting: the context in which the backbone goes on with a batch of prompts; see `Method.acting`.
        hear: called after every token of a prompt, and a last time when it is whole.
        size: the largest number of tokens of a batch, those still to be written among them.

    Raises:
        ValueError: the backbone is no language model.
    """
    model, transform = language_model(backbone.model, "writing answers"), backbone.transform
    assert isinstance(transform, AnswerTokens)
    lengths = [len(row) + how.max_tokens for row in rows]
    found: dict[int, Written] = {}
    for batch in of_like_length(lengths, samples=SAMPLES, size=size, pass_costs=size // 8):
        x = transform.prompted([rows[i] for i in batch]).to(backbone.device)
        with acting(x):
            found |= _written(model, transform, x, [keys[i] for i in batch], how, hear, batch)
    return [found[i] for i in range(len(rows))]


def prompt_cuts(backbone: Backbone, prompts: Sequence[Answer], how: Generating = Generating()) -> list[int]:
    """Return how many tokens at the beginning of each prompt `generate` leaves out, because there are too many.

    Arguments and errors are those of `generate`.
    """
    _, transform, room = _room(backbone, how)
    return transform.prompt_cuts(prompts, room)


def _room(backbone: Backbone, how: Generating) -> tuple[LanguageModel, AnswerTokens, int]:
    """The network, what makes its inputs, and the largest number of tokens of a prompt."""
    model, transform = language_model(backbone.model, "writing answers"), backbone.transform
    assert isinstance(transform, AnswerTokens)
    longest = model.longest_prompt(how.max_tokens)
    room = transform.max_length if longest is None else min(transform.max_length, longest)
    if room < 1:
        raise ValueError(
            f"max_tokens is {how.max_tokens}, but to a prompt of one token '{backbone.name}' can write "
            f"{model.longest_answer(1)}; give less"
        )
    return model, transform, room


def _written(
    model: LanguageModel,
    transform: AnswerTokens,
    x: Batch,
    keys: Sequence[str],
    how: Generating,
    hear: Hear | None,
    places: Sequence[int],
) -> dict[int, Written]:
    from transformers import GenerationConfig

    network: Any = model.network
    width = x[IDS].shape[1] if model.start is None else 1
    decode: Callable[[list[int]], str] = transform.tokenizer.decode
    settings = GenerationConfig(
        max_new_tokens=how.max_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=list(model.ends) or None,
        pad_token_id=transform.pad_id,
        decoder_start_token_id=model.start,
    )
    done: dict[int, Written] = {}

    def written(row: list[int]) -> Written:
        kept = row[: next((i for i, token in enumerate(row) if token in model.ends), len(row))]
        text = decode(kept)
        cut = _cut(text, how.stop)
        why = "stop" if len(kept) < len(row) or cut != text else "length" if len(row) == how.max_tokens else ""
        return Written(cut, len(kept) + (len(kept) < len(row)), why)

    def stopped(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        for place, row in zip(places, ids[:, width:].tolist(), strict=True):
            if place not in done:
                found = written(row)
                goes_on = hear is None or hear(place, found)
                if found.why or not goes_on:
                    done[place] = found
        return torch.tensor([place in done for place in places], device=ids.device)

    def drawn(ids: Tensor, scores: Tensor) -> Tensor:
        return _perturbed(scores, keys, ids.shape[1] - width, how)

    whole = network.generate(
        inputs=x[IDS],
        attention_mask=x[MASK].long(),
        generation_config=settings,
        logits_processor=[drawn] if how.temperature else [],
        stopping_criteria=[stopped] if how.stop or hear else [],
    )
    rows = zip(places, whole[:, width:].tolist(), strict=True)
    return {place: done.get(place) or written(row) for place, row in rows}


def _perturbed(scores: Tensor, keys: Sequence[str], step: int, how: Generating) -> Tensor:
    """Return scores (n, vocabulary) whose largest entry is at a token that is drawn by its probability.

    That is the Gumbel-max trick: the largest of logits to which standard Gumbel noise was added is a draw of their
    softmax (Maddison, Tarlow & Minka, NeurIPS 2014, arXiv 1411.0030).
    """
    logits = scores.float() / how.temperature
    if how.top_p < 1:
        values, order = logits.sort(descending=True)
        shares = values.softmax(1)
        unlikely = shares.cumsum(1) - shares >= how.top_p  # the likeliest one always stays
        logits = logits.masked_fill(unlikely.scatter(1, order, unlikely), -torch.inf)
    noise = [
        torch.empty(logits.shape[1]).exponential_(generator=generator(how.seed, "generate", key, step)).log()
        for key in keys
    ]
    return logits - torch.stack(noise).to(logits)


def _cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the texts that end an answer."""
    places = [place for sign in stop if (place := text.find(sign)) >= 0]
    return text[: min(places, default=len(text))]
