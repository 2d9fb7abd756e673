"""Which precision computes a training step faster on this machine."""

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
"""Of float32's time: with more than that, bf16 is not worth its rounding."""
FEWEST, BATCH = 2, 32
"""Samples of the first step, and the most where the method has no batches."""
LONG = 0.25
"""Seconds of a step that is not timed with still more images: small networks gain from bf16 with large batches only."""
ROUNDS = 3


def faster_precision(backbone: Backbone, device: torch.device, batch: int | None) -> tuple[str, str]:
    """The faster precision, and what was measured, in words.

    Args:
        backbone: as loaded; it is left as it was.
        device: that would train it.
        batch: samples of a training step; where left out, `BATCH`.
    """
    try:
        seconds = _step_seconds(backbone, device, batch or BATCH)
    except RuntimeError as error:
        return "float32", f"a step could not be timed: {first_line(error)}"
    share = ratio(seconds["bf16"], seconds["float32"])
    return "bf16" if share < CLEARLY else "float32", f"a step in bf16 took {share:.2f} of float32's time"


def _step_seconds(backbone: Backbone, device: torch.device, batch: int) -> dict[str, list[float]]:
    """Of forward and backward through the activations of all blocks, by precision, with at most `batch` samples.

    Raises:
        RuntimeError: a step fails, or nothing early in the network can be trained.
    """
    # By the clock, small steps on a machine with other work say little.
    on_cpu = device.type == "cpu"
    timed = partial(interleaved, warm=0, processor=on_cpu)
    longest = LONG * torch.get_num_threads() if on_cpu else LONG
    before = next(backbone.parameters()).device
    backbone.to(device)
    try:
        early = next((weight for weight in backbone.used_weights() if weight.ndim == 1), None)
        if early is None:
            raise RuntimeError(f"'{backbone.name}' has no bias that could be trained")
        n = min(FEWEST, batch)
        with torch.enable_grad(), trainable([early]):
            while n < batch and min(timed(_steps(backbone, early, n), 2)["float32"]) < longest:
                n = min(2 * n, batch)
            # Warm by now; where there was no smaller step, one cold round of three does not move a median.
            return timed(_steps(backbone, early, n), ROUNDS)
    finally:
        backbone.to(before)


def _steps(backbone: Backbone, early: Tensor, samples: int) -> dict[str, Callable[[], Tensor]]:
    x = backbone.example(samples, generator(0, "precision", "images"))
    return {precision: partial(_step, backbone, x, early, precision) for precision in PRECISIONS}


def _step(backbone: Backbone, x: Samples, early: Tensor, precision: str) -> Tensor:
    """The gradient of an early weight: forward, and backward through all that comes behind it."""
    with computing(x.device, precision):
        loss = backbone(x).float().square().mean()
    return torch.autograd.grad(loss, early)[0]
