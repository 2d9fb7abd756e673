"""Metrics of the scores of answers: pure functions of a matrix of scores.

A score may be any number, and of some, such as the loss, the lower one is better. The metrics of accuracies, and the
names and definitions of all metrics, are in metrics.py.
"""

import numpy as np
import numpy.typing as npt


def score_final(S: npt.NDArray[np.float64], before: npt.NDArray[np.float64], lower: bool) -> float:
    """The mean of the last row of a matrix of scores, over the tasks that have it. See `score_forgetting`."""
    return float(np.nanmean(S[-1]))


def score_forgetting(S: npt.NDArray[np.float64], before: npt.NDArray[np.float64], lower: bool) -> float:
    """Mean fall of the earlier tasks from their best score, also of what they were before anything was learned.

    Args:
        S: (tasks, tasks), a score of task j after learning task i; nan where it was not measured.
        before: (tasks,) the scores before anything was learned.
        lower: whether a lower score is better; then it is the mean rise over the lowest.

    Returns:
        A number, 0 or more unless tasks got better at the end; nan for a single task, or where one was not measured.

    >>> nan = float("nan")
    >>> score_forgetting(np.array([[1.0, 3.0], [1.5, 0.5]]), np.array([2.0, 3.0]), True)
    0.5
    """
    last = len(S) - 1
    if last == 0 or np.isnan(S[np.tril_indices(last + 1)]).any():
        return float("nan")
    sign = -1 if lower else 1
    earlier = sign * np.vstack([before[:last], S[:last, :last]])
    return float(np.mean(np.nanmax(earlier, axis=0) - sign * S[last, :last]))


def score_forward_transfer(S: npt.NDArray[np.float64], before: npt.NDArray[np.float64], lower: bool) -> float:
    """Mean gain of tasks just before they are learned over what they were before anything was learned.

    Arguments are those of `score_forgetting`; the entries just above the diagonal are needed.

    >>> score_forward_transfer(np.array([[1.0, 2.0], [1.5, 0.5]]), np.array([2.0, 3.0]), True)
    1.0
    """
    if len(S) == 1:
        return float("nan")
    gains = np.diagonal(S, offset=1) - before[1:]
    return float(np.mean(-gains if lower else gains))


OF_SCORES = {"final": score_final, "forgetting": score_forgetting, "forward transfer": score_forward_transfer}
"""What is computed of a matrix of scores of answers, by the kinds of metrics."""
