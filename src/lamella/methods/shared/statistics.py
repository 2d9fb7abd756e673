"""Class statistics of a task's features, also where samples have several owners and only sums leave them."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from lamella.memory.feature_sums import class_sums
from lamella.memory.gaussians import ClassGaussians
from lamella.training.fit import Fit

__all__ = ["add_features"]


def add_features(
    statistics: ClassGaussians, fit: Fit, features: Tensor, labels: Tensor, classes: Sequence[int], *, name: str
) -> None:
    """Add the features of a task's samples to class statistics.

    Args:
        statistics: what they are added to.
        fit: the loop that has computed them.
        features: (n, d), in the order of the task's samples.
        labels: (n,) global class ids.
        classes: the classes of the task.
        name: the name of the sums within the task.

    Raises:
        ValueError: a class has no sample.
    """
    if fit.divided:
        statistics.add_sums(fit.pooled(name, partial(class_sums, classes=classes), features, labels), classes)
    else:
        statistics.add(features, labels, classes)
