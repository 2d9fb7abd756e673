"""A common memory budget for model and exemplars, so that growing and fixed-size methods are compared fairly.

Zhou, Wang, Ye & Zhan, "A Model or 603 Exemplars: Towards Memory-Efficient Class-Incremental Learning", ICLR 2023,
arXiv 2205.13218. A finished model of P float32 numbers takes 4 P bytes, an exemplar one byte for each channel and
pixel. The part of the budget that the model does not need is spent on exemplars. All parameters of a method are
counted, also those that only its next task would need. Buffers (batch-norm statistics, class means) are not counted.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lamella.data.images import TensorSet
from lamella.data.scenario import Scenario, Task
from lamella.learner.config.document import complete
from lamella.learner.learner import Learner

__all__ = ["exemplars_within", "finished_parameters", "parameters_of", "total_bytes"]

BYTES = 4
"""The size of one float32 number."""


def total_bytes(parameters: int, exemplars: int, image_bytes: int) -> int:
    """Return the bytes of a model and its exemplars.

    >>> total_bytes(463_504, 2000, 3072)
    7998016
    """
    return BYTES * parameters + exemplars * image_bytes


def exemplars_within(budget: int, parameters: int, image_bytes: int) -> int:
    """Return how many exemplars fit into the budget beside a model.

    Args:
        budget: the bytes of model and exemplars together.
        parameters: the number of parameters of the model.
        image_bytes: the bytes of one exemplar, such as 3 * 32 * 32.

    >>> exemplars_within(7_998_016, 463_504, 3072)
    2000

    Raises:
        ValueError: the model alone exceeds the budget.
    """
    left = budget - BYTES * parameters
    if left < 0:
        raise ValueError(
            f"a model of {parameters:,} parameters takes {BYTES * parameters:,} bytes, more than the budget of "
            f"{budget:,}; raise the budget by {-left:,}, or use a smaller model"
        )
    return left // image_bytes


def parameters_of(method: nn.Module) -> int:
    """Count all parameters of a method, including its backbone."""
    return sum(parameter.numel() for parameter in method.parameters())


def finished_parameters(config: Mapping[str, Any], scenario: Scenario) -> int:
    """Count the parameters that a configuration's model will have after the last task.

    The method learns a stream of the same classes with two blank images of each class, without exemplars and with one
    epoch per task. The number of parameters does not depend on the images.

    Args:
        config: the complete configuration.
        scenario: the stream of tasks.
    """
    learner = Learner(_in_one_epoch(config))
    for i in range(len(scenario)):
        learner.learn(_blank(scenario[i], learner.backbone.transform.size))
    return parameters_of(learner.method)


def _in_one_epoch(config: Mapping[str, Any]) -> dict[str, Any]:
    def short(table: Mapping[str, Any]) -> dict[str, Any]:
        table = {key: short(value) if isinstance(value, Mapping) else value for key, value in table.items()}
        brief = {"epochs": 1, "first_epochs": 1, "memory": 0}
        return {key: brief.get(key, value) for key, value in table.items() if key != "memory_per_class"}

    return complete({**config, "method": short(config["method"]), "fit": {"device": "cpu"}})


def _blank(task: Task, size: int) -> Task:
    labels = torch.tensor(task.classes).repeat(2)
    images = TensorSet(torch.zeros(len(labels), 3, size, size), labels)
    return Task(task.id, task.name, task.classes, task.class_names, images)
