"""A dry run over a backbone: which layers can carry branches, with which roles and rows."""

from typing import NamedTuple

from lamella.adapters.adapter import adapt
from lamella.backbones.load import backbone_options, load_backbone
from lamella.backbones.roles import find_places

__all__ = ["LayerRow", "describe_layers"]


class LayerRow(NamedTuple):
    """One line of `lamella layers`: `called` is whether the forward pass calls the layer, so that branches act."""

    name: str
    roles: tuple[str, ...]
    rows: tuple[tuple[int, int], ...]
    d_in: int
    d_out: int
    called: bool


def describe_layers(name: str, *, size: int | None = None) -> list[LayerRow]:
    """Every layer of backbone `name` (random weights) that has a role, with the rows of each role."""
    options = {"weights": "random"} if "weights" in backbone_options({"name": name}) else {}
    backbone = load_backbone(name, **options, **({} if size is None else {"size": size}))
    rows: list[LayerRow] = []
    for place in find_places(backbone.model):
        share = place.d_out // len(place.roles)
        extents = tuple((i * share, (i + 1) * share) for i in range(len(place.roles)))
        try:
            called = bool(backbone.reached(list(adapt(backbone.model, place.name))))
        except TypeError:
            called = False
        rows.append(LayerRow(place.name, place.roles, extents, place.d_in, place.d_out, called))
    return rows
