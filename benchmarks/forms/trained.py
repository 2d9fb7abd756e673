"""One training for several configurations that differ only in what is made of it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lamella.common.files import read_tensors, write_tensors
from lamella.data.scenario import Scenario
from lamella.learner.config.document import build_scenario
from lamella.learner.learner import Learner
from lamella.training.fit import Fit
from lamella.training.optimizers import parameter_groups


class TrainedOnce:
    """A training loop that stores what a call has trained, and afterwards copies it instead of training again.

    Args:
        fit: the loop that trains, and takes all passes without training.
        store: the folder of what was trained.
    """

    def __init__(self, fit: Fit, store: Path) -> None:
        self.fit, self.store = fit, store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fit, name)

    def __call__(self, data: Any, loss: Any, params: Iterable[Any], *args: Any, **settings: Any) -> list[float]:
        params = list(params)
        tensors = [tensor for group in parameter_groups(params, 1.0) for tensor in group["params"]]
        path = self.store / f"task-{self.fit.task}-{settings.get('name', 'train')}.safetensors"
        if path.exists():
            stored, told = read_tensors(path)
            for i, tensor in enumerate(tensors):
                tensor.data.copy_(stored[str(i)])
            return list(told["losses"])
        losses = self.fit(data, loss, params, *args, **settings)
        write_tensors(path, {str(i): tensor.detach() for i, tensor in enumerate(tensors)}, {"losses": losses})
        return losses


def learned(config: dict[str, Any], store: Path) -> tuple[Learner, Scenario]:
    """Return a learner that has learned all tasks of a configuration, and the tasks.

    Args:
        config: the configuration.
        store: the folder of what was trained. What is not there is trained, and stored.
    """
    scenario, learner = build_scenario(config), Learner(config)
    fit: Any = TrainedOnce(learner.fit(), store)
    for i in range(len(scenario)):
        fit.begin(str(i))
        learner.method.learn(scenario[i], fit)
        print(f"    {i + 1} of {len(scenario)} tasks", flush=True)
    return learner, scenario
