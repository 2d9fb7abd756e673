"""The choice among given answers by what they cost a model, without writing any.

What all answers to a prompt begin with is read once, and each answer goes on behind it. So a choice among many costs
little more than one among two.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lamella.backbones.language_model import language_model
from lamella.data.answer_tokens import AnswerTokens, Tokens
from lamella.data.answers import ASSISTANT, Answer, Turn
from lamella.data.lengths import of_like_length
from lamella.methods import Method
from lamella.training.precision import computing, resolve_device

__all__ = ["chosen", "chosen_of_each"]

SAMPLES, SIZE = 8, 4096
"""The largest numbers of prompts, and of tokens, that are read together."""


def chosen(
    method: Method,
    prompts: Sequence[Answer],
    choices: Sequence[str],
    *,
    device: str = "auto",
    precision: str = "float32",
) -> tuple[list[int], Tensor]:
    """Return which of given answers a model would rather give to each prompt; nothing is written.

    Args:
        method: what has learned answers.
        prompts: conversations, whose last answers are not read.
        choices: the answers to choose from; at least one.
        device: where it is computed.
        precision: "float32" or "bf16".

    Returns:
        The place of the answer with the lowest mean cost of its tokens for each prompt; and these mean costs,
        (n, choices), in nats.

    Raises:
        ValueError: there are no choices, one comes twice, or one does not fit into the model's `max_length`.
    """
    of_each = [choices] * len(prompts)
    places, means = chosen_of_each(method, prompts, of_each, device=device, precision=precision)
    return places, torch.stack(means) if means else torch.zeros(0, len(choices))


def chosen_of_each(
    method: Method,
    prompts: Sequence[Answer],
    choices: Sequence[Sequence[str]],
    *,
    device: str = "auto",
    precision: str = "float32",
) -> tuple[list[int], list[Tensor]]:
    """Return the same as `chosen` where each prompt has answers of its own to choose from.

    Args:
        method: what has learned answers.
        prompts: conversations, whose last answers are not read.
        choices: the answers to choose from of each prompt.
        device: where it is computed.
        precision: "float32" or "bf16".

    Returns:
        The places of the chosen answers; and the mean costs of the choices of each prompt, (choices,), in nats.

    Raises:
        ValueError: a prompt has no choices, one comes twice, or one does not fit into the model's `max_length`.
    """
    for own in choices:
        if not own or len(set(own)) != len(own):
            raise ValueError(f"the answers to choose from must be there and differ, not {list(own)}")
    model = language_model(method.backbone.model, "a choice among answers")
    transform = method.backbone.transform
    assert isinstance(transform, AnswerTokens)
    offered: list[list[Tokens]] = []
    for prompt, own in zip(prompts, choices, strict=True):
        given = [Answer((*prompt.asked, Turn(ASSISTANT, c)), place=_place(prompt, c)) for c in own]
        offered.append(transform.of_one_prompt(given))
    here = resolve_device(device)
    method.eval().to(here)
    if offered and model.goes_on is None:
        model.goes_on = _goes_on(method, transform, offered, here)
    at_once = bool(model.goes_on)
    means: dict[int, Tensor] = {}
    lengths = [max(len(row.ids) for row in rows) for rows in offered]
    for batch in of_like_length(lengths, samples=SAMPLES, size=SIZE, pass_costs=SIZE // 8):
        with torch.no_grad(), computing(here, precision):
            means |= zip(batch, _means(method, transform, [offered[i] for i in batch], here, at_once), strict=True)
    return [int(means[i].argmin()) for i in range(len(prompts))], [means[i] for i in range(len(prompts))]


def _place(prompt: Answer, choice: str) -> str:
    """What a message calls an answer that is offered."""
    return f"{prompt.place + ', ' if prompt.place else ''}the choice {choice[:40]!r}"


@torch.no_grad()
def _goes_on(
    method: Method, transform: AnswerTokens, offered: Sequence[Sequence[Tokens]], device: torch.device
) -> bool:
    """Whether answers cost a network the same behind what it has read as in whole passes: some keep nothing of it.

    It is tried on the shortest prompt and the next one that is longer.
    """
    by_length = sorted((list(rows[:1]) for rows in offered), key=lambda rows: len(rows[0].ids))
    few = by_length[:1] + [rows for rows in by_length if len(rows[0].ids) > len(by_length[0][0].ids)][:1]
    try:
        behind = _means(method, transform, few, device, True)
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False  # what the networks of transformers raise where they cannot
    alone = _means(method, transform, few, device, False)
    return all(torch.allclose(a, b, rtol=0.01, atol=0.01) for a, b in zip(behind, alone, strict=True))


def _means(
    method: Method, transform: AnswerTokens, offered: Sequence[list[Tokens]], device: torch.device, at_once: bool
) -> list[Tensor]:
    """(choices,) the mean cost of the tokens of each answer to each prompt, which is read at once for all, or anew."""
    model = language_model(method.backbone.model, "a choice among answers")
    parted = [transform.read_once(rows) for rows in offered]
    known, rows = [ids for ids, _ in parted], [rest for _, rest in parted]
    if not (at_once and all(known)):
        known, rows = [], offered
    found: list[list[Tensor]] = [[] for _ in offered]
    with method.acting(transform.batch([own[0] for own in offered]).to(device)):
        read = model.read(transform.prompted(known).to(device)) if known else None
        for place in range(max(map(len, rows))):
            these = [own[min(place, len(own) - 1)] for own in rows]  # who has fewer repeats the last, unread
            x = transform.batch(these).to(device)
            nats = method.backbone.run(x, lambda x: model.losses(x, read)).double().cpu()
            for own, row, part in zip(found, these, nats.split([sum(row.target) for row in these]), strict=True):
                own.append(part[-len(row.last) :].mean())
    return [torch.stack(own[: len(of)]) for own, of in zip(found, rows, strict=True)]
