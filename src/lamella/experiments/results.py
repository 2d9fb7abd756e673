"""What a run writes down: a result file per readout, from counts of right answers.

Schema 1 (all accuracies are fractions 0..1, null where a metric has no meaning):

    schema, lamella                 version of this schema, of the library
    method, base_of                 "inflora+align"; for a further readout of the same training, the run's method
    scenario, kind, backbone, seed
    final_accuracy                  share of all test images that are right after the last task
    final_accuracy_task_mean        mean of the tasks' accuracies after the last task
    average_accuracy, forgetting, backward_transfer, forward_transfer, task_aware_accuracy, task_choice_accuracy
    matrix, task_aware_matrix       R[i][j]: accuracy on task j after task i; the same with the task given
    curve                           accuracy over all tasks so far, after each task
    task_names, task_sizes          names; number of test images
    classes, class_order            names in the order they were learned; their ids in the source
    split_sha256, weights_sha256    of the split into train, validation and test; of the backbone's weights as loaded
    versions                        of python and the libraries
    seconds, phase_seconds          {"learn": [a task each], "evaluate": [a task each]}; {phase of learning: total}
    trainable_parameters            numbers trained in one task by one call, the largest
    parameters                      {part: numbers of the finished model that a prediction needs}
    stored_bytes                    of all that was learned, backbone not counted unless changed
    passes                          products of a prediction, in passes of the backbone without adapters; null if none
    evaluated_on, selection         "test" or "validation"; how the configuration was chosen
    average_online_accuracy         of an online stream, see online.py: share of incoming samples that are right before
                                    they are learned
    anytime_accuracy                likewise: area under the curve of accuracy on the classes seen, per sample of the
                                    stream
    online                          {"batch", "measure_every", "incoming": [[samples, right] a batch], "anytime":
                                    [[samples learned, test samples of the classes seen, right]]}
    federated                       where several clients learned: their samples of each task, the bytes that were sent
                                    up and down and in how many exchanges, who was missing since when and why, epsilon
    processes                       where several learned together: how many, [a task each]
    config                          resolved; in [run], overrides and dropped say what the command line changed
                                    and left out of the file

Of a run on answers, an answer is right where it is a reference exactly; there are no classes, and beside the above:

    scores                          {name of SCORES: {"before": [a task each], "matrix": [i][j], "errors": standard
                                    errors over answers of the last row}}; before: when nothing was learned
    final_loss, loss_forgetting ... metrics of these, see metrics.py
    probe, probe_loss_change        {"name", "before", "after"} of run.probe; the rise of its loss
    left_out                        [a task each] test answers that do not fit into the model

In a further readout's file the costs (seconds, phase_seconds, trainable_parameters, parameters, stored_bytes, passes)
are those of its own method: what is built on top of it is taken off. Its seconds have no "evaluate", since one pass
gives all readouts; trainable_parameters is null where a model was learned by an older version.
"""

import math
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from importlib.metadata import version
from typing import Any

import numpy as np

from lamella.common.version import __version__
from lamella.data.scenario import Scenario
from lamella.experiments import metrics
from lamella.experiments.federated import federated_results
from lamella.experiments.results_files import SCHEMA
from lamella.learner.config.document import readout_names
from lamella.learner.config.scenario_table import source_name
from lamella.learner.costs import costs_of_base, passes
from lamella.learner.learner import Learner
from lamella.learner.scores import Score

__all__ = [
    "accuracies",
    "build_results",
    "curve_so_far",
    "facts_of_run",
    "nulls",
    "number_or_none",
    "read_row",
    "stored_row",
]

Row = list[dict[str, Score]]
"""The scores of each task's test samples by readout, after one task."""


def read_row(stored: Sequence[Mapping[str, Sequence[int]]]) -> Row:
    """Read the scores after one task, which a run keeps as lists of counts."""
    return [{key: Score(*counts) for key, counts in scores.items()} for scores in stored]


def stored_row(row: Row) -> list[dict[str, list[int]]]:
    """Return the scores after one task as a run keeps them: lists of counts, which `read_row` reads."""
    return [{key: list(astuple(score)) for key, score in scores.items()} for scores in row]


def curve_so_far(row: Row, task: int, *, task_given: bool) -> float:
    """Accuracy over all test images of tasks 0..task; `task_given`: among the classes of each image's own task."""
    seen = [scores[""] for scores in row[: task + 1]]
    right = sum(score.right_given_task if task_given else score.right for score in seen)
    return right / sum(score.images for score in seen)


def build_results(learner: Learner, scenario: Scenario, *, stored_bytes: int, whole_stream: bool) -> dict[str, Any]:
    """Result files by suffix: "" for the method's own prediction, else the name of a further readout's method."""
    rows = [read_row(entry["row"]) for entry in learner.notes["scores"]]
    common = facts_of_run(learner, scenario, stored_bytes)
    names = readout_names(learner.config)
    results = {}
    for key in rows[-1][0]:
        depth = len(key.split(".")) if key else 0
        suffix = names[depth] if depth else ""
        of = {"method": suffix or learner.name, "base_of": learner.name if suffix else None}
        costs = costs_of_base(learner.method, learner.tasks, depth) if depth else {}
        results[suffix] = common | costs | of | _measures(rows, key, scenario, whole_stream)
    return results


def _measures(rows: list[Row], key: str, scenario: Scenario, whole_stream: bool) -> dict[str, Any]:
    given = scenario.kind == "task-incremental"
    last = [scores[key] for scores in rows[-1]]
    sizes = [score.images for score in last]
    aware = _matrix(rows, key, lambda score: score.task_aware_accuracy, len(scenario), whole_stream)
    plain = _matrix(rows, key, lambda score: score.accuracy, len(scenario), whole_stream)
    matrix = aware if given else plain
    shared, same = scenario.shared_classes, scenario.kind == "domain-incremental"
    mixed = same or scenario.batch is not None  # a sample's task says little of its class
    choice = None if mixed or shared or given else sum(score.right_task for score in last) / sum(sizes)
    chances = [1 / len(scenario[j].classes) for j in range(len(scenario))]
    return accuracies(matrix, sizes, chances if same and not whole_stream else None) | {
        "task_aware_accuracy": None if mixed else number_or_none(metrics.final_accuracy(aware, sizes)),
        "task_choice_accuracy": choice,
        "task_aware_matrix": nulls(aware),
    }


def accuracies(matrix: np.ndarray, sizes: Sequence[int], chance: np.ndarray | Sequence[float] | None) -> dict[str, Any]:
    """Return the accuracies of a result file that follow from one matrix; those of a given task are None.

    Args:
        matrix: (tasks, tasks), nan where not measured.
        sizes: the number of test samples of each task.
        chance: the accuracy on each task before anything was learned; None where that has no meaning.
    """
    return {
        "final_accuracy": number_or_none(metrics.final_accuracy(matrix, sizes)),
        "final_accuracy_task_mean": number_or_none(metrics.final_accuracy(matrix)),
        "average_accuracy": number_or_none(metrics.average_accuracy(matrix, sizes)),
        "forgetting": number_or_none(metrics.forgetting(matrix)),
        "backward_transfer": number_or_none(metrics.backward_transfer(matrix)),
        "forward_transfer": None if chance is None else number_or_none(metrics.forward_transfer(matrix, chance)),
        "task_aware_accuracy": None,
        "task_choice_accuracy": None,
        "matrix": nulls(matrix),
        "task_aware_matrix": nulls(np.full_like(matrix, math.nan)),
        "curve": [number_or_none(a) for a in metrics.accuracy_curve(matrix, sizes)],
        "task_sizes": list(sizes),
    }


def _matrix(
    rows: Sequence[Row], key: str, accuracy: Callable[[Score], float], tasks: int, whole_stream: bool
) -> np.ndarray:
    """Return R (tasks, tasks), the accuracy of each score of a readout; an upper bound has only its last row."""
    matrix = np.full((tasks, tasks), math.nan)
    for i, row in enumerate(rows):
        for j, scores in enumerate(row):
            matrix[tasks - 1 if whole_stream else i, j] = accuracy(scores[key])
    return matrix


def facts_of_run(learner: Learner, scenario: Scenario, stored_bytes: int) -> dict[str, Any]:
    """Return what a result file says beside what was measured of the tasks."""
    config = learner.config
    counts = [record.processes or 1 for record in learner.tasks]
    phases: Counter[str] = Counter()
    for record in learner.tasks:
        phases.update({phase: s for phase, s in record.seconds.items() if phase != "total"})
    return {
        "schema": SCHEMA,
        "lamella": __version__,
        "scenario": source_name(config["scenario"]),
        "kind": scenario.kind,
        "backbone": learner.backbone.name,
        "seed": learner.seed,
        "task_names": [scenario[j].name for j in range(len(scenario))],
        "classes": [scenario.class_names[c] for c in scenario.class_order],
        "class_order": list(scenario.class_order),
        "split_sha256": scenario.split_sha256,
        "weights_sha256": learner.backbone.weights_sha256,
        "versions": {"python": platform.python_version()}
        | {n: version(n) for n in ("torch", "timm", "numpy", "pillow")},
        "seconds": {
            "learn": [record.seconds["total"] for record in learner.tasks],
            "evaluate": [entry["seconds"] for entry in learner.notes["scores"]],
        },
        "phase_seconds": dict(phases),
        "trainable_parameters": max(record.trainable_parameters for record in learner.tasks),
        "parameters": learner.parameter_counts(),
        "stored_bytes": stored_bytes,
        "passes": passes(learner.method),
        "evaluated_on": config["run"]["evaluate_on"],
        "selection": config["run"]["selection"],
        "config": config,
        **({"federated": federated_results(learner)} if "federated" in config else {}),
        **({"processes": counts} if max(counts) > 1 else {}),
    }


def number_or_none(value: float) -> float | None:
    """Return a number as JSON has it: None for nan."""
    return None if math.isnan(value) else float(value)


def nulls(matrix: np.ndarray) -> list[list[float | None]]:
    """Return a matrix as JSON has it, with None for nan."""
    return [[number_or_none(v) for v in row] for row in matrix.tolist()]
