"""One training for several configurations that differ only in what is made of it.

Either in the whole of what comes after the training (`learned`), or in what is learned on top of a base, which itself
learns the same (`learned_on_base`).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from lamella.common.files import read_tensors, write_tensors
from lamella.data.scenario import Scenario
from lamella.learner.config.document import build_scenario
from lamella.learner.learner import Learner
from lamella.methods.on_base import MethodOnBase
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


def learned_on_base(config: dict[str, Any], store: Path) -> tuple[Learner, Scenario]:
    """Return a learner of a method on a base that has learned all tasks of a configuration, and the tasks.

    Args:
        config: the configuration.
        store: the folder of what the base has learned, task by task. What is not there is learned, and stored.
    """
    scenario, learner = build_scenario(config), Learner(config)
    method, fit = learner.method, learner.fit()
    assert isinstance(method, MethodOnBase)
    base, learn = method.base, method.base.learn

    def learned_once(task: Any, fit: Fit) -> None:
        path = store / f"base-{fit.task}.pt"
        if path.exists():
            # A load removes the adapters that are not in the state, so those on top go in as they are.
            own = {key: value for key, value in base.state_dict().items() if _on_top(method, key)}
            base.load_state_dict(torch.load(path, weights_only=True) | own, strict=False)
            return
        learn(task, fit)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({key: value for key, value in base.state_dict().items() if not _on_top(method, key)}, path)

    base.learn = learned_once  # type: ignore[method-assign]
    for i in range(len(scenario)):
        fit.begin(str(i))
        method.learn(scenario[i], fit)
        print(f"    {i + 1} of {len(scenario)} tasks", flush=True)
    return learner, scenario


def _on_top(method: MethodOnBase, key: str) -> bool:
    """Return whether a tensor is of an adapter that the method has put into the network of its base."""
    return any(name in key.split(".") for name in method.own_adapters)
