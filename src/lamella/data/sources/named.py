"""Data sets that other libraries carry or download: scikit-learn's digits, and torchvision's."""

from pathlib import Path
from typing import Any

import numpy as np

from lamella.common.checks import first_line
from lamella.data.images import concatenate
from lamella.data.scenario import Source
from lamella.data.sources.archives import pixel_set
from lamella.data.sources.parts import divide
from lamella.data.sources.places import download_place, places

__all__ = ["load_cifar10", "load_cifar100", "load_digits", "load_fashion_mnist", "load_mnist", "paired"]

Root = str | Path | None
DIGITS = tuple(str(digit) for digit in range(10))


def load_digits(root: Root = None, *, test_fraction: float = 0.2, split_seed: int = 0) -> Source:
    """1,797 handwritten digits of 8 x 8 pixels, part of scikit-learn; a split is made."""
    from sklearn.datasets import load_digits as read_digits

    bunch: Any = read_digits()
    data = pixel_set(np.round(bunch.images * (255 / 16)).astype(np.uint8), bunch.target, "digits")
    return divide("digits", data, DIGITS, test_fraction=test_fraction, split_seed=split_seed)


def load_mnist(root: Root = None) -> Source:
    """MNIST with its own split, through torchvision."""
    files = "MNIST/raw/train-images-idx3-ubyte.gz and its three companions"
    return paired("mnist", *_torchvision("mnist", "MNIST", root, files), DIGITS)


def load_fashion_mnist(root: Root = None) -> Source:
    """Fashion-MNIST with its own split, through torchvision."""
    files = "FashionMNIST/raw/train-images-idx3-ubyte.gz and its three companions"
    train, test = _torchvision("fashion-mnist", "FashionMNIST", root, files)
    return paired("fashion-mnist", train, test, tuple(train.classes))


def load_cifar10(root: Root = None) -> Source:
    """CIFAR-10 with its own split, through torchvision."""
    train, test = _torchvision("cifar10", "CIFAR10", root, "cifar-10-python.tar.gz")
    return paired("cifar10", train, test, tuple(train.classes))


def load_cifar100(root: Root = None) -> Source:
    """CIFAR-100 with its own split and its 100 fine labels, through torchvision."""
    train, test = _torchvision("cifar100", "CIFAR100", root, "cifar-100-python.tar.gz")
    return paired("cifar100", train, test, tuple(train.classes))


def paired(name: str, train: Any, test: Any, class_names: tuple[str, ...]) -> Source:
    """A Source of two torchvision data sets that hold their pixels as `data` and their labels as `targets`."""
    parts = [
        pixel_set(np.asarray(part.data), np.asarray(part.targets), f"{name}/{which}")
        for which, part in (("train", train), ("test", test))
    ]
    is_test = parts[0].labels.new_tensor([0] * len(parts[0]) + [1] * len(parts[1])).bool()
    return divide(name, concatenate(parts), class_names, is_test=is_test)


def _torchvision(name: str, class_name: str, root: Root, files: str) -> tuple[Any, Any]:
    """The training and test part, from a local copy or else by download."""
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, class_name)
    for place in places(root):
        try:
            return dataset(str(place), train=True), dataset(str(place), train=False)
        except RuntimeError:  # torchvision's "not found or corrupted"
            continue
    target = download_place(root)
    try:
        return dataset(str(target), train=True, download=True), dataset(str(target), train=False)
    except (OSError, RuntimeError) as fault:
        reason = first_line(fault).rstrip(":")
        raise RuntimeError(
            f"cannot download {name} ({reason}); where there is no network, put {files} into "
            f"{target}, or name the folder that holds it by root= or $LAMELLA_DATA"
        ) from fault
