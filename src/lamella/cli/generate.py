"""`lamella generate`: answers that a model of answers writes."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lamella.cli.arguments import FROM_STDIN, Device, Model, Untrusted
from lamella.cli.output import say

if TYPE_CHECKING:
    from lamella.data.answers import Answer

__all__ = ["generate"]

SHOWN = 60  # characters of a prompt in a line


def generate(
    model: Model,
    prompts: Annotated[
        list[str],
        typer.Argument(
            metavar="PROMPT...",
            help="A prompt, a table of prompts or messages (.jsonl, .json, .csv, .tsv, .parquet), or - for a prompt in "
            "each line of stdin.",
            show_default=False,
        ),
    ],
    max_tokens: Annotated[int, typer.Option(min=1, help="The largest number of tokens of an answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 for the likeliest tokens; more to draw them.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest tokens of this share, above 0 to 1.")] = 1.0,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="A text that ends an answer; repeatable.", metavar="TEXT", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each prompt, a line each.")] = False,
    device: Device = None,
    untrusted: Untrusted = False,
) -> None:
    """Answer prompts, by a model that has learned answers. Prompts of like lengths are answered together."""
    from lamella.backbones.generating import Generating, prompt_cuts
    from lamella.common.words import many
    from lamella.learner.learner import Learner

    how = Generating(max_tokens, temperature, top_p, tuple(stop or ()), seed)
    asked = [answer for prompt in prompts for answer in _asked(prompt)]
    if not asked:
        raise ValueError("there is nothing to answer: no line or row of what was given has a prompt")
    learner = Learner.load(model, device=device, trusted=not untrusted)
    noun = learner.backbone.transform.noun
    if noun != "answer":
        raise ValueError(f"'{model}' learns classes of {noun}s and writes nothing; use lamella predict")
    cuts = prompt_cuts(learner.backbone, asked, how)
    if too_long := sum(cut > 0 for cut in cuts):
        say(f"{many(too_long, 'prompt')} with too many tokens for this model: the first are cut", err=True)
    for answer, cut, text in zip(asked, cuts, learner.answer(asked, how), strict=True):
        said = answer.prompt[-1].content if answer.prompt else ""
        if as_json:
            turns = [{"role": turn.role, "content": turn.content} for turn in answer.prompt]
            typer.echo(json.dumps({"messages": turns, "response": text, "cut": cut}, ensure_ascii=False))
        else:
            say(text if len(asked) == 1 else f"{_short(said)}: {text}")


def _asked(prompt: str) -> "list[Answer]":
    """Return what is asked by an argument: a prompt itself, a table of them, or the lines of stdin."""
    from lamella.data.answers import Answer
    from lamella.data.sources.answer_rows import answers_of_rows
    from lamella.data.sources.rows import ROWS, STDIN, decoded, lines_of, read_rows

    if prompt == FROM_STDIN:
        lines = lines_of(decoded(sys.stdin.buffer.read(), STDIN))
        return [Answer.to(line) for line in lines if line.strip()]
    path = Path(prompt)
    if path.suffix.lower() not in ROWS or any(map(str.isspace, prompt)):
        return [Answer.to(prompt)]
    if not path.is_file():
        raise FileNotFoundError(
            f"no file '{prompt}'; a prompt that ends like the name of a table is read from stdin: -"
        )
    found, unreadable = answers_of_rows(read_rows(path), answered=False)
    for place, reason in unreadable:
        say(f"{place}: left out: {reason}", err=True)
    return [one.answer for one in found]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"
