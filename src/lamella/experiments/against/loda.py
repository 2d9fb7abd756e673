"""LoDA: what its branches read, layers with both of them, what is merged and remembered, rates, scores, steps."""

import copy
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.experiments.against.checkout import Checkout
from lamella.experiments.against.fits import Drawn
from lamella.experiments.against.rows import Row
from lamella.experiments.against.small import Bar, draw, largest, relative, tiny, tiny_tasks
from lamella.memory.subspace import SecondMoment
from lamella.methods import METHODS
from lamella.methods.shared.gradient_alignment import GradientAlignment
from lamella.training.recipe import LoRA

__all__ = ["rows"]

TASKS, RANK, TOKENS, RHO = 3, 8, 400, 0.3
LAYERS = "models/decomposed_lora.py"
NAMES = ("_random_fixed_A_init", "_zero_B_init", "_energy_merge", "FrozenA_TrainableB", "Attention_LoRA")
PASSES = ("moment-before", "moment-trained", "moment-after")
SETTINGS = {"lora_eps": 0.1, "slora_gamma": 0.5, "plora_gamma": 1.0, "merge_gamma": 3.0}  # as their files have them


def rows(checkout: Checkout) -> list[Row]:
    """Compare `Attention_LoRA` under `Learner._train` over tasks, with moments="both", heads and aligned steps."""
    space: dict[str, Any] = {"deepcopy": copy.deepcopy, "optim": torch.optim}
    for name in NAMES:
        space[name] = checkout.take(LAYERS, name, **space)
    train = checkout.take("methods/dlora.py", "Learner._train", **space)
    backbone = tiny().eval()
    method: Any = METHODS["loda"](backbone, lora=LoRA(rank=RANK, sites=("query+key+value",)), moments="both")
    method.moments_of = lambda task, _, which: {
        name: _moment(_inputs(own, name, task.id, which)) for name, own in layers
    }
    layers = [(site.name, backbone.model.get_submodule(site.name.rpartition(".")[0])) for site in method.sites]
    theirs: Any = _Layers(space["Attention_LoRA"], layers)
    recipe = method.recipe
    ours: dict[str, list[Any]] = {}
    found: dict[str, list[float]] = defaultdict(list)

    def draw_updates(_: Any, tensors: list[Tensor]) -> None:
        """Give the trained tensors of ours numbers, and keep what theirs are compared with."""
        branches = [branch for site in method.sites for name in names for branch in site.layer.of(name)]
        ours["reads"] = [branch.A.detach().clone() for branch in branches]
        for i, tensor in enumerate(tensors):
            tensor.data = tensor + 0.1 * draw(*tensor.shape, name=f"trained {t} {i}")
        ours["updates"] = [(branch.A.detach(), branch.B.detach().clone()) for branch in branches]
        with torch.no_grad():
            ours["outputs"] = [own(_inputs(own, name, t, "probe").float()) for name, own in layers]

    def take_updates(_: Any, __: Any, optimizer: Any, schedule: Any) -> None:
        """Compare what theirs read, and give them the updates of ours."""
        units = [unit[t] for layer in theirs.layers for unit in (layer.S_lora, layer.P_lora)[: len(names)]]
        for read, (A, B), unit in zip(ours["reads"], ours["updates"], units, strict=True):
            signs = (read * unit.A.weight.detach()).sum(1, keepdim=True).sign()  # those of eigenvectors are open
            found["reads"].append(relative(read, signs * unit.A.weight))
            unit.A.weight.data, unit.B.weight.data = A.double(), B.double()
        for (name, own), layer, output in zip(layers, theirs.layers, ours["outputs"], strict=True):
            found["outputs"].append(relative(output, layer(_inputs(own, name, t, "probe"), t)))
        for epoch in range(recipe.epochs):
            found["rates"].append(abs(optimizer.param_groups[0]["lr"] / recipe.lr - recipe.factor(epoch)))
            optimizer.step()
            schedule.step()

    for t, task in enumerate(tiny_tasks(TASKS)):
        names = ("shared", "isolated") if t else ("shared",)
        fit = Drawn(method, draw_updates)
        fit.begin(str(t))
        method.learn(task, fit)
        theirs.begin(t)
        learner = SimpleNamespace(_network=theirs, _device="cpu", _cur_task=t, _multiple_gpus=[0], optim="sgd")
        learner.init_lr = learner.lrate = recipe.lr
        learner.init_weight_decay = learner.weight_decay = recipe.weight_decay
        learner.init_epoch = learner.epochs = recipe.epochs
        learner.train_function = take_updates
        train(learner, [(None, torch.zeros(1), torch.zeros(1))], [])
        for site, layer in zip(method.sites, theirs.layers, strict=True):
            found["weights"].append(relative(site.layer.weight, layer.qkv.weight))
            found["moments"].append(relative(method._old(site.name).moment, layer.prev_matrix))
    on = f"{len(layers)} layers, {TASKS} tasks of random inputs, with updates that are drawn"
    return [
        Row("rows of A of both branches, relative", on, max(found["reads"]), 1e-5),
        Row("outputs of an attention with its branches, relative", on, max(found["outputs"]), 1e-5),
        Row("weights after merging, relative", on, max(found["weights"]), 1e-5),
        Row("moments of old tasks, relative", on, max(found["moments"]), 1e-9),
        Row("learning rates, relative", f"{recipe.epochs} epochs", max(found["rates"]), 1e-9),
        _scores(checkout, method),
        _steps(checkout),
    ]


def _scores(checkout: Checkout, method: Any) -> Row:
    interface = checkout.take("models/network.py", "MANet.interface")
    features = draw(40, method.backbone.width, name="features")
    network = SimpleNamespace(
        image_encoder=lambda x, **_: x[:, None], classifier_pool=list(method.heads), numtask=TASKS
    )
    theirs = method.cosine_scale * interface(network, features)
    return Row("scores of the heads of all tasks", "random features", largest(method.heads(features), theirs), 1e-5)


def _steps(checkout: Checkout) -> Row:
    """Compare `Learner.train_function` on one batch at a time with aligned steps of ours, from the same draws."""
    names = {"tqdm": Bar, "logging": SimpleNamespace(info=lambda _: None), "tensor2numpy": Tensor.numpy}
    names |= {"count_parameters": lambda *_: 0, "AngularPenaltySMLoss": _CosFace}
    train = checkout.take("methods/dlora.py", "Learner.train_function", **names)
    theirs, ours, alignment = _Small(), _Small(), GradientAlignment(RHO)
    learner = SimpleNamespace(_network=theirs, _device="cpu", run_epoch=1, scale=20.0, margin=0.0, _known_classes=0)
    learner.args, learner._cur_task, learner._compute_accuracy = {"use_gao": True, "rho": RHO}, 0, lambda *_: 0.0
    engines = [torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01) for net in (theirs, ours)]
    steps = alignment.losses(lambda x, y: _CosFace(s=20.0)(ours(x)["logits"], y), [ours.lora])
    for batch in range(5):
        x, y = draw(12, 6, name=f"batch {batch}"), torch.arange(12) % 5
        torch.manual_seed(batch)
        train(learner, [(None, x, y)], [], engines[0], Bar(()))
        for loss in steps:
            alignment.generator = torch.Generator().manual_seed(batch)
            engines[1].zero_grad()
            loss(x, y).backward()
            engines[1].step()
            alignment.move_back()
    apart = max(relative(own, their) for own, their in zip(ours.parameters(), theirs.parameters(), strict=True))
    return Row("weights after aligned steps, relative", "5 batches of 5 classes", apart, 1e-5)


class _CosFace:
    """What stands in for their loss, of cosines and without a margin."""

    def __init__(self, *, s: float, **_: Any) -> None:
        self.scale = s

    def __call__(self, cosines: Tensor, columns: Tensor) -> Tensor:
        return F.cross_entropy(self.scale * cosines, columns)


class _Small(nn.Module):
    """A network with a tensor that is moved and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.lora = nn.Parameter(draw(8, 6, name="lora"))
        self.head = nn.Parameter(draw(5, 8, name="head"))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": F.normalize(torch.tanh(x @ self.lora.T), dim=1) @ F.normalize(self.head, dim=1).T}


def _inputs(attention: Any, name: str, task: int, which: str) -> Tensor:
    """Return the inputs (1, tokens, d) of a layer in a pass; their directions differ in size."""
    width = attention.qkv.in_features
    turned = torch.linalg.qr(draw(width, width, name=f"turn {name} {task}").double())[0]
    sizes = 0.95 ** torch.arange(width, dtype=torch.float64)
    return (draw(TOKENS, width, name=f"{name} {task} {which}").double() * sizes @ turned)[None]


def _moment(inputs: Tensor) -> Tensor:
    moment = SecondMoment(inputs.shape[-1], torch.float64)
    moment(inputs)
    return moment.mean


class _Layers(nn.Module):
    """A network of their attentions alone, in float64, each of which has inputs of its own in each pass.

    Args:
        kind: their class.
        ours: the attentions that they are to equal, with their names.
    """

    def __init__(self, kind: Any, ours: list[tuple[str, Any]]) -> None:
        super().__init__()
        self.ours, self.layers, self.numtask = ours, nn.ModuleList(), 1
        for _, own in ours:
            layer = kind(own.qkv.in_features, own.num_heads, qkv_bias=True, r=RANK, n_tasks=TASKS)
            for part in ("qkv", "proj"):
                getattr(layer, part).load_state_dict(getattr(own, part).state_dict())
            layer._init_params({**SETTINGS, "use_slora": True, "use_plora": True, "avg": True})
            self.layers.append(layer.double().eval())

    def begin(self, task: int) -> None:
        self.task, self.passes = task, iter(PASSES)

    def forward(self, _: Tensor, get_cur_feat: bool = False) -> None:
        which = next(self.passes)
        for (name, own), layer in zip(self.ours, self.layers, strict=True):
            layer(_inputs(own, name, self.task, which), self.task, get_cur_feat=get_cur_feat)
