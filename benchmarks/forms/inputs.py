"""What an image costs before it reaches the network."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from forms.case import Case, Form
from lamella.backbones import load_backbone
from lamella.common.randomness import generator
from lamella.data.sending import send
from lamella.data.transform import Augmentation, ImageView, InputTransform, augmented_view, plain_view
from lamella.training.precision import resolve_device

SIDES = ((32, 32, 0), (32, 128, 0), (128, 128, 0), (256, 224, 0), (500, 224, 0), (500, 224, 8))
"""Of the largest image and of the input; and by how many pixels the heights of 16 images in a row differ."""
FORWARD = "ViT-Tiny forward"


def input_cost(images: int = 16, device: str = "cpu", photos: bool = True) -> Iterator[Case]:
    """An image resampled, or cropped at random; 1.00 is ViT-Tiny's frozen forward pass.

    On a GPU the way through the CPU and the way on the device stand beside each other.
    """
    there = resolve_device(device)
    places = {"": there} if there.type == "cpu" else {" on the CPU": torch.device("cpu"), " on the device": there}
    for side, size, step in SIDES if photos else SIDES[:2]:
        draws = generator(0, "images", side)
        pixels = [_noise(side - step * (i % 16), side, draws) for i in range(images)]
        transform = InputTransform(size)
        forms: dict[str, Form] = {}
        for where, place in places.items():
            forms[f"resampled{where}"] = _arriving(plain_view(transform, place), pixels, there)
        for where, place in places.items():
            view = augmented_view(transform, Augmentation(), images, draws, place)
            forms[f"random crop{where}"] = _arriving(view, pixels, there)
        network = load_backbone("vit_tiny_patch16_224", size=size, weights="random").model.to(there)
        x = torch.randn(images, 3, size, size, generator=draws).to(there)
        forms[FORWARD] = torch.no_grad()(lambda network=network, x=x: network(x))
        name = f"{side - 15 * step} to {side} px -> {size}" if step else f"{side} px -> {size}"
        yield Case(name, forms, FORWARD, images, False)


def _noise(height: int, width: int, draws: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=draws)


def _arriving(view: ImageView, pixels: list[Tensor], device: torch.device) -> Callable[[], Tensor]:
    """The whole way to an input on the device, wherever the view computes."""
    index = torch.arange(len(pixels))
    return lambda: send(view(pixels, index), device)
