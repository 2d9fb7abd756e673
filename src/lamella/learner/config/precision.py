"""`fit.precision = "auto"`: the faster precision for a backbone on this machine, measured once and then kept.

Results depend on the precision, so "auto" is a question and never a setting that anything is learned with. A learner
answers it when it is made: `precision` becomes "float32" or "bf16", and `fit.measured` says why. Both are stored with
the configuration, and whoever asks again for the same gets the stored answer.
"""

import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamella.backbones import Backbone
from lamella.common.checks import first_line
from lamella.common.randomness import generator
from lamella.common.timing import interleaved, ratio
from lamella.learner.config.document import to_toml
from lamella.training.optimizers import trainable
from lamella.training.precision import PRECISIONS, computing, resolve_device

__all__ = ["AUTO", "as_chosen", "as_in_runs", "choose", "precision_line"]

AUTO = "auto"
CLEARLY = 0.9
"""Of float32's time: with more than that, bf16 is not worth its rounding."""
FEWEST, BATCH = 2, 32
"""Images of the first step, and the most where the method has no batches."""
LONG = 0.25
"""Seconds of a step that is not timed with still more images: small networks gain from bf16 with large batches only."""
ROUNDS = 3


def choose(config: Mapping[str, Any], backbone: Backbone) -> dict[str, Any]:
    """The configuration with the precision that is faster here where it asks for "auto", else as it is.

    Args:
        config: complete. backbone: the one it describes, before anything is learned; it is left as it was.

    Raises:
        ValueError: the device is not there.
    """
    fit = config["fit"]
    if fit["precision"] != AUTO:
        return dict(config)
    method = config["method"]
    batch = method.get("batch_size") or method.get("base", {}).get("batch_size")
    precision, measured = _faster(backbone, resolve_device(fit["device"]), batch or BATCH)
    return {**config, "fit": {**fit, "precision": precision, "measured": measured}}


def as_chosen(config: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with what was measured for another one, where it asks for "auto" or for what was chosen then.

    >>> stored = {"fit": {"precision": "bf16", "measured": "a step in bf16 took 0.52 of float32's time"}}
    >>> as_chosen({"fit": {"precision": "auto"}}, stored) == stored
    True
    """
    fit, there = config["fit"], stored.get("fit", {})
    if "measured" not in there or fit["precision"] not in (AUTO, there.get("precision")):
        return dict(config)
    return {**config, "fit": {**fit, "precision": there["precision"], "measured": there["measured"]}}


def as_in_runs(config: Mapping[str, Any], runs: Iterable[Path]) -> dict[str, Any]:
    """`config` with the choice of the first of these run directories that made one on this backbone and device."""
    for path in (run / "config.toml" for run in runs):
        if not path.is_file():
            continue
        try:
            stored = tomllib.loads(path.read_text())
        except ValueError:  # no TOML: whoever wants to go on there is told
            continue
        found = as_chosen(config, stored)
        if found != config and _measured_on(stored) == _measured_on(config):
            return found
    return dict(config)


def _measured_on(config: Mapping[str, Any]) -> str:
    backbone = {key: value for key, value in config.get("backbone", {}).items() if key != "seed"}
    return to_toml({"device": config["fit"]["device"], "backbone": backbone})


def precision_line(config: Mapping[str, Any]) -> str:
    """What was chosen, and why.

    >>> precision_line({"fit": {"precision": "bf16", "measured": "a step in bf16 took 0.52 of float32's time"}})
    "precision: bf16 (measured: a step in bf16 took 0.52 of float32's time)"
    """
    return f"precision: {config['fit']['precision']} (measured: {config['fit']['measured']})"


def _faster(backbone: Backbone, device: torch.device, batch: int) -> tuple[str, str]:
    """The precision, and what was found."""
    try:
        seconds = _step_seconds(backbone, device, batch)
    except RuntimeError as error:
        return "float32", f"a step could not be timed: {first_line(error)}"
    share = ratio(seconds["bf16"], seconds["float32"])
    return "bf16" if share < CLEARLY else "float32", f"a step in bf16 took {share:.2f} of float32's time"


def _step_seconds(backbone: Backbone, device: torch.device, batch: int) -> dict[str, list[float]]:
    """Of forward and backward through the activations of all blocks, by precision, with at most `batch` images.

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
            while n < batch and min(timed(_steps(backbone, device, early, n), 2)["float32"]) < longest:
                n = min(2 * n, batch)
            # Warm by now; where there was no smaller step, one cold round of three does not move a median.
            return timed(_steps(backbone, device, early, n), ROUNDS)
    finally:
        backbone.to(before)


def _steps(backbone: Backbone, device: torch.device, early: Tensor, images: int) -> dict[str, Callable[[], Tensor]]:
    side = backbone.transform.size
    x = torch.randn(images, 3, side, side, generator=generator(0, "precision", "images")).to(device)
    return {precision: partial(_step, backbone, x, early, precision) for precision in PRECISIONS}


def _step(backbone: Backbone, x: Tensor, early: Tensor, precision: str) -> Tensor:
    """The gradient of an early weight: forward, and backward through all that comes behind it."""
    with computing(x.device, precision):
        loss = backbone(x).float().square().mean()
    return torch.autograd.grad(loss, early)[0]
