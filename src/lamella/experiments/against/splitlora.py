"""SplitLoRA: what is protected after each of several tasks, the next A, and the output of a layer."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import watch
from lamella.common.randomness import generator
from lamella.experiments.against.checkout import Checkout
from lamella.experiments.against.fits import learned_pairs
from lamella.experiments.against.rows import Row
from lamella.experiments.against.small import inputs, largest, relative, tiny, tiny_tasks
from lamella.methods import METHODS
from lamella.training.recipe import LoRA, Training

__all__ = ["rows"]

TASKS, RANK, ROOM = 3, 4, 0.5


def rows(checkout: Checkout) -> list[Row]:
    """Compare `QkvWithLoRA` and its `LoRALayer` with ours on the inputs of our layers, over three tasks."""
    drawn: Any = _Torch()
    names = {"torch": drawn, "wandb": SimpleNamespace(log=lambda *_: None)}
    names["LoRALayer"] = checkout.take("lora/utils.py", "LoRALayer", **names)
    layer_of = checkout.take("lora/utils.py", "QkvWithLoRA", **names)
    backbone, lora = tiny().eval(), LoRA(rank=RANK, sites=("key", "value"))
    training = Training(epochs=2, lr=0.01, batch_size=6)
    method: Any = METHODS["splitlora"](backbone, lora=lora, training=training, room=ROOM, shrinking=False)
    layers = {site.name: site.layer for site in method.sites}
    theirs: Any = {name: layer_of(_copy(layer), RANK, ROOM, layer=0) for name, layer in layers.items()}
    A = output = moment = dimensions = projectors = 0.0
    for number, task in enumerate(tiny_tasks(TASKS)):
        sides = [side for layer in theirs.values() for side in (layer.lora_k, layer.lora_v)]
        for layer in theirs.values() if number else ():
            layer.update(number)
        A = max(A, _next_pairs(sides, learned_pairs(method, task), number, drawn))
        seen: dict[Any, list[Tensor]] = {layer: [] for layer in layers.values()}
        with torch.no_grad(), watch(method.sites, lambda layer: seen[layer].append):  # noqa: B023
            backbone(inputs(task, backbone))
        for name, layer in layers.items():
            (x,), other, ours = seen[layer], theirs[name], method._seen(name)
            with torch.no_grad():
                output = max(output, largest(layer(x), other(x, get_cur_feat=True)))
            other.update_grad(number, "after")
            moment = max(moment, relative(ours.moment.mean, other.lora_k.cur_matrix))
            free = other.lora_v.feature_list
            dimensions = max(dimensions, abs(ours.space.width - free.shape[1] - ours.space.dimension))
            inside = ours.space.inside(torch.eye(len(free)))
            projectors = max(projectors, float((torch.eye(len(free)) - free @ free.T - inside).norm()))
    on = f"{len(layers)} layers over {TASKS} tasks of random images"
    return [
        Row("output of a layer with the branches so far", on, output, 1e-5),
        Row("moment of its inputs, relative", on, moment, 1e-5),
        Row("protected directions, their number", on, dimensions, 0.0),
        Row("projectors on them (Frobenius norm)", on, projectors, 1e-2),
        Row("A from the same draw, shrinking=False", on, A, 1e-3),
    ]


def _next_pairs(sides: Sequence[Any], pairs: Sequence[tuple[Tensor, Tensor]], number: int, drawn: Any) -> float:
    """Begin their branches of a task, give them ours as trained, and return how far the A's were apart."""
    usual, draws, difference = generator(0, "lora", number), generator(0, "splitlora", number), 0.0
    for side, (A, B) in zip(sides, pairs, strict=True):
        bound = A.shape[1] ** -0.5
        side.lora_A[number].weight.data.uniform_(-bound, bound, generator=usual)
        if number:
            # They draw a number for each free direction, we one for each input: those that follow from ours.
            drawn.next = side.feature_list.T @ torch.randn(A.shape[1], len(A), generator=draws)
            side.update_grad_before_train(number)
        difference = max(difference, largest(A, side.lora_A[number].weight))
        side.lora_A[number].weight.data.copy_(A)
        side.lora_B[number].weight.data.copy_(B)
    return difference


def _copy(layer: Any) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features)
    linear.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    return linear


class _Torch:
    """The module `torch`, but for its random numbers."""

    next: Tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def randn(self, *_: int) -> Tensor:
        """Return what was put here."""
        return self.next
