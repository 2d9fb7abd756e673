"""Plugins of a residual network: where they sit, and the tails that they tune.

A plugin is an adapter on convolutions near the classifier. The network is cut before the block of the first of them:
the trunk runs once, and its output goes through the tail once for each plugin and once without any, the lanes. All
lanes run as one batch: what plugins do not touch (batch norm in eval mode, shortcuts, pooling) sees a larger batch, and
in an adapted convolution the base weight sees it too, while the low-rank parts are one convolution with a group a lane.
In a narrow layer, where those parts are as dear as the weight, each group has its whole kernel instead. On a CPU many
images go through the tails in parts that stay within its caches. benchmarks/dlc_tails.py compares the batch with loops.

For that a branch of either factorisation is taken as two convolutions, k x k into few channels and 1 x 1 out of them.
"kernel" branches are such a pair as well: B A, viewed as (c_out, c_in k k), is B, viewed as (c_out, k r k), times k
copies of A along a diagonal, (k r k, c_in k k).
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.backbones import Backbone
from lamella.backbones.resnets import block_names, check_split, split
from lamella.lowrank import AdaptedConv2d, Branch, Site, adapt, adapter_state, grow, using

__all__ = ["FORMS", "LAYERS", "LanedConv2d", "Tails", "as_two_convolutions", "check_base", "plugin_layers"]

LAYERS = ("last-conv", "last-block", "last-stage", "last-two-stages")
FORMS = ("batched", "loop")
AT_ONCE = 3 * 2**18  # numbers that enter the tails together on a CPU: as float32 3 MiB


def check_base(base: Any, backbone: Backbone) -> None:
    """Refuse a base whose features are not those of the one network that plugins would tune.

    Raises:
        ValueError: it is on another backbone, has no features, or has several networks or experts.
    """
    name = type(base).__name__
    if getattr(base, "backbone", None) is not backbone:
        raise ValueError(f"the base {name} was built on another backbone; give both the same one")
    if not callable(getattr(base, "features", None)):
        raise ValueError(f"plugins need a base with features; {name} has none")
    if getattr(base, "routed", False) or any(isinstance(child, nn.ModuleList) for child in base.children()):
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


def as_two_convolutions(branch: Branch, kernel: int) -> tuple[Tensor, Tensor]:
    """A branch's update of a k x k convolution as a k x k one (q, c_in, k, k), then a 1 x 1 one (c_out, q, 1, 1)."""
    if branch.A.ndim == 4:
        return branch.A, branch.B * branch.scale
    reduce = torch.block_diag(*[branch.A] * kernel)
    c_in, q = branch.A.shape[1] // kernel, len(reduce)
    return reduce.reshape(q, c_in, kernel, kernel), branch.B.reshape(-1, q, 1, 1) * branch.scale


class LanedConv2d(AdaptedConv2d):
    """A convolution whose batch may hold every image several times, once a lane, each with its own adapter.

    Attributes:
        lanes: the adapter of each lane; a name that this layer does not carry leaves the base weight alone. Without
            lanes it is an adapted convolution like any other.
        shared: the tail's input, equal in all lanes, whose base part is therefore computed once.
    """

    lanes: tuple[str, ...] = ()
    shared: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """(n, c_in, h, w), or (n lanes, c_in, h, w) with the lanes of an image beside each other -> c_out channels."""
        if not self.lanes:
            return super().forward(input)
        x = input.unflatten(0, (-1, len(self.lanes)))
        equal = input is self.shared
        if not equal and self._narrow():
            return self._merged(x).flatten(0, 1)
        y = nn.Conv2d.forward(self, x[:, 0] if equal else input)
        y = y[:, None].repeat(1, len(self.lanes), 1, 1, 1) if equal else y.unflatten(0, x.shape[:2])
        acting = [i for i, name in enumerate(self.lanes) if name in self.branches]
        if acting:
            neighbours = acting[-1] - acting[0] + 1 == len(acting)
            which = slice(acting[0], acting[-1] + 1) if neighbours else acting  # a slice is read in place
            y[:, which] += self._updates(x[:, 0] if equal else x[:, which], [self.lanes[i] for i in acting])
        return y.flatten(0, 1)

    def _narrow(self) -> bool:
        """Whether the low-rank part is so wide beside the weight that a whole kernel for each lane is cheaper."""
        k = self.weight.shape[-1]
        channels = [b.rank * (k if b.A.ndim == 2 else 1) for name in self.lanes for b in self.of(name)]
        return 4 * max(channels, default=0) >= self.weight.shape[0]

    def _merged(self, x: Tensor) -> Tensor:
        """(n, lanes, c_out, h', w'): every lane with its own whole kernel, as one grouped convolution."""
        deltas = [sum(b.delta(self.weight.shape) for b in self.of(name)) for name in self.lanes]
        kernel = torch.cat([self.weight + delta for delta in deltas])
        y = self._grouped(x.flatten(1, 2), kernel, len(self.lanes)).unflatten(1, (len(self.lanes), -1))
        return y if self.bias is None else y + self.bias[:, None, None]

    def _updates(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """(n, t, c_out, h', w') of the t adapters, from an input each (n, t, c_in, h, w) or one for all."""
        pairs = [[as_two_convolutions(b, self.weight.shape[-1]) for b in self.of(name)] for name in names]
        A = torch.cat([a for pair in pairs for a, _ in pair])
        B = torch.cat([torch.cat([b for _, b in pair], 1) for pair in pairs])
        apart = x.ndim == 5
        z = self._grouped(x.flatten(1, 2) if apart else x, A, len(names) if apart else 1)
        return F.conv2d(z, B, groups=len(names)).unflatten(1, (len(names), -1))

    def _grouped(self, x: Tensor, kernel: Tensor, groups: int) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        return F.conv2d(x, kernel, None, self.stride, padding, self.dilation, groups)


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
        check_split(model, self.at, backbone.transform.size)
        # In the first block every convolution may meet the input that all lanes share.
        children = model.get_submodule(self.at).named_children()
        first = [f"{self.at}.{n}" for n, m in children if isinstance(m, nn.Conv2d) and m.groups == 1]
        self._laned = adapt(model, list(dict.fromkeys([*first, *names])), convolution=LanedConv2d)
        self.sites: tuple[Site, ...] = tuple(site for site in self._laned if site.name in names)
        for name, layer, _ in self._laned:
            if layer.branches:
                raise ValueError(f"layer '{name}' carries adapters of another method, so plugins cannot be told apart")
            layer.acting = {}

    def trunk(self, x: Tensor) -> Tensor:
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
        if form not in FORMS:
            raise ValueError(f"form '{form}' is unknown; use one of {', '.join(FORMS)}")
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

    def detach(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Take plugins out; returns their tensors by the keys of the model.

        Raises:
            ValueError: no plugin of a name is in place.
        """
        state: dict[str, Tensor] = {}
        for name in names:
            if not self.has(name):
                raise ValueError(f"no plugin '{name}' is in place, so it cannot be taken out")
            state |= adapter_state(self.sites, name)
            for site in self.sites:
                if name in site.layer.branches:
                    site.layer.branches.pop(name)
        return state

    def attach(self, state: Mapping[str, Tensor]) -> None:
        """Put plugins back that `detach` returned, or add those of a file.

        Raises:
            ValueError: a plugin is in place already, or is for other layers, or of another rank or factorisation.
        """
        names = dict.fromkeys(key.partition(".branches.")[2].partition(".")[0] for key in state)
        wanted: dict[str, torch.Size] = {}
        for name in names:
            if self.has(name):
                raise ValueError(f"plugin '{name}' is in place already; take it out before you put another one there")
            wanted |= self._shapes(name)
        odd = [key for key in (*state, *wanted) if key not in wanted or key not in state]
        if odd:
            what = "has no place" if odd[0] in state else "is missing"
            raise ValueError(
                f"'{odd[0]}' {what}: plugins here sit on {', '.join(s.name for s in self.sites)}, on all of them"
            )
        for key, shape in wanted.items():
            if state[key].shape != shape:
                raise ValueError(
                    f"'{key}' has the shape {tuple(state[key].shape)}, but a plugin of rank {self.rank} in the "
                    f"'{self.factorisation}' factorisation has {tuple(shape)} there; it belongs to another model"
                )
        self.model.load_state_dict(self.model.state_dict() | dict(state))

    def _shapes(self, name: str) -> dict[str, torch.Size]:
        """The shape of each tensor of a plugin, by the keys of the model."""
        shapes: dict[str, torch.Size] = {}
        for site in self.sites:
            A, B = site.layer.new_factors(self.rank, site.rows, self.factorisation)
            branch = Branch(A, B, site.rows).state_dict(prefix=f"{site.name}.branches.{name}.0.")
            shapes |= {key: value.shape for key, value in branch.items()}
        return shapes

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
