"""Answers: what statistics and training cost beside a forward pass of the language model."""

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import torch
import typer

from forms.case import Case, Form
from forms.choices import drawn_words
from forms.steps import late_step
from forms.texts import pass_for_moments, without_gradients
from lamella.backbones.load import load_backbone
from lamella.common.randomness import generator
from lamella.data.answer_tokens import TARGET
from lamella.data.answers import Answer, AnswerSet
from lamella.data.samples import Batch
from lamella.data.scenario import Task
from lamella.methods import METHODS
from lamella.testing.answers import tiny_causal
from lamella.training.recipe import LoRA

FORWARD = "frozen forward"
LORA = LoRA(rank=8, sites=("key", "value"))


def answer_costs(
    model: Annotated[str, typer.Option(help="A language model by its name; by default a tiny one.")] = "",
    batch: int = 8,
    words: Annotated[int, typer.Option(help="Words of a prompt.")] = 100,
    answer: Annotated[int, typer.Option(help="Words of an answer, which are targets.")] = 8,
    tasks: Annotated[int, typer.Option(help="The late task, whose training step is timed, too.")] = 2,
) -> Iterator[Case]:
    """What methods cost on a language model; 1.00 is its frozen forward pass on the same batch.

    The forward pass computes the vocabulary's logits where they are targets, as training does; "with all logits" is
    transformers' own, which computes them everywhere. "Moments" is InfLoRA's pass for statistics. Steps are those of
    `ratios.py training-step`, with branches of rank 8 at keys and values.
    """
    new = lambda: load_backbone(model, output="tokens") if model else tiny_causal()  # noqa: E731
    frozen: Any = new()
    data = _drawn(batch, words, answer)
    x: Batch = data.batch(torch.arange(batch), frozen.transform.view())
    forms: dict[str, Form] = {
        FORWARD: without_gradients(partial(frozen.model.losses, x)),
        "with all logits": without_gradients(partial(frozen.model.every_logit, x)),
    }
    adapted: Any = METHODS["inflora"](new(), lora=LORA)
    firsts = [site for site in adapted.sites if adapted.reads_as[site.name] == site.name]
    forms["moments"] = partial(pass_for_moments, adapted.backbone, firsts, x)
    for name in ("inflora", "seq-lora"):
        for number in dict.fromkeys((1, tasks)):
            method: Any = METHODS[name](new(), lora=LORA)
            learned = [Task(i, f"task {i}", (), (), data) for i in range(number)]
            forms[f"{name}, task {number}"] = late_step(method, learned, x)
    told = f"{x[TARGET].shape[1]} tokens a row, {int(x[TARGET].sum())} targets in {batch} rows"
    yield Case(frozen.name, forms, FORWARD, batch, remark=lambda seconds: told)


def _drawn(count: int, words: int, answer: int) -> AnswerSet:
    """Rows of common words."""
    draws = generator(0, "rows")
    text = lambda n: " ".join(drawn_words(n, draws))  # noqa: E731
    return AnswerSet([Answer.to(text(words), text(answer)) for _ in range(count)], keys=[str(i) for i in range(count)])
