"""Variants of LoRA as PEFT stores them: DoRA, VeRA, and starts that take a part of the weight.

A start such as PiSSA moves a part of the weight into A and B. PEFT stores A and B alone, and takes the same part from
the weight again when it loads them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["HARMLESS", "TAKEN", "vera_as_lora", "with_lengths"]

HARMLESS = ("gaussian", "eva", "orthogonal", "mica")
"""The starts that leave the weight as it is, by the name that PEFT's "init_lora_weights" has."""
_VERA = ("vera_lambda_b", "vera_lambda_d")


def _largest(weight: Tensor, rank: int, scale: float) -> Tensor:
    """The part of a weight (d_out, d_in) with its largest singular values: what PiSSA takes."""
    U, s, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ Vh[:rank]


def _first_of_qr(weight: Tensor, rank: int, scale: float) -> Tensor:
    """The first columns of Q times the first rows of R of a weight (d_out, d_in), times the scale: what OLoRA takes."""
    Q, R = torch.linalg.qr(weight.double())
    return scale * Q[:, :rank] @ R[:rank]


TAKEN: dict[object, Callable[[Tensor, int, float], Tensor]] = {"pissa": _largest, "olora": _first_of_qr}
"""By the name of the start, the part of a weight that it takes at a rank and a scale; "olora" is arXiv 2406.01775."""


def with_lengths(weight: Tensor, lengths: Tensor | None, layer: str, folder: Path) -> Tensor:
    """Give the rows of a weight (d_out, d_in) the lengths that DoRA trained.

    Raises:
        ValueError: there are no such lengths, or not one for each row.
    """
    if lengths is None or lengths.numel() != len(weight) or not bool(lengths.isfinite().all()):
        raise ValueError(
            f"'{folder}' is a DoRA and has no lora_magnitude_vector of '{layer}' with {len(weight)} finite numbers; "
            "save it with PEFT again"
        )
    return weight * (lengths.to(weight).reshape(-1, 1) / weight.norm(dim=1, keepdim=True))


def vera_as_lora(state: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a VeRA as those of a LoRA whose scale is 1.

    Every layer has the whole of the shared A; of its columns it reads as many as it has inputs.

    Raises:
        ValueError: the random A and B are not in the folder, or do not fit the vectors.
    """
    A, B = (_shared(state, name, folder) for name in ("vera_A", "vera_B"))
    found = {key: value for key, value in state.items() if not key.endswith((*_VERA, "vera_A", "vera_B"))}
    for layer in dict.fromkeys(key.rpartition(".")[0] for key in state if key.endswith(_VERA)):
        if any(f"{layer}.{name}" not in state for name in _VERA):
            raise ValueError(f"'{folder}' has one of {' and '.join(_VERA)} of '{layer}' without the other")
        b, d = (state[f"{layer}.{name}"].double() for name in _VERA)
        if b.ndim != 1 or len(b) > len(B) or d.shape != A.shape[:1] or len(A) != B.shape[1]:
            raise ValueError(f"'{folder}' has vectors of '{layer}' that do not fit its vera_A and vera_B")
        found[f"{layer}.lora_A.weight"] = d[:, None] * A.double()
        found[f"{layer}.lora_B.weight"] = b[:, None] * B[: len(b)].double()
    return found


def _shared(state: Mapping[str, Tensor], name: str, folder: Path) -> Tensor:
    found = [value for key, value in state.items() if key.endswith(name)]
    if len(found) != 1 or found[0].ndim != 2:
        raise ValueError(f"'{folder}' is a VeRA without its {name}; save it with save_projection=True")
    return found[0]
