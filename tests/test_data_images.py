"""Sets, decoding, keeping and loading."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lamella.data.decoding import decode
from lamella.data.images import EncodedBytes, Files, ImageSet, PixelArray, TensorSet, concatenate
from lamella.data.keeping import keep_decoded
from lamella.data.loading import batches
from lamella.data.transform import InputTransform, plain_view

VIEW = plain_view(InputTransform(8))


def grey_levels(levels: list[int], side: int = 6) -> Tensor:
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, side, side).clone()


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def files(tmp_path: Path) -> ImageSet:
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        Image.new("RGB", (5 + i, 7), (40 * i, 0, 255)).save(path)
    return ImageSet(Files(paths), torch.arange(6), [path.name for path in paths])


def test_subset_and_concatenate_keep_pixels_labels_and_keys_together() -> None:
    data = ImageSet(PixelArray(grey_levels([0, 10, 20, 30])), torch.tensor([5, 6, 7, 8]), list("abcd"))
    other = ImageSet(PixelArray(grey_levels([90, 100], side=4)), torch.tensor([1, 2]), ["x", "y"])
    joined = concatenate([data.subset([3, 1]).subset(torch.tensor([1])), other.subset([1]), data.subset([0])])
    assert joined.keys == ("b", "y", "a")
    assert joined.labels.tolist() == [6, 2, 5]
    assert [int(image[0, 0, 0]) for image in joined.pixels([0, 1, 2])] == [10, 100, 0]
    assert concatenate([data.subset([2]), data.subset([0])]).storage is data.storage
    assert joined.batch([2, 1], VIEW).shape == (2, 3, 8, 8)


def test_batch_hands_the_view_the_positions_within_this_set() -> None:
    data = ImageSet(PixelArray(grey_levels([0, 10, 20])), torch.zeros(3), list("abc")).subset([2, 1])
    seen = []
    data.batch(torch.tensor([1, 0]), lambda pixels, index: seen.append((pixels[0][0, 0, 0], index)) or torch.empty(0))
    assert seen[0][0] == 10
    assert seen[0][1].tolist() == [1, 0]


def test_grey_arrays_read_as_three_channels() -> None:
    data = ImageSet(PixelArray(torch.ones(2, 1, 4, 4, dtype=torch.uint8)), torch.zeros(2), ["a", "b"])
    assert data.pixels([1])[0].shape == (3, 4, 4)


def test_sets_refuse_lengths_that_differ_and_equal_keys() -> None:
    with pytest.raises(ValueError, match="2 images, 3 labels"):
        ImageSet(PixelArray(grey_levels([1, 2])), torch.zeros(3), ["a", "b"])
    with pytest.raises(ValueError, match="share the key 'a'"):
        ImageSet(PixelArray(grey_levels([1, 2])), torch.zeros(2), ["a", "a"])
    with pytest.raises(ValueError, match="2 inputs and 3 labels"):
        TensorSet(torch.zeros(2, 4), torch.zeros(3))
    with pytest.raises(ValueError, match="at least one set"):
        concatenate([])


def test_tensor_sets_behave_as_image_sets() -> None:
    data = TensorSet(torch.arange(8.0).view(4, 2), torch.tensor([0, 1, 0, 1]))
    part = concatenate([data.subset([3]), data.subset([0, 2])])
    assert part.batch([0, 2]).tolist() == [[6, 7], [4, 5]]
    assert part.keys == ("3", "0", "2")
    assert len(part) == 3


def test_decoding_handles_every_kind_of_image(tmp_path: Path) -> None:
    def first(image: Image.Image, kind: str = "PNG", **options) -> list[int]:
        return decode(encode(image, kind, **options), "it")[:, 0, 0].tolist()

    assert first(Image.new("L", (3, 2), 77)) == [77] * 3
    assert first(Image.new("1", (3, 2), 1)) == [255] * 3
    assert first(Image.new("RGBA", (3, 2), (200, 100, 0, 0))) == [255] * 3
    assert first(Image.new("RGBA", (3, 2), (200, 100, 0, 255))) == [200, 100, 0]
    assert first(Image.new("LA", (3, 2), (50, 255))) == [50] * 3
    assert first(Image.new("RGB", (3, 2), (1, 2, 3)).convert("P")) == pytest.approx([1, 2, 3], abs=26)
    assert first(Image.new("CMYK", (3, 2), (0, 0, 0, 0)), "JPEG") == [255] * 3
    deep = Image.fromarray(np.full((2, 3), 40000, dtype=np.uint16))
    assert first(deep) == [round(40000 / 257)] * 3
    assert first(deep, "TIFF") == [round(40000 / 257)] * 3


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (4, 2), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert decode(encode(image, "JPEG", exif=exif), "it").shape == (3, 4, 2)


def with_a_fraction_as_place() -> bytes:
    """A TIFF in which the number that says where its pixels begin is marked as a fraction."""
    content = bytearray(encode(Image.new("RGB", (20, 24)), "TIFF"))
    place = content.index(b"\x11\x01\x04\x00", 8)
    content[place + 2] = 5
    return bytes(content)


CORRUPT = [b"not an image", encode(Image.new("RGB", (64, 64)), "JPEG")[:200], b"", with_a_fraction_as_place()]


@pytest.mark.parametrize("content", CORRUPT, ids=["text", "cut off", "empty", "a fraction as place"])
def test_a_corrupt_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        Files([path]).read(0)
    storage = EncodedBytes(torch.tensor(list(content), dtype=torch.uint8), torch.tensor([0, len(content)]), "set.npz")
    with pytest.raises(ValueError, match=r"0 of set\.npz"):
        storage.read(0)


def test_images_of_unknown_range_and_missing_ones_are_refused(tmp_path: Path) -> None:
    floats = encode(Image.fromarray(np.zeros((2, 2), dtype=np.float32)), "TIFF")
    with pytest.raises(ValueError, match="32-bit floats"):
        decode(floats, "it")
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        Files([tmp_path / "gone.png"]).read(0)


def test_keep_decoded_gives_the_same_pixels_without_the_files(files: ImageSet) -> None:
    part = files.subset([4, 0, 2])
    before = part.pixels([0, 1, 2])
    kept = keep_decoded(part, budget_bytes=10_000)
    for path in files.storage.paths:
        path.unlink()
    assert all(torch.equal(a, b) for a, b in zip(before, kept.pixels([0, 1, 2]), strict=True))
    assert kept.keys == part.keys
    assert torch.equal(kept.labels, part.labels)


def test_keep_decoded_leaves_what_does_not_fit(files: ImageSet) -> None:
    assert keep_decoded(files, budget_bytes=100) is files
    tensors = TensorSet(torch.zeros(2, 2), torch.zeros(2))
    assert keep_decoded(tensors) is tensors


def test_keep_decoded_stops_when_its_estimate_was_too_low(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamella.data.keeping.PROBE", 1)
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    Image.new("RGB", (2, 2)).save(paths[0])
    Image.new("RGB", (200, 200)).save(paths[1])
    data = ImageSet(Files(paths), torch.zeros(2), ["0", "1"])
    assert keep_decoded(data, budget_bytes=1000) is data


def test_batches_follow_the_order(files: ImageSet) -> None:
    got = list(batches(files, torch.tensor([5, 3, 1, 0, 3]), 2, VIEW))
    assert [index.tolist() for *_, index in got] == [[5, 3], [1, 0], [3]]
    assert [y.tolist() for _, y, _ in got] == [[5, 3], [1, 0], [3]]
    assert torch.equal(got[1][0], files.batch([1, 0], VIEW))
    assert list(batches(files, torch.tensor([], dtype=torch.int64), 2, VIEW)) == []


def test_an_error_arrives_in_its_place_and_ends_the_thread(files: ImageSet) -> None:
    files.storage.paths[3].write_bytes(b"broken")
    loaded = batches(files, torch.arange(6), 2, VIEW)
    next(loaded)
    with pytest.raises(ValueError, match=r"3\.png"):
        next(loaded)
    assert not _readers()


def test_a_consumer_that_stops_early_leaves_no_thread(files: ImageSet) -> None:
    loaded = batches(files, torch.arange(6), 1, VIEW)
    next(loaded)
    assert _readers()
    loaded.close()
    assert not _readers()
    with pytest.raises(ValueError, match="batch_size"):
        batches(files, torch.arange(6), 0, VIEW)


def _readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lamella-batches"]
