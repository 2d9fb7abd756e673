"""Prefixes: an attention with one is softmax(Q [P_K; K]^T / sqrt d) [P_V; V], and nothing passes one by in silence."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from encoders import OFTEN, tiny_text_backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import tiny_backbone, tiny_residual_backbone
from torch import Tensor, nn

from lamella.adapters.prefix import AttentionForm, Prefix, attentions_of, prefixes_act, prefixing
from lamella.backbones import Backbone
from lamella.backbones.class_token import is_class_token
from lamella.backbones.feature_cache import FeatureCache
from lamella.common.randomness import generator
from lamella.testing import tiny_bert
from lamella.training import compilation
from lamella.training.compilation import compiled_blocks

EAGER = ("deberta-v3", "modernbert-eager", "mpnet")
"""Encoders whose attentions are written out in transformers."""


def draw(*shape: int, name: str = "x", dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=generator(0, name, *shape), dtype=dtype)


def prefix(n: int, length: int, width: int, name: str = "p", dtype: torch.dtype = torch.float32) -> Prefix:
    return Prefix(*(draw(n, length, width, name=f"{name} {part}", dtype=dtype) for part in ("keys", "values")))


def written_out(q: Any, k: Any, v: Any, seen: Any, added: Any) -> Any:
    """Attention of one head in NumPy: q (t, w), k and v (s, w), what each query sees and what is added (t, s)."""
    scores = q @ k.T / np.sqrt(q.shape[1]) + added
    weights = np.exp(scores - scores.max(1, keepdims=True)) * seen
    return (weights / weights.sum(1, keepdims=True)) @ v


# the formula ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(0, 3), st.sampled_from(
    ["nothing", "seen", "seen by column", "added", "causal"]))  # fmt: skip
def test_an_attention_with_a_prefix_is_that_of_longer_keys_and_values(
    n: int, heads: int, tokens: int, length: int, masked: str
) -> None:
    w, double = 4, torch.float64
    q, k, v = (draw(n, heads, tokens, w, name=name, dtype=double) for name in "qkv")
    given_ = prefix(n, length, heads * w, dtype=double)
    seen, added = torch.ones(n, 1, tokens, tokens, dtype=torch.bool), torch.zeros(n, 1, tokens, tokens, dtype=double)
    options: dict[str, Any] = {}
    if masked.startswith("seen"):
        seen = draw(*seen.shape, name="mask") > 0
        seen = seen[:, :, :1].repeat(1, 1, tokens, 1) if masked == "seen by column" else seen
        seen[..., 0] = True
        options["attn_mask"] = seen[:, :, :1] if masked == "seen by column" else seen
    elif masked == "added":
        options["attn_mask"] = added = draw(*added.shape, name="bias", dtype=double)
    elif masked == "causal":
        options["is_causal"], seen = True, seen.tril()
    with prefixing([given_]):
        found = F.scaled_dot_product_attention(q, k, v, **options)
    for i in range(n):
        for h in range(heads):
            own = slice(h * w, h * w + w)
            keys, values = (
                np.concatenate([p[i, :, own].numpy(), x[i, h].numpy()]) for p, x in zip(given_, (k, v), strict=True)
            )
            shown = np.concatenate([np.ones((tokens, length)), seen[i, 0].numpy()], axis=1)
            bias = np.concatenate([np.zeros((tokens, length)), added[i, 0].numpy()], axis=1)
            expected = written_out(q[i, h].numpy(), keys, values, shown, bias)
            np.testing.assert_allclose(found[i, h].numpy(), expected, rtol=1e-9, atol=1e-9)


def test_the_attention_of_a_vision_transformer_sees_it() -> None:
    attention = tiny_backbone().model.get_submodule("blocks.0.attn").double()
    x, p = draw(3, 5, 64, dtype=torch.float64), prefix(3, 2, 64, dtype=torch.float64)
    with torch.no_grad(), prefixing([p]):
        found = attention(x)
    layer: Any = attention
    weight, bias, out = layer.qkv.weight.numpy(), layer.qkv.bias.numpy(), layer.proj
    for i in range(3):
        q, k, v = np.split(x[i].numpy() @ weight.T + bias, 3, axis=1)
        k, v = np.concatenate([p.keys[i].numpy(), k]), np.concatenate([p.values[i].numpy(), v])
        both = [slice(0, 32), slice(32, 64)]
        mixed = np.concatenate([written_out(q[:, h], k[:, h], v[:, h], 1.0, 0.0) for h in both], axis=1)
        np.testing.assert_allclose(found[i].numpy(), mixed @ out.weight.numpy().T + out.bias.numpy(), rtol=1e-8)


def test_gradients_reach_a_prefix() -> None:
    backbone = tiny_backbone()
    p = Prefix(*(part.requires_grad_(True) for part in prefix(2, 3, 64)))
    backbone.prefixed(draw(2, 3, 32, 32), [p]).square().sum().backward()
    for part in p:
        assert part.grad is not None
        assert (part.grad.flatten(1).norm(dim=1) > 0).all()


# which attentions of a network ---------------------------------------------------------------------------------------


def blocks_of(backbone: Backbone) -> list[Any]:
    model: Any = backbone.model
    return list(model.blocks)


@pytest.mark.parametrize("number", [0, 3, 5])
def test_prefixes_belong_to_the_blocks_in_their_order(number: int) -> None:
    backbone, x = tiny_backbone(), draw(2, 3, 32, 32)
    prefixes = [prefix(2, 3, 64, name=f"block {i}") for i in range(number + 1)]
    found = backbone.prefixed(x, prefixes)
    for block, p in zip(blocks_of(backbone), prefixes, strict=False):
        wrap(block.attn, p)
    with torch.no_grad():
        torch.testing.assert_close(found, backbone.model(x), rtol=1e-5, atol=1e-5)


def wrap(attention: nn.Module, p: Prefix) -> None:
    """Let one attention alone run under its prefix."""
    forward = attention.forward

    def prefixed(*args: Any, **options: Any) -> Any:
        with prefixing([p]):
            return forward(*args, **options)

    attention.forward = prefixed  # type: ignore[method-assign]


def test_the_last_block_for_the_class_token_alone_sees_its_prefix() -> None:
    backbone, x = tiny_backbone(), draw(2, 3, 32, 32)
    prefixes = [prefix(2, 3, 64, name=f"block {i}") for i in range(6)]
    assert is_class_token(backbone.model)
    short = backbone.prefixed(x, prefixes)
    with prefixing(prefixes):
        whole = backbone.model(x)
    torch.testing.assert_close(short, whole, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(short, backbone.prefixed(x, prefixes[:5]), rtol=1e-2, atol=1e-2)


def test_no_prefix_and_an_empty_one_change_nothing() -> None:
    backbone, x = tiny_backbone(), draw(2, 3, 32, 32)
    assert torch.equal(backbone.prefixed(x, []), backbone(x))
    torch.testing.assert_close(backbone.prefixed(x, [prefix(2, 0, 64)]), backbone(x))


@pytest.mark.parametrize("name", [name for name in OFTEN if name not in EAGER])
def test_texts_see_prefixes_whatever_their_padding(name: str) -> None:
    backbone = tiny_text_backbone(name)
    x, width = backbone.example(3, generator(0, "texts")), backbone.prefix_width(2)
    mask = backbone.tokens_that_count(x)
    assert mask is not None
    assert not mask.all()
    prefixes = [prefix(3, 2, width, name=f"block {i}") for i in range(2)]
    together = backbone.prefixed(x, prefixes)
    assert not torch.allclose(together, backbone(x), rtol=1e-2, atol=1e-2)
    for i in range(3):
        alone = x[i : i + 1].map(lambda tensor, i=i: tensor[:, : int(mask[i].sum())])  # type: ignore[union-attr]
        own = [Prefix(*(part[i : i + 1] for part in p)) for p in prefixes]
        torch.testing.assert_close(backbone.prefixed(alone, own)[0], together[i], rtol=1e-4, atol=1e-5)


def test_the_attentions_of_a_pass_are_told() -> None:
    backbone = tiny_backbone()
    assert attentions_of(lambda: backbone.run(backbone.example(3))) == [AttentionForm(3, 64, 64)] * 6
    assert (backbone.prefix_width(1), backbone.prefix_width(6)) == (64, 64)
    assert tiny_bert().prefix_width(2) == 32


# what would pass a prefix by -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [tiny_residual_backbone, *(lambda n=n: tiny_text_backbone(n) for n in EAGER)])
def test_a_backbone_whose_attentions_would_not_see_a_prefix_is_refused(build: Callable[[], Backbone]) -> None:
    why = "has no attention that is computed by torch's scaled_dot_product_attention, so prompts would do nothing"
    with pytest.raises(ValueError, match=f"^'.*' {why}; use another backbone, such as a ViT of timm, or another meth"):
        build().prefix_width(1)


class Windows(nn.Module):
    """Attends within the halves of an image, each a row of its own."""

    def forward(self, x: Tensor) -> Tensor:
        halves = x.flatten(2).unflatten(2, (2, -1)).permute(0, 2, 3, 1).flatten(0, 1)[:, None]
        return (
            F.scaled_dot_product_attention(halves, halves, halves).mean(2).flatten(1).unflatten(0, (len(x), 2)).mean(1)
        )


def test_attentions_within_windows_are_refused() -> None:
    backbone = Backbone(Windows(), name="windows", width=3, transform=tiny_backbone().transform)
    why = r"^the first 1 attentions of 'windows' do not all read whole images at one width, so prompts cannot stand"
    with pytest.raises(ValueError, match=why):
        backbone.prefix_width(1)


@pytest.mark.parametrize("blocks", [0, 7])
def test_more_blocks_than_there_are_are_refused(blocks: int) -> None:
    with pytest.raises(ValueError, match=f"^blocks = {blocks}, but 'test_vit' has 6 attentions; use 1 to 6$"):
        tiny_backbone().prefix_width(blocks)


def test_a_pass_with_too_few_attentions_raises() -> None:
    backbone, x = tiny_backbone(), draw(2, 3, 32, 32)
    with pytest.raises(RuntimeError, match=r"^7 attentions should see a prefix, but the pass computed 6 by torch's"):
        backbone.prefixed(x, [prefix(2, 1, 64)] * 7)


@pytest.mark.parametrize("wrong", [(3, 1, 64), (2, 1, 48), (2, 1, 16)])
def test_a_prefix_of_another_shape_raises(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(RuntimeError, match=r"does not fit an attention of 2 samples with 2 heads of the width 32$"):
        tiny_backbone().prefixed(draw(2, 3, 32, 32), [prefix(*wrong)])


def test_features_with_prefixes_are_not_recalled() -> None:
    backbone, x = tiny_backbone(), draw(2, 3, 32, 32)
    cache = FeatureCache()
    backbone.eval()
    with torch.no_grad(), cache.reading(backbone):
        cache.turn_to(x)
        plain = backbone(x)
        prefixed = backbone.prefixed(x, [prefix(2, 3, 64)])
        assert torch.equal(backbone(x), plain)
    assert cache.numbers == plain.numel()
    assert not torch.allclose(prefixed, plain, rtol=1e-2, atol=1e-2)


def test_compiled_blocks_give_way_to_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    torch.compiler.reset()
    backbone, x, p = tiny_backbone(), draw(2, 3, 32, 32), [prefix(2, 3, 64)]
    plain, prefixed = backbone(x), backbone.prefixed(x, p)
    with compiled_blocks(backbone.model, 2):
        assert torch.equal(backbone(x), plain)
        assert torch.equal(backbone.prefixed(x, p), prefixed)
        assert torch.equal(backbone(x), plain)
    torch.compiler.reset()


def test_it_is_known_whether_prefixes_act() -> None:
    assert not prefixes_act()
    with pytest.raises(RuntimeError), prefixing([prefix(1, 1, 4)]):
        assert prefixes_act()
    assert not prefixes_act()
