"""Diagonal Fisher information of the weights of adapted layers, from the gradients of single samples."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.adapters.adapter import Adapted, Site
from lamella.data.loading import Examples
from lamella.data.samples import Samples
from lamella.methods.shared.heads import Head
from lamella.training.fit import Fit

__all__ = ["DiagonalFisher", "diagonal_fishers"]


class DiagonalFisher(nn.Module):
    """The mean over samples of the squared gradient of a sample's loss by the weight rows of one site.

    Args:
        site: where the rows are.
    """

    adds = True  # its buffers are sums over samples
    total: Tensor
    count: Tensor

    def __init__(self, site: Site) -> None:
        super().__init__()
        rows = site.layer.weight[site.rows]
        self.rows = site.rows
        self.register_buffer("total", torch.zeros(rows.shape, device=rows.device))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def add(self, inputs: Tensor, slopes: Tensor) -> None:
        """Add the samples of a batch.

        Args:
            inputs: (n, tokens, d_in) inputs x of the layer.
            slopes: (n, tokens, d_out), the gradient of the summed loss by the layer's outputs. That by W is, for one
                sample, the sum over its tokens of slope x^T.
        """
        for x, slope in zip(inputs.float(), slopes[..., self.rows].float(), strict=True):
            self.total += (slope.T @ x).square()  # one sample at a time: n gradients at once would not fit
        self.count += len(inputs)

    @property
    def mean(self) -> Tensor:
        """The diagonal (rows, d_in), at least 0."""
        return self.total / self.count.clamp_min(1)


def diagonal_fishers(
    fit: Fit, data: Examples, features: Callable[[Samples], Tensor], head: Head, sites: Sequence[Site]
) -> list[DiagonalFisher]:
    """Return the empirical Fisher information of each site: gradients of the cross-entropy of the true labels.

    Args:
        fit: the passes of this task.
        data: the samples, which are augmented as in training.
        features: samples -> features (n, d), through the layers of the sites.
        head: the classifier of these features; only its classes compete.
        sites: the sites whose weight rows are asked for.
    """
    fishers = [DiagonalFisher(site) for site in sites]

    def observe(x: Samples, y: Tensor) -> None:
        with torch.enable_grad(), _recorded(sites) as calls:
            loss = F.cross_entropy(head(features(x)), head.columns(y), reduction="sum")
            outputs = [output for called in calls.values() for _, output in called]
            slopes = iter(torch.autograd.grad(loss, outputs, materialize_grads=True))
        # A layer that a pass calls several times has, for each sample, the sum of the gradients of all calls.
        joined = {
            layer: (_by_sample([i for i, _ in called], len(y)), _by_sample([next(slopes) for _ in called], len(y)))
            for layer, called in calls.items()
        }
        for site, fisher in zip(sites, fishers, strict=True):
            fisher.add(*joined[site.layer])

    keep = {str(i): fisher for i, fisher in enumerate(fishers)}
    fit.scan(data, observe, augment=True, keep=keep, any_order=True, name="fisher")
    return fishers


@contextmanager
def _recorded(sites: Sequence[Site]) -> Generator[dict[Adapted, list[tuple[Tensor, Tensor]]]]:
    """Within this context, record input and output of every call of the sites' layers; outputs require a gradient."""
    calls: dict[Adapted, list[tuple[Tensor, Tensor]]] = {site.layer: [] for site in sites}

    def record(layer: Adapted, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        traced = output if output.requires_grad else output.detach().requires_grad_(True)
        calls[layer].append((inputs[0].detach(), traced))
        return traced

    hooks = [layer.register_forward_hook(record) for layer in calls]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _by_sample(parts: Sequence[Tensor], n: int) -> Tensor:
    """Return tensors (n, ..., d) side by side as (n, tokens, d)."""
    return torch.cat([part.reshape(n, -1, part.shape[-1]) for part in parts], dim=1)
