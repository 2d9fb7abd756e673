"""How like its references an answer is that a model has written."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

__all__ = ["AnswerScore", "score_answers"]


class AnswerScore(NamedTuple):
    """How like its references one written answer is; of several references the one that is most like it counts.

    Attributes:
        exact: whether it is a reference, without white space around both.
        exact_casefold: whether it is one if capitals do not count.
        rouge_l: the F-measure of the longest common subsequence of words, 0..1: Lin, 2004, "ROUGE: A Package for
            Automatic Evaluation of Summaries", by the package rouge-score without stemming. It only sees words of the
            letters a to z and of digits, so it says nothing about other scripts.
        chrf: the F-measure of groups of one to six characters, 0..1: Popović, WMT 2015, by the package sacrebleu.
    """

    exact: bool
    exact_casefold: bool
    rouge_l: float
    chrf: float


def score_answers(written: Sequence[str], references: Sequence[Sequence[str]]) -> list[AnswerScore]:
    """Return the scores of written answers.

    Args:
        written: what a model has written.
        references: for each the right answers, at least one.

    Raises:
        ValueError: there are other references than answers, or none for one.
        ModuleNotFoundError: rouge-score or sacrebleu is not installed.
    """
    if len(written) != len(references) or not all(references):
        raise ValueError(
            f"{len(written)} written answers need as many lists of references, each with one at least, not "
            f"{[len(some) for some in references]}"
        )
    for module, package in (("rouge_score", "rouge-score"), ("sacrebleu", "sacrebleu")):
        if find_spec(module) is None:
            raise ModuleNotFoundError(
                f"scores of answers need the package {package}; install it with: pip install 'lamella[text]'"
            )
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.chrf import CHRF

    rouge, chrf = RougeScorer(["rougeL"]), CHRF()
    scores: list[AnswerScore] = []
    for text, some in zip(written, references, strict=True):
        plain, right = text.strip(), [one.strip() for one in some]
        scores.append(
            AnswerScore(
                plain in right,
                plain.casefold() in [one.casefold() for one in right],
                rouge.score_multi(right, plain)["rougeL"].fmeasure,
                chrf.sentence_score(plain, right).score / 100,
            )
        )
    return scores
