"""The three layouts of .npz archives, and archives that are none."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lamella.data.scenario import class_incremental
from lamella.data.sources.archives import load_archive
from lamella.data.sources.load import load_source


def encoded(levels: list[int], kind: str = "PNG") -> tuple[np.ndarray, np.ndarray]:
    parts = []
    for level in levels:
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), (level, level, level)).save(buffer, kind, lossless=True)
        parts.append(buffer.getvalue())
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    return np.frombuffer(b"".join(parts), dtype=np.uint8), offsets


def test_one_list_of_encoded_images_with_its_split(tmp_path: Path) -> None:
    content, offsets = encoded([0, 10, 20, 30], "WEBP")
    labels, is_test = np.array([1, 0, 1, 0], dtype=np.uint8), np.array([False, False, True, True])
    np.savez(tmp_path / "a.npz", bytes=content, offsets=offsets, labels=labels, is_test=is_test, names=["ox", "pig"])
    source = load_archive(tmp_path / "a.npz")
    assert source.class_names == ("ox", "pig")
    assert source.train.keys == ("a/0", "a/1")
    assert source.test.labels.tolist() == [1, 0]
    assert [int(image[0, 0, 0]) for image in source.test.pixels([0, 1])] == [20, 30]


def test_one_list_without_a_split_gets_one(tmp_path: Path) -> None:
    content, offsets = encoded([0, 10, 20, 30])
    np.savez(tmp_path / "a.npz", bytes=content, offsets=offsets, labels=np.array([0, 0, 1, 1]))
    source = load_archive(tmp_path / "a.npz", test_fraction=0.5)
    assert sorted(source.test.labels.tolist()) == [0, 1]
    assert source.class_names == ("0", "1")


def test_two_lists_and_names_that_come_twice(tmp_path: Path) -> None:
    content, offsets = encoded([0, 50, 100])
    part = {"bytes": content, "offsets": offsets, "labels": np.array([0, 1, 2])}
    arrays = {f"{prefix}_{key}": value for prefix in ("train", "val") for key, value in part.items()}
    np.savez(tmp_path / "b.npz", **arrays, names=["crane", "crane", "owl"], wnids=["n02012849", "n03126707", "n01"])
    source = load_archive(tmp_path / "b.npz")
    assert source.class_names == ("crane (n02012849)", "crane (n03126707)", "owl")
    assert source.test.keys == ("b/val/0", "b/val/1", "b/val/2")
    assert [int(image[0, 0, 0]) for image in source.test.pixels([2, 1])] == [100, 50]


def test_plain_pixels_grey_and_in_colour(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    y = np.array([0, 1, 0, 1])
    np.savez(tmp_path / "c.npz", x_train=x, y_train=y, x_test=x[..., 0], y_test=y)
    source = load_archive(tmp_path / "c.npz")
    assert torch.equal(source.train.pixels([2])[0], torch.from_numpy(x[2]).permute(2, 0, 1))
    assert torch.equal(source.test.pixels([1])[0], torch.from_numpy(x[1, ..., 0]).expand(3, -1, -1))


def _arrays(**changes: object) -> dict:
    content, offsets = encoded([0, 10, 20, 30])
    arrays = {"bytes": content, "offsets": offsets, "labels": np.array([0, 0, 1, 1]), **changes}
    return {key: value for key, value in arrays.items() if value is not None}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, "holds x; a data set needs bytes, offsets and labels"),
        (_arrays(labels=np.array([0, 1])), "2 labels need 3 offsets, not 5"),
        (_arrays(offsets=np.array([0, 5, 4, 8, 9])), "offsets must rise"),
        (_arrays(offsets=np.array([0, 5, 6, 8, 10**9])), "offsets must rise"),
        (_arrays(labels=np.array([0.0, 1.0, 0.0, 1.0])), "whole numbers"),
        (_arrays(labels=np.array([0, 1, 0, 2]), names=np.array(["a", "b"])), "label 2 has no name"),
        (_arrays(is_test=np.array([True])), "is_test must be true or false for each of 4 images"),
        (_arrays(labels=np.array(["a", "a", "b", "b"], dtype=object)), "plain arrays"),
        ({f"train_{key}": value for key, value in _arrays().items()}, "no test part"),
        ({"x_train": np.zeros((2, 4, 4)), "y_train": np.zeros(2), "x_test": 0, "y_test": 0}, "must be uint8"),
    ],
)
def test_archives_with_faults(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_archive(tmp_path / "x.npz")


def _zipped(compression: int, *, damaged: bool) -> bytes:
    """An archive whose only file is no array, or an array of which some bytes are lost."""
    file, array = io.BytesIO(), io.BytesIO()
    np.save(array, np.random.default_rng(0).integers(0, 9, (40, 40)))
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("bytes.npy" if damaged else "bytes", array.getvalue() if damaged else b"plain")
    content = bytearray(file.getvalue())
    if damaged:
        content[60:200] = bytes(140)
    return bytes(content)


def _one_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


NO_ARCHIVES = {
    "empty": b"",
    "text": b"not an archive",
    "cut off": b"PK\x03\x04 cut off",
    "one array": _one_array(),
    "no arrays": _zipped(zipfile.ZIP_STORED, damaged=False),
    "damaged": _zipped(zipfile.ZIP_DEFLATED, damaged=True),
    "damaged, of LZMA": _zipped(zipfile.ZIP_LZMA, damaged=True),
}


@pytest.mark.parametrize("content", NO_ARCHIVES.values(), ids=NO_ARCHIVES.keys())
def test_files_that_are_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz cannot be read"):
        load_archive(tmp_path / "x.npz")


@pytest.mark.skipif(not os.environ.get("LAMELLA_DATA"), reason="LAMELLA_DATA is not set")
def test_real_archives() -> None:
    part = load_source("cifar100-part")
    assert (len(part.train), len(part.test)) == (6637, 2000)
    assert part.class_names[:2] == ("apple", "aquarium_fish")
    assert part.train.pixels([0, 6636])[1].shape == (3, 32, 32)
    assert class_incremental(part, tasks=10)[9].class_names[-1] == "worm"
    mnist = load_source("mnist")
    assert (len(mnist.train), len(mnist.test)) == (60000, 10000)
