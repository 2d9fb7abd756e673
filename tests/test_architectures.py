"""Encoders of texts in every architecture: which layers carry branches, and that replaced ones compute the same."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from encoders import ENCODERS, OFTEN, tiny_text_backbone
from torch import Tensor, nn

from lamella.adapters.adapter import grow, using, watch
from lamella.adapters.sites import adapt
from lamella.backbones.encoders import Encoder
from lamella.backbones.plain_layers import make_linear, part_positions
from lamella.backbones.probing import is_fused_as_thought
from lamella.backbones.roles import find_places
from lamella.data.samples import Batch
from lamella.data.tokens import IDS, MASK, TokenTransform
from lamella.memory.inputs import Inputs
from lamella.memory.subspace import SecondMoment
from lamella.testing.texts import byte_tokenizer, pattern_texts

ATTENTION = ("query", "key", "value", "out")
TEXTS = list(pattern_texts(8, 1, "test").texts)


def seldom(name: str) -> Any:
    return name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow)


every = pytest.mark.parametrize("name", list(map(seldom, ENCODERS)))


def batch_of(backbone: Any, texts: list[str] = TEXTS, extra: int = 0) -> Batch:
    """The texts, padded by `extra` tokens more than the longest of them needs."""
    batch = backbone.transform.view()(texts, torch.arange(len(texts)))
    return batch.map(lambda tensor: torch.cat([tensor, tensor.new_zeros(len(tensor), extra)], 1))


# roles ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_every_layer_of_a_block_has_a_role(name: str) -> None:
    backbone = tiny_text_backbone(name)
    places = backbone.places()
    in_blocks = {
        layer
        for layer, module in backbone.model.named_modules()
        if type(module) is nn.Linear and any(part.isdigit() for part in layer.split(".")) and "pos_" not in layer
    }
    assert {place.name for place in places} == in_blocks
    blocks = 1 if name == "albert" else 2
    for block in range(blocks):
        roles = [role for place in places if place.block == block for role in place.roles]
        assert [roles.count(role) for role in ATTENTION] == [1, 1, 1, 1]
        assert roles.count("mlp") in (2, 3)


def test_the_layers_of_bert_that_share_a_name_have_the_roles_of_their_place() -> None:
    dense = {p.name.split("layer.0.")[1]: p.roles for p in tiny_text_backbone().places() if "layer.0." in p.name}
    assert dense["attention.output.dense"] == ("out",)
    assert dense["intermediate.dense"] == dense["output.dense"] == ("mlp",)


@pytest.mark.parametrize("family", ["OPT", "Bart"])
def test_the_mlp_that_lies_in_a_block_itself_is_of_this_block(family: str) -> None:
    places = find_places(networks_without_a_name_for_the_mlp()[family])
    for block in {place.block for place in places}:
        inside = [place for place in places if place.block == block]
        assert [place.name.rsplit(".", 1)[1] for place in inside if place.roles == ("mlp",)] == ["fc1", "fc2"]
        assert sum(place.roles == ("query",) for place in inside) in (1, 2), "a decoder of BART attends twice"


def networks_without_a_name_for_the_mlp() -> dict[str, nn.Module]:
    opt = transformers.OPTConfig(
        vocab_size=259, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, word_embed_proj_dim=32
    )
    bart = transformers.BartConfig(
        vocab_size=259, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
    )  # fmt: skip
    return {"OPT": transformers.OPTModel(opt), "Bart": transformers.BartModel(bart)}


@every
def test_a_branch_in_any_layer_reaches_the_features(name: str) -> None:
    backbone = tiny_text_backbone(name)
    x = batch_of(backbone)
    sites = backbone.sites("query", "key", "value", "out", "mlp")
    with torch.no_grad():
        before = backbone(x)
        for i, site in enumerate(sites):
            (branch,) = grow([site], f"new-{i}", 2, generator=torch.Generator().manual_seed(0))
            branch.B.copy_(torch.randn(branch.B.shape, generator=torch.Generator().manual_seed(1)))
            with using(sites, f"new-{i}"):
                assert not torch.allclose(backbone(x), before, rtol=1e-3), site.name


def test_the_layer_that_all_blocks_of_albert_share_is_one_block_and_shows_the_inputs_of_each_call() -> None:
    backbone = tiny_text_backbone("albert")
    (site,) = backbone.sites("value")
    x = batch_of(backbone)
    with watch([site], lambda layer: SecondMoment(32)) as moments:
        backbone.show(x, [site])
    assert int(moments[site.name].count) == 2 * int(x[MASK].sum()), "it is called once in each of two layers"


def test_fused_rows_that_lie_one_head_after_the_other_are_found_with_padded_batches() -> None:
    """DeBERTa of the first version lays the rows of its fused layer out for each head."""
    config = transformers.DebertaConfig(
        vocab_size=259, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    model = Encoder(transformers.DebertaModel(config).eval(), "mean")
    x = TokenTransform(byte_tokenizer(), max_length=32).example(3, torch.Generator().manual_seed(0))
    assert not x[MASK].all()
    fused = [place for place in find_places(model) if "value" in place.roles]
    assert set(is_fused_as_thought(model, fused, partial(model, x)).values()) == {False}


# layers that were replaced -------------------------------------------------------------------------------------------


def vectors(network: Any, x: Batch) -> Tensor:
    with torch.no_grad():
        return network(x[IDS], attention_mask=x[MASK].long()).last_hidden_state[x[MASK]]


def test_the_layers_of_gpt2_become_linear_ones_that_compute_the_same() -> None:
    config = transformers.GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    network = transformers.GPT2Model(config).eval()
    before = copy.deepcopy(network)
    x = TokenTransform(byte_tokenizer(), max_length=32).example(3, torch.Generator().manual_seed(0))
    turned = make_linear(network)
    assert turned == tuple(name for name, module in before.named_modules() if type(module).__name__ == "Conv1D")
    torch.testing.assert_close(vectors(network, x), vectors(before, x))
    state = network.state_dict()
    for name, tensor in before.state_dict().items():
        own = state[name].T if name.removesuffix(".weight") in turned else state[name]
        assert torch.equal(own, tensor), "turned back, the weights are those of transformers"


def test_relative_positions_of_a_deberta_are_read_by_layers_of_their_own_that_compute_the_same() -> None:
    config: Any = tiny_text_backbone("deberta-v3").model.network.config
    config.share_att_key = True
    network = transformers.DebertaV2Model(config).eval()
    before = copy.deepcopy(network)
    x = TokenTransform(byte_tokenizer(), max_length=32).example(3, torch.Generator().manual_seed(0))
    assert part_positions(network)
    assert torch.equal(vectors(network, x), vectors(before, x))
    loaded = transformers.DebertaV2Model(config).eval()
    loaded.load_state_dict(network.state_dict())
    assert torch.equal(vectors(loaded, x), vectors(before, x)), "its configuration says how to load it"
    assert not part_positions(network), "there is nothing left to do"


def test_who_looks_at_the_keys_of_a_deberta_sees_tokens_and_no_positions() -> None:
    backbone = tiny_text_backbone("deberta-v3")
    sites = backbone.sites("query", "key", "value")
    x = batch_of(backbone)
    with watch(sites, lambda layer: SecondMoment(32)) as moments:
        backbone.show(x, sites)
    assert {int(moment.count) for moment in moments.values()} == {int(x[MASK].sum())}


# class tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_has_a_class_token_where_texts_begin_with_one_that_sees_them(name: str) -> None:
    assert tiny_text_backbone(name).model.has_class_token is (name not in ("gpt2", "llama", "qwen2", "t5"))


# masks ---------------------------------------------------------------------------------------------------------------


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@every
@pytest.mark.parametrize("extra", [8, 40])
def test_what_is_learned_of_texts_does_not_depend_on_their_padding(name: str, extra: int) -> None:
    backbone = tiny_text_backbone(name)
    sites = backbone.sites("key+value", "out", "mlp")
    found = []
    for x in (batch_of(backbone), batch_of(backbone, extra=extra)):
        with (
            watch(sites, lambda layer: SecondMoment(layer.weight.shape[1])) as moments,
            watch(sites, lambda layer: Inputs(layer.weight.shape[1], "tokens"), padding_too=True) as inputs,
            torch.no_grad(),
        ):
            pooled = backbone(x)
        found.append((moments, inputs, pooled))
    (moments, inputs, pooled), (more_moments, more_inputs, more_pooled) = found
    assert relative(more_pooled, pooled) < 1e-6
    for layer in moments:
        assert relative(more_moments[layer].mean, moments[layer].mean) < 1e-6
        assert relative(more_inputs[layer].moment, inputs[layer].moment) < 1e-6
        assert relative(more_inputs[layer].class_tokens, inputs[layer].class_tokens) < 1e-6


@every
@pytest.mark.parametrize("role", ["key+value", "out", "mlp"])
def test_the_moment_of_texts_in_a_batch_is_that_of_the_texts_one_by_one(name: str, role: str) -> None:
    backbone = tiny_text_backbone(name)
    sites = backbone.sites(role)
    assert len({len(text) for text in TEXTS}) > 1
    with watch(sites, lambda layer: SecondMoment(layer.weight.shape[1])) as together:
        backbone.show(batch_of(backbone), sites)
    with watch(sites, lambda layer: SecondMoment(layer.weight.shape[1])) as alone:
        for text in TEXTS:
            backbone.show(batch_of(backbone, [text]), sites)
    for layer in together:
        assert int(alone[layer].count) == int(together[layer].count)
        assert relative(alone[layer].mean, together[layer].mean) < 2e-6


def test_the_layers_that_read_the_padding_of_a_flattened_batch_are_refused_in_one_line() -> None:
    """A layer on inputs of another shape than the batch's tokens."""
    backbone = tiny_text_backbone("deberta-v3")
    (site,) = adapt(backbone.model, "network.encoder.layer.0.attention.self.pos_key_proj")
    with (
        pytest.raises(RuntimeError, match="it is not known which of its rows are padding; adapt other layers"),
        watch([site], lambda layer: SecondMoment(32)),
    ):
        backbone.run(batch_of(backbone))
