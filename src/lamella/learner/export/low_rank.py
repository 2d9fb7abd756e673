"""Changes of weights in the form in which PEFT stores LoRA."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from lamella.adapters.pairs import Pair, low_rank
from lamella.common.words import many

__all__ = ["Differences", "DoraPair", "Stored", "adapter_tensors", "lora_options", "pairs_of", "told_ranks"]

Differences = Mapping[str, tuple[Tensor, Tensor]]
"""By layer, the change of its weight (float64), and the original weight."""


class DoraPair(NamedTuple):
    """The change B A of a weight, whose rows are then given these lengths.

    Attributes:
        A: (rank, d_in).
        B: (d_out, rank).
        magnitude: (d_out,) the lengths of the rows of the changed weight.
    """

    A: Tensor
    B: Tensor
    magnitude: Tensor


Stored = Pair | DoraPair
"""The change of a weight as PEFT has it in a folder."""
_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def pairs_of(differences: Differences, merges: int, instead: str) -> dict[str, Pair]:
    """Factorise the changes of all weights; layers that did not change are left out.

    Args:
        differences: the changes.
        merges: how many times a change was added to a weight.
        instead: what to do where there is no such change, as the end of a message.

    Raises:
        ValueError: no weight changed, or the change of a weight has no low rank.
    """
    pairs = {name: low_rank(change, weight, merges) for name, (change, weight) in differences.items()}
    pairs = {name: pair for name, pair in pairs.items() if len(pair.A)}
    if not pairs:
        raise ValueError(f"no weight of the backbone changed, so there is no adapter; {instead}")
    full = [n for n, p in pairs.items() if len(p.A) * sum(differences[n][1].shape) >= p.A.shape[1] * len(p.B)]
    if full:
        raise ValueError(
            f"the change of layer '{full[0]}' has the rank {len(pairs[full[0]].A)}, so that LoRA would be larger "
            f"than the weight; {instead}"
        )
    return pairs


def lora_options(pairs: Mapping[str, Stored]) -> dict[str, Any]:
    """Return the arguments of PEFT's LoraConfig: every layer has its own rank, and its change is B A itself."""
    ranks = {name: len(pair.A) for name, pair in pairs.items()}
    largest = max(ranks.values())
    dora = any(isinstance(pair, DoraPair) for pair in pairs.values())
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


def adapter_tensors(pairs: Mapping[str, Stored]) -> dict[str, Tensor]:
    """Return the tensors of an adapter_model.safetensors by their names."""
    return {
        f"base_model.model.{name}.{_NAMES[part]}": tensor
        for name, pair in pairs.items()
        for part, tensor in pair._asdict().items()
    }


def told_ranks(pairs: Mapping[str, Stored]) -> str:
    """Return a line about the ranks."""
    ranks = [len(pair.A) for pair in pairs.values()]
    low, high = min(ranks), max(ranks)
    return f"rank {low if low == high else f'{low} to {high}'} on {many(len(ranks), 'layer')}"
