"""O-LoRA: the penalty on what new rows of A have in common with old ones, and its gradients."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch

from lamella.common.randomness import generator
from lamella.experiments.against.checkout import Checkout
from lamella.experiments.against.rows import Row
from lamella.experiments.against.small import draw, gradient, largest, tiny
from lamella.methods import METHODS

__all__ = ["rows"]

WEIGHT = 0.5
OLD = 2  # tasks


def rows(checkout: Checkout) -> list[Row]:
    """Compare what `UIETrainer.training_step` adds to a loss of 0 with our penalty."""
    # The names are those that its file has from transformers.
    step = checkout.take(
        "src/uie_trainer_lora.py",
        "UIETrainer.training_step",
        logger=SimpleNamespace(info=lambda *_: None),
        is_sagemaker_mp_enabled=lambda: False,
    )
    backbone = tiny()
    method: Any = METHODS["olora"](backbone, orthogonality=WEIGHT)
    branches = method.lora.grow(method.sites, "new", generator(0, "against", "olora"))
    theirs: dict[str, torch.nn.Parameter] = {}
    for i, (branch, read) in enumerate(zip(branches, method.memory.values(), strict=True)):
        old = draw(OLD * len(branch.A), branch.A.shape[1], name=f"old {i}")
        read.add(old)
        branch.A.data.copy_(draw(*branch.A.shape, name=f"new {i}"))
        theirs[f"layer.{i}.lora_A"] = torch.nn.Parameter(old.clone())
        theirs[f"layer.{i}.loranew_A"] = torch.nn.Parameter(branch.A.detach().clone())
        branch.A.requires_grad_(True)
    model = SimpleNamespace(named_parameters=theirs.items, train=lambda: None)
    trainer = SimpleNamespace(
        _prepare_inputs=lambda inputs: inputs,
        args=SimpleNamespace(n_gpu=1, gradient_accumulation_steps=1, lamda_1=WEIGHT, lamda_2=0.0),
        compute_loss=lambda *_: torch.zeros((), requires_grad=True),
        compute_loss_context_manager=nullcontext,
        deepspeed=None,
        do_grad_scaling=False,
        model=model,
        use_apex=False,
    )
    value, penalty = step(trainer, model, {}), method.penalties(branches)
    penalty.backward()
    ours = torch.stack([gradient(branch.A) for branch in branches])
    gradients = torch.stack([gradient(tensor) for name, tensor in theirs.items() if "loranew_A" in name])
    on = f"random rows of {OLD} old tasks and a new one, {len(branches)} layers"
    return [
        Row("penalty, as a share of it", on, largest(penalty, value) / float(value), 1e-6),
        Row("its gradients", on, largest(ours, gradients), 1e-6),
    ]
