"""Changes of weights as LoRA in their numerical rank, in the form in which PEFT stores them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Differences", "Pair", "adapter_tensors", "lora_options", "low_rank", "pairs_of", "told_ranks"]

Differences = Mapping[str, tuple[Tensor, Tensor]]
"""By layer, the change of its weight (float64), and the original weight."""


class Pair(NamedTuple):
    """The change B A of a weight.

    Attributes:
        A: (rank, d_in).
        B: (d_out, rank).
        magnitude: in DoRA, the lengths (d_out,) of the rows of the changed weight; else None.
    """

    A: Tensor
    B: Tensor
    magnitude: Tensor | None = None


def low_rank(change: Tensor, weight: Tensor, merges: int = 1) -> Pair:
    """Factorise the change of a float32 weight, in its numerical rank.

    Singular values above the rounding noise count. Each addition to the weight rounds its entries by up to eps / 2 of
    their size. After `merges` additions that is a random matrix whose norm is about eps / sqrt 12 x rms x
    (sqrt m + sqrt n) x sqrt(merges).

    Args:
        change: (m, n).
        weight: (m, n).
        merges: how many times a change was added to the weight.
    """
    D = change.double()
    rms = weight.double().square().mean().sqrt()
    eps = torch.finfo(torch.float32).eps
    noise = eps * rms * (D.shape[0] ** 0.5 + D.shape[1] ** 0.5) * merges**0.5
    _, s, Vh = torch.linalg.svd(D, full_matrices=False)
    A = Vh[: int((s > noise).sum())]
    return Pair(A.float().contiguous(), (D @ A.T).float().contiguous())  # rows of zeros stay zero


def pairs_of(differences: Differences, merges: int, whole: str) -> dict[str, Pair]:
    """Factorise the changes of all weights; layers that did not change are left out.

    Args:
        differences: the changes.
        merges: how many times a change was added to a weight.
        whole: the format that holds whole weights, for messages.

    Raises:
        ValueError: no weight changed, or the change of a weight has no low rank.
    """
    pairs = {name: low_rank(change, weight, merges) for name, (change, weight) in differences.items()}
    pairs = {name: pair for name, pair in pairs.items() if len(pair.A)}
    if not pairs:
        raise ValueError(f"no weight of the backbone changed, so there is no adapter; use --format {whole}")
    full = [n for n, p in pairs.items() if len(p.A) * sum(differences[n][1].shape) >= p.A.shape[1] * len(p.B)]
    if full:
        raise ValueError(
            f"the change of layer '{full[0]}' has the rank {len(pairs[full[0]].A)}, so that LoRA would be larger "
            f"than the weight; use --format {whole}"
        )
    return pairs


def lora_options(pairs: Mapping[str, Pair]) -> dict[str, Any]:
    """Return the arguments of PEFT's LoraConfig: every layer has its own rank, and its change is B A itself."""
    ranks = {name: len(pair.A) for name, pair in pairs.items()}
    largest = max(ranks.values())
    dora = any(pair.magnitude is not None for pair in pairs.values())
    return ({"use_dora": True} if dora else {}) | {
        "r": largest,
        "lora_alpha": largest,
        "target_modules": list(ranks),
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def adapter_tensors(pairs: Mapping[str, Pair]) -> dict[str, Tensor]:
    """Return the tensors of an adapter_model.safetensors by their names."""
    named = {f"{name}.lora_{letter}.weight": t for name, p in pairs.items() for letter, t in (("A", p.A), ("B", p.B))}
    named |= {f"{name}.lora_magnitude_vector": p.magnitude for name, p in pairs.items() if p.magnitude is not None}
    return {f"base_model.model.{key}": value for key, value in named.items()}


def told_ranks(pairs: Mapping[str, Pair]) -> str:
    """Return a line about the ranks."""
    ranks = [len(pair.A) for pair in pairs.values()]
    low, high = min(ranks), max(ranks)
    return f"rank {low if low == high else f'{low} to {high}'} on {len(ranks)} layers"
