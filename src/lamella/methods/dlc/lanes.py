"""Convolutions that compute several lanes at once: every image once for each plugin, and once without any.

All lanes are one batch. Layers without plugins (batch norm in eval mode, shortcuts, pooling) and the base weight of an
adapted convolution process this batch as any other. The low-rank parts are one convolution with a group for each lane.
In a narrow layer these parts cost as much as the weight; there each group has its own whole kernel instead.

A branch of either factorisation is computed as two convolutions, k x k into few channels and 1 x 1 out of them. That is
also possible for "kernel" branches: B A, viewed as (c_out, c_in k k), is B, viewed as (c_out, k r k), times k copies of
A along a diagonal, (k r k, c_in k k).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.adapters.adapter import AdaptedConv2d, Branch

__all__ = ["LanedConv2d", "as_two_convolutions"]


def as_two_convolutions(branch: Branch, kernel: int) -> tuple[Tensor, Tensor]:
    """Return the kernels of two convolutions that together are a branch's update of a k x k convolution.

    Args:
        branch: the branch, of either factorisation.
        kernel: k, the side of the kernel.

    Returns:
        (q, c_in, k, k), and (c_out, q, 1, 1), which includes the scale of the branch.
    """
    if branch.A.ndim == 4:
        return branch.A, branch.B * branch.scale
    reduce = torch.block_diag(*[branch.A] * kernel)
    c_in, q = branch.A.shape[1] // kernel, len(reduce)
    return reduce.reshape(q, c_in, kernel, kernel), branch.B.reshape(-1, q, 1, 1) * branch.scale


class LanedConv2d(AdaptedConv2d):
    """A convolution whose batch has every image once for each lane. Each lane has its own adapter.

    Attributes:
        lanes: the name of the adapter of each lane; in a lane whose adapter this layer lacks only the base weight acts.
            Without lanes this is an adapted convolution like any other.
        shared: the input of the tail. It is equal in all lanes, so the base part of a layer that reads it is computed
            once.
    """

    set_for_a_pass: ClassVar[tuple[str, ...]] = ("acting", "lanes", "shared")
    lanes: tuple[str, ...] = ()
    shared: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """(n, c_in, h, w) -> (n, c_out, h', w'); with lanes the first size is n x lanes, those of an image adjacent."""
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
        """Return whether a whole kernel for each lane costs less than the low-rank parts."""
        k = self.weight.shape[-1]
        channels = [b.rank * (k if b.A.ndim == 2 else 1) for name in self.lanes for b in self.of(name)]
        return 4 * max(channels, default=0) >= self.weight.shape[0]

    def _merged(self, x: Tensor) -> Tensor:
        """(n, lanes, c_out, h', w') outputs: every lane with its own whole kernel, as one grouped convolution."""
        deltas = [sum(b.delta(self.weight.shape) for b in self.of(name)) for name in self.lanes]
        kernel = torch.cat([self.weight + delta for delta in deltas])
        y = self._grouped(x.flatten(1, 2), kernel, len(self.lanes)).unflatten(1, (len(self.lanes), -1))
        return y if self.bias is None else y + self.bias[:, None, None]

    def _updates(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """(n, t, c_out, h', w') updates of t adapters.

        Args:
            x: (n, t, c_in, h, w), or (n, c_in, h, w) if the input is the same for all adapters.
            names: the names of the adapters.
        """
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
