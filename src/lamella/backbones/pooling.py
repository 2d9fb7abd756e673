"""From the vectors of a text's tokens to one vector of the text."""

from pathlib import Path

import torch
from torch import Tensor

from lamella.common.files import read_json

__all__ = ["POOLS", "pool_of_folder", "pooled"]

POOLS = ("mean", "first", "last", "max")
"""How the vectors of tokens become one: their mean or largest numbers, or the first or the last of them."""

_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}
"""The names of sentence-transformers."""


def pooled(tokens: Tensor, mask: Tensor, pool: str) -> Tensor:
    """The vector of each text.

    Args:
        tokens: (n, t, d), the vectors of all tokens.
        mask: (n, t) bool, False for padding; each text has a token at least. For "first", padding stands behind it.
        pool: one of POOLS.

    Returns:
        (n, d)
    """
    if pool == "first":
        return tokens[:, 0]
    if pool == "last":
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
        return tokens[torch.arange(tokens.shape[0], device=tokens.device), last]
    if pool == "max":
        return tokens.masked_fill(~mask[..., None], -torch.inf).amax(1)
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def pool_of_folder(folder: Path) -> str | None:
    """How sentence-transformers pools the tokens of a model; None where the folder is not one of theirs.

    Raises:
        ValueError: it joins several poolings, or has one that is unknown here.
    """
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"'{path}' is not a table of a pooling")
    named = config.get("pooling_mode")  # what their newest version writes instead of the switches
    if isinstance(named, str):
        chosen = [{"cls": "first", "lasttoken": "last"}.get(named, named)]
    else:
        chosen = [_MODES.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    if len(chosen) != 1 or chosen[0] not in POOLS:
        raise ValueError(
            f"'{path}' pools tokens by {' and '.join(map(repr, chosen)) or 'nothing'}, which cannot be had; choose one "
            f"with backbone.pool, of {', '.join(POOLS)}"
        )
    return chosen[0]
