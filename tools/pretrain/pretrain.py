"""Pre-trains the bundled backbone on procedurally generated images and prints what its model card says.

    python tools/pretrain/pretrain.py --seed 0

Every image is drawn when it is needed and never seen twice. Equal seed and steps give equal weights on the same
machine and PyTorch version. `--minutes` finds out how many steps fit, and prints their number.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from appearance import appear
from formulas import Mixture, mixture
from nearest_mean import nearest_mean_accuracy, network_inputs, split_digits
from safetensors.torch import save_file
from torch import Generator, Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, linear, mse_loss, normalize

from lamella.backbones import bundled

BATCH, PEAK_RATE, WARMUP, DECAY, WEIGHT_DECAY = 128, 1.5e-3, 100, 0.3, 0.05
SMOOTHING, SHARPNESS, DRAWING_WEIGHT, DRAWING_SIDE = 0.05, 16.0, 20.0, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=969, help=f"optimiser steps of {BATCH} images")
    parser.add_argument("--minutes", type=float, help="train for about so long instead of --steps")
    parser.add_argument(
        "--classes", type=int, nargs=4, default=(320, 100, 80, 20), help="strokes contours fractals textures"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=bundled.weights_path())
    parser.add_argument("--mnist", type=Path, help="mnist.npz, for the evaluation only")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    network = bundled.build()
    initialise(network)
    report("random initialisation", network, options.mnist)
    classes = mixture(*options.classes, seed=options.seed)
    begin = time.perf_counter()
    draws = torch.Generator().manual_seed(options.seed + 1)
    steps = pretrain(network, classes, draws, None if options.minutes else options.steps, options.minutes)
    minutes = (time.perf_counter() - begin) / 60
    print(f"pre-trained with --steps {steps} in {minutes:.1f} minutes on {options.threads} threads")
    save(network, options.out)
    report("pre-trained", network, options.mnist)


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Larger random weights than timm's, which assume a long warm-up; positions as loud as the patches' content."""
    for name, parameter in network.named_parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=parameter.shape[1] ** -0.5)
        elif name in ("pos_embed", "cls_token"):
            parameter.normal_(std=0.5)


def pretrain(
    network: nn.Module, classes: Mixture, generator: Generator, steps: int | None, minutes: float | None = None
) -> int:
    """Trains the network in place to tell the classes apart by cosine similarity to one prototype each.

    From the same feature it learns to redraw the drawing, small and clean: a dense signal that starts learning early.
    Features are batch-normalised on the way to the prototypes: at the start all images share almost the same feature,
    and cosine similarity would see nothing else. In the end the normalisation is folded into the network's last layer.
    Without `steps` the rate begins to fall once its share of `minutes` has gone. Returns the steps taken.
    """
    prototypes = nn.Parameter(torch.randn(classes.classes, bundled.ARCHITECTURE["embed_dim"], generator=generator))
    redraw = nn.Linear(bundled.ARCHITECTURE["embed_dim"], DRAWING_SIDE**2)
    centre = nn.BatchNorm1d(bundled.ARCHITECTURE["embed_dim"], affine=False)
    matrices = [p for p in network.parameters() if p.ndim == 2]
    others = [p for p in network.parameters() if p.ndim != 2] + [prototypes, *redraw.parameters()]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE)
    network.train()
    step, losses, begin = 0, torch.zeros(2), time.perf_counter()
    while steps is None or step < steps:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * rate(step, steps)
        labels = torch.randint(classes.classes, (BATCH,), generator=generator)
        drawings = classes.draw(labels, generator)
        features = centre(network(appear(drawings, generator)))
        cosine = linear(normalize(features, dim=1), normalize(prototypes, dim=1))
        small = adaptive_avg_pool2d(drawings[:, None], DRAWING_SIDE).flatten(1)
        redrawn = mse_loss(redraw(features), small)
        told_apart = cross_entropy(SHARPNESS * cosine, labels, label_smoothing=SMOOTHING)
        loss = told_apart + DRAWING_WEIGHT * redrawn
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*matrices, *others], 1.0)
        optimizer.step()
        step += 1
        losses += (torch.stack([told_apart, redrawn]).detach() - losses) / min(step, 100)
        elapsed = time.perf_counter() - begin
        if step % 100 == 0:
            print(f"step {step}  classes {losses[0]:.3f}  drawing {losses[1]:.4f}  {elapsed:.0f} s", flush=True)
        if steps is None and minutes is not None and elapsed > (1 - DECAY) * 60 * minutes:
            steps = math.ceil(step / (1 - DECAY))
    fold(centre, network)
    return step


@torch.no_grad()
def fold(centre: nn.BatchNorm1d, network: nn.Module) -> None:
    """Makes the network's last layer norm do what `centre` did after it, with its running statistics."""
    weight, bias = network.get_parameter("norm.weight"), network.get_parameter("norm.bias")
    spread = (centre.get_buffer("running_var") + centre.eps).sqrt()
    weight.div_(spread)
    bias.sub_(centre.get_buffer("running_mean")).div_(spread)


def rate(step: int, steps: int | None) -> float:
    """Linear warm-up, a plateau, and a linear fall over the last `DECAY` of the steps, as a fraction of the peak."""
    fall = 1.0 if steps is None else (steps - step) / (DECAY * steps)
    return min((step + 1) / WARMUP, 1.0, fall)


def save(network: nn.Module, path: Path) -> None:
    """Writes the weights as float16 and rounds the network to what was written."""
    state = {key: tensor.half().contiguous() for key, tensor in network.state_dict().items()}
    save_file(state, path, metadata={"name": bundled.NAME, "license": "Apache-2.0"})
    network.load_state_dict(state)
    print(f"{path.name}: {path.stat().st_size} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


def report(title: str, network: nn.Module, mnist: Path | None) -> None:
    """Prints what frozen features give by nearest class mean: unseen formulas, digits and, where given, MNIST."""
    print(f"{title}: {sum(p.numel() for p in network.parameters()):,} parameters; nearest class mean accuracy")
    for name, (train, test) in evaluation_sets(mnist):
        print(f"  {name:<32} {nearest_mean_accuracy(network, train, test):.4f}", flush=True)


def evaluation_sets(mnist: Path | None) -> Iterator[tuple[str, tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]]:
    unseen, g = mixture(120, 40, 32, 8, seed=10_000), torch.Generator().manual_seed(10_001)
    labels = torch.arange(unseen.classes).repeat_interleave(20)
    images = appear(unseen.draw(labels, g), g)
    yield "200 unseen classes, 10 + 10 each", ((images[::2], labels[::2]), (images[1::2], labels[1::2]))
    yield "digits", split_digits()
    if mnist is not None:
        with np.load(mnist) as data:
            parts = [
                (network_inputs(data[f"x_{p}"] / 255), torch.from_numpy(data[f"y_{p}"])) for p in ("train", "test")
            ]
        yield "MNIST", (parts[0], parts[1])


if __name__ == "__main__":
    main()
