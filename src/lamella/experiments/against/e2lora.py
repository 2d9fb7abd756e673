"""E2-LoRA: a whole network over several tasks, what is cut from old updates, and the gradients of the loss."""

import copy
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lamella.backbones import Backbone, load_backbone
from lamella.experiments.against.checkout import Checkout
from lamella.experiments.against.fits import Drawn
from lamella.experiments.against.rows import Row
from lamella.experiments.against.small import Bar, draw, gradient, inputs, largest, relative, tiny_tasks
from lamella.methods import METHODS

__all__ = ["rows"]

FOLDER = "class_incremental_learning"
BLOCKS, TASKS = 2, 5
SIZE = 64  # images of 64 pixels have more tokens in all than a layer has outputs, as theirs have
NETWORK = ("get_principal_direction_svd", "get_energy_threshold", "LoRAMlp", "LoRAAttention", "BaseNet", "E2LoRANet")


def rows(checkout: Checkout) -> list[Row]:
    """Compare `E2LoRANet`, `Learner._pca_lora` and `Learner._run` over several tasks with ours, shares="whole"."""
    backbone = _small()
    theirs = _Theirs(checkout, backbone)
    method: Any = METHODS["e2lora"](backbone, shares="whole")
    found: dict[str, list[float]] = defaultdict(list)

    def compare(loss: Callable[[Any, Tensor], Tensor], tensors: list[Tensor]) -> None:
        t = len(method.heads) - 1
        for i, tensor in enumerate(tensors):
            tensor.data = tensor + 0.05 * draw(*tensor.shape, name=f"trained {t} {i}")
        theirs.begin(method.heads)
        for site in method.sites:
            (branch,), (As, Bs) = site.layer.of("new"), theirs.factors(site.name)
            found["ranks"].append([B.weight.shape[1] for B in Bs[:-1]] != method._budget(site).ranks.tolist())
            if t == 1:  # later ones hold directions of old tasks, too: see the method's departures
                found["directions"].append(_apart(branch.B, Bs[-1].weight))
            As[-1].weight.data, Bs[-1].weight.data = branch.A.detach().clone(), branch.B.detach().clone()
        loss(x, task.train.labels).backward()
        theirs.loss(t, x, task.train.labels)
        for site in method.sites:
            (branch,), (As, Bs) = site.layer.of("new"), theirs.factors(site.name)
            pairs = [(branch.A, As[-1].weight), *([] if t else [(branch.B, Bs[-1].weight)])]
            found["gradients"] += [relative(gradient(ours), gradient(other)) for ours, other in pairs]

    for t, task in enumerate(tiny_tasks(TASKS)):
        x = inputs(task, backbone)
        fit = Drawn(method, compare)
        fit.begin(str(t))
        method.learn(task, fit)
        theirs.rotate(x)
        with torch.no_grad():
            found["features"].append(relative(method.features(x), theirs.network.extract_vector(x)))
        for site in method.sites:
            ours = method._budget(site).variances[-int(method._budget(site).ranks[-1]) :]
            found["variances"].append(relative(ours, theirs.variances(site.name)[: len(ours)]))
    on = f"{len(method.sites)} layers of a small transformer, {TASKS} tasks, with updates that are drawn"
    return [
        Row("layers and tasks in which old updates keep other ranks", on, sum(found["ranks"]), 0.0),
        Row("directions of the second task (projectors)", on, max(found["directions"]), 1e-3),
        Row("variances along the ranks, relative", on, max(found["variances"]), 1e-4),
        Row("features with all updates, relative", on, max(found["features"]), 1e-4),
        Row("gradients of the loss and its distillation, relative", on, max(found["gradients"]), 1e-3),
    ]


def _small() -> Backbone:
    """Return the first blocks of timm's smallest vision transformer, for larger images than others compare on."""
    whole = load_backbone("test_vit", weights="random", size=SIZE, crop=1.0)
    model: Any = whole.model
    model.blocks = model.blocks[:BLOCKS]
    return Backbone(model, name=whole.name, width=whole.width, transform=whole.transform).eval()


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return largest(ours @ ours.T, theirs @ theirs.T)


class _Theirs:
    """Their network, and what their learner does with it.

    Args:
        checkout: their code.
        backbone: ours, whose network is copied before anything is adapted.
    """

    def __init__(self, checkout: Checkout, backbone: Any) -> None:
        from timm.layers.attention import Attention
        from timm.layers.mlp import Mlp
        from timm.layers.weight_init import trunc_normal_

        model: Any = copy.deepcopy(backbone.model)
        model.out_dim = backbone.width
        heads = checkout.take(f"{FOLDER}/backbone/linears.py", "SimpleContinualLinear", trunc_normal_=trunc_normal_)
        space: dict[str, Any] = {
            "Attention": Attention,
            "Mlp": Mlp,
            "SimpleContinualLinear": heads,
            "get_backbone": lambda *_: model,
            "threshold_step": 1e-5,
        }
        for name in NETWORK:
            space[name] = checkout.take(f"{FOLDER}/utils/inc_net.py", name, **space)
        self.network = space["E2LoRANet"]({"device": ["cpu"]})
        for block in self.network.backbone.blocks:  # newer versions of timm name more than their attention knows
            block.attn.register_forward_pre_hook(lambda _, args, __: (args, {}), with_kwargs=True)
        learner = f"{FOLDER}/models/e2lora.py"
        self.run = checkout.take(learner, "Learner._run", tqdm=Bar)
        self.turn = checkout.take(learner, "Learner._pca_lora")

    def begin(self, heads: Any) -> None:
        """Begin a task as their trainer does, with heads like ours."""
        for block in self.network.backbone.blocks:
            block.mlp.add_task()
            block.attn.add_task()
        new = heads[len(heads) - 1]
        self.network.update_fc(len(new.classes))
        self.network.fc.heads[-1][0].load_state_dict({"weight": new.weight, "bias": new.bias})

    def loss(self, t: int, x: Any, y: Tensor) -> None:
        """Leave the gradients of a step of their training."""
        learner = SimpleNamespace(_network=self.network, _cur_task=t, _known_classes=2 * t, _device="cpu", epochs=1)
        learner.fix_bcb, learner._compute_accuracy = False, lambda *_: 0.0
        still = SimpleNamespace(zero_grad=self.network.zero_grad, step=lambda: None)
        self.run(learner, [(None, x, y)], [], still, still)

    def rotate(self, x: Any) -> None:
        """Rotate the newest updates by these images."""
        y = torch.zeros(len(x), dtype=torch.int64)
        self.turn(SimpleNamespace(_network=self.network, _multiple_gpus=[0], _device="cpu"), [(None, x, y)])

    def factors(self, name: str) -> tuple[Any, Any]:
        """Return the layers A and B of all tasks beside a layer of ours."""
        part = self._part(name)
        return (part.lora_A, part.lora_B) if hasattr(part, "lora_A") else (part.lora_A1, part.lora_B1)

    def variances(self, name: str) -> Tensor:
        """Return those along the ranks of the newest update beside a layer of ours."""
        return self._part(name).eigenvalues[-1]

    def _part(self, name: str) -> Any:
        """Return their attention or MLP of a layer that ours name blocks.NUMBER.PART.LAYER."""
        _, number, part, _ = name.split(".")
        return getattr(self.network.backbone.blocks[int(number)], part)
