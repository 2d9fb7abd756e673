"""One budget of bytes for model and memory together, so that methods that grow and those that do not compare fairly.

Zhou, Wang, Ye & Zhan, "A Model or 603 Exemplars: Towards Memory-Efficient Class-Incremental Learning", ICLR 2023,
arXiv 2205.13218. A finished model of P float32 numbers costs 4 P bytes, an exemplar a byte for each channel and pixel;
what a smaller model leaves of the budget is spent on exemplars. Parameters are all that a method keeps, also those that
only its next task would need; buffers (batch-norm statistics, class means) are not counted.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lamella.data.images import TensorSet
from lamella.data.samples import Transform
from lamella.data.scenario import Scenario, Task
from lamella.learner.config.document import complete
from lamella.learner.learner import Learner

__all__ = ["exemplars_within", "finished_parameters", "parameters_of", "total_bytes"]

BYTES = 4
"""Of one float32 number."""


def total_bytes(parameters: int, exemplars: int, image_bytes: int) -> int:
    """Bytes of a model and its memory.

    >>> total_bytes(463_504, 2000, 3072)
    7998016
    """
    return BYTES * parameters + exemplars * image_bytes


def exemplars_within(budget: int, parameters: int, image_bytes: int) -> int:
    """How many exemplars a model of so many parameters leaves room for.

    Args:
        budget: bytes of model and memory together. image_bytes: of one exemplar, such as 3 * 32 * 32.

    >>> exemplars_within(7_998_016, 463_504, 3072)
    2000

    Raises:
        ValueError: the model alone exceeds the budget.
    """
    left = budget - BYTES * parameters
    if left < 0:
        raise ValueError(
            f"a model of {parameters:,} parameters takes {BYTES * parameters:,} bytes, more than the budget of "
            f"{budget:,}; raise the budget by {-left:,}, or take a smaller model"
        )
    return left // image_bytes


def parameters_of(method: nn.Module) -> int:
    """Numbers of all that a method keeps, its backbone included."""
    return sum(parameter.numel() for parameter in method.parameters())


def finished_parameters(config: Mapping[str, Any], scenario: Scenario) -> int:
    """The parameters of a configuration's model after the last task, before anything is trained.

    The method itself grows its model, on a stream of the same classes with two blank samples of each, no memory and one
    epoch a task. How many parameters it has then does not depend on what it has seen.
    """
    learner = Learner(_in_one_epoch(config))
    for i in range(len(scenario)):
        learner.learn(_blank(scenario[i], learner.backbone.transform))
    return parameters_of(learner.method)


def _in_one_epoch(config: Mapping[str, Any]) -> dict[str, Any]:
    def short(table: Mapping[str, Any]) -> dict[str, Any]:
        table = {key: short(value) if isinstance(value, Mapping) else value for key, value in table.items()}
        brief = {"epochs": 1, "first_epochs": 1, "memory": 0}
        return {key: brief.get(key, value) for key, value in table.items() if key != "memory_per_class"}

    return complete({**config, "method": short(config["method"]), "fit": {"device": "cpu"}})


def _blank(task: Task, transform: Transform) -> Task:
    labels = torch.tensor(task.classes).repeat(2)
    samples = TensorSet(transform.example(len(labels)), labels, noun=transform.noun)
    return Task(task.id, task.name, task.classes, task.class_names, samples)
