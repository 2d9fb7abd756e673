"""Cropping and resizing as products with two small matrices: `out = Ry @ image @ Rx^T`.

Row i of R holds the interpolation kernel's weights for output pixel i over a window of the source. A flip reverses
the rows of Rx. The weights follow Pillow's convention (bicubic a = -0.5, pixel centres aligned, the kernel widened by
the scale when shrinking, weights outside the window cut off and the rest renormalised), so the result equals Pillow's
up to 1.1 / 255, since Pillow rounds to whole bytes and this does not. Random resized crop with flip is then a batched
matrix product on any device.

Windows are chosen on the CPU: a run cuts the same ones on any device. They and the images' bytes are all that is sent
(the matrices of a small image are larger than the image itself), and nothing on the device is looked at, so that an
accelerator goes on with what it has to do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lamella.data.sending import send

__all__ = ["SUPPORT", "Axis", "Choose", "Resampler", "Windows"]

SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}  # half the kernel's width, in pixels of the coarser of the two grids
BLOCK = 32  # output pixels multiplied at once


class Axis(NamedTuple):
    """Along one axis of each sample: output pixel i is centred at `start + (first + i + 0.5) * scale`.

    All (n,) float64.
    """

    start: Tensor
    length: Tensor  # of the window [start, start + length) outside of which the kernel is cut off
    scale: Tensor  # source pixels per output pixel
    first: Tensor  # output pixels skipped before the first one kept


class Windows(NamedTuple):
    """What of each sample is seen, and which way round."""

    rows: Axis
    columns: Axis
    flip: Tensor  # (n,) bool

    def to(self, device: torch.device) -> "Windows":
        numbers = send(torch.stack([*self.rows, *self.columns, self.flip.double()]), device)  # one copy for all
        return Windows(Axis(*numbers[:4]), Axis(*numbers[4:8]), numbers[8] > 0)


Choose = Callable[[Tensor, Tensor, Tensor], Windows]
"""(height (n,), width (n,), float64; index (n,) in the set) -> a window for each, or one that all share; on the CPU."""


class _Limits(NamedTuple):
    side: int  # longest side of images that are multiplied at once, if they are of one size
    others: int  # other images whose matrices are made at once


# On a CPU, larger images gain more from skipping zeros. An accelerator wants few large products; what is larger still
# would fill its memory, and padding all images to the largest would cost the largest photo's memory for each.
ON_CPU, ON_ACCELERATOR = _Limits(128, 1), _Limits(512, 32)


@dataclass(frozen=True)
class Resampler:
    """Crops and resizes images to one size.

    Attributes:
        size: side of the output, in pixels.
        interpolation: "bicubic" or "bilinear".
        device: where it is computed, and where the result lies.
    """

    size: int
    interpolation: str
    device: torch.device

    def __call__(self, pixels: list[Tensor], index: Tensor, choose: Choose) -> Tensor:
        """uint8 (3, h, w) each, of any sizes -> (n, 3, size, size) float32 in 0..255."""
        if not pixels:
            return torch.empty(0, 3, self.size, self.size, device=self.device)
        limits = ON_CPU if self.device.type == "cpu" else ON_ACCELERATOR
        at_once = len({image.shape for image in pixels}) == 1 and max(pixels[0].shape) <= limits.side
        step = len(pixels) if at_once else limits.others
        parts: list[Tensor] = []
        for i in range(0, len(pixels), step):
            some = pixels[i : i + step]
            rows, columns = self._matrices(some, index[i : i + step], choose)
            if at_once:
                parts.append(_product(send(torch.stack(some), self.device), rows, columns))
            else:
                parts += self._one_by_one(some, rows, columns)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _one_by_one(self, pixels: list[Tensor], rows: Tensor, columns: Tensor) -> list[Tensor]:
        rows, columns = (matrix.expand(len(pixels), -1, -1) for matrix in (rows, columns))
        parts: list[Tensor] = []
        for i, image in enumerate(pixels):
            own = rows[i : i + 1, :, : image.shape[1]], columns[i : i + 1, :, : image.shape[2]]
            parts.append(_product(send(image[None], self.device), *own))
        return parts

    def _matrices(self, pixels: list[Tensor], index: Tensor, choose: Choose) -> tuple[Tensor, Tensor]:
        """Of rows (n or 1, size, largest height) and of columns (n or 1, size, largest width), on the device."""
        heights, widths = ([image.shape[axis] for image in pixels] for axis in (1, 2))
        here = choose(torch.tensor(heights, dtype=torch.float64), torch.tensor(widths, dtype=torch.float64), index)
        there = here.to(self.device)
        rows, columns = (
            _matrix(axis, _taps(chosen, source, self.interpolation), source, self.size, self.interpolation)
            for axis, chosen, source in (
                (there.rows, here.rows, max(heights)),
                (there.columns, here.columns, max(widths)),
            )
        )
        return rows, torch.where(there.flip[:, None, None], columns.flip(1), columns)


def _taps(axis: Axis, source: int, interpolation: str) -> int:
    """Source pixels that one output pixel sees at most."""
    support = SUPPORT[interpolation] * axis.scale.clamp(min=1)
    return min(source, math.floor(2 * float(support.max())) + 2)


def _matrix(axis: Axis, taps: int, source: int, size: int, interpolation: str) -> Tensor:
    """Resampling matrices (n, size, source), float32; every row sums to 1."""
    device = axis.start.device
    start, stop = axis.start[:, None, None], (axis.start + axis.length)[:, None, None]
    widen = axis.scale.clamp(min=1)[:, None, None]
    support = SUPPORT[interpolation] * widen
    output = axis.first[:, None, None] + torch.arange(size, device=device)[None, :, None] + 0.5
    centre = start + output * axis.scale[:, None, None]
    leftmost = torch.floor(centre - support).clamp(min=0).clamp(max=source - taps)
    position = leftmost + torch.arange(taps, device=device)
    weight = _kernel((position + 0.5 - centre) / widen, interpolation)
    weight = weight * ((position >= start) & (position < stop))
    weight = weight / weight.sum(dim=2, keepdim=True)
    matrix = torch.zeros(len(centre), size, source, device=device)
    return matrix.scatter_(2, position.long(), weight.float())


def _kernel(x: Tensor, interpolation: str) -> Tensor:
    """The kernel at distance x, in pixels of the coarser grid."""
    x = x.abs()
    if interpolation == "bilinear":
        return (1 - x).clamp(min=0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, far.masked_fill(x >= 2, 0.0))


def _product(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """uint8 (n, 3, h, w), (n or 1, size, h) and (n or 1, size, w) -> (n, 3, size, size) float32 in 0..255."""
    n, channels, height, width = images.shape
    # Clamped in between, as Pillow does by keeping 8 bits. (From version 13 it takes the rows first where they shrink
    # more; the order shows only where the kernel overshoots 0..255.)
    flat = images.float().view(n, channels * height, width)
    narrow = _blockwise(columns, lambda part, window: flat[:, :, window] @ part.transpose(1, 2), dim=2)
    narrow = narrow.clamp_(0, 255).view(n, channels, height, columns.shape[1])
    return _blockwise(rows, lambda part, window: part[:, None] @ narrow[:, :, window], dim=2).clamp_(0, 255)


def _blockwise(matrix: Tensor, multiply: Callable[[Tensor, slice], Tensor], dim: int) -> Tensor:
    """The product with a resampling matrix, by blocks of output pixels, each with the window of the source it sees.

    Most of a matrix is zero, the more so the larger the image. Matrices that differ by sample are taken whole, and so
    are those on an accelerator: one product costs it less than many, and it would have to be waited for to know zeros.

    Args:
        matrix: (n or 1, size, source).
        multiply: the product with (n or 1, block, window), a part of the matrix, over that window of the source.
        dim: along which the products are output pixels.
    """
    if len(matrix) > 1 or matrix.device.type != "cpu":
        return multiply(matrix, slice(None))
    products: list[Tensor] = []
    for first in range(0, matrix.shape[1], BLOCK):
        part = matrix[:, first : first + BLOCK]
        seen = torch.where(part[0].abs().sum(dim=0) > 0)[0]
        window = slice(int(seen[0]), int(seen[-1]) + 1)
        products.append(multiply(part[:, :, window], window))
    return torch.cat(products, dim=dim)
