"""What the part `merge` keeps of the updates of tasks: a pair for each task, or for RegMean two sums over tasks."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Site, module_key
from lamella.adapters.merging import Merging, merged
from lamella.adapters.pairs import Pair, low_rank
from lamella.backbones import Backbone
from lamella.data.scenario import Task
from lamella.memory.old_moments import OldMoment
from lamella.memory.regmean import UpdatesOnInputs
from lamella.memory.resizable import Resizable
from lamella.methods.parts.other_weights import TrainedWeights
from lamella.methods.shared.moments import second_moments
from lamella.training.fit import Fit

__all__ = ["PairsOfTasks", "SumsOnInputs", "TaskPairs"]


class TaskPairs(Resizable):
    """What each task has added to one layer.

    Attributes:
        A: (sum of ranks, d_in), in the order of learning.
        B: (rows, sum of ranks).
        ranks: (tasks,) int64.
    """

    resizable = ("A", "B", "ranks")
    for_training = True
    A: Tensor
    B: Tensor
    ranks: Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("A", torch.zeros(0, width))
        self.register_buffer("B", torch.zeros(rows, 0))
        self.register_buffer("ranks", torch.zeros(0, dtype=torch.int64))

    def add(self, pair: Pair) -> None:
        """Append the pair of a new task."""
        self.A = torch.cat([self.A, pair.A.to(self.A)])
        self.B = torch.cat([self.B, pair.B.to(self.B)], 1)
        self.ranks = torch.cat([self.ranks, self.ranks.new_tensor([len(pair.A)])])

    def pairs(self) -> list[Pair]:
        """The pairs, one a task, on the CPU."""
        ranks = self.known("ranks")
        return [Pair(A, B) for A, B in zip(self.A.cpu().split(ranks), self.B.cpu().split(ranks, 1), strict=True)]


class PairsOfTasks(nn.ModuleDict):
    """What each task has added to the layers, as pairs.

    Args:
        trained: the layers and their rows.
    """

    def __init__(self, trained: TrainedWeights) -> None:
        super().__init__({module_key(name): TaskPairs(*_shape(trained, name)) for name in trained.layers})
        self.layers = tuple(trained.layers)

    def add(self, changes: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Append the updates of a new task, each in its numerical rank.

        Args:
            changes: by layer, (rows, d_in).
            weights: by layer, weights of these rows (rows, d_in), whose size tells what is rounding.
        """
        for name, change in changes.items():
            self._of(name).add(low_rank(change, weights[name]))

    def merged(self, merging: Merging, seed: int) -> dict[str, Tensor]:
        """By layer, the merged update (rows, d_in) of all tasks, float64 on the CPU.

        Args:
            merging: the rule and its numbers.
            seed: the seed of the rule's draws.
        """
        pairs = {name: self._of(name).pairs() for name in self.layers}
        tasks = range(len(next(iter(pairs.values()))))
        found = merged([{n: own[t] for n, own in pairs.items()} for t in tasks], merging, seed=seed)
        return {name: pair.delta() for name, pair in found.items()}

    def _of(self, name: str) -> TaskPairs:
        return cast(TaskPairs, self[module_key(name)])


class SumsOnInputs(nn.Module):
    """What RegMean needs of all tasks: for each layer the sum of D_i G_i, and for each input of layers that of G_i.

    Args:
        backbone: the network that the sites are in.
        trained: the layers and their rows.

    Raises:
        ValueError: a layer is a convolution.
    """

    def __init__(self, backbone: Backbone, trained: TrainedWeights) -> None:
        super().__init__()
        if images := [name for name, layer in trained.layers.items() if layer.weight.ndim != 2]:
            raise ValueError(
                f"rule 'regmean' is for linear layers, and '{images[0]}' is a convolution; choose another rule, such "
                "as 'tsv'"
            )
        self.sites = tuple(Site(name, layer, trained.rows[name]) for name, layer in trained.layers.items())
        self.reads_as = backbone.first_readers(self.sites)
        shapes = {name: _shape(trained, name) for name in trained.layers}
        self.products = nn.ModuleDict({module_key(name): UpdatesOnInputs(*shape) for name, shape in shapes.items()})
        firsts = dict.fromkeys(self.reads_as.values())
        self.moments = nn.ModuleDict({module_key(name): OldMoment(shapes[name][1]) for name in firsts})

    def add(
        self, changes: Mapping[str, Tensor], task: Task, fit: Fit, model: Callable[[Any], Tensor], *, name: str
    ) -> None:
        """Add the updates of a new task, whose inputs are read by one pass over its samples.

        Args:
            changes: by layer, (rows, d_in): what the task's own model adds to the weights before the first task.
            task: the task.
            fit: the passes of this task.
            model: the task's own model, inputs of n samples -> features.
            name: the name of the pass within the task.
        """
        seen = second_moments(fit, task.train, model, self.sites, self.reads_as, name=name, dtype=torch.float64)
        for layer, change in changes.items():
            self._product(layer).add(change, seen[self.reads_as[layer]].mean)
        for layer, moment in seen.items():
            self._moment(layer).add(moment.mean)

    def merged(self, merging: Merging, seed: int) -> dict[str, Tensor]:
        """By layer, the merged update (rows, d_in) of all tasks, float64 on the CPU; as that of `PairsOfTasks`."""
        layers = self.reads_as.items()
        return {name: merging.scale * self._product(name).merged(self._moment(first)) for name, first in layers}

    def _product(self, name: str) -> UpdatesOnInputs:
        return cast(UpdatesOnInputs, self.products[module_key(name)])

    def _moment(self, name: str) -> OldMoment:
        return cast(OldMoment, self.moments[module_key(name)])


def _shape(trained: TrainedWeights, name: str) -> tuple[int, int]:
    """The shape (rows, d_in) of an update of a layer, whose kernel is one long row where it is a convolution."""
    rows, inputs = trained.held(name).flatten(1).shape
    return rows, inputs
