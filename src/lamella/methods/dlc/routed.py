"""Gates by the task that a router recognises, in the place of DLC's learned unit.

The base changes in every task, and so do its features. So what a router keeps is computed anew after each phase 1, from
the data of phase 2: the images of the task, and all that the base keeps of old ones. Each class of them counts alike.
The router reads the lane without plugins, which there is anyway, so it costs no further pass.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lamella.data.loading import Examples
from lamella.data.samples import Samples
from lamella.memory.exemplars import Exemplars
from lamella.methods.dlc.weighting import WeightingUnit
from lamella.methods.method import Method
from lamella.methods.shared.routing import ON_FEATURES, Routing
from lamella.training.fit import Fit

__all__ = ["RoutedUnit", "gates_of"]

REFUSED = {
    "arrow": "its plugins sit on convolutions, and Arrow compares the inputs of linear layers",
    "entropy": "all plugins share one classifier, so that no plugin has an answer of its own",
}


class RoutedUnit(nn.Module):
    """Computes the gates, the weight of each plugin for an image, as a router's weights of the tasks.

    Args:
        width: D, the number of the base's features.
        routing: the router, one that reads features.
        seed: the seed of its draws.

    Attributes:
        keys: what the router keeps of each task.
    """

    def __init__(self, width: int, routing: Routing, seed: int) -> None:
        super().__init__()
        self.routing = routing
        self.keys = routing.on_features(width, seed)

    def grow(self) -> None:
        """One plugin more needs nothing before `prepare`."""

    def prepare(
        self, fit: Fit, data: Examples, features: Callable[[Samples], Tensor], tasks: Sequence[Sequence[int]]
    ) -> None:
        """Compute what the router keeps of all tasks from present features.

        Args:
            fit: the passes of this task.
            data: samples of all tasks.
            features: samples -> features of the base (n, D).
            tasks: the global class ids of each task.

        Raises:
            ValueError: a class belongs to several tasks, or no sample of a task is left.
        """
        every = [c for classes in tasks for c in classes]
        if twice := sorted({c for c in every if every.count(c) > 1}):
            raise ValueError(
                f"class {twice[0]} belongs to several tasks, and the memory does not tell its samples apart by task; "
                "use router = 'none'"
            )
        points, labels = fit.features(data, features, name="plugin-router"), data.labels
        self.keys.clear()
        for t, classes in enumerate(tasks):
            own = torch.isin(labels, torch.tensor(list(classes), device=labels.device))
            if not own.any():
                raise ValueError(
                    f"no sample of task {t} is left for the router; use a larger memory or router = 'none'"
                )
            self.keys.add(points[own.to(points.device)], labels[own])

    def forward(self, features: Tensor) -> Tensor:
        """Return the (n, t) gates for features (n, 1 + t, D); the gates of an image sum to 1."""
        return self.routing.sharpened(self.keys.scores(features[:, 0])).softmax(1).to(features)


def gates_of(base: Method, width: int, gate: str, routing: Routing, seed: int) -> WeightingUnit | RoutedUnit:
    """Return what computes the gates of plugins.

    Args:
        base: the method that the plugins correct.
        width: D, the number of its features.
        gate: the kind of the learned unit.
        routing: the router that takes the unit's place; "none" if the unit stays.
        seed: the seed of the router's draws.

    Raises:
        ValueError: the router does not fit DLC or the base, or contradicts the gate.
    """
    routing.check("dlc", ("none", *ON_FEATURES), REFUSED)
    if routing.router == "none":
        if routing.top is not None or routing.router_temperature is not None:
            raise ValueError("top and router_temperature are for a router, and router is 'none'; choose a router")
        return WeightingUnit(width, gate)
    if gate != "sigmoid":
        raise ValueError(f"gate '{gate}' is one of the learned unit, whose place a router takes; leave gate out")
    if not isinstance(base._modules.get("exemplars"), Exemplars):
        raise ValueError(
            f"router '{routing.router}' needs samples of old tasks after each change of the base, and "
            f"{type(base).__name__} keeps none; use the base replay, icarl or wa, or router = 'none'"
        )
    return RoutedUnit(width, routing, seed)
