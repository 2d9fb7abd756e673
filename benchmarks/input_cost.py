"""What an image costs before it reaches the network, beside the frozen forward pass: resampled, or cropped at random.

OMP_NUM_THREADS=1 python benchmarks/input_cost.py
python benchmarks/input_cost.py --device cuda --images 128      # there and on the CPU, with the way to the GPU
"""

import statistics
from collections.abc import Callable

import torch
import typer
from rich.table import Table
from torch import Tensor

from lamella.backbones import load_backbone
from lamella.common.randomness import generator
from lamella.common.timing import interleaved
from lamella.data.sending import send
from lamella.data.transform import Augmentation, InputTransform, View, augmented_view, plain_view
from lamella.experiments.bench.shown import show
from lamella.training.precision import resolve_device

SIDES = ((32, 32, 0), (32, 128, 0), (128, 128, 0), (256, 224, 0), (500, 224, 0), (500, 224, 8))
"""Of the largest image and of the input; and by how many pixels the heights of 16 images in a row differ."""


@torch.no_grad()
def main(repeats: int = 7, images: int = 16, device: str = "cpu") -> None:
    """Print milliseconds an image."""
    there = resolve_device(device)
    places = {"": there} if there.type == "cpu" else {" on the CPU": torch.device("cpu"), " on the device": there}
    table = Table("image", "input", title=f"{images} images, {there}, {torch.get_num_threads()} threads")
    for kind in ("resampled", "random crop"):
        for where in places:
            table.add_column(f"{kind}{where}, ms")
    table.add_column("ViT-Tiny forward, ms")
    for side, size, step in SIDES:
        draws = generator(0, "images", side)
        pixels = [_noise(side - step * (i % 16), side, draws) for i in range(images)]
        transform = InputTransform(size)
        views = [plain_view(transform, place) for place in places.values()]
        views += [augmented_view(transform, Augmentation(), images, draws, place) for place in places.values()]
        forms = {str(number): _arriving(view, pixels, there) for number, view in enumerate(views)}
        if size > 32:
            network = load_backbone("vit_tiny_patch16_224", size=size, weights="random").model.to(there)
            x = torch.randn(images, 3, size, size, generator=draws).to(there)
            forms["forward"] = lambda network=network, x=x: network(x)
        times = interleaved(forms, repeats)
        cells = (f"{1000 * statistics.median(own) / images:.3g}" for own in times.values())
        table.add_row(f"{side - 15 * step} to {side}" if step else str(side), str(size), *cells)
    show(table, f"input-cost-{there.type}")


def _noise(height: int, width: int, draws: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=draws)


def _arriving(view: View, pixels: list[Tensor], device: torch.device) -> Callable[[], Tensor]:
    """The whole way to an input on the device, wherever the view computes."""
    index = torch.arange(len(pixels))
    return lambda: send(view(pixels, index), device)


if __name__ == "__main__":
    typer.run(main)
