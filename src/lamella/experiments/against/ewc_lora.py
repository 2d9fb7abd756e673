"""EWC-LoRA: the importance of weights over two tasks, and the loss with its penalty on new branches."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.common.randomness import generator
from lamella.data.scenario import Task
from lamella.experiments.against.checkout import Checkout
from lamella.experiments.against.fits import learned_pairs
from lamella.experiments.against.rows import Row
from lamella.experiments.against.small import (
    Bar,
    draw,
    gradient,
    inputs,
    largest,
    relative,
    tiny,
    tiny_tasks,
    with_attention,
)
from lamella.methods import METHODS
from lamella.training.recipe import LoRA, Training

__all__ = ["rows"]

RANK, STRENGTH = 4, 1e4


def rows(checkout: Checkout) -> list[Row]:
    """Compare `Attention_LoRA`, `FisherComputer` and `EWCLoRA` with ours, over two tasks."""
    losses: list[Tensor] = []
    names: dict[str, Any] = {"BaseLearner": _Base, "tensor2numpy": Tensor.numpy, "tqdm": Bar}
    names["F"] = SimpleNamespace(cross_entropy=lambda x, y: losses.append(F.cross_entropy(x, y)) or losses[-1])
    names["FisherComputer"] = checkout.take("methods/ewclora.py", "FisherComputer", **names)
    lora, training = LoRA(rank=RANK, sites=("key", "value")), Training(epochs=2, lr=0.01, batch_size=6)
    method: Any = METHODS["ewc-lora"](tiny().eval(), lora=lora, training=training, strength=STRENGTH)
    network = _Net(checkout.take("models/vit_ewclora.py", "Attention_LoRA"))
    learner = object.__new__(checkout.take("methods/ewclora.py", "EWCLoRA", **names))
    vars(learner).update(network=network, omega_W=[], count_updates=0, gamma=1.0, ewc_weight=STRENGTH)
    vars(learner).update(device="cpu", epochs=1, increment=2, cur_task=0, known_classes=0)
    first, second = tiny_tasks(2)
    features = _learn(method, learner, first)
    loss, gradients = _penalised(method, learner, second, losses)
    # Their merge of a second pair is not compared: it adds A's and B's, so that their product gets mixed terms.
    features = max(features, _learn(method, learner, second))
    ours = torch.stack([method._importance(site).total for site in method.sites])
    on = f"{len(network.theirs)} layers, trained on random images"
    return [
        Row("features with a new pair of branches", on, features, 1e-4),
        Row("loss with its penalty, relative", on, loss, 1e-5),
        Row("its gradients, relative", on, gradients, 1e-4),
        Row("importance after two tasks, from single samples", on, relative(ours, torch.stack(learner.omega_W)), 1e-4),
    ]


def _learn(method: Any, learner: Any, task: Task) -> float:
    """Let ours learn a task, give theirs the pairs, and let it end the task; return how far features are apart."""
    learner.cur_task = task.id
    learner.network.begin(learned_pairs(method, task), method.heads[task.id])
    x, y = inputs(task, method.backbone), task.train.labels
    difference = largest(method.features(x), learner.network.backbone(x))
    # They square the gradient of a batch's mean, which is that of a sample only where the batch is one.
    learner.train_loader = [(None, x[i : i + 1], y[i : i + 1]) for i in range(len(y))]
    learner.after_task()
    return difference


def _penalised(method: Any, learner: Any, task: Task, losses: list[Tensor]) -> tuple[float, float]:
    """Return how far the losses of a batch are apart, and their gradients by A and B, with random branches."""
    branches = method.lora.grow(method.sites, "compared", generator(0, "against", "ewc-lora"))
    for i, branch in enumerate(branches):
        branch.B.data.copy_(draw(*branch.B.shape, name=f"B {i}"))
        branch.A.requires_grad_(True)
        branch.B.requires_grad_(True)
    network, head = learner.network, method.heads[0]
    network.begin([(branch.A, branch.B) for branch in branches], head)
    x, y = inputs(task, method.backbone), task.train.labels % 2
    learner._train_function([(None, x, y)], torch.optim.SGD(network.parameters(), lr=0.0), Bar(()))
    value = F.cross_entropy(head(method.features(x)), y) + method.penalty(branches)
    value.backward()
    ours = [factor for branch in branches for factor in (branch.A, branch.B)]
    theirs = [factor for pair in network.pairs() for factor in pair]
    apart = max(relative(gradient(own), gradient(other)) for own, other in zip(ours, theirs, strict=True))
    for site in method.sites:
        site.layer.branches.clear()
    return relative(value, losses[-1]), apart


class _Net(nn.Module):
    """A network with their attentions, in which a pair of each is new, and a head."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.backbone = tiny().eval()
        self.theirs = with_attention(self.backbone, attention, rank=RANK, use_new=True, register_hook=True)
        for module in self.theirs:
            module.init_param()

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Return A and B of each new pair, in the order of our sites."""
        sides = [(m, side) for m in self.theirs for side in "kv"]
        return [(getattr(m, f"lora_new_A_{side}").weight, getattr(m, f"lora_new_B_{side}").weight) for m, side in sides]

    def begin(self, pairs: Sequence[tuple[Tensor, Tensor]], head: nn.Module) -> None:
        """Set the new pairs, and the head."""
        for (A, B), (new_A, new_B) in zip(pairs, self.pairs(), strict=True):
            new_A.data.copy_(A)
            new_B.data.copy_(B)
        self.head = head

    def forward(self, x: Tensor, **_: Any) -> dict[str, Tensor]:
        return {"logits": self.head(self.backbone(x))}

    def accumulate_and_reset_lora(self) -> None:
        for module in self.theirs:
            module.accumulate_and_reset_lora()


class _Base:
    """What their learner is made from."""

    def after_task(self) -> None:
        """Do nothing."""
