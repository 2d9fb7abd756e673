"""The scores of answers by name, and how like its references an answer is that a model has written."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import NamedTuple

__all__ = ["SCORES", "AnswerScore", "NamedScore", "score_answers"]


class NamedScore(NamedTuple):
    """A score of a set of answers.

    Attributes:
        label: its name for people.
        definition: what it is, in a sentence.
        lower_is_better: whether a smaller value is better.
        is_share: whether it is a fraction 0..1, shown in percent.
    """

    label: str
    definition: str
    lower_is_better: bool = False
    is_share: bool = True


SCORES: Mapping[str, NamedScore] = {
    "loss": NamedScore(
        "Loss", "Nats a target token: the sum over all answers divided by the number of their tokens.", True, False
    ),
    "perplexity": NamedScore("Perplexity", "exp(loss); tokenizers cannot be compared by it.", True, False),
    "bits_per_byte": NamedScore(
        "Bits a byte",
        "The same sum in bits for each byte of the answers, by which tokenizers can be compared.",
        True,
        False,
    ),
    "exact": NamedScore(
        "Exact match", "Share of prompts whose written answer is a reference, outer white space aside."
    ),
    "exact_casefold": NamedScore("Exact, any capitals", "The same where capitals do not count."),
    "rouge_l": NamedScore(
        "ROUGE-L", "Mean F-measure of the longest common subsequence of words; the best of several references counts."
    ),
    "chrf": NamedScore("chrF", "Mean F-measure of groups of one to six characters with the references."),
    "choice": NamedScore(
        "Choice",
        "Share of prompts for which, of the given answers, the one of the lowest mean cost a token is right.",
    ),
}
"""All scores, in the order in which they are shown. Those after the third need prompts, the last one given answers."""


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
