"""Nearest class mean under cosine similarity: what frozen features give without any training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize


def nearest_mean_accuracy(network: nn.Module, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Fraction of `test` right; both are inputs `(n, 3, 32, 32)` and labels `(n,)` counted from 0."""
    features, labels = _features(network, train[0]), train[1]
    means = torch.stack([features[labels == c].mean(dim=0) for c in range(int(labels.max()) + 1)])
    scores = _features(network, test[0]) @ normalize(means, dim=1).T
    return (scores.argmax(dim=1) == test[1]).float().mean().item()


def network_inputs(grey: np.ndarray) -> Tensor:
    """Enlarges grey images `(n, h, w)` in 0..1 to inputs `(n, 3, 32, 32)` with mean and std 0.5."""
    images = torch.from_numpy(np.ascontiguousarray(grey, dtype=np.float32))[:, None]
    images = interpolate(images, 32, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    return images.expand(-1, 3, -1, -1) * 2 - 1


def split_digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """scikit-learn's digits, 80 % for training and 20 % for testing, stratified, seed 0."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    inputs, targets = network_inputs(images.reshape(-1, 8, 8) / 16), torch.from_numpy(labels)
    train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return (inputs[train], targets[train]), (inputs[test], targets[test])


@torch.inference_mode()
def _features(network: nn.Module, images: Tensor) -> Tensor:
    network.eval()
    return torch.cat([normalize(network(batch), dim=1) for batch in images.split(500)])
