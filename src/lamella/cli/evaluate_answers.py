"""What `lamella evaluate` does with a model of answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lamella.cli.output import say
from lamella.common.words import many

if TYPE_CHECKING:
    from lamella.learner.answers.measuring import MeasuredAnswers
    from lamella.learner.inspection.evaluation import MeasuredSamples
    from lamella.learner.model import Model

__all__ = ["evaluate_answers"]


def evaluate_answers(
    learned: "Model",
    found: "MeasuredSamples",
    data: str,
    *,
    max_tokens: int,
    stop: Sequence[str],
    choices: Sequence[str],
    written: Path | None,
    as_json: bool,
) -> None:
    """Measure a model of answers, and print or write what was found.

    Args:
        learned: the model.
        found: the answers.
        data: where they are from.
        max_tokens: the largest number of tokens of a written answer; 0 where none is written.
        stop: texts that end a written answer.
        choices: the answers to choose from, for prompts that bring none.
        written: a file for what was made of each answer, a line each; None for no file.
        as_json: whether JSON is printed.
    """
    from lamella.backbones.generating import Generating
    from lamella.common.files import write_atomic
    from lamella.common.page import check_file
    from lamella.data.answers import AnswerSet
    from lamella.learner.learner import Learner

    assert isinstance(found.images, AnswerSet)
    if written is not None:
        check_file(written)
    how = Generating(max_tokens, stop=tuple(stop)) if max_tokens else None
    measured = Learner.of(learned).evaluate_answers(found.images, how, choices=choices)
    if as_json:
        scores = {"answers": len(measured.answers), "scores": measured.scores, "errors": measured.errors}
        typer.echo(json.dumps({"data": data, "part": found.part, **scores}, indent=2, ensure_ascii=False))
    else:
        typer.echo(_text(measured, f"{data}: {found.part}").rstrip())
    if written is not None:
        lines = (json.dumps(answer.to_json(), ensure_ascii=False) for answer in measured.answers)
        write_atomic(written, "".join(f"{line}\n" for line in lines).encode())
        say(f"answers: {written}", err=True)


def _text(measured: "MeasuredAnswers", what: str) -> str:
    """Format the scores with their standard errors over answers, and what was cut or left out."""
    from lamella.common.plain_table import plain_table
    from lamella.common.words import NOTHING
    from lamella.learner.answers.scores import SCORES

    errors = measured.errors
    rows: list[tuple[str, ...]] = []
    for name, value in measured.scores.items():
        score = SCORES[name]
        shown, error = (
            NOTHING if number is None else f"{100 * number:.1f} %" if score.is_share else f"{number:.3f}"
            for number in (value, errors.get(name))
        )
        counted = len(measured.of(name)) if score.is_share else len(measured.answers)
        rows.append((score.label, shown, error, str(counted)))
    lines = [f"{many(len(measured.answers), 'answer')} ({what})"]
    if measured.left_out:
        lines.append(f"left out, too long for this model: {many(measured.left_out, 'answer')}")
    lines += measured.cut
    return "\n".join([*lines, plain_table(("score", "", "standard error", "of"), rows)])
