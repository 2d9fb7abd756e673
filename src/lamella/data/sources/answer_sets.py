"""Named data sets of answers, from their archives: tasks of SuperNI-15, and sets of texts with labels as answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lamella.common.checks import did_you_mean, first_line
from lamella.data.answers import Answer, AnswerSet
from lamella.data.listed import ListedSet
from lamella.data.scenario import Source
from lamella.data.sources.parts import divide
from lamella.data.sources.text_sets import as_json, members_of
from lamella.data.tasks import Unreadable

__all__ = ["SUPERNI", "labels_as_answers", "load_superni"]

SUPERNI = (
    "task1572_samsum_summary",
    "task363_sst2_polarity_classification",
    "task1290_xsum_summarization",
    "task181_outcome_extraction",
    "task002_quoref_answer_generation",
    "task1510_evalution_relation_extraction",
    "task639_multi_woz_user_utterance_generation",
    "task1729_personachat_generate_next",
    "task073_commonsenseqa_answer_generation",
    "task1590_diplomacy_text_generation",
    "task748_glucose_reverse_cause_event_detection",
    "task511_reddit_tifu_long_text_summarization",
    "task591_sciq_answer_generation",
    "task1687_sentiment140_classification",
    "task875_emotion_classification",
)
"""Tasks of Super-NaturalInstructions (Wang et al., EMNLP 2022, arXiv 2204.07705), in the first order of SAPT (Zhao et
al., ACL 2024, arXiv 2401.08295), which GainLoRA takes too (Liang & Li, NeurIPS 2025, arXiv 2505.15424)."""
ARCHIVE = "superni15.tar.xz"
MOST_CHOICES = 10
"""The largest number of different answers of a task among which one is chosen."""


def load_superni(which: str, root: str | Path | None = None) -> Source:
    """A task of SuperNI-15, with its own test part. The prompt is its definition, an empty line, and the input.

    The answers to choose from are those of the training part, where they are at most 10.

    Args:
        which: a name of SUPERNI, or its beginning, such as "task591".
        root: the folder that holds the archive.

    Raises:
        FileNotFoundError: there is no archive.
        ValueError: there is no such task, or the archive is not as it was published.
    """
    names = {task.partition("_")[0]: task for task in SUPERNI}
    found = [task for short, task in names.items() if which in (short, task)]
    if not found:
        known = ", ".join(names)
        raise ValueError(f"no data set is called 'superni/{which}'{did_you_mean(which, names)}; there are {known}")
    name = found[0].partition("_")[0]
    files = [f"superni15/{found[0]}/{part}.json" for part in ("train", "test")]
    tasks = [as_json(name, content) for content in members_of(f"superni/{name}", root, (ARCHIVE,), *files)]
    try:
        parts = [_rows(task, f"{part}.json") for task, part in zip(tasks, ("train", "test"), strict=True)]
    except (KeyError, TypeError, AttributeError, IndexError) as fault:
        raise ValueError(f"superni/{name} is not as it was published: {first_line(fault)}") from fault
    choices = tuple(dict.fromkeys(sorted(answer.response for answer in parts[0] if answer.response)))
    if len(choices) <= MOST_CHOICES:
        parts = [[answer._replace(choices=choices) for answer in part] for part in parts]
    return _source(found[0], *parts)


def labels_as_answers(source: Source) -> Source:
    """Return a set of labelled texts as one of answers: a text is the prompt, the name of its label the response.

    The answers to choose from are all labels.
    """

    def part(data: Any) -> list[Answer]:
        assert isinstance(data, ListedSet)
        labels: list[int] = data.labels.tolist()
        return [
            Answer.to(text, source.class_names[label])._replace(choices=source.class_names, place=key)
            for text, label, key in zip(data.items, labels, data.keys, strict=True)
        ]

    made = _source(source.name, part(source.train), part(source.test))
    return replace(made, told=(*source.told, *made.told), unreadable=(*source.unreadable, *made.unreadable))


def _rows(task: Mapping[str, Any], file: str) -> list[Answer]:
    rows: list[Answer] = []
    for number, row in enumerate(task["instances"], 1):
        right: list[str] = row["output"] if isinstance(row["output"], list) else [row["output"]]
        prompt = f"{task['definition'].strip()}\n\n{row['input'].strip()}"
        first, *others = (answer.strip() for answer in right)
        rows.append(Answer.to(prompt, first)._replace(references=tuple(others), place=f"{file}, row {number}"))
    return rows


def _source(name: str, train: Sequence[Answer], test: Sequence[Answer]) -> Source:
    """A data set of these parts, without training answers to prompts of the test part and without empty ones."""
    asked = {answer.prompt for answer in test}
    empty = [answer for answer in (*train, *test) if not answer.response.strip()]
    kept = [a for a in train if a.prompt not in asked and a not in empty], [a for a in test if a not in empty]
    data = AnswerSet([answer for part in kept for answer in part])
    both = len([a for a in train if a.prompt in asked])
    return divide(
        name,
        data,
        (),
        is_test=torch.arange(len(data)) >= len(kept[0]),
        told=[f"left out of training, because the test part asks the same: {both}"] if both else [],
        unreadable=[Unreadable(answer.place, "the response is empty") for answer in empty],
    )
