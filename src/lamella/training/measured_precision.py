"""Measures which precision computes a training step faster on this machine."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lamella.backbones import Backbone
from lamella.common.checks import first_line
from lamella.common.randomness import generator
from lamella.common.timing import interleaved, ratio
from lamella.data.samples import Samples
from lamella.training.optimizers import trainable
from lamella.training.precision import PRECISIONS, computing

__all__ = ["faster_precision"]

CLEARLY = 0.9
"""bf16 is chosen if it takes less than this share of float32's time; a smaller gain does not justify its rounding."""
FEWEST, BATCH = 2, 32
"""The number of samples of the first step, and the largest number if the method has no batches."""
LONG = 0.25
"""If a step takes this many seconds, larger batches are not timed. Small networks need them to gain from bf16."""
ROUNDS = 3


def faster_precision(backbone: Backbone, device: torch.device, batch: int | None) -> tuple[str, str]:
    """Return the faster precision, and the measurement in words.

    Args:
        backbone: the backbone, before anything is learned; it is not changed.
        device: the device that would train it.
        batch: the number of samples of a training step; `BATCH` if None.
    """
    try:
        seconds = _step_seconds(backbone, device, batch or BATCH)
    except RuntimeError as error:
        return "float32", f"a step could not be timed: {first_line(error)}"
    share = ratio(seconds["bf16"], seconds["float32"])
    return "bf16" if share < CLEARLY else "float32", f"a step in bf16 took {share:.2f} of float32's time"


def _step_seconds(backbone: Backbone, device: torch.device, batch: int) -> dict[str, list[float]]:
    """Time forward and backward passes through all blocks in each precision.

    Args:
        backbone: the backbone.
        device: the device that computes.
        batch: the largest number of samples.

    Returns:
        The seconds of each step, by precision.

    Raises:
        RuntimeError: a step fails, or the network has no bias that could be trained.
    """
    # Processor time, since other work on the machine would distort the wall-clock time of small steps.
    on_cpu = device.type == "cpu"
    timed = partial(interleaved, warm=0, processor=on_cpu)
    longest = LONG * torch.get_num_threads() if on_cpu else LONG
    before = next(backbone.parameters()).device
    backbone.to(device)
    try:
        early = next((weight for weight in backbone.used_parameters() if weight.ndim == 1), None)
        if early is None:
            raise RuntimeError(f"'{backbone.name}' has no bias that could be trained")
        n = min(FEWEST, batch)
        with torch.enable_grad(), trainable([early]):
            while n < batch and min(timed(_steps(backbone, early, n), 2)["float32"]) < longest:
                n = min(2 * n, batch)
            # The loop above was the warm-up. If there was none, one cold round of three does not change a median.
            return timed(_steps(backbone, early, n), ROUNDS)
    finally:
        backbone.to(before)


def _steps(backbone: Backbone, early: Tensor, samples: int) -> dict[str, Callable[[], Tensor]]:
    x = backbone.example(samples, generator(0, "precision", "images"))
    return {precision: partial(_step, backbone, x, early, precision) for precision in PRECISIONS}


def _step(backbone: Backbone, x: Samples, early: Tensor, precision: str) -> Tensor:
    """Return the gradient of an early weight, from a forward pass and a backward pass through all later layers."""
    with computing(x.device, precision):
        loss = backbone(x).float().square().mean()
    return torch.autograd.grad(loss, early)[0]
