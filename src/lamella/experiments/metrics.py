"""Metrics of continual learning: pure functions of the accuracy matrix. learner/scores.py says which samples are right.

The accuracy matrix `R` is `(tasks, tasks)`: `R[i, j]` is the accuracy, a fraction 0..1, on the test data of task j
after learning task i; nan where it was not measured. Class-incremental runs fill the lower triangle; where later tasks
share the labels (domain-incremental), entries above the diagonal may be measured too. A model trained on all tasks at
once fills only the last row. A metric that needs an entry that was not measured is nan, never a guess.

Sources:
    Lopez-Paz & Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017, arXiv:1706.08840, section 2.
    Chaudhry et al., Riemannian Walk for Incremental Learning, ECCV 2018, arXiv:1801.10112, section 4.1.
    Cai, Sener & Koltun, Online Continual Learning with Natural Distribution Shifts, ICCV 2021, arXiv:2108.09020.
    Koh et al., Online Continual Learning on Class Incremental Blurry Task Configuration with Anytime Inference, ICLR
    2022, arXiv:2110.10031, section 4.
    Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, CVPR 2017, arXiv:1611.07725, section 4
    (the average of the accuracies after each task).
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

AccuracyMatrix: TypeAlias = npt.NDArray[np.float64]
"""R[i, j]: accuracy on task j after learning task i; `(tasks, tasks)`, fractions 0..1, nan where not measured."""


@dataclass(frozen=True)
class Metric:
    """A metric of one run.

    Attributes:
        name: its key in a result file.
        label: its name in reports.
        definition: one sentence and formula, which reports print beside the number.
        lower_is_better: whether a smaller value is better.
        difference: whether it is a difference of accuracies, -1..1, instead of a fraction, 0..1.
        signed: whether reports print a plus sign.
        of: the score of answers that it is a metric of, by its name in `learner.answers.scores.SCORES`; "stream" for
            those of online streams; "" for those of accuracies, which every run has.
        kind: which of `score_metrics.OF_SCORES` computes it of the score; "" where none does.
        is_share: whether it is a fraction or a difference of two, shown in percent, and not a plain number.
    """

    name: str
    label: str
    definition: str
    lower_is_better: bool = False
    difference: bool = False
    signed: bool = False
    of: str = ""
    kind: str = ""
    is_share: bool = True


METRICS = (
    Metric(
        "final_accuracy",
        "Final accuracy",
        "Share of the test images of all tasks that are classified correctly after the last task, without "
        "being told the task: Σⱼ nⱼ R[T−1, j] / Σⱼ nⱼ, where nⱼ is the number of test images of task j.",
    ),
    Metric(
        "final_accuracy_task_mean",
        "Final, mean of tasks",
        "The same after the last task, but every task counts alike, however many test images it has: "
        "(1/T) Σⱼ R[T−1, j].",
    ),
    Metric(
        "average_accuracy",
        "Average accuracy",
        "Mean over the tasks of the accuracy on all tasks learned so far (average incremental accuracy, "
        "Rebuffi et al. 2017): (1/T) Σᵢ aᵢ, where aᵢ is the accuracy on tasks 0..i after learning task i.",
    ),
    Metric(
        "forgetting",
        "Forgetting",
        "How far each earlier task has fallen from its best, lower is better (Chaudhry et al. 2018): the "
        "mean over j < T−1 of max over i < T−1 of R[i, j], minus R[T−1, j].",
        lower_is_better=True,
        difference=True,
    ),
    Metric(
        "backward_transfer",
        "Backward transfer",
        "How later tasks changed earlier ones, negative where they were forgotten (Lopez-Paz & Ranzato "
        "2017): the mean over j < T−1 of R[T−1, j] − R[j, j].",
        difference=True,
        signed=True,
    ),
    Metric(
        "forward_transfer",
        "Forward transfer",
        "What earlier tasks give to a task that is not learned yet, measured only where later tasks share "
        "the labels (Lopez-Paz & Ranzato 2017): the mean over j > 0 of R[j−1, j] − chance.",
        difference=True,
        signed=True,
    ),
    Metric(
        "task_aware_accuracy",
        "Task-aware accuracy",
        "Accuracy after the last task when the task of each image is given, so that only its classes "
        "compete: the share of images with argmax over c ∈ C(t) of logit_c = y. A diagnosis, not a "
        "result: no task is given in use.",
    ),
    Metric(
        "task_choice_accuracy",
        "Task-choice accuracy",
        "Share of test images after the last task whose top class belongs to the right task, whether or "
        "not it is the right class: task(argmax over c of logit_c) = t.",
    ),
    Metric(
        "average_online_accuracy",
        "Average online accuracy",
        "Of an online stream: share of the incoming samples that are classified correctly just before they are "
        "learned, among all classes seen; a sample of a class not seen yet is wrong (Cai et al. 2021).",
        of="stream",
    ),
    Metric(
        "anytime_accuracy",
        "Anytime accuracy",
        "Of an online stream: area under the curve of accuracy, measured every k samples on the test samples of the "
        "classes seen so far, divided by the length of the stream (Koh et al. 2022).",
        of="stream",
    ),
    Metric(
        "final_rouge_l",
        "Final ROUGE-L",
        "Of answers: the mean over the tasks of ROUGE-L after the last task, (1/T) Σⱼ S[T−1, j].",
        of="rouge_l",
        kind="final",
    ),
    Metric(
        "rouge_l_forgetting",
        "ROUGE-L forgetting",
        "How far ROUGE-L of each earlier task has fallen from its best, also of what it was before anything was "
        "learned: the mean over j < T−1 of max over i < T−1 of S[i, j], minus S[T−1, j].",
        lower_is_better=True,
        difference=True,
        of="rouge_l",
        kind="forgetting",
    ),
    Metric(
        "rouge_l_forward_transfer",
        "ROUGE-L forward transfer",
        "What earlier tasks give to a task that is not learned yet: the mean over j > 0 of S[j−1, j] minus what it was "
        "before anything was learned.",
        difference=True,
        signed=True,
        of="rouge_l",
        kind="forward transfer",
    ),
    Metric(
        "final_choice",
        "Final choice",
        "Of answers with given ones to choose from: the mean over the tasks, after the last one, of the share of "
        "prompts for which the cheapest of these is right.",
        of="choice",
        kind="final",
    ),
    Metric(
        "final_loss",
        "Final loss",
        "Of answers: the mean over the tasks of their nats a target token after the last task.",
        lower_is_better=True,
        of="loss",
        kind="final",
        is_share=False,
    ),
    Metric(
        "loss_forgetting",
        "Loss forgetting",
        "How far the loss of each earlier task has risen, in nats, over the lowest it ever was, also before anything "
        "was learned: the mean over j < T−1.",
        lower_is_better=True,
        of="loss",
        kind="forgetting",
        is_share=False,
    ),
    Metric(
        "loss_forward_transfer",
        "Loss forward transfer",
        "How far earlier tasks have lowered the loss of a task that is not learned yet, in nats: the mean over j > 0 "
        "of what it was before anything was learned, minus S[j−1, j].",
        signed=True,
        of="loss",
        kind="forward transfer",
        is_share=False,
    ),
    Metric(
        "probe_loss_change",
        "Probe loss change",
        "How far the loss of the rows of run.probe, which are of no task, has risen from before the first task to "
        "after the last, in nats: what general ability was lost.",
        lower_is_better=True,
        signed=True,
        of="loss",
        is_share=False,
    ),
)
"""All metrics of a result file, in the order in which reports show them."""

DEFINITIONS: dict[str, str] = {metric.name: metric.definition for metric in METRICS} | {
    "accuracy_curve": ("Accuracy on all tasks learned so far, after each task: aᵢ = Σⱼ nⱼ R[i, j] / Σⱼ nⱼ over j ≤ i."),
    "accuracy_matrix": "R[i, j] is the accuracy on the test images of task j after learning task i.",
}
"""One sentence and formula for each metric, and for the curve and the matrix that reports draw."""


def final_accuracy(R: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Accuracy over all tasks after the last one: the mean of the last row.

    Args:
        R: accuracy matrix `(tasks, tasks)`.
        weights: `(tasks,)` number of test images per task, which gives the share of all test images that are right;
            None counts every task alike. A task of weight 0 is left out.

    Returns:
        A fraction 0..1, nan where a task was not measured.

    Raises:
        ValueError: R is no square matrix of fractions, or weights do not fit it.

    >>> R = [[0.9, float("nan")], [0.6, 0.8]]
    >>> round(final_accuracy(R), 3)
    0.7
    >>> round(final_accuracy(R, weights=[30, 10]), 3)
    0.65
    """
    return float(accuracy_curve(R, weights)[-1])


def accuracy_curve(R: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> npt.NDArray[np.float64]:
    """Accuracy over the tasks learned so far, after each task.

    Args:
        R: accuracy matrix `(tasks, tasks)`.
        weights: `(tasks,)` test images per task, or None; see `final_accuracy`.

    Returns:
        `(tasks,)` fractions; nan after a task at which not all of tasks 0..i were measured.

    Raises:
        ValueError: R is no square matrix of fractions, or weights do not fit it.

    >>> accuracy_curve([[0.9, float("nan")], [0.6, 0.8]]).round(3).tolist()
    [0.9, 0.7]
    """
    matrix = _square(R)
    share = _weights(weights, len(matrix))
    return np.array([_weighted_mean(matrix[i, : i + 1], share[: i + 1]) for i in range(len(matrix))])


def average_accuracy(R: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Average incremental accuracy: the mean of `accuracy_curve` (Rebuffi et al. 2017).

    Args:
        R: accuracy matrix `(tasks, tasks)`.
        weights: `(tasks,)` test images per task, or None; see `final_accuracy`.

    Returns:
        A fraction 0..1; nan where a point of the curve is missing, as for a model trained on all tasks at once.

    Raises:
        ValueError: R is no square matrix of fractions, or weights do not fit it.

    >>> round(average_accuracy([[0.9, float("nan")], [0.6, 0.8]]), 3)
    0.8
    """
    return float(np.mean(accuracy_curve(R, weights)))


def forgetting(R: npt.ArrayLike) -> float:
    """Mean drop of the earlier tasks from their best accuracy (Chaudhry et al. 2018, section 4.1).

    The mean over j < T-1 of `max_{i < T-1} R[i, j] - R[T-1, j]`. Negative where later tasks helped earlier ones.

    Args:
        R: accuracy matrix `(tasks, tasks)`.

    Returns:
        A number -1..1; nan for a single task, or where an entry on or below the diagonal is missing.

    Raises:
        ValueError: R is no square matrix of fractions.

    >>> nan = float("nan")
    >>> round(forgetting([[0.9, nan, nan], [0.7, 0.8, nan], [0.6, 0.7, 0.9]]), 3)
    0.2
    """
    matrix = _square(R)
    last = len(matrix) - 1
    if last == 0 or np.isnan(matrix[np.tril_indices(last + 1)]).any():
        return float("nan")
    best: npt.NDArray[np.float64] = np.nanmax(matrix[:last, :last], axis=0)
    return float(np.mean(best - matrix[last, :last]))


def backward_transfer(R: npt.ArrayLike) -> float:
    """Influence of later tasks on earlier ones (Lopez-Paz & Ranzato 2017, equation 3).

    The mean over j < T-1 of `R[T-1, j] - R[j, j]`.

    Args:
        R: accuracy matrix `(tasks, tasks)`.

    Returns:
        A number -1..1, negative where tasks were forgotten; nan for a single task or where an entry is missing.

    Raises:
        ValueError: R is no square matrix of fractions.

    >>> nan = float("nan")
    >>> round(backward_transfer([[0.9, nan, nan], [0.7, 0.8, nan], [0.6, 0.7, 0.9]]), 3)
    -0.2
    """
    matrix = _square(R)
    last = len(matrix) - 1
    if last == 0:
        return float("nan")
    return float(np.mean(matrix[last, :last] - np.diagonal(matrix)[:last]))


def forward_transfer(R: npt.ArrayLike, chance: npt.ArrayLike) -> float:
    """Influence of earlier tasks on a task not learned yet (Lopez-Paz & Ranzato 2017, equation 4).

    The mean over j > 0 of `R[j-1, j] - chance[j]`. It has a meaning only where later tasks share the labels.

    Args:
        R: accuracy matrix `(tasks, tasks)` with the entries just above the diagonal measured.
        chance: accuracy of guessing (or of the untrained model), one fraction or `(tasks,)` of them.

    Returns:
        A number -1..1; nan for a single task, or where an entry just above the diagonal was not measured.

    Raises:
        ValueError: R is no square matrix of fractions, or chance does not fit it.

    >>> round(forward_transfer([[0.9, 0.5], [0.8, 0.9]], chance=0.1), 3)
    0.4
    >>> forward_transfer([[0.9, float("nan")], [0.8, 0.9]], chance=0.1)
    nan
    """
    matrix = _square(R)
    guess = np.asarray(chance, dtype=np.float64)
    if guess.shape not in {(), (len(matrix),)}:
        raise ValueError(f"chance is one number or one per task ({len(matrix)}), but its shape is {guess.shape}")
    if len(matrix) == 1:
        return float("nan")
    return float(np.mean(np.diagonal(matrix, offset=1) - np.broadcast_to(guess, len(matrix))[1:]))


def _square(R: npt.ArrayLike) -> AccuracyMatrix:
    matrix = np.asarray(R, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"an accuracy matrix is (tasks, tasks), at least one task, but its shape is {matrix.shape}")
    measured = matrix[~np.isnan(matrix)]
    if ((measured < 0) | (measured > 1)).any():
        worst = measured[np.argmax(np.abs(measured - 0.5))]
        raise ValueError(f"accuracies are fractions from 0 to 1, but the matrix holds {worst:g}; divide percent by 100")
    return matrix


def _weights(weights: npt.ArrayLike | None, tasks: int) -> npt.NDArray[np.float64]:
    if weights is None:
        return np.ones(tasks)
    share = np.asarray(weights, dtype=np.float64)
    if share.shape != (tasks,):
        raise ValueError(f"weights hold one number per task ({tasks}), but their shape is {share.shape}")
    if not np.isfinite(share).all() or (share < 0).any():
        raise ValueError(f"weights are numbers of test samples, 0 or more, but were given as {share.tolist()}")
    return share


def _weighted_mean(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> float:
    counted = weights > 0
    if not counted.any():
        return float("nan")
    return float(np.average(values[counted], weights=weights[counted]))
