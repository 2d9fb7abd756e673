"""Features of samples that come back, kept for as long as the backbone computes the very same function.

An accuracy matrix asks for the same test samples after every task. What a frozen backbone makes of them, or the plain
one that `color` takes its keys from, need not be computed again.

No method says when that is. A function is told by the very objects that a forward pass reads: the modules, all that
they hold, and each tensor with its place in memory, torch's count of changes to it, and a checksum of its content; of
branches only those that act (new experts do not change the plain model). What cannot be told so is computed: in
training mode, with gradients, under hooks and watchers, with gates or coefficients that are tensors or functions, on
anything but the batch at hand.

Torch counts neither what is written through `tensor.data` nor the steps of fused optimisers. The checksum sees them. It
is taken once in every pass, when a tensor is first read in it: nothing learns during a pass.
"""

from array import array
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lamella.adapters.branches import Adapted
from lamella.backbones.class_token import has_hooks
from lamella.common.checksums import checksums
from lamella.data.samples import Samples, tensors_of

__all__ = ["FeatureCache"]


class FeatureCache:
    """Features of one set of samples that is read several times in the same order, in the same batches.

    Args:
        lasting: whether features outlast a pass, where they lie: samples x width numbers for each function that the
            pass asked for (twice that while the next pass runs); else they outlast no batch.
    """

    def __init__(self, *, lasting: bool = True) -> None:
        self.lasting = lasting
        self._kept: dict[_Function, dict[Hashable, Tensor]] = {}
        self._met: set[_Function] = set()
        self._sums: dict[Hashable, int] = {}
        self._seen = 0
        self._batch: Samples | None = None
        self._changes: list[int] = []

    @property
    def numbers(self) -> int:
        """How many numbers are kept."""
        return sum(features.numel() for kept in self._kept.values() for features in kept.values())

    @contextmanager
    def reading(self, backbone: Any) -> Generator[None]:
        """One pass over the samples, in which the backbone answers from here where it can."""
        self._seen, self._met, self._sums = 0, set(), {}
        before, backbone.recall = backbone.recall, self
        try:
            yield
        finally:
            backbone.recall, self._batch = before, None
            self._kept = {f: kept for f, kept in self._kept.items() if f in self._met and self.lasting}

    def turn_to(self, x: Samples) -> None:
        """The next batch of the pass."""
        self._seen += len(x)
        # Inference tensors do not count their changes.
        counts = not any(tensor.is_inference() for tensor in tensors_of(x))
        self._batch, self._changes = (x, _versions(x)) if counts else (None, [])
        if not self.lasting:
            self._kept = {}

    def features(self, backbone: nn.Module, compute: Callable[[Samples], Tensor], x: Samples) -> Tensor:
        """`compute(x)`, which is what `backbone` makes of samples: (n, width), the caller's own."""
        at_hand = x is self._batch and _versions(x) == self._changes
        function = (
            _function_of(backbone, x.device.type, self._contents) if at_hand and not torch.is_grad_enabled() else None
        )
        if function is None:
            return compute(x)
        self._met.add(function)
        kept = self._kept.setdefault(function, {})
        place = self._seen, *((t.shape, t.dtype, t.device) for t in tensors_of(x))
        if place not in kept:
            kept[place] = compute(x).clone()  # features may be a view of all tokens
        return kept[place].clone()

    def _contents(self, tensors: list[Tensor]) -> list[int]:
        """A checksum of each tensor, computed once in a pass; 0 where nothing outlasts a batch."""
        if not self.lasting:
            return [0] * len(tensors)
        states = [(id(t), t.data_ptr(), t._version) for t in tensors]
        new = {state: t for state, t in zip(states, tensors, strict=True) if state not in self._sums}
        self._sums |= zip(new, checksums(list(new.values())), strict=True)
        return [self._sums[state] for state in states]


def _versions(x: Samples) -> list[int]:
    """torch's count of changes to each tensor of a batch."""
    return [tensor._version for tensor in tensors_of(x)]


@dataclass(frozen=True)
class _Function:
    """What a module computes. `key` has addresses of objects, which stay theirs while `held` keeps them alive."""

    key: Hashable
    held: list[Any] = field(compare=False, repr=False)


def _function_of(module: nn.Module, device: str, contents: Callable[[list[Tensor]], list[int]]) -> _Function | None:
    """What the module computes on a device of this type, as its objects and the `contents` of its tensors tell it.

    None where it cannot be told.
    """
    objects: list[Any] = []
    tensors: list[Tensor] = []
    states: list[Hashable] = [
        torch.is_autocast_enabled(device),
        torch.get_autocast_dtype(device),
        torch.get_float32_matmul_precision(),
    ]
    for part in _acting_parts(module):
        own = vars(part)
        if part.training or has_hooks(part):
            return None
        if isinstance(part, Adapted):
            coefficients = {n: c for n, c in part.chosen.items() if n in part.branches}
            if part.observed or any(isinstance(c, Tensor) for c in coefficients.values()):
                return None
            states += coefficients.items()
            own = {name: value for name, value in own.items() if name != "acting"}
        objects += [part, *own.values()]
        tensors += [t for t in (*part._parameters.values(), *part._buffers.values()) if t is not None]
    tensors += [value for value in objects if isinstance(value, Tensor)]
    if not all(_counts_changes(tensor) for tensor in tensors):
        return None
    states += [(t.data_ptr(), t._version, number) for t, number in zip(tensors, contents(tensors), strict=True)]
    memory = [tensor.detach() for tensor in tensors]  # so that none other comes to lie there
    objects += tensors
    return _Function((array("Q", map(id, objects)).tobytes(), tuple(states)), [objects, memory])


def _acting_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The module and all within it, but for branches that do not act."""
    left: list[nn.Module] = [module]
    while left:
        part = left.pop()
        yield part
        children = part._modules
        if isinstance(part, Adapted):
            left += [branch for name in part.chosen for branch in part.of(name)]
            children = {name: child for name, child in children.items() if name != "branches"}
        left += [child for child in children.values() if child is not None]


def _counts_changes(tensor: Tensor) -> bool:
    """Whether it is a plain tensor, which lies in one place and knows how often it was changed."""
    plain = type(tensor) is nn.Parameter or type(tensor) is Tensor
    return plain and tensor.layout is torch.strided and not tensor.is_inference()
