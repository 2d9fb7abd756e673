"""CODA-Prompt: features with the prompts of three tasks, the loss of a batch with its gradients, and new components."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.common.randomness import generator
from lamella.data.samples import Samples
from lamella.experiments.against.checkout import Checkout
from lamella.experiments.against.inflora import schedule_row
from lamella.experiments.against.rows import Row
from lamella.experiments.against.small import SIZE, draw, gradient, inputs, largest, learned, relative, tiny, tiny_tasks
from lamella.memory.subspace import orthonormal_start
from lamella.methods import METHODS
from lamella.training.recipe import Training

__all__ = ["rows"]

TASKS, COMPONENTS, LENGTH, BLOCKS = 3, 3, 2, 5
WEIGHT = 0.1


def rows(checkout: Checkout) -> list[Row]:
    """Compare `VisionTransformer`, `CodaPrompt`, `ViTZoo.forward`, `Prompt.update_model` and `CosineSchedule`."""
    tasks, backbone = tiny_tasks(TASKS), tiny().eval()
    training = Training(epochs=3, lr=0.01, batch_size=6)
    size: dict[str, Any] = {"components": COMPONENTS, "length": LENGTH, "blocks": BLOCKS, "orthogonality": WEIGHT}
    ours: Any = learned(METHODS["coda-prompt"](backbone, training=training, **size), tasks)
    theirs = _model(checkout, ours)
    forward = partial(checkout.take("models/zoo.py", "ViTZoo.forward"), theirs)
    x = [inputs(task, backbone) for task in tasks]
    with torch.no_grad():
        features = max(largest(ours.features(part), forward(part, pen=True)) for part in x)
    loss, gradients = _loss(checkout, ours, theirs, forward, x[-1], tasks[-1].train.labels)
    on = f"components of {TASKS} tasks in {BLOCKS} blocks, trained on random images"
    return [
        Row("features, with a query and prompts", on, features, 1e-5),
        Row("loss of a batch of the last task, with the penalty", on, loss, 1e-5),
        Row("its gradients, also of old components; relative", on, gradients, 1e-4),
        _new_components(checkout),
        schedule_row(checkout),
    ]


def _model(checkout: Checkout, ours: Any) -> SimpleNamespace:
    """Return their network with our weights, components and heads."""
    from timm.layers.drop import DropPath
    from timm.layers.patch_embed import PatchEmbed
    from timm.layers.weight_init import trunc_normal_

    network, d = ours.backbone.model, ours.backbone.width
    parts = {name: checkout.take("models/vit.py", name) for name in ("Attention", "Mlp")}
    block = checkout.take("models/vit.py", "Block", DropPath=DropPath, **parts)
    kind = checkout.take(
        "models/vit.py", "VisionTransformer", Block=block, PatchEmbed=PatchEmbed, partial=partial,
        trunc_normal_=trunc_normal_,
    )  # fmt: skip
    heads, ratio = network.blocks[0].attn.num_heads, network.blocks[0].mlp.fc1.out_features / d
    feat = kind(SIZE, embed_dim=d, depth=len(network.blocks), num_heads=heads, mlp_ratio=ratio).eval()
    feat.load_state_dict(network.state_dict())
    used = {name: checkout.take("models/zoo.py", name) for name in ("tensor_prompt", "ortho_penalty")}
    prompt = checkout.take("models/zoo.py", "CodaPrompt", **used)(
        d, TASKS, [TASKS * COMPONENTS, 2 * LENGTH, WEIGHT], key_dim=d
    )
    prompt.task_count = TASKS - 1
    for name, tensor in _every(ours, lambda task, name: getattr(task, name).detach()).items():
        setattr(prompt, name, nn.Parameter(tensor))
    return SimpleNamespace(prompt=prompt, feat=feat, last=ours.heads.as_linear(), task_id=None)


def _every(ours: Any, of: Any) -> dict[str, Tensor]:
    """Return what `of` gives for the components of each task, under their names for that of each block."""
    found: dict[str, Tensor] = {}
    for letter, name in (("p", "prompts"), ("k", "keys"), ("a", "attentions")):
        every = torch.cat([of(task, name) for task in ours.prompts.tasks], dim=1)
        every = every.flatten(2, 3) if letter == "p" else every  # key tokens, then value tokens
        found |= {f"e_{letter}_{block}": part.clone() for block, part in enumerate(every)}
    return found


def _loss(checkout: Checkout, ours: Any, theirs: Any, forward: Any, x: Samples, labels: Tensor) -> tuple[float, float]:
    """Return how far the loss of a batch of the last task is apart, and how far its gradients are."""
    update = checkout.take("learners/prompt.py", "Prompt.update_model")
    criterion = checkout.take("learners/default.py", "NormalNN.criterion")
    known, classes = 2 * (TASKS - 1), 2 * TASKS
    learner: Any = SimpleNamespace(model=forward, valid_out_dim=classes, last_valid_out_dim=known)
    learner.criterion_fn, learner.dw_k = nn.CrossEntropyLoss(reduction="none"), torch.ones(classes + 1)
    learner.criterion = partial(criterion, learner)
    learner.optimizer = SimpleNamespace(zero_grad=lambda: None, step=lambda: None)
    value, _ = update(learner, x, labels)
    head, new = ours.heads[TASKS - 1], ours.prompts.tasks[-1]
    for parameter in (*head.parameters(), *new.parameters()):
        parameter.requires_grad_(True)
    loss = F.cross_entropy(head(ours.features(x)), head.columns(labels)) + ours.penalty()
    loss.backward()
    mine = _every(ours, lambda task, name: gradient(getattr(task, name)))
    apart = [relative(tensor, gradient(getattr(theirs.prompt, name))) for name, tensor in mine.items()]
    apart.append(relative(gradient(head.weight), gradient(theirs.last.weight)[known:]))
    return largest(loss, value), max(apart)


def _new_components(checkout: Checkout) -> Row:
    """Compare the start of a second task's components, where those of the first are orthonormal."""
    draws = generator(0, "against", "rows")

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=draws, dtype=torch.float64).to(like)

    same = SimpleNamespace(**vars(torch) | {"randn_like": drawn})
    start = checkout.take("models/zoo.py", "CodaPrompt.gram_schmidt", torch=same)
    old = torch.linalg.qr(draw(24, COMPONENTS, name="old"))[0].T
    mine = orthonormal_start(old, COMPONENTS, generator(0, "against", "rows"))
    every = torch.cat([old, torch.zeros_like(old)])
    state = SimpleNamespace(e_pool_size=2 * COMPONENTS, n_tasks=2, task_count=1)
    found = start(state, every)[COMPONENTS:]
    return Row("new components", "a second task, after orthonormal components", largest(mine, found), 1e-5)
