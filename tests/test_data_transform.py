"""The input pipeline against Pillow and torchvision, and its promises about randomness."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from lamella.data.transform import Augmentation, InputTransform, augmented_view, plain_view

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def raw(size: int, interpolation: str = "bicubic", crop: float = 1.0) -> InputTransform:
    """Values stay in 0..1."""
    return InputTransform(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), interpolation, crop)


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("source", "size"), [(32, 128), (32, 32), (300, 128), (20, 224), (100, 99), (7, 3), (1, 5)])
def test_plain_view_of_a_square_image_is_pillows_resize(source: int, size: int, interpolation: str) -> None:
    image = noise(source, source)
    ours = plain_view(raw(size, interpolation=interpolation))([image], torch.tensor([0]))
    theirs = from_pillow(to_pillow(image).resize((size, size), FILTERS[interpolation]))
    assert (ours[0] - theirs).abs().max() <= 1.5 / 255


@pytest.mark.parametrize("crop", [1.0, 0.875, 0.9])
@pytest.mark.parametrize(("height", "width"), [(50, 71), (90, 40), (64, 64)])
def test_plain_view_is_resize_of_the_shorter_side_and_centre_crop(height: int, width: int, crop: float) -> None:
    image = noise(height, width)
    size = 48
    ours = plain_view(raw(size, crop=crop))([image], torch.tensor([0]))[0]
    resized = v2.Resize(int(size / crop), v2.InterpolationMode.BICUBIC)(to_pillow(image))
    theirs = from_pillow(v2.CenterCrop(size)(resized))
    assert (ours - theirs).abs().max() <= 1.5 / 255


def test_large_images_taken_by_blocks_are_pillows_too() -> None:
    image = noise(310, 310)
    for size in (50, 128):
        ours = plain_view(raw(size))([image, image], torch.arange(2))
        theirs = from_pillow(to_pillow(image).resize((size, size), Image.Resampling.BICUBIC))
        assert (ours - theirs).abs().max() <= 1.5 / 255


def test_random_resized_crop_is_pillows_crop_and_resize_of_the_same_window(monkeypatch: pytest.MonkeyPatch) -> None:
    from lamella.data import transform

    seen = {}
    original = transform._random_windows

    def spy(*arguments):
        seen["windows"] = original(*arguments)
        return seen["windows"]

    monkeypatch.setattr(transform, "_random_windows", spy)
    images = [noise(40, 56, seed) // 2 + 64 for seed in range(16)]  # no overshoot: which pass comes first cannot show
    view = augmented_view(raw(32), Augmentation(scale=(0.1, 1.0)), 16, torch.Generator())
    ours = view(images, torch.arange(16))
    rows, columns, flip = seen["windows"].rows, seen["windows"].columns, seen["windows"].flip
    assert 0 < flip.sum() < 16
    for i, image in enumerate(images):
        top, left = int(rows.start[i]), int(columns.start[i])
        box = (left, top, left + int(columns.length[i]), top + int(rows.length[i]))
        cut = to_pillow(image).crop(box).resize((32, 32), Image.Resampling.BICUBIC)
        theirs = from_pillow(cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip[i] else cut)
        assert (ours[i] - theirs).abs().max() <= 1.5 / 255


def test_windows_are_distributed_as_torchvisions() -> None:
    from lamella.data.transform import COLUMNS, _random_windows

    augmentation, n, height, width = Augmentation(scale=(0.2, 1.0)), 4000, 60, 100
    torch.manual_seed(0)
    side = torch.ones(n, dtype=torch.float64)
    ours = _random_windows(8, augmentation, torch.rand(n, COLUMNS).double(), side * height, side * width)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    theirs = torch.tensor([_torchvision_window(image, augmentation) for _ in range(n)], dtype=torch.float64)
    windows = torch.stack([ours.rows.start, ours.columns.start, ours.rows.length, ours.columns.length], dim=1)
    assert (windows[:, 0] + windows[:, 2]).max() <= height
    assert (windows[:, 1] + windows[:, 3]).max() <= width
    assert windows.min() >= 0
    assert torch.allclose(windows.mean(0), theirs.mean(0), atol=1.5)
    assert torch.allclose(windows.std(0), theirs.std(0), atol=1.5)


def _torchvision_window(image: Tensor, augmentation: Augmentation) -> tuple[int, int, int, int]:
    from torchvision.transforms import RandomResizedCrop

    return RandomResizedCrop.get_params(image, list(augmentation.scale), list(augmentation.ratio))


def test_an_image_too_narrow_for_any_window_is_cut_in_the_centre() -> None:
    image = torch.zeros(3, 10, 1000, dtype=torch.uint8)
    image[:, :, 490:510] = 200
    view = augmented_view(raw(8), Augmentation(scale=(0.9, 1.0)), 1, torch.Generator())
    out = view([image], torch.tensor([0]))
    assert torch.allclose(out, torch.full_like(out, 200 / 255), atol=1e-3)


def test_what_becomes_of_a_sample_depends_on_its_index_only() -> None:
    images = [noise(32, 32, seed) for seed in range(8)]
    view = augmented_view(InputTransform(24), Augmentation(), 8, torch.Generator().manual_seed(3))
    whole = view(images, torch.arange(8))
    some = torch.tensor([6, 1, 3])
    assert torch.allclose(view([images[i] for i in some], some), whole[some], atol=1e-5)
    assert torch.allclose(view(images[5:6], torch.tensor([5])), whole[5:6], atol=1e-5)
    mixed = view([noise(17, 60), images[2]], torch.tensor([0, 2]))
    assert torch.allclose(mixed[1], whole[2], atol=1e-5)
    assert not torch.allclose(view([images[0]], torch.tensor([1])), view([images[0]], torch.tensor([2])), atol=1e-2)


def test_one_generator_gives_the_same_views_again_and_flip_can_be_off() -> None:
    images = [noise(16, 16, seed) for seed in range(4)]
    views = [
        augmented_view(InputTransform(16), Augmentation(), 4, torch.Generator().manual_seed(1))(images, torch.arange(4))
        for _ in range(2)
    ]
    assert torch.equal(*views)
    still = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False)
    view = augmented_view(raw(16), still, 4, torch.Generator())
    assert torch.allclose(view(images, torch.arange(4)), torch.stack(images) / 255, atol=1e-5)


def test_normalisation_and_empty_batches() -> None:
    white = torch.full((3, 5, 5), 255, dtype=torch.uint8)
    transform = InputTransform(4, mean=(0.5, 0.4, 0.2), std=(0.5, 0.2, 0.4))
    out = plain_view(transform)([white], torch.tensor([0]))
    assert out.dtype == torch.float32
    assert torch.allclose(out[0, :, 0, 0], torch.tensor([1.0, 3.0, 2.0]), atol=1e-5)
    assert plain_view(transform)([], torch.tensor([], dtype=torch.int64)).shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: InputTransform(0), "at least 1 pixel"),
        (lambda: InputTransform(8, interpolation="lanczos"), "bicubic, bilinear"),
        (lambda: InputTransform(8, crop=1.5), r"\(0, 1\]"),
        (lambda: InputTransform(8, std=(1.0, 0.0, 1.0)), "std above 0"),
        (lambda: Augmentation(scale=(0.5, 0.1)), "low <= high"),
        (lambda: Augmentation(ratio=(0.0, 1.0)), "positive"),
    ],
)
def test_wrong_settings_are_refused(given, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        given()
