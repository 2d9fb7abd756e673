"""LoRA-Sub: the subtracted network, the steps in its space, the triplet loss and the nearest class mean."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lamella.experiments.against.checkout import Checkout
from lamella.experiments.against.rows import Row
from lamella.experiments.against.small import (
    draw,
    gradient,
    inputs,
    largest,
    learned,
    relative,
    tiny,
    tiny_tasks,
    with_attention,
)
from lamella.methods import METHODS
from lamella.methods.shared.moments import second_moments
from lamella.methods.shared.triplet import augmented_triplet
from lamella.training.fit import Fit
from lamella.training.projected_steps import ProjectedSteps
from lamella.training.recipe import LoRA, Training

__all__ = ["rows"]

OLD, RANK, STEPS = 2, 4, 10


def rows(checkout: Checkout) -> list[Row]:
    """Compare `Attention_LoRA`, `Adam`, `AugmentedTripletLoss` and `_eval_model` with ours after two tasks."""
    *old, task = tiny_tasks(OLD + 1)
    lora, training = LoRA(rank=RANK, sites=("key", "value")), Training(epochs=2, lr=0.01, batch_size=6)
    method: Any = learned(METHODS["lora-sub"](tiny().eval(), lora=lora, training=training), old)
    network, x = tiny().eval(), inputs(task, method.backbone)
    attentions = with_attention(
        network, checkout.take("models/vit_lora.py", "Attention_LoRA"), 1, rank=network.width, get_cur_x=True
    )
    sites = iter(method.sites)
    for attention in attentions:
        # They keep the pairs of old tasks; of ours only the sum of B A is left, which is one pair of full rank.
        for A, B in ((attention.lora_A_k, attention.lora_B_k), (attention.lora_A_v, attention.lora_B_v)):
            A[0].weight.data.copy_(torch.eye(network.width))
            B[0].weight.data.copy_(method._old(next(sites)).total)
    fit = Fit(method, method.backbone.transform, device="cpu")
    fit.begin("2")
    with torch.no_grad(), method.subtracted():
        features = largest(method.features(x), network(x))
        moments = second_moments(fit, task.train, method.backbone, method.sites, method.reads_as, name="compared")
    theirs = [attention.cur_matrix for attention in attentions]
    moment = max(relative(ours.mean, other) for ours, other in zip(moments.values(), theirs, strict=True))
    on = f"{len(theirs)} layers, {OLD} tasks that were trained on random images"
    return [
        Row("features of the subtracted network", on, features, 1e-4),
        Row("second moments in it, relative", on, moment, 1e-4),
        _steps(checkout, method, method._spaces(task, fit), theirs),
        *_triplets(checkout),
        _nearest(checkout, method),
    ]


def _steps(checkout: Checkout, method: Any, spaces: dict[str, Tensor], moments: list[Tensor]) -> Row:
    adam: Any = torch.optim.Optimizer
    adam = checkout.take("optimgrad/adam_proj.py", "Adam", Optimizer=adam, defaultdict=defaultdict)
    branches = method.lora.grow(method.sites, "compared", None)
    ours = [factor for branch in branches for factor in (branch.A, branch.B)]
    theirs = [torch.nn.Parameter(factor.detach().clone()) for factor in ours]
    optimizer = adam([{"params": theirs, "svd": True, "lr": 0.01, "thres": method.energy}])
    # Key and value of a layer have an A and a B each.
    optimizer.get_eigens({weight: moments[i // 4] for i, weight in enumerate(theirs)})
    optimizer.get_transforms()
    steps, plain = ProjectedSteps(method._projections(branches, spaces)), torch.optim.Adam(ours, lr=0.01)
    for step in range(STEPS):
        for i, (weight, other) in enumerate(zip(ours, theirs, strict=True)):
            weight.grad = draw(*weight.shape, name=f"gradient {step} {i}")
            other.grad = weight.grad.clone()
        steps.before()
        plain.step()
        steps.after()
        optimizer.step()
    difference = max(largest(weight, other) for weight, other in zip(ours, theirs, strict=True))
    return Row("A and B after projected steps", f"{STEPS} steps of Adam with random gradients", difference, 1e-5)


def _triplets(checkout: Checkout) -> list[Row]:
    loss = checkout.take("utils/losses.py", "AugmentedTripletLoss")(margin=1.0)
    means, value, slope = draw(4, 16, name="means"), 0.0, 0.0
    for classes in (1, 3):
        ours = draw(12, 16, name="features").requires_grad_()
        theirs = ours.detach().clone().requires_grad_()
        labels = torch.arange(12) % classes + 4
        own = augmented_triplet(ours, labels, means, torch.arange(4), 1.0)
        other = loss(theirs / theirs.norm(dim=-1, keepdim=True), labels, list(means.numpy()))
        own.backward()
        other.backward()
        value, slope = max(value, largest(own, other)), max(slope, largest(gradient(ours), gradient(theirs)))
    on = "12 random features of 1 or 3 classes, 4 means of old classes"
    return [Row("triplet loss", on, value, 1e-5), Row("its gradient", on, slope, 1e-5)]


def _nearest(checkout: Checkout, method: Any) -> Row:
    def cdist(a: Any, b: Any, _: str) -> Any:
        return torch.cdist(torch.as_tensor(a).double(), torch.as_tensor(b).double()).square().numpy()

    choose = checkout.take("methods/lorasub_drs.py", "LoRAsub_DRS._eval_model", cdist=cdist)
    means = method.statistics.means
    h = means[torch.arange(1000) % len(means)] + draw(1000, means.shape[1], name="features")
    learner = SimpleNamespace(_network=SimpleNamespace(eval=lambda: None), EPSILON=1e-8, topk=1)
    learner._extract_vectors = lambda features: (features.numpy(), None)
    found, _ = choose(learner, h, (means / means.norm(dim=1, keepdim=True)).numpy())
    differ = method.classify(h).argmax(1) != torch.as_tensor(found[:, 0])
    return Row("share of predictions that differ", "1,000 random features", float(differ.float().mean()), 0.0)
