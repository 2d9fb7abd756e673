"""Optimisers by name, their groups, and the tensors that they train."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["OPTIMIZERS", "build_optimizer", "parameter_groups", "trainable"]

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}

Group = dict[str, Any]


def build_optimizer(
    name: str, groups: Sequence[Group], *, weight_decay: float, momentum: float
) -> torch.optim.Optimizer:
    """Return an optimiser.

    Args:
        name: one of OPTIMIZERS.
        groups: the groups of tensors; the dictionaries are copied.
        weight_decay: for groups that do not have their own.
        momentum: that of "sgd"; the others ignore it.
    """
    own = {"momentum": momentum} if name == "sgd" else {}
    return OPTIMIZERS[name]([dict(group) for group in groups], weight_decay=weight_decay, **own)


def parameter_groups(params: Iterable[Tensor] | Iterable[Group], lr: float) -> list[Group]:
    """Return the optimiser groups of tensors, without empty ones.

    Args:
        params: tensors, which become one group, or groups.
        lr: the learning rate of groups that do not have their own.

    Raises:
        ValueError: there are no tensors.
    """
    entries = list(params)
    if entries and isinstance(entries[0], dict):
        groups = [{"lr": lr, **e, "params": list(e["params"])} for e in entries if isinstance(e, dict)]
    else:
        groups = [{"params": entries, "lr": lr}]
    if not any(group["params"] for group in groups):
        raise ValueError("there are no tensors to train; pass at least one to fit")
    return [group for group in groups if group["params"]]


@contextmanager
def trainable(tensors: Sequence[Tensor]) -> Generator[None]:
    """Make tensors trainable within the context; afterwards none is, and none has a gradient."""
    for tensor in tensors:
        tensor.requires_grad_(True)
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.requires_grad_(False)
            tensor.grad = None
