"""From pixels of any size to the square, normalised input of a backbone: which part of an image is seen, and how."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lamella.common.checks import check_one_of
from lamella.data.resampling import SUPPORT, Axis, Choose, Resampler, Windows
from lamella.data.samples import CPU, Transform
from lamella.data.sending import send

__all__ = ["Augmentation", "ImageView", "InputTransform", "augmented_view", "of_images", "plain_view"]

ImageView = Callable[[list[Tensor], Tensor], Tensor]
"""(pixels: uint8 (3, h, w) each; index (n,) of each image in its set) -> (n, 3, size, size) float32, on its device."""

TRIES = 10  # windows drawn per sample; the first that fits the image is taken (torchvision's rule)
COLUMNS = 2 * TRIES + 3  # random numbers per sample: area and ratio of each try, top, left, flip


@dataclass(frozen=True)
class InputTransform:
    """What a backbone of images expects as input; a `Transform`.

    Attributes:
        size: side of the square input, in pixels.
        mean: per channel, of values in 0..1.
        std: per channel, of values in 0..1.
        interpolation: "bicubic" or "bilinear".
        crop: fraction of the shorter side that the centre crop keeps, in (0, 1] (timm's `crop_pct`).
        crop_mode: "center" keeps the proportions of an image and cuts off the ends of its longer side; "squash" resizes
            both sides to the same length before the crop.
    """

    size: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    crop: float = 1.0
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"the input size must be at least 1 pixel, not {self.size}")
        if self.interpolation not in SUPPORT:
            raise ValueError(f"unknown interpolation {self.interpolation!r}; one of {', '.join(sorted(SUPPORT))}")
        check_one_of("crop_mode", self.crop_mode, ("center", "squash"))
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be in (0, 1] (1 keeps the whole image), not {self.crop}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std are three numbers each, std above 0; got {self.mean} and {self.std}")

    @property
    def noun(self) -> str:
        return "image"

    def view(
        self,
        device: torch.device = CPU,
        augmentation: Any = None,
        n: int = 0,
        generator: torch.Generator | None = None,
    ) -> "ImageView":
        """`plain_view`, or with an `Augmentation` and a generator `augmented_view`."""
        if augmentation is None:
            return plain_view(self, device)
        if generator is None:
            raise ValueError("an augmentation needs a generator to draw from; give one")
        return augmented_view(self, augmentation, n, generator, device)

    def example(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, 3, size, size): grey where there is no generator, else noise with the spread of normalised images."""
        shape = n, 3, self.size, self.size
        return torch.zeros(shape) if generator is None else torch.randn(shape, generator=generator)

    def describe(self) -> dict[str, Any]:
        """Size, mean, std, interpolation and crop."""
        return asdict(self)


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


def plain_view(transform: InputTransform, device: torch.device = CPU) -> ImageView:
    """Resize the shorter side to size / crop, then cut the centre: the view for testing and for statistics.

    Args:
        transform: what the backbone expects.
        device: where images are resampled and the inputs lie.
    """

    def choose(height: Tensor, width: Tensor, index: Tensor) -> Windows:
        equal = bool((height == height[0]).all() and (width == width[0]).all())
        some = slice(1 if equal else None)  # equal images share one pair of matrices
        return _centre_windows(transform, height[some], width[some])

    return _view(transform, choose, device)


def augmented_view(
    transform: InputTransform,
    augmentation: Augmentation,
    n: int,
    generator: torch.Generator,
    device: torch.device = CPU,
) -> ImageView:
    """Random resized crop and flip: the view for one epoch over a set of n samples.

    One row of random numbers per sample is drawn here, at once; row i belongs to sample i, so what becomes of a sample
    depends neither on its batch nor on the order of the epoch.

    Args:
        transform: size, normalisation and interpolation (its `crop` is for testing only).
        augmentation: ranges to draw from.
        n: length of the set; the view's `index` lies in 0..n-1.
        generator: of this epoch, on the CPU; it is advanced once.
        device: where images are resampled and the inputs lie; the windows are the same on any.
    """
    table = torch.rand(n, COLUMNS, generator=generator, dtype=torch.float64)

    def choose(height: Tensor, width: Tensor, index: Tensor) -> Windows:
        return _random_windows(transform.size, augmentation, table[index.cpu()], height, width)

    return _view(transform, choose, device)


def of_images(transform: Transform, what: str) -> InputTransform:
    """The transform of a backbone of images, for what works with images alone.

    Args:
        transform: of any backbone.
        what: works with images alone; it begins the message.

    Raises:
        ValueError: the backbone takes samples of another kind.
    """
    if not isinstance(transform, InputTransform):
        raise ValueError(f"{what} is for images, and this backbone takes {transform.noun}s")
    return transform


def _view(transform: InputTransform, choose: Choose, device: torch.device) -> ImageView:
    resample = Resampler(transform.size, transform.interpolation, device)
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.mean, transform.std))
    factor, shift = send(1 / (255 * std), device), send(mean / std, device)
    return lambda pixels, index: resample(pixels, index, choose).mul_(factor).sub_(shift)


def _centre_windows(transform: InputTransform, height: Tensor, width: Tensor) -> Windows:
    resized = math.floor(transform.size / transform.crop)
    short, squash = torch.minimum(height, width), transform.crop_mode == "squash"

    def axis(side: Tensor) -> Axis:
        outputs = torch.full_like(side, resized) if squash else torch.floor(resized * side / short)
        first = torch.round((outputs - transform.size) / 2)
        return Axis(torch.zeros_like(side), side, side / outputs, first)

    return Windows(axis(height), axis(width), torch.zeros_like(height, dtype=torch.bool))


def _random_windows(size: int, augmentation: Augmentation, draws: Tensor, height: Tensor, width: Tensor) -> Windows:
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
    return Windows(Axis(top, h, h / size, zero), Axis(left, w, w / size, zero), flip)
