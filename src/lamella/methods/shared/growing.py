"""New branches of a task, whose start may depend on the task's own inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lamella.adapters.adapter import Branch, Site
from lamella.data.scenario import Task
from lamella.methods.method import Method
from lamella.methods.shared.moments import second_moments
from lamella.training.fit import Fit
from lamella.training.recipe import LoRA

__all__ = ["grow_for_task", "start_moments"]


def start_moments(lora: LoRA, method: Method, sites: Sequence[Site], task: Task, fit: Fit) -> dict[str, Tensor]:
    """Return by layer the second moment (d, d) of its inputs in a task, where new branches need it; else nothing.

    Args:
        lora: the form of the branches.
        method: the method, as it predicts before the branches are there.
        sites: the sites of the branches.
        task: the task, whose training data are seen.
        fit: the passes of this task.
    """
    if not lora.needs_moments:
        return {}
    reads_as = method.backbone.first_readers(sites)
    found = second_moments(fit, task.train, method, sites, reads_as, name="moment-start", dtype=torch.float64)
    return {site.name: found[reads_as[site.name]].mean for site in sites}


def grow_for_task(
    lora: LoRA,
    method: Method,
    sites: Sequence[Site],
    name: str,
    draws: torch.Generator,
    task: Task,
    fit: Fit,
) -> list[Branch]:
    """Add an adapter for a task.

    Args:
        lora: its form.
        method: the method, as it predicts before the adapter is there.
        sites: where its branches sit.
        name: its name.
        draws: draws what is random at its start.
        task: the task.
        fit: the passes of this task.
    """
    return lora.grow(sites, name, draws, moments=start_moments(lora, method, sites, task, fit))
