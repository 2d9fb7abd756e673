"""Decoded images on disk: the same pixels, decoded once, whoever comes first, and never half of them."""

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lamella.data import disk_cache
from lamella.data.disk_cache import CACHE, on_disk
from lamella.data.images import EncodedBytes, Files, ImageSet, PixelArray, concatenate
from lamella.data.keeping import keep_decoded


def files(folder: Path, count: int = 5) -> ImageSet:
    rng = np.random.default_rng(0)
    folder.mkdir()
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 256, (4 + i, 6, 3), dtype=np.uint8)).save(path)
    return ImageSet(Files(paths), torch.arange(count), [path.name for path in paths])


def cached(data: ImageSet, folder: Path) -> ImageSet:
    return on_disk(data, folder, bytes_expected=1)


def same(a: ImageSet, b: ImageSet) -> bool:
    index = torch.arange(len(a))
    pairs = zip(a.pixels(index), b.pixels(index), strict=True)
    return a.keys == b.keys and torch.equal(a.labels, b.labels) and all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every image that is decoded."""
    seen: list[int] = []
    read = Files.read

    def counted(self: Files, i: int, **options: Any) -> Tensor:
        seen.append(i)
        return read(self, i, **options)

    monkeypatch.setattr(Files, "read", counted)
    return seen


def test_the_pixels_are_the_same_and_are_decoded_once(tmp_path: Path, decoded: list[int]) -> None:
    data = files(tmp_path / "photos")
    once = cached(data, tmp_path / "cache")
    assert sorted(decoded) == list(range(5))
    assert same(once, data)
    del decoded[:]
    assert same(cached(data, tmp_path / "cache"), once)
    assert decoded == []
    assert not once.storage.encoded


def test_a_subset_in_another_order_keeps_its_images(tmp_path: Path) -> None:
    data = files(tmp_path / "photos").subset([3, 0, 4])
    assert same(cached(data, tmp_path / "cache"), data)


def test_a_changed_file_is_decoded_again(tmp_path: Path) -> None:
    data = files(tmp_path / "photos")
    before = cached(data, tmp_path / "cache")
    path = tmp_path / "photos" / "2.png"
    Image.fromarray(np.zeros((6, 6, 3), dtype=np.uint8)).save(path)
    os.utime(path, ns=(1, 1))
    after = cached(data, tmp_path / "cache")
    assert same(after, data)
    assert not same(after, before)


def test_archives_with_the_same_names_are_told_apart(tmp_path: Path) -> None:
    def archive(shade: int) -> ImageSet:
        Image.fromarray(np.full((4, 4, 3), shade, dtype=np.uint8)).save(tmp_path / "one.png")
        content = (tmp_path / "one.png").read_bytes()
        storage = EncodedBytes(torch.tensor(list(content), dtype=torch.uint8), torch.tensor([0, len(content)]))
        return ImageSet(storage, torch.tensor([0]), ["0"])

    dark, bright = archive(10), archive(200)
    assert same(cached(dark, tmp_path / "cache"), dark)
    assert same(cached(bright, tmp_path / "cache"), bright)


def test_joined_sets_are_cached_too(tmp_path: Path) -> None:
    held = ImageSet(PixelArray(torch.full((2, 3, 4, 4), 7, dtype=torch.uint8)), torch.tensor([8, 9]), ["a", "b"])
    data = concatenate([files(tmp_path / "photos"), held])
    assert same(cached(data, tmp_path / "cache"), data)


def test_two_at_once_decode_once(tmp_path: Path, decoded: list[int]) -> None:
    data = files(tmp_path / "photos")
    found: list[ImageSet] = []
    threads = [threading.Thread(target=lambda: found.append(cached(data, tmp_path / "cache"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 5
    assert all(same(one, data) for one in found)


def test_what_was_interrupted_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, pixels = files(tmp_path / "photos"), ImageSet.pixels
    monkeypatch.setattr(disk_cache, "CHUNK", 2)

    def killed(self: ImageSet, index: Tensor) -> list[Tensor]:
        if 2 in index:
            raise KeyboardInterrupt
        return pixels(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(ImageSet, "pixels", killed)
        with pytest.raises(KeyboardInterrupt):
            cached(data, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.p*")), "an unfinished file takes no room"
    assert same(cached(data, tmp_path / "cache"), data)
    assert not list((tmp_path / "cache").glob("*.part"))


def test_pixels_that_were_taken_away_are_made_anew(tmp_path: Path) -> None:
    data = files(tmp_path / "photos")
    cached(data, tmp_path / "cache")
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    pixels.unlink()
    assert same(cached(data, tmp_path / "cache"), data)


def test_a_folder_without_room_is_refused(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(ValueError, match=rf"GB free; let {CACHE} name another folder, or unset it"):
        on_disk(files(tmp_path / "photos"), tmp_path / "cache", bytes_expected=2 * free)


def test_sets_beyond_memory_use_it_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = files(tmp_path / "photos")
    monkeypatch.delenv(CACHE, raising=False)
    assert keep_decoded(data, budget_bytes=10) is data
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    kept = keep_decoded(data, budget_bytes=10)
    assert kept is not data
    assert same(kept, data)  # type: ignore[arg-type]
    assert keep_decoded(kept, budget_bytes=10) is kept
    assert isinstance(keep_decoded(data, budget_bytes=10**6).storage, PixelArray)  # type: ignore[union-attr]
