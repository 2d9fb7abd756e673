"""Which layer of a transformer plays which role, for architectures that name their layers in the usual ways."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from lamella.common.checks import did_you_mean

__all__ = ["ROLES", "LayerPlace", "find_places", "in_order", "parse_roles", "roles_of_name", "rows_of", "share_of"]

ROLES = ("query", "key", "value", "out", "mlp")

_FUSED = ("query", "key", "value")

# The last part of a layer's name -> its roles, in the order of the layer's output rows.
_NAMES: dict[str, tuple[str, ...]] = {
    "qkv": _FUSED,
    "in_proj": _FUSED,
    "query_key_value": _FUSED,
    "qkv_proj": _FUSED,
    "Wqkv": _FUSED,
    "c_attn": _FUSED,
    "q": ("query",),
    "q_proj": ("query",),
    "query": ("query",),
    "query_proj": ("query",),
    "to_q": ("query",),
    "q_lin": ("query",),
    "k": ("key",),
    "k_proj": ("key",),
    "key": ("key",),
    "key_proj": ("key",),
    "to_k": ("key",),
    "k_lin": ("key",),
    "v": ("value",),
    "v_proj": ("value",),
    "value": ("value",),
    "value_proj": ("value",),
    "to_v": ("value",),
    "v_lin": ("value",),
    "kv": ("key", "value"),
    "proj": ("out",),
    "out_proj": ("out",),
    "o_proj": ("out",),
    "to_out": ("out",),
    "out_lin": ("out",),
    "fc1": ("mlp",),
    "fc2": ("mlp",),
    "lin1": ("mlp",),
    "lin2": ("mlp",),
    "gate_proj": ("mlp",),
    "up_proj": ("mlp",),
    "down_proj": ("mlp",),
    "gate_up_proj": ("mlp",),
    "Wi": ("mlp",),
    "wi": ("mlp",),
    "wi_0": ("mlp",),
    "wi_1": ("mlp",),
    "c_fc": ("mlp",),
    "ffn": ("mlp",),
    "ffn_output": ("mlp",),
    "dense_h_to_4h": ("mlp",),
    "dense_4h_to_h": ("mlp",),
}

_BY_PARENT = ("dense", "o", "Wo", "wo", "c_proj")
"""Last parts that name the output of an attention within one, and a layer of an MLP elsewhere in a block."""
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_MLP = re.compile(r"mlp|intermediate|ffn|^output$|DenseReluDense")
_SUBLAYER = re.compile(r"(?<=block)(\.\d+)\.layer\.\d+(?=\.)")  # T5 counts attention and MLP of a block, too


class LayerPlace(NamedTuple):
    """A linear layer, the roles its output rows play in order, and the block it belongs to."""

    name: str
    roles: tuple[str, ...]
    block: int
    d_in: int
    d_out: int


def roles_of_name(name: str) -> tuple[str, ...]:
    """The roles of a layer by its name in the network; none where that says nothing.

    The last part of the name decides, or where it is used for several roles, the parts within the layer's block.

    >>> roles_of_name("layers.0.self_attn.q_proj"), roles_of_name("layers.0.norm")
    (('query',), ())
    >>> roles_of_name("encoder.layer.0.attention.output.dense"), roles_of_name("encoder.layer.0.output.dense")
    (('out',), ('mlp',))
    """
    *parents, last = name.split(".")
    if last not in _BY_PARENT:
        return _NAMES.get(last, ())
    after_number = next((i for i in range(len(parents), 0, -1) if parents[i - 1].isdigit()), 0)
    inside = parents[after_number:]
    if any(map(_ATTENTION.search, inside)):
        return ("out",)
    return ("mlp",) if any(map(_MLP.search, inside)) else ()


def find_places(model: nn.Module) -> list[LayerPlace]:
    """The layers with a known role, in the model's order, in which blocks are counted, too; see `in_order`."""
    places: list[LayerPlace] = []
    for name, layer in model.named_modules():
        roles = roles_of_name(name)
        if roles and _block_of(name) and isinstance(layer, nn.Linear):
            places.append(LayerPlace(name, roles, 0, layer.in_features, layer.out_features))
    return in_order(places, [place.name for place in places])


def in_order(places: Sequence[LayerPlace], called: Sequence[str]) -> list[LayerPlace]:
    """Count blocks in the order in which the network calls their layers.

    Args:
        places: layers with a role.
        called: the names of layers in this order; the blocks of others come last.

    Returns:
        The places with the number of their block, in the order of `places`.
    """
    blocks = dict.fromkeys(_block_of(name) for name in (*called, *(place.name for place in places)))
    number = {block: i for i, block in enumerate(blocks)}
    return [place._replace(block=number[_block_of(place.name)]) for place in places]


def _block_of(name: str) -> str:
    """Return the name of the block that a layer belongs to: up to the last number before its attention or MLP.

    OPT and BART have no part of a name for the MLP: its layers lie in the block itself, right after its number.

    >>> _block_of("blocks.3.attn.qkv"), _block_of("layers.0.blocks.1.mlp.fc1"), _block_of("head.fc1")
    ('blocks.3', 'layers.0.blocks.1', '')
    >>> _block_of("encoder.layer.2.output.dense"), _block_of("encoder.block.1.layer.0.SelfAttention.q")
    ('encoder.layer.2', 'encoder.block.1')
    >>> _block_of("decoder.layers.4.fc1")
    'decoder.layers.4'
    """
    parts = _SUBLAYER.sub(r"\1", name).split(".")
    inside = [i for i, part in enumerate(parts) if _ATTENTION.search(part) or _MLP.search(part)]
    if not inside and parts[-2:-1] and parts[-2].isdigit() and "mlp" in _NAMES.get(parts[-1], ()):
        inside = [len(parts) - 1]
    numbers = [i for i, part in enumerate(parts[:-1]) if part.isdigit()] if inside else []
    before = [i for i in numbers if i < inside[-1]]
    return ".".join(parts[: (before[-1:] or numbers)[0] + 1]) if numbers else ""


def rows_of(place: LayerPlace, wanted: Sequence[str]) -> slice | None:
    """The rows of a layer that play the wanted roles; None where it plays none of them.

    Raises:
        ValueError: they are not contiguous (query and value of a fused layer): those need a branch each.
    """
    positions = [i for i, role in enumerate(place.roles) if role in wanted]
    if not positions:
        return None
    if positions[-1] - positions[0] + 1 != len(positions):
        raise ValueError(
            f"'{'+'.join(wanted)}' are not neighbouring rows of layer '{place.name}', so they cannot share one branch; "
            f"name them apart: {list(wanted)}"
        )
    return slice(share_of(place, place.roles[positions[0]]).start, share_of(place, place.roles[positions[-1]]).stop)


def share_of(place: LayerPlace, role: str) -> slice:
    """The rows of one role of a layer, where roles lie one after the other."""
    share, i = place.d_out // len(place.roles), place.roles.index(role)
    return slice(i * share, (i + 1) * share)


def parse_roles(text: str) -> tuple[str, ...]:
    """ "key+value" -> ("key", "value").

    Raises:
        ValueError: an unknown role.
    """
    roles = tuple(part.strip() for part in text.split("+"))
    for role in roles:
        if role not in ROLES:
            raise ValueError(f"unknown role '{role}'{did_you_mean(role, ROLES)}; roles are {', '.join(ROLES)}")
    return roles
