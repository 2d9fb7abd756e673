"""Residual networks for small images, and the cut of any residual network into a trunk and a tail.

He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385, section 4.2: three
stages of 16, 32 and 64 channels; where a stage halves the image, the shortcut takes every second pixel and pads the new
channels with zeros (option A), so shortcuts have no weights. Half of the zeros stand before the old channels and half
after them, as the networks below have it. PyCIL's ResNet-32 pads all of them after. For training from random weights
that is only another order of the channels, but weights of the one compute other features in the other.

Networks trained on CIFAR-10 that fit (BSD 2-clause): github.com/akamaster/pytorch_resnet_cifar10.
"""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.common.randomness import generator
from lamella.data.samples import Transform

__all__ = ["BLOCKS", "ResNet", "block_names", "check_split", "forward_from", "forward_until", "split", "use_small_stem"]

BLOCKS = {"resnet20": 3, "resnet32": 5}
"""Networks of this file: blocks a stage."""

_STAGE = re.compile(r"(?:stage|layer)\d+")


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut without weights."""

    def __init__(self, d_in: int, d_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(d_in, d_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(d_out)
        self.conv2 = nn.Conv2d(d_out, d_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(d_out)
        self.stride, self.added = stride, d_out - d_in

    def forward(self, x: Tensor) -> Tensor:
        """(n, d_in, h, w) -> (n, d_out, h / stride, w / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        # Half of the new channels before the old ones, half after them: as the CIFAR-10 weights have it.
        before = self.added // 2
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))
        return F.relu(y + shortcut)


class ResNet(nn.Module):
    """Layers conv1, bn1, act1, stage1.0 ... stage3.4, pool; the children run in their order.

    Args:
        blocks: the number of blocks in each stage.
        widths: the number of channels of each stage.

    Attributes:
        num_features: the number of features, which is the number of channels of the last stage.
    """

    def __init__(self, blocks: int = 5, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        self.num_features = widths[-1]
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU()
        before = (widths[0], *widths)
        for i, (d_in, d_out) in enumerate(zip(before, widths, strict=False)):
            first = Block(d_in, d_out, 2 if i else 1)
            rest = [Block(d_out, d_out, 1) for _ in range(blocks - 1)]
            self.add_module(f"stage{i + 1}", nn.Sequential(first, *rest))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, num_features)."""
        for child in self.children():
            x = child(x)
        return x


def block_names(model: nn.Module) -> tuple[str, ...]:
    """Names of a residual network's blocks, first to last: "stage1.0", ... (timm's: "layer1.0", ...).

    Raises:
        ValueError: it has no stages of blocks.
    """
    stages = [name for name, child in model.named_children() if _STAGE.fullmatch(name) and len(list(child.children()))]
    if not stages:
        raise ValueError(
            f"the network, {type(model).__name__}, has no stages of convolutions to cut between; use a residual network"
        )
    return tuple(f"{stage}.{i}" for stage in stages for i, _ in enumerate(model.get_submodule(stage).children()))


def split(model: nn.Module, at: str) -> tuple[nn.Sequential, nn.Sequential]:
    """The trunk before `at` and the tail from it on, sharing the model's own layers: model(x) = tail(trunk(x)).

    Args:
        at: a stage or block of a residual network of this file or of timm, such as "stage3" or "layer4.1".

    Raises:
        ValueError: no such stage or block, or no residual network.
    """
    blocks = block_names(model)
    chain: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        within = [block for block in blocks if block.startswith(f"{name}.")]
        chain |= {block: model.get_submodule(block) for block in within} or {name: child}
    start = next((i for i, name in enumerate(chain) if name in blocks and name in (at, f"{at}.0")), None)
    if start is None:
        stages = dict.fromkeys(block.rsplit(".", 1)[0] for block in blocks)
        raise ValueError(
            f"there is no stage or block '{at}'; stages are {', '.join(stages)}, blocks {blocks[0]} to {blocks[-1]}"
        )
    layers = list(chain.values())
    return nn.Sequential(*layers[:start]), nn.Sequential(*layers[start:])


@torch.no_grad()
def check_split(model: nn.Module, at: str, transform: Transform) -> None:
    """Refuse a network that does more than run its children in their order: one random image must come out the same.

    Args:
        model: a network.
        at: as in `split`.
        transform: whose examples the network takes.

    Raises:
        ValueError: trunk and tail are not the network, or it cannot be cut there at all.
    """
    trunk, tail = split(model, at)
    x = transform.example(1, generator(0, "split")).to(next(model.parameters()).device)
    modes = {module: module.training for module in model.modules()}
    model.eval()  # so that no statistic of batch norm moves
    try:
        whole = model(x)
        parts = tail(trunk(x))
        equal = parts.shape == whole.shape and float((parts - whole).abs().max()) <= 1e-4 * float(whole.abs().max())
    except (RuntimeError, TypeError):  # what one child returns the next one does not take
        equal = False
    finally:
        for module, training in modes.items():
            module.training = training
    if not equal:
        raise ValueError(
            f"a {type(model).__name__} does more than run its layers one after the other, so it cannot be cut before "
            f"'{at}'; use a residual network, such as resnet32 or resnet18"
        )


def forward_until(model: nn.Module, at: str, x: Tensor) -> Tensor:
    """(n, 3, h, w) -> the input (n, channels, h', w') of stage or block `at`."""
    return split(model, at)[0](x)


def forward_from(model: nn.Module, at: str, z: Tensor) -> Tensor:
    """The input (n, channels, h', w') of stage or block `at` -> features (n, width)."""
    return split(model, at)[1](z)


def use_small_stem(model: nn.Module) -> None:
    """Give timm's ResNet a stem for small images: one 3 x 3 convolution of stride 1, and no pooling.

    Raises:
        ValueError: it is no such network.
    """
    conv, pool = getattr(model, "conv1", None), getattr(model, "maxpool", None)
    if not isinstance(conv, nn.Conv2d) or pool is None:
        raise ValueError(
            f"stem 'small' is for timm's plain ResNets, such as resnet18, not for a {type(model).__name__}"
        )
    small = nn.Conv2d(3, conv.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    model.conv1, model.maxpool = small, nn.Identity()
