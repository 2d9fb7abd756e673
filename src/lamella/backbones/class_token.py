"""The last block of a ViT for the class token alone, where nothing else of its output is read.

Features that are the class token need the keys and values of all tokens there, but one query, one output projection and
one MLP: of the block's twelve d x d products a token, ten are left out for all tokens but one.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lamella.adapters.adapter import Adapted, AdaptedLinear
from lamella.adapters.few_bits import FewBitsLinear

__all__ = ["class_token_features", "has_hooks", "is_class_token", "others_are_unseen"]


def is_class_token(model: nn.Module) -> bool:
    """Whether the model's features are the class token of a plain ViT of timm, whose last block can do without others.

    Exact types only: a subclass may do anything with its tokens, and a quantised layer with its weight. Asked in every
    pass, since a model's parts may be replaced.
    """
    if not type(model).__module__.startswith("timm."):
        return False
    from timm.layers.mlp import GluMlp, Mlp, SwiGLU
    from timm.models.vision_transformer import (
        Attention,  # pyright: ignore[reportPrivateImportUsage]  # where all versions of timm have it
        Block,
        VisionTransformer,
    )

    if type(model) is not VisionTransformer or model.global_pool != "token" or model.attn_pool is not None:
        return False
    if model.grad_checkpointing:  # which runs blocks in a way of its own
        return False
    block: Any = model.blocks[-1]
    return (
        type(block) is Block
        and type(block.attn) is Attention
        and (type(block.attn.qkv) in (nn.Linear, AdaptedLinear) or isinstance(block.attn.qkv, FewBitsLinear))
        and getattr(block.attn, "gate", None) is None
        and type(block.mlp) in (Mlp, GluMlp, SwiGLU)
    )


def others_are_unseen(model: Any) -> bool:
    """Whether nobody but the network itself would see what its last block makes of the other tokens: no hook, and no
    watcher of a layer there (that of queries, keys and values is shown its whole input in any case). Nor may there be
    dropout, which would draw other numbers."""
    block = model.blocks[-1]
    inside = list(block.modules())
    if model.training or block.training:
        return False
    if any(has_hooks(m) for m in (model, model.blocks, model.norm, model.fc_norm, *inside)):
        return False
    return not any(isinstance(m, Adapted) and m.observed for m in inside if m is not block.attn.qkv)


def has_hooks(module: nn.Module) -> bool:
    """Whether a pass through this module, forwards or backwards, runs code of others."""
    kinds = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(kinds)


def class_token_features(model: Any, x: Tensor) -> Tensor:
    """(n, 3, size, size) -> (n, width): `model(x)` up to rounding."""
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
    *blocks, last = model.blocks
    for block in blocks:
        x = block(x)
    return model.forward_head(model.norm(_class_token_of(last, x)))


def _class_token_of(block: Any, x: Tensor) -> Tensor:
    """(n, tokens, d) -> (n, 1, d): `block(x)[:, :1]`."""
    attention, heads = block.attn, block.attn.num_heads
    d, first = attention.qkv.weight.shape[0] // 3, slice(0, 1)
    parts = (first, slice(0, d)), (slice(None), slice(d, 3 * d))
    query, key_value = _parts(attention.qkv, block.norm1(x), *parts)
    q = query.unflatten(2, (heads, -1)).transpose(1, 2)
    k, v = key_value.unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(attention.q_norm(q), attention.k_norm(k), v, scale=attention.scale)
    x = x[:, first] + block.ls1(attention.proj(attention.norm(mixed.transpose(1, 2).flatten(2))))
    return x + block.ls2(block.mlp(block.norm2(x)))


def _parts(layer: nn.Linear, x: Tensor, *parts: tuple[slice, slice]) -> list[Tensor]:
    if isinstance(layer, AdaptedLinear):
        return layer.forward_parts(x, *parts)
    weight, bias = layer.weight, layer.bias
    return [F.linear(x[:, tokens], weight[rows], None if bias is None else bias[rows]) for tokens, rows in parts]
