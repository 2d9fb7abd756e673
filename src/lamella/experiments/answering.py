"""A run on answers: what is measured before anything is learned and after every task, and what it comes to.

OUT/before.json             the scores before anything was learned, of every task and of the probe
OUT/samples-before.jsonl    what was written then: prompt, answer, references and scores of each row, a line each
OUT/samples.jsonl           the same after the last task
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lamella.backbones.generating import Generating
from lamella.common.files import read_json, write_atomic, write_json
from lamella.data.answers import AnswerSet
from lamella.data.images import content_sha256
from lamella.data.scenario import Scenario
from lamella.data.sources.readable import load_readable
from lamella.experiments import metrics
from lamella.experiments.results import accuracies, facts_of_run, nulls, number_or_none
from lamella.experiments.results_files import SAMPLES
from lamella.experiments.right import write_right
from lamella.experiments.score_metrics import OF_SCORES
from lamella.learner.answers.measuring import MeasuredAnswers
from lamella.learner.answers.scores import SCORES
from lamella.learner.config.document import readout_names
from lamella.learner.learner import Learner
from lamella.training import processes

__all__ = ["AnswerRun", "check_run_table"]

BEFORE, SAMPLES_BEFORE = "before.json", "samples-before.jsonl"
MAX_TOKENS = 128
FOR_ANSWERS = ("max_tokens", "stop", "probe")
"""Keys of [run] that have a meaning where answers are learned."""
Cell = dict[str, Any]
"""The scores of one set of answers: their number, how many do not fit, the scores by name, and their errors."""


def check_run_table(config: Mapping[str, Any], noun: str) -> None:
    """Raise ValueError where [run] has a key for answers, and something else is learned."""
    if noun != AnswerSet.noun and (given := [key for key in FOR_ANSWERS if key in config["run"]]):
        raise ValueError(f"run.{given[0]} is for runs on answers, and this one learns {noun}s; take it away")


class AnswerRun:
    """What a run on answers measures.

    Args:
        out: the run directory.
        learner: what learns.
        scenario: the tasks.
        test: returns the answers on which a task is scored.
        whole_stream: whether all tasks are learned at once.

    Raises:
        ValueError: a setting of [run] is out of range, or the probe holds no answers.
    """

    def __init__(
        self, out: Path, learner: Learner, scenario: Scenario, test: Callable[[int], Any], *, whole_stream: bool
    ) -> None:
        self.out, self.learner, self.scenario, self.test = out, learner, scenario, test
        self.whole = whole_stream
        run = learner.config["run"]
        self.how = Generating(run.get("max_tokens", MAX_TOKENS), stop=tuple(run.get("stop", ())))
        self.probe_name: str = run.get("probe", "")
        self.probe = _probe(self.probe_name) if self.probe_name else None

    @property
    def inputs(self) -> dict[str, str]:
        """Hashes of what a run may not go on with other ones of, beside those of the split."""
        return {} if self.probe is None else {"probe": content_sha256(self.probe)}

    def measure_before(self) -> float | None:
        """Measure every task, and the probe, before anything is learned; nothing where that was done.

        Returns:
            The seconds it took; None where it was done.
        """
        if processes.from_first((self.out / BEFORE).exists):
            return None
        started = time.monotonic()
        row, probe, _ = self._measured(len(self.scenario), SAMPLES_BEFORE, probe=True)
        seconds = time.monotonic() - started
        before = {"row": row, "probe": probe, "seconds": seconds}
        processes.from_first(lambda: write_json(self.out / BEFORE, before))
        return seconds

    def measure(self, i: int, *, last: bool) -> dict[str, Any]:
        """Measure the tasks learned so far and the next one, after task i; return what a run keeps of it.

        Args:
            i: the number of the task.
            last: whether it is the last one, after which the probe is measured again.
        """
        tasks = len(self.scenario) if self.whole else min(i + 2, len(self.scenario))
        row, probe, exact = self._measured(tasks, SAMPLES if last else None, probe=last)
        if last and processes.leads() and all(right is not None for right in exact):
            write_right(
                self.out, [{"": right} for right in exact if right is not None], readout_names(self.learner.config)
            )
        return {"row": row, "probe": probe}

    def results(self, *, stored_bytes: int) -> dict[str, Any]:
        """The content of the result file."""
        before, rows = read_json(self.out / BEFORE), [entry["row"] for entry in self.learner.notes["scores"]]
        last = self.learner.notes["scores"][-1]
        common = facts_of_run(self.learner, self.scenario, stored_bytes)
        common["versions"] |= {
            name: version(name) for name in ("transformers", "tokenizers", "rouge-score", "sacrebleu")
        }
        common["seconds"]["before"] = [before["seconds"]]
        sizes = [cell["answers"] for cell in rows[-1]]
        measured = {name: self._matrix(rows, name) for name in SCORES if any(name in c["scores"] for c in rows[-1])}
        first = {name: np.array([c["scores"].get(name, math.nan) for c in before["row"]]) for name in measured}
        exact = measured.get("exact", np.full((len(sizes), len(sizes)), math.nan))
        probe = None
        if self.probe is not None:
            probe = {"name": self.probe_name, "before": before["probe"], "after": last["probe"]}
        return (
            common
            | {"method": self.learner.name, "base_of": None}
            | accuracies(exact, sizes, first.get("exact"))
            | self._of_scores(measured, first)
            | {
                "probe_loss_change": None if probe is None else _loss(probe["after"]) - _loss(probe["before"]),
                "scores": {
                    name: {
                        "before": nulls(first[name][None])[0],
                        "matrix": nulls(matrix),
                        "errors": [cell["errors"].get(name) for cell in rows[-1]],
                    }
                    for name, matrix in measured.items()
                },
                "probe": probe,
                "left_out": [cell["left_out"] for cell in rows[-1]],
            }
        )

    def _of_scores(self, measured: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, float | None]:
        """The metrics of the scores that reports show."""
        found: dict[str, float | None] = {}
        for metric in metrics.METRICS:
            if metric.kind and metric.of in measured:
                matrix, before, lower = measured[metric.of], first[metric.of], SCORES[metric.of].lower_is_better
                value = OF_SCORES[metric.kind](matrix, before, lower)
                found[metric.name] = number_or_none(value)
        return found

    def _measured(
        self, tasks: int, samples: str | None, *, probe: bool
    ) -> tuple[list[Cell], Cell | None, list[torch.Tensor | None]]:
        """Measure the first tasks, and the probe if asked; write what was made of each answer into a file."""
        lines: list[str] = []

        def measured(data: Any, name: str) -> MeasuredAnswers:
            found = self.learner.evaluate_answers(data, self.how)
            lines.extend(json.dumps({"task": name, **one.to_json()}, ensure_ascii=False) for one in found.answers)
            return found

        found = [measured(self.test(j), self.scenario[j].name) for j in range(tasks)]
        of_probe = measured(self.probe, f"probe: {self.probe_name}") if probe and self.probe is not None else None
        if samples is not None and processes.leads():
            write_atomic(self.out / samples, "".join(f"{line}\n" for line in lines).encode())
        exact = [torch.tensor(one.of("exact")).bool() if one.of("exact") else None for one in found]
        return [_cell(one) for one in found], None if of_probe is None else _cell(of_probe), exact

    def _matrix(self, rows: Sequence[Sequence[Cell]], name: str) -> Any:
        """(tasks, tasks), a score on task j after task i; nan where it was not measured."""
        tasks = len(self.scenario)
        matrix = np.full((tasks, tasks), math.nan)
        for i, row in enumerate(rows):
            for j, cell in enumerate(row):
                matrix[tasks - 1 if self.whole else i, j] = cell["scores"].get(name, math.nan)
        return matrix


def _probe(name: str) -> AnswerSet:
    source = load_readable(name, takes=AnswerSet.noun).whole
    data = source.test if len(source.test) else source.train
    if not isinstance(data, AnswerSet):
        raise ValueError(f"run.probe = '{name}' holds {data.noun}s; name a file of answers that no task has")
    return data


def _cell(found: MeasuredAnswers) -> Cell:
    counted = {"answers": len(found.answers), "left_out": found.left_out}
    return {**counted, "scores": found.scores, "errors": found.errors}


def _loss(cell: Cell) -> float:
    return float(cell["scores"]["loss"])
