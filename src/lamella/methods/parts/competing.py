"""Lets the classes of a new task compete with draws of the old ones, while a method beneath alignment is trained."""

from collections.abc import Generator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor

from lamella.data.scenario import Task
from lamella.memory.gaussians import ClassGaussians, shrunk
from lamella.methods.method import Method
from lamella.methods.on_base import MethodOnBase
from lamella.methods.shared.cosine_heads import CosineHeads
from lamella.methods.shared.own_heads import OwnHeads
from lamella.methods.shared.pseudo_replay import PseudoReplay

__all__ = ["competing", "trains_heads"]


def trains_heads(method: Method) -> bool:
    """Return whether a method, beneath its parts, trains a linear head a task on features that alignment sees too."""
    below = _trained(method)
    return isinstance(below, OwnHeads) and not method.routed and not isinstance(below.heads, CosineHeads)


@contextmanager
def competing(
    method: Method, statistics: ClassGaussians, shrinkage: float, before: Tensor | None, task: Task
) -> Generator[None]:
    """Give a method pseudo-replay of old classes within the context.

    Args:
        method: the method, which `trains_heads`.
        statistics: of the old classes, in the features before the task.
        shrinkage: of the shared covariance; see `shrunk`.
        before: (n, d), features of the task's samples before it; None without it.
        task: the task.
    """
    base = _trained(method)
    if before is None or not isinstance(base, OwnHeads):
        yield
        return
    base.pseudo_replay = _pseudo_replay(statistics, shrinkage, before, task)
    try:
        yield
    finally:
        base.pseudo_replay = None


@torch.no_grad()
def _pseudo_replay(statistics: ClassGaussians, shrinkage: float, before: Tensor, task: Task) -> PseudoReplay:
    together = deepcopy(statistics)
    together.add(before, task.train.labels, task.classes)
    weight, bias = together.hyperplanes(shrinkage)
    starts = dict(zip(together.classes, zip(weight.float(), bias.float(), strict=True), strict=True))
    root = torch.linalg.cholesky(shrunk(statistics.covariance, shrinkage))
    return PseudoReplay(statistics.ids, statistics.means, root, starts, len(task.classes))


def _trained(method: Method) -> Method:
    """Return the method beneath parts that leave its features as they are."""
    while isinstance(method, MethodOnBase) and type(method).features is MethodOnBase.features:
        method = method.base
    return method
