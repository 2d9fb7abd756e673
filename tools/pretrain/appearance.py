"""How a grey drawing becomes a coloured network input: coarse rendering, colours, background, noise, erasing."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

COARSE_SIDES = (7, 8, 8, 10, 12, 16)


def appear(grey: Tensor, generator: Generator) -> Tensor:
    """Dresses drawings `(n, side, side)` in 0..1 as inputs `(n, 3, side, side)` with mean and std 0.5."""
    n = len(grey)
    images = _coarsen(grey[:, None], generator)
    images = images.clamp(min=0) ** (0.4 * torch.randn((n, 1, 1, 1), generator=generator)).exp()
    images = _colour(images, generator)
    noise = 0.08 * torch.rand((n, 1, 1, 1), generator=generator)
    images = images + noise * torch.randn(images.shape, generator=generator)
    return _erase(images.clamp(0, 1), generator) * 2 - 1


def _coarsen(images: Tensor, generator: Generator) -> Tensor:
    """Renders half of the images `(n, 1, side, side)` at a few pixels a side and enlarges them again."""
    n, side = len(images), images.shape[-1]
    images, choice = images.clone(), torch.randint(2 * len(COARSE_SIDES), (n,), generator=generator)
    smooth = torch.rand(n, generator=generator) < 0.5
    for i, coarse in enumerate(COARSE_SIDES):
        for mode, chosen in (("bilinear", (choice == i) & smooth), ("bicubic", (choice == i) & ~smooth)):
            if chosen.any():
                small = adaptive_avg_pool2d(images[chosen], coarse)
                images[chosen] = interpolate(small, side, mode=mode, align_corners=False).clamp(0, 1)
    return images


def _colour(images: Tensor, generator: Generator) -> Tensor:
    """Half stay bright on dark, a sixth are inverted, the rest get two colours and a shaded background."""
    n, side = len(images), images.shape[-1]
    ink, paper = torch.rand((2, n, 3, 1, 1), generator=generator).unbind(0)
    # A drawing that shares its background's brightness shows nothing: push the pair apart.
    apart = 0.35 * torch.where(ink.mean(1, keepdim=True) > paper.mean(1, keepdim=True), 1.0, -1.0)
    slope = 0.25 * torch.randn((n, 1, 2, 1), generator=generator)
    axis = torch.linspace(-1, 1, side)
    shade = (slope[:, :, 0, :, None] * axis[:, None] + slope[:, :, 1, :, None] * axis).clamp(-0.4, 0.4)
    painted = images * (ink + apart) + (1 - images) * (paper - apart + shade)
    style = torch.rand((n, 1, 1, 1), generator=generator)
    grey = torch.where(style < 0.5, images, 1 - images).expand(-1, 3, -1, -1)
    return torch.where(style < 2 / 3, grey, painted)


def _erase(images: Tensor, generator: Generator) -> Tensor:
    """Covers a small random box of one image in five with its mean colour."""
    n, side = len(images), images.shape[-1]
    centre = torch.rand((n, 2, 1), generator=generator) * side
    half = (1.5 + 3.5 * torch.rand((n, 2, 1), generator=generator)) * (torch.rand((n, 1, 1), generator=generator) < 0.2)
    inside = (torch.arange(side) + 0.5 - centre).abs() < half
    box = inside[:, 0, :, None] & inside[:, 1, None, :]
    return torch.where(box[:, None], images.mean(dim=(2, 3), keepdim=True), images)
