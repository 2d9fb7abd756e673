"""The factor that PEFT gives the update of each layer, and the ranks that its configuration promises."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["PATTERNS", "scale_of"]

PATTERNS = ("alpha_pattern", "rank_pattern")
"""The tables of a configuration that have values for single layers."""
PLAIN_KEY = re.compile(r"(\^?)((?:[A-Za-z0-9_.-]|\\\.|\\d\+?)+)")
"""The keys of these tables that are read."""
LONGEST, NUMBERS = 200, 2
"""The largest length of such a key, and how many numbers it may leave open: with many, matching takes for ever."""


def scale_of(config: Mapping[str, Any], layer: str, rank: int, folder: Path) -> float:
    """What PEFT multiplies B A by: alpha / rank, or alpha / sqrt(rank) for rsLoRA; 1 for VeRA, which has no alpha.

    Args:
        config: the adapter's configuration.
        layer: the name of the layer.
        rank: the rank of its pair.
        folder: the adapter's folder, for messages.

    Raises:
        ValueError: alpha is missing or no number above 0, or the configuration has another rank for this layer.
    """
    if config.get("peft_type") == "VERA":
        return 1.0
    alpha = _value(config, layer, "alpha_pattern", "lora_alpha", folder)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ValueError(
            f"the LoRA of '{layer}' in '{folder}' has alpha {alpha!r}; it must be a number above 0, so set lora_alpha "
            "in its adapter_config.json to the one that it was trained with"
        )
    promised = _value(config, layer, "rank_pattern", "r", folder)
    if promised is not None and promised != rank:
        raise ValueError(
            f"the LoRA of '{layer}' in '{folder}' has tensors of rank {rank}, and its adapter_config.json says "
            f"{promised!r}, so the scale alpha / rank is not known; save the adapter with PEFT again"
        )
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _value(config: Mapping[str, Any], layer: str, pattern: str, usual: str, folder: Path) -> Any:
    """Return the value of a layer: that of the first key of the table `pattern` that means it, else the usual one."""
    own = [value for key, value in (config.get(pattern) or {}).items() if _means(key, layer, pattern, folder)]
    return own[0] if own else config.get(usual)


def _means(key: str, layer: str, pattern: str, folder: Path) -> bool:
    """Return whether a key of a table of layers means this layer: its name, or the end of it.

    PEFT reads keys as regular expressions. A stranger's expression could take for ever, so only the usual forms are
    read: names, "\\." for a dot, "\\d" and "\\d+" for a number, and "^" for the beginning of the name.

    Raises:
        ValueError: the key has another form.
    """
    found = PLAIN_KEY.fullmatch(key) if len(key) <= LONGEST and key.count("\\d") <= NUMBERS else None
    if found is None:
        raise ValueError(
            f"the key {key[:60]!r} of '{pattern}' in '{folder}' is an expression that is not read; write the name of a "
            f"layer, in which \\d+ may stand for a number, {NUMBERS} times at most"
        )
    name = re.sub(r"(?<!\\)\.", r"\\.", found[2])
    return re.fullmatch(("" if found[1] else r"(?:.*\.)?") + name, layer) is not None
