"""Which layer of a transformer plays which role, for architectures that name their layers in the usual ways."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

from torch import nn

__all__ = ["ROLES", "LayerPlace", "find_places", "roles_of_name", "rows_of"]

ROLES = ("query", "key", "value", "out", "mlp")

# The last part of a layer's name -> its roles, in the order of the layer's output rows.
_NAMES: dict[str, tuple[str, ...]] = {
    "qkv": ("query", "key", "value"),
    "in_proj": ("query", "key", "value"),
    "query_key_value": ("query", "key", "value"),
    "q": ("query",),
    "q_proj": ("query",),
    "query": ("query",),
    "to_q": ("query",),
    "q_lin": ("query",),
    "k": ("key",),
    "k_proj": ("key",),
    "key": ("key",),
    "to_k": ("key",),
    "k_lin": ("key",),
    "v": ("value",),
    "v_proj": ("value",),
    "value": ("value",),
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
}


class LayerPlace(NamedTuple):
    """A linear layer, the roles its output rows play in order, and the block it belongs to."""

    name: str
    roles: tuple[str, ...]
    block: int
    d_in: int
    d_out: int


def roles_of_name(last: str) -> tuple[str, ...]:
    """The roles of a layer by the last part of its name; none where that says nothing.

    >>> roles_of_name("q_proj"), roles_of_name("norm")
    (('query',), ())
    """
    return _NAMES.get(last, ())


def find_places(model: nn.Module) -> list[LayerPlace]:
    """The layers with a known role, in the model's order. A block is counted by the first number in the name."""
    places: list[LayerPlace] = []
    for name, layer in model.named_modules():
        roles = roles_of_name(name.rsplit(".", 1)[-1])
        number = re.search(r"\.(\d+)\.", f".{name}.")
        inside = re.search(r"attn|attention|mlp|intermediate|ffn", name)
        if roles and number and inside and isinstance(layer, nn.Linear):
            places.append(LayerPlace(name, roles, int(number[1]), layer.in_features, layer.out_features))
    return places


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
    share = place.d_out // len(place.roles)
    return slice(positions[0] * share, (positions[-1] + 1) * share)


def parse_roles(text: str) -> tuple[str, ...]:
    """ "key+value" -> ("key", "value").

    Raises:
        ValueError: an unknown role.
    """
    roles = tuple(part.strip() for part in text.split("+"))
    for role in roles:
        if role not in ROLES:
            near = get_close_matches(role, ROLES, 1)
            raise ValueError(
                f"unknown role '{role}'{f', did you mean {near[0]!r}?' if near else ''}; roles are {', '.join(ROLES)}"
            )
    return roles
