"""Plugins of a residual network: where they sit, and the tails that they adapt.

A plugin is an adapter on convolutions near the classifier. The network is cut before the block of the first of them.
The trunk runs once; its output goes through the tail once for each plugin and once without any. These passes are the
lanes, and they run as one batch (lanes.py). On a CPU a large batch is divided into parts that fit into its caches.
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
AT_ONCE = 3 * 2**18  # the most numbers that enter the tails at once on a CPU: 3 MiB as float32


def check_base(base: Method, backbone: Backbone) -> None:
    """Refuse a base whose features do not come from the one network that plugins would adapt.

    Args:
        base: the base method.
        backbone: the backbone that the plugins are for.

    Raises:
        ValueError: the base was built on another backbone, or has several networks or experts.
    """
    name = type(base).__name__
    if base.backbone is not backbone:
        raise ValueError(f"the base {name} was built on another backbone; give both the same one")
    if base.routed or base.widens:
        raise ValueError(f"{name} has several networks or experts, so plugins cannot tune one; use replay, icarl or wa")


def plugin_layers(model: nn.Module, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the convolutions that carry plugins, in the order of the network.

    Args:
        model: the residual network.
        wanted: words of LAYERS, or patterns of layer names such as "layer4.*.conv2". Convolutions of shortcuts are
            found by patterns only.

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
    """A residual network, cut into a trunk and a tail that runs once for each plugin.

    No plugin acts in any other pass through the network.

    Args:
        backbone: its model gets layers that can carry plugins; its outputs and its keys stay as they are.
        wanted: which convolutions carry plugins, as in `plugin_layers`.
        rank: the rank of each plugin's branches; at least 1.
        factorisation: how a branch is factorised, "kernel" or "conv".
        scale: the factor of each plugin's update; above 0.

    Attributes:
        sites: where plugins sit.
        at: the name of the block before which the network is cut.

    Raises:
        ValueError: there are no such layers, a layer carries adapters of another method, or the network cannot be cut.
        TypeError: a layer can already carry adapters of another method, whose sites would become invalid.
    """

    def __init__(
        self,
        backbone: Backbone,
        wanted: Sequence[str],
        rank: int = 2,
        factorisation: str = "kernel",
        scale: float = 1.0,
    ) -> None:
        model = backbone.model
        names = plugin_layers(model, wanted)
        self.model, self.rank, self.factorisation, self.scale = model, rank, factorisation, scale
        self.at = next(block for block in block_names(model) if names[0].startswith(f"{block}."))
        check_split(model, self.at, backbone.transform)
        # Every convolution of the first block may read the input that is the same in all lanes.
        children = model.get_submodule(self.at).named_children()
        first = [f"{self.at}.{n}" for n, m in children if isinstance(m, nn.Conv2d) and m.groups == 1]
        self._laned = adapt(model, list(dict.fromkeys([*first, *names])), convolution=LanedConv2d)
        self.sites: tuple[Site, ...] = tuple(site for site in self._laned if site.name in names)
        for name, layer, _ in self._laned:
            if layer.branches:
                raise ValueError(f"layer '{name}' carries adapters of another method, so plugins cannot be told apart")
            layer.acting = {}

    def trunk(self, x: Samples) -> Tensor:
        """Images (n, 3, size, size) -> the input of the tails (n, c, h, w)."""
        return split(self.model, self.at)[0](x)

    def plain(self, x: Samples) -> Tensor:
        """Images (n, 3, size, size) -> the features (n, d) without plugins."""
        return self(self.trunk(x), [""])[:, 0]

    def __call__(self, z: Tensor, lanes: Sequence[str], form: str = "batched") -> Tensor:
        """Compute the features of each lane, (n, len(lanes), d).

        Args:
            z: (n, c, h, w), the output of the trunk.
            lanes: the plugin of each lane; "", or a name that no plugin has, means the plain model.
            form: "batched" (all lanes as one batch) or "loop" (one lane after the other). Tests and benchmarks compare
                the two; they are equal up to rounding.

        Raises:
            ValueError: the form is unknown.
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
        """Add a plugin with a random A and a zero B, so that it changes nothing yet."""
        form = {"scale": self.scale, "factorisation": self.factorisation}
        grow(self.sites, name, self.rank, generator=generator, **form)

    def has(self, name: str) -> bool:
        """Return whether any layer carries a plugin of this name."""
        return any(name in site.layer.branches for site in self.sites)

    def factors(self, names: Sequence[str]) -> list[nn.Parameter]:
        """Return the trained tensors of these plugins, A and B of each branch."""
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
