"""From pixels of any size to the square, normalised input of a backbone.

Cropping and resizing one image is two small matrices: `out = Ry @ image @ Rx^T`, where row i of R holds the
interpolation kernel's weights for output pixel i over a window of the source. A flip reverses the rows of Rx. The
weights follow Pillow's convention (bicubic a = -0.5, pixel centres aligned, the kernel widened by the scale when
shrinking, weights outside the window cut off and the rest renormalised), so the result equals Pillow's up to rounding,
and random resized crop with flip is a batched matrix product on any device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Augmentation", "InputTransform", "View", "augmented_view", "plain_view"]

View = Callable[[list[Tensor], Tensor], Tensor]
"""(pixels: uint8 (3, h, w) each; index (n,) of each sample in its set) -> (n, 3, size, size) float32."""

SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}  # half the kernel's width, in pixels of the coarser of the two grids
TRIES = 10  # windows drawn per sample; the first that fits the image is taken (torchvision's rule)
SMALL = 128  # longest side of images that are resampled at once; larger ones gain more from skipping zeros
BLOCK = 32  # output pixels multiplied at once
COLUMNS = 2 * TRIES + 3  # random numbers per sample: area and ratio of each try, top, left, flip


@dataclass(frozen=True)
class InputTransform:
    """What a backbone expects as input.

    Attributes:
        size: side of the square input, in pixels.
        mean: per channel, of values in 0..1.
        std: per channel, of values in 0..1.
        interpolation: "bicubic" or "bilinear".
        crop: fraction of the shorter side that the centre crop keeps, in (0, 1] (timm's `crop_pct`).
    """

    size: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    crop: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"the input size must be at least 1 pixel, not {self.size}")
        if self.interpolation not in SUPPORT:
            raise ValueError(f"unknown interpolation {self.interpolation!r}; one of {', '.join(sorted(SUPPORT))}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be in (0, 1] (1 keeps the whole image), not {self.crop}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std are three numbers each, std above 0; got {self.mean} and {self.std}")


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop and horizontal flip, for training.

    Attributes:
        scale: range of the window's area as a fraction of the image's.
        ratio: range of the window's width / height, drawn log-uniformly.
        flip: mirror every second image (on average).
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale must be two fractions of the area, 0 < low <= high <= 1, not {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be two positive numbers, low <= high, not {self.ratio}")


def plain_view(transform: InputTransform) -> View:
    """Resize the shorter side to size / crop, then cut the centre: the view for testing and for statistics."""

    def view(pixels: list[Tensor], index: Tensor) -> Tensor:
        return _resample(pixels, transform, windows, index)

    def windows(height: Tensor, width: Tensor, index: Tensor) -> "_Windows":
        return _centre_window(transform, height[:1], width[:1])  # equal images share one pair of matrices

    return view


def augmented_view(transform: InputTransform, augmentation: Augmentation, n: int, generator: torch.Generator) -> View:
    """Random resized crop and flip: the view for one epoch over a set of n samples.

    One row of random numbers per sample is drawn here, at once; row i belongs to sample i, so what becomes of a sample
    depends neither on its batch nor on the order of the epoch.

    Args:
        transform: size, normalisation and interpolation (its `crop` is for testing only).
        augmentation: ranges to draw from.
        n: length of the set; the view's `index` lies in 0..n-1.
        generator: of this epoch; it is advanced once.
    """
    table = torch.rand(n, COLUMNS, generator=generator, dtype=torch.float64)

    def windows(height: Tensor, width: Tensor, index: Tensor) -> "_Windows":
        return _random_windows(transform.size, augmentation, table[index.cpu()], height, width)

    return lambda pixels, index: _resample(pixels, transform, windows, index)


@dataclass(frozen=True)
class _Axis:
    """Along one axis of each sample: output pixel i is centred at `start + (first + i + 0.5) * scale`. All (n,)."""

    start: Tensor
    length: Tensor  # of the window [start, start + length) outside of which the kernel is cut off
    scale: Tensor  # source pixels per output pixel
    first: Tensor  # output pixels skipped before the first one kept


@dataclass(frozen=True)
class _Windows:
    rows: _Axis
    columns: _Axis
    flip: Tensor  # (n,) bool


def _centre_window(transform: InputTransform, height: Tensor, width: Tensor) -> _Windows:
    resized = math.floor(transform.size / transform.crop)
    short = torch.minimum(height, width)

    def axis(side: Tensor) -> _Axis:
        outputs = torch.floor(resized * side / short)
        first = torch.round((outputs - transform.size) / 2)
        return _Axis(torch.zeros_like(side), side, side / outputs, first)

    return _Windows(axis(height), axis(width), torch.zeros_like(height, dtype=torch.bool))


def _random_windows(size: int, augmentation: Augmentation, draws: Tensor, height: Tensor, width: Tensor) -> _Windows:
    """Windows as torchvision's `RandomResizedCrop.get_params` chooses them.

    Args:
        size: side of the output.
        augmentation: ranges to draw from.
        draws: (n, COLUMNS) in [0, 1).
        height: (n,) float64.
        width: (n,) float64.
    """
    area_draw, ratio_draw = draws[:, :TRIES], draws[:, TRIES : 2 * TRIES]
    low, high = augmentation.scale
    area = (height * width)[:, None] * (low + (high - low) * area_draw)
    log_low, log_high = math.log(augmentation.ratio[0]), math.log(augmentation.ratio[1])
    ratio = torch.exp(log_low + (log_high - log_low) * ratio_draw)
    w, h = torch.round(torch.sqrt(area * ratio)), torch.round(torch.sqrt(area / ratio))
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    chosen = fits.to(torch.uint8).argmax(dim=1, keepdim=True)  # the first that fits
    w, h, found = w.gather(1, chosen)[:, 0], h.gather(1, chosen)[:, 0], fits.any(dim=1)

    top = torch.floor(draws[:, 2 * TRIES] * (height - h + 1))
    left = torch.floor(draws[:, 2 * TRIES + 1] * (width - w + 1))
    fallback_h = torch.minimum(height, torch.round(width / augmentation.ratio[0])).clamp(min=1)
    fallback_w = torch.minimum(width, torch.round(height * augmentation.ratio[1])).clamp(min=1)
    h, w = torch.where(found, h, fallback_h), torch.where(found, w, fallback_w)
    top = torch.where(found, top, torch.floor((height - h) / 2))
    left = torch.where(found, left, torch.floor((width - w) / 2))
    flip = (draws[:, 2 * TRIES + 2] < 0.5) & augmentation.flip
    zero = torch.zeros_like(h)
    return _Windows(_Axis(top, h, h / size, zero), _Axis(left, w, w / size, zero), flip)


def _kernel(x: Tensor, interpolation: str) -> Tensor:
    """The kernel at distance x, in pixels of the coarser grid."""
    x = x.abs()
    if interpolation == "bilinear":
        return (1 - x).clamp(min=0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _matrix(axis: _Axis, source: int, size: int, interpolation: str) -> Tensor:
    """Resampling matrices (n, size, source), float32; every row sums to 1."""
    start, stop = axis.start[:, None, None], (axis.start + axis.length)[:, None, None]
    widen = axis.scale.clamp(min=1)[:, None, None]
    support = SUPPORT[interpolation] * widen
    centre = start + (axis.first[:, None, None] + torch.arange(size)[None, :, None] + 0.5) * axis.scale[:, None, None]
    taps = min(source, math.floor(2 * float(support.max())) + 2)
    leftmost = torch.floor(centre - support).clamp(min=0).clamp(max=source - taps)
    position = leftmost + torch.arange(taps)
    weight = _kernel((position + 0.5 - centre) / widen, interpolation)
    weight = weight * ((position >= start) & (position < stop))
    weight = weight / weight.sum(dim=2, keepdim=True)
    matrix = torch.zeros(len(centre), size, source)
    return matrix.scatter_(2, position.long(), weight.float())


def _resample(
    pixels: list[Tensor],
    transform: InputTransform,
    windows: Callable[[Tensor, Tensor, Tensor], _Windows],
    index: Tensor,
) -> Tensor:
    """Crop, resize and normalise: at once where the images are small and of one size, one by one where they are not."""
    if not pixels:
        return torch.empty(0, 3, transform.size, transform.size)
    if len({image.shape for image in pixels}) == 1 and max(pixels[0].shape) <= SMALL:
        out = _resample_equal(torch.stack(pixels), transform, windows, index)
    else:  # padding all to the largest would cost the largest photo's memory for each
        parts = [_resample_equal(p[None], transform, windows, index[i : i + 1]) for i, p in enumerate(pixels)]
        out = torch.cat(parts)
    mean, std = (torch.tensor(values, device=out.device)[:, None, None] for values in (transform.mean, transform.std))
    return out.mul_(1 / (255 * std)).sub_(mean / std)


def _resample_equal(
    images: Tensor,
    transform: InputTransform,
    windows: Callable[[Tensor, Tensor, Tensor], _Windows],
    index: Tensor,
) -> Tensor:
    """(n, 3, h, w) uint8 -> (n, 3, size, size) float32 in 0..255."""
    n, channels, height, width = images.shape
    side = torch.ones(n, dtype=torch.float64)
    window = windows(side * height, side * width, index)
    rows = _matrix(window.rows, height, transform.size, transform.interpolation).to(images.device)
    columns = _matrix(window.columns, width, transform.size, transform.interpolation)
    columns = torch.where(window.flip[:, None, None], columns.flip(1), columns).to(images.device)
    # Clamped in between, as Pillow does by keeping 8 bits. (From version 13 it takes the rows first where they shrink
    # more; the order shows only where the kernel overshoots 0..255.)
    flat = images.float().view(n, channels * height, width)
    narrow = _blockwise(columns, lambda part, window: flat[:, :, window] @ part.transpose(1, 2), dim=2)
    narrow = narrow.clamp_(0, 255).view(n, channels, height, transform.size)
    return _blockwise(rows, lambda part, window: part[:, None] @ narrow[:, :, window], dim=2).clamp_(0, 255)


def _blockwise(matrix: Tensor, multiply: Callable[[Tensor, slice], Tensor], dim: int) -> Tensor:
    """The product with a resampling matrix, by blocks of output pixels, each with the window of the source it sees.

    Most of a matrix is zero, the more so the larger the image; matrices that differ by sample are taken whole.

    Args:
        matrix: (n or 1, size, source).
        multiply: the product with (n or 1, block, window), a part of the matrix, over that window of the source.
        dim: along which the products are output pixels.
    """
    if len(matrix) > 1:
        return multiply(matrix, slice(None))
    products: list[Tensor] = []
    for first in range(0, matrix.shape[1], BLOCK):
        part = matrix[:, first : first + BLOCK]
        seen = torch.where(part[0].abs().sum(dim=0) > 0)[0]
        window = slice(int(seen[0]), int(seen[-1]) + 1)
        products.append(multiply(part[:, :, window], window))
    return torch.cat(products, dim=dim)
