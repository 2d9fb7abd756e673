"""What an image costs before it reaches the network, beside the frozen forward pass: resampled, or cropped at random.

OMP_NUM_THREADS=1 python benchmarks/input_cost.py
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
import typer
from rich.console import Console
from rich.table import Table

from lamella.backbones import load_backbone
from lamella.bench.timing import interleaved
from lamella.data.transform import Augmentation, InputTransform, augmented_view, plain_view
from lamella.randomness import generator

SIDES = ((32, 32), (32, 128), (128, 128), (256, 224), (500, 224))
"""Of the image, and of the input."""
IMAGES = 16


@torch.no_grad()
def main(repeats: int = 7) -> None:
    """Print milliseconds an image."""
    table = Table("image", "input", "resampled, ms", "random crop, ms", "ViT-Tiny forward, ms")
    index = torch.arange(IMAGES)
    for side, size in SIDES:
        draws = generator(0, "images", side)
        pixels = [torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=draws) for _ in range(IMAGES)]
        transform = InputTransform(size)
        forms: dict[str, Callable[[], object]] = {
            "resampled": partial(plain_view(transform), pixels, index),
            "cropped": partial(augmented_view(transform, Augmentation(), IMAGES, draws), pixels, index),
        }
        if size > 32:
            network = load_backbone("vit_tiny_patch16_224", size=size, weights="random").model
            forms["forward"] = partial(network, torch.randn(IMAGES, 3, size, size, generator=draws))
        times = interleaved(forms, repeats)
        cells = (f"{1000 * statistics.median(own) / IMAGES:.2f}" for own in times.values())
        table.add_row(str(side), str(size), *cells)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
