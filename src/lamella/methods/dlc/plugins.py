"""Plugins of a residual network: where they sit, and the tails that they tune.

A plugin is an adapter on convolutions near the classifier. The network is cut before the block of the first of them:
the trunk runs once, and its output goes through the tail once for each plugin and once without any, the lanes. All
lanes run as one batch (lanes.py); on a CPU many images go through the tails in parts that stay within its caches.
`benchmarks/ratios.py dlc-tails` compares the batch with loops.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Site, adapt, grow, using
from lamella.backbones import Backbone
from lamella.backbones.resnets import block_names, check_split, split
from lamella.common.checks import check_one_of
from lamella.data.samples import Samples
from lamella.methods.dlc.lanes import LanedConv2d
from lamella.methods.method import Method

__all__ = ["FORMS", "LAYERS", "Tails", "check_base", "plugin_layers"]

LAYERS = ("last-conv", "last-block", "last-stage", "last-two-stages")
FORMS = ("batched", "loop")
AT_ONCE = 3 * 2**18  # numbers that enter the tails together on a CPU: as float32 3 MiB


def check_base(base: Method, backbone: Backbone) -> None:
    """Refuse a base whose features are not those of the one network that plugins would tune.

    Raises:
        ValueError: it is on another backbone, or has several networks or experts.
    """
    name = type(base).__name__
    if base.backbone is not backbone:
        raise ValueError(f"the base {name} was built on another backbone; give both the same one")
    if base.routed or base.widens:
        raise ValueError(f"{name} has several networks or experts, so plugins cannot tune one; use replay, icarl or wa")


def plugin_layers(model: nn.Module, wanted: Sequence[str]) -> tuple[str, ...]:
    """Names of the convolutions that carry plugins; those of shortcuts only where a pattern names them.

    Args:
        wanted: words of LAYERS, or patterns of layer names such as "layer4.*.conv2".

    Raises:
        ValueError: the network has no stages of blocks, or an entry matches no convolution of them.
    """
    blocks = block_names(model)
    stages = list(dict.fromkeys(block.split(".")[0] for block in blocks))
    inside = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and n.startswith(tuple(blocks))]
    plain = [n for n in inside if n.rpartition(".")[0] in blocks and cast(Any, model.get_submodule(n)).groups == 1]
    meant = {
        "last-conv": plain[-1:],
        "last-block": [name for name in plain if name.startswith(f"{blocks[-1]}.")],
        "last-stage": [name for name in plain if name.startswith(f"{stages[-1]}.")],
        "last-two-stages": [name for name in plain if name.split(".")[0] in stages[-2:]],
    }
    found: set[str] = set()
    for entry in wanted:
        matching = meant.get(entry) or [name for name in inside if fnmatchcase(name, entry)]
        if not matching:
            raise ValueError(
                f"plugins find no convolution '{entry}'; use {', '.join(LAYERS)}, or layer names such as '{plain[-1]}'"
            )
        found |= set(matching)
    return tuple(name for name in inside if name in found)


class Tails:
    """A residual network as one trunk and, for each plugin, a tail. Any other pass through it sees no plugin.

    Args:
        backbone: its model gets layers that can carry plugins; its outputs and keys stay as they are.
        wanted: which convolutions, as in `plugin_layers`.
        rank, factorisation: of each plugin's branches.

    Attributes:
        sites: where plugins sit. at: the block before which the network is cut.

    Raises:
        ValueError: no such layers, a layer carries adapters of another method, or the network cannot be cut.
        TypeError: a layer can carry adapters of another method, whose sites would lead nowhere.
    """

    def __init__(self, backbone: Backbone, wanted: Sequence[str], rank: int = 2, factorisation: str = "kernel") -> None:
        model = backbone.model
        names = plugin_layers(model, wanted)
        self.model, self.rank, self.factorisation = model, rank, factorisation
        self.at = next(block for block in block_names(model) if names[0].startswith(f"{block}."))
        check_split(model, self.at, backbone.transform)
        # In the first block every convolution may meet the input that all lanes share.
        children = model.get_submodule(self.at).named_children()
        first = [f"{self.at}.{n}" for n, m in children if isinstance(m, nn.Conv2d) and m.groups == 1]
        self._laned = adapt(model, list(dict.fromkeys([*first, *names])), convolution=LanedConv2d)
        self.sites: tuple[Site, ...] = tuple(site for site in self._laned if site.name in names)
        for name, layer, _ in self._laned:
            if layer.branches:
                raise ValueError(f"layer '{name}' carries adapters of another method, so plugins cannot be told apart")
            layer.acting = {}

    def trunk(self, x: Samples) -> Tensor:
        """Images (n, 3, size, size) -> what enters the tails (n, c, h, w)."""
        return split(self.model, self.at)[0](x)

    def __call__(self, z: Tensor, lanes: Sequence[str], form: str = "batched") -> Tensor:
        """The features of each lane, (n, len(lanes), d).

        Args:
            z: (n, c, h, w) from the trunk.
            lanes: adapter names; "", or a plugin that is not there, is the plain model.
            form: "batched", all lanes as one batch, or "loop", a lane after the other, the plain form that tests and
                benchmarks compare with; equal up to rounding.

        Raises:
            ValueError: an unknown form.
        """
        check_one_of("form", form, FORMS)
        if form == "loop":
            tail = split(self.model, self.at)[1]
            features: list[Tensor] = []
            for name in lanes:
                with using(self.sites, [name] if self.has(name) else []):
                    features.append(tail(z))
            return torch.stack(features, 1)
        size = AT_ONCE // (len(lanes) * z.shape[1:].numel()) if z.device.type == "cpu" else len(z)
        return torch.cat([self._batched(part, lanes) for part in z.split(max(size, 1))])

    def _batched(self, z: Tensor, lanes: Sequence[str]) -> Tensor:
        repeated = z.repeat_interleave(len(lanes), 0)
        with self._running(lanes, repeated):
            return split(self.model, self.at)[1](repeated).unflatten(0, (-1, len(lanes)))

    def grow(self, name: str, generator: torch.Generator) -> None:
        """Add a plugin, which changes nothing yet: its A is drawn, its B zero."""
        grow(self.sites, name, self.rank, generator=generator, factorisation=self.factorisation)

    def has(self, name: str) -> bool:
        """Whether any layer carries a plugin of this name."""
        return any(name in site.layer.branches for site in self.sites)

    def factors(self, names: Sequence[str]) -> list[nn.Parameter]:
        """What is trained of these plugins."""
        branches = [b for site in self.sites for name in names for b in site.layer.of(name)]
        return [factor for branch in branches for factor in (branch.A, branch.B)]

    @contextmanager
    def _running(self, lanes: Sequence[str], shared: Tensor) -> Generator[None]:
        layers = [cast(LanedConv2d, site.layer) for site in self._laned]
        for layer in layers:
            layer.lanes, layer.shared = tuple(lanes), shared
        try:
            yield
        finally:
            for layer in layers:
                layer.lanes, layer.shared = (), None
