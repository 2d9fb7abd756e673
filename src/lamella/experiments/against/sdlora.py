"""SD-LoRA: the output of an adapted layer in which the pairs of several tasks act."""

from typing import Any

import torch
from torch import Tensor, nn

from lamella.experiments.against.checkout import Checkout
from lamella.experiments.against.rows import Row
from lamella.experiments.against.small import draw, largest, learned, tiny, tiny_tasks
from lamella.methods import METHODS
from lamella.training.recipe import LoRA, Training

__all__ = ["rows"]

TASKS, RANK = 3, 4


def rows(checkout: Checkout) -> list[Row]:
    """Compare `_LoRA_qkv_timm_train` with ours, magnitudes="restarted" on query and value."""
    layer_of = checkout.take("backbone/lora.py", "_LoRA_qkv_timm_train")
    wrapped = checkout.take("backbone/lora.py", "ParameterWrapper")
    lora, training = LoRA(rank=RANK, sites=("query", "value")), Training(epochs=2, lr=0.01, batch_size=6)
    method: Any = METHODS["sdlora"](tiny(), lora=lora, training=training, magnitudes="restarted")
    learned(method, tiny_tasks(TASKS))
    difference = 0.0
    names = dict.fromkeys(site.name for site in method.sites)
    for name in names:
        numbers = [k for k, site in enumerate(method.sites) if site.name == name]  # query and value of this layer
        numbers.sort(key=lambda k: method.sites[k].rows.start)
        ours = method.sites[numbers[0]].layer
        pairs = [[_pair(method, task, k) for k in numbers] for task in range(TASKS)]
        # Of old tasks they store pairs of any length and divide by it; ours have the length 1.
        old = [[(2 * A, 3 * B) for A, B, _ in own] for own in pairs[:-1]]
        new = [(A, B * scale) for A, B, scale in pairs[-1]]  # one magnitude for both: it stands in B
        plain = nn.Linear(ours.in_features, ours.out_features)
        plain.weight, plain.bias = ours.weight, ours.bias
        theirs = layer_of(
            plain, *(linear for A, B in new for linear in (_linear(A), _linear(B))), TASKS - 1,
            {f"saved_A_{i}": [_linear(A) for A, _ in own] for i, own in enumerate(old)},
            {f"saved_B_{i}": [_linear(B) for _, B in own] for i, own in enumerate(old)},
            0, RANK, nn.ModuleList([wrapped(nn.Parameter(torch.ones(1)))]),
            nn.ModuleList([wrapped(nn.Parameter(own[0][2].reshape(1))) for own in pairs[:-1]]),
        )  # fmt: skip
        x = draw(2, 5, ours.in_features, name=name)
        with torch.no_grad(), method.acting(x):
            difference = max(difference, largest(ours(x), theirs(x)))
    on = f"{len(names)} layers, pairs of {TASKS} tasks that were trained on random images"
    return [Row("output of a layer with all pairs", on, difference, 1e-5)]


def _pair(method: Any, task: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return A, B and the magnitude of a task's pair at one site."""
    (branch,) = method.sites[number].layer.of(method.adapters_of(task)[number])
    alphas = method.alphas[task]
    return branch.A.detach(), branch.B.detach(), alphas[number % len(alphas)].detach()


def _linear(weight: Tensor) -> Any:
    """Return what they keep of a factor: a layer with this weight."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.clone())
    return linear
