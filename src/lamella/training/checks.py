"""Checks of a training call, before it starts and while it runs."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["DIVERGED", "LOWER", "check_examples", "check_finite", "check_gradients", "check_loss", "check_mean"]


EQUAL = {"float32": 2e-4, "bf16": 3e-2}
"""By precision, how much two means of the same losses may differ by rounding, as a share of them."""
DIVERGED, LOWER = "training diverged", "give a lower learning rate, such as method.lr=1e-4"


def check_examples(task: str, examples: int) -> None:
    """Check, before anything is trained, that there are examples.

    Args:
        task: the name of the task, for the message.
        examples: the number of examples.

    Raises:
        ValueError: there are no examples.
    """
    if examples == 0:
        raise ValueError(f"there is nothing to train on in task {task}")


def check_gradients(module: nn.Module, tensors: Sequence[Tensor]) -> None:
    """Check, after the first backward pass, that every trained tensor has a gradient.

    Args:
        module: the method, which the names of tensors are taken from.
        tensors: the trained tensors.

    Raises:
        RuntimeError: a tensor has no gradient. The message has its name in the module, or says that the module has no
            such tensor.
    """
    idle = [t for t in tensors if t.grad is None]
    if not idle:
        return
    names = {id(t): n for n, t in (*module.named_parameters(), *module.named_buffers())}
    strangers = [t for t in idle if id(t) not in names]
    start = f"{len(idle)} of {len(tensors)} trained tensors got no gradient"
    if strangers:
        raise RuntimeError(
            f"{start}, and a tensor of shape {tuple(strangers[0].shape)} among them is not part of the method, or not "
            "any more, since loading may have put another in its place: take branches by name after loading, with "
            "site.layer.of(name), and heads from their module"
        )
    raise RuntimeError(
        f"{start}, the first is '{names[id(idle[0])]}': the model reads this layer's weight without calling the "
        "layer, or the loss does not depend on it"
    )


def check_loss(task: str, epoch: int, mean: float) -> None:
    """Check, after each epoch, that its mean loss is finite.

    Args:
        task: the name of the task, for the message.
        epoch: the number of the epoch, for the message.
        mean: the mean loss.

    Raises:
        RuntimeError: the mean loss is not finite.
    """
    if not math.isfinite(mean):
        raise RuntimeError(f"{DIVERGED}: the loss of task {task} became {mean} in epoch {epoch}; {LOWER}")


def check_mean(call: str, whole: float, shared: float, precision: str) -> None:
    """Check, before several processes train, that a loss is a mean over examples.

    Args:
        call: the name of the call, for the message.
        whole: the loss of a batch.
        shared: the mean over the examples of the batch, from the losses of the shares of all processes.
        precision: that of the computation.

    Raises:
        ValueError: they differ by more than rounding.
    """
    if abs(whole - shared) > EQUAL[precision] * max(1.0, abs(whole)):
        raise ValueError(
            f"the loss of '{call}' is no mean over the samples of a batch: it is {whole:.4g} on one, and {shared:.4g} "
            "as the mean over the shares of the processes; learn in one process"
        )


def check_finite(what: str, tensors: Sequence[Tensor]) -> None:
    """Check that what came of training is finite.

    Args:
        what: what the tensors are, for the message.
        tensors: the tensors.

    Raises:
        RuntimeError: a number is not finite.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise RuntimeError(f"{DIVERGED}: {what} are not finite; {LOWER}")
