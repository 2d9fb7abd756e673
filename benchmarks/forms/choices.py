"""A choice among given answers: the prompt read once for all of them, and once for each."""

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import torch
import typer

from forms.case import Case, Form
from lamella.backbones.load import load_backbone
from lamella.common.randomness import generator
from lamella.data.answers import ASSISTANT, Answer, AnswerSet, Turn
from lamella.learner.answers.choosing import chosen
from lamella.learner.answers.costs import costs_of
from lamella.methods import METHODS
from lamella.testing.answers import tiny_causal

APART = "a pass for each answer"


def choices(
    model: Annotated[str, typer.Option(help="A language model by its name; by default a tiny one.")] = "",
    answers: Annotated[list[int], typer.Option(help="So many answers to choose from; repeatable.")] = [2, 6, 20],  # noqa: B006
    prompts: int = 8,
    words: Annotated[int, typer.Option(help="Words of a prompt.")] = 60,
) -> Iterator[Case]:
    """What it costs to choose one of several short answers to each prompt, by what each would cost to write."""
    backbone: Any = load_backbone(model, output="tokens") if model else tiny_causal()
    method: Any = METHODS["seq-lora"](backbone)
    draws = generator(0, "prompts")
    asked = [Answer.to(" ".join(drawn_words(words, draws))) for _ in range(prompts)]
    for count in answers:
        offered = [f"answer {i}" for i in range(count)]
        apart = AnswerSet(
            [Answer((*prompt.prompt, Turn(ASSISTANT, text))) for prompt in asked for text in offered],
            keys=[str(i) for i in range(prompts * count)],
        )
        forms: dict[str, Form] = {
            APART: partial(costs_of, method, apart, device="cpu"),
            "the prompt once": partial(chosen, method, asked, offered, device="cpu"),
        }
        yield Case(f"{backbone.name}, {count} answers", forms, APART, prompts)


def drawn_words(count: int, draws: torch.Generator) -> list[str]:
    """So many common words."""
    common = ("the", "a", "of", "water", "is", "not", "and", "film", "it", "time")
    return [common[i] for i in torch.randint(len(common), (count,), generator=draws).tolist()]
