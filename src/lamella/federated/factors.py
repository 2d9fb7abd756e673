"""Joins of low-rank updates B_k A_k with weights p_k; every function says what it is exact for.

The mean of products is not the product of means: sum p_k B_k A_k differs from (sum p_k B_k)(sum p_k A_k) wherever both
factors differ between clients.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lamella.adapters.merging import over_inputs

__all__ = ["joined_by_inputs", "mean", "residual", "stacked"]


def mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return sum p_k t_k in float64 (FedAvg: McMahan et al., AISTATS 2017, arXiv 1602.05629).

    Where all clients share A, the mean of their B is exact: sum p_k (B_k A) = (sum p_k B_k) A. This is FFA-LoRA (Sun et
    al., ICLR 2024, arXiv 2403.12313), whose A is random, and InfLoRA, whose A is designed from sums of second moments.

    Args:
        tensors: one of a shape for each client.
        weights: p_k, which add up to 1.
    """
    return torch.stack([w * t.double() for t, w in zip(tensors, weights, strict=True)]).sum(0)


def stacked(As: Sequence[Tensor], Bs: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return one pair whose product is sum p_k B_k A_k (FLoRA: Wang et al., NeurIPS 2024, arXiv 2409.05976).

    Args:
        As: (r_k, d_in) of each client; ranks may differ.
        Bs: (d_out, r_k) of each client.
        weights: p_k.

    Returns:
        A (sum of r_k, d_in) and B (d_out, sum of r_k), float64.
    """
    return torch.cat([w * A.double() for A, w in zip(As, weights, strict=True)]), torch.cat([B.double() for B in Bs], 1)


def residual(As: Sequence[Tensor], Bs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return sum p_k B_k A_k - mean(B) mean(A), which FedEx-LoRA adds to the weight beside the means.

    Singhal, Ponkshe & Vepakomma, ACL 2025, arXiv 2410.09432.

    Args:
        As: (r, d_in) of each client.
        Bs: (d_out, r) of each client.
        weights: p_k.

    Returns:
        (d_out, d_in), float64.
    """
    A, B = stacked(As, Bs, weights)
    return B @ A - mean(Bs, weights) @ mean(As, weights)


def joined_by_inputs(parts: Sequence[Tensor], moments: Sequence[Tensor]) -> Tensor:
    """Return the M that answers the clients' inputs as they do: it minimises sum_k |(M - M_k) X_k|^2.

    This is RegMean's sum (M_k G_k) (sum G_k)^-1 with G_k = X_k X_k^T, which LoRM (Salami et al., ICLR 2025, arXiv
    2410.17961) applies to A with the layer's inputs, where B is shared, and to B with A's outputs, where A is shared.
    In directions that no input has, M is the plain mean of the M_k.

    Args:
        parts: M_k (rows, d) of each client.
        moments: G_k (d, d), symmetric and positive semi-definite, the sum over the client's inputs.

    Returns:
        (rows, d), float64.
    """
    plain = mean(parts, [1 / len(parts)] * len(parts))
    products = [(M.double() - plain) @ G.double() for M, G in zip(parts, moments, strict=True)]
    return plain + over_inputs(torch.stack(products).sum(0), torch.stack([G.double() for G in moments]).sum(0))
