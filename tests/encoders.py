"""Small encoders of texts with random weights, in the architectures that transformers has; nothing is downloaded."""

from collections.abc import Callable
from typing import Any

import transformers

from lamella.backbones import Backbone
from lamella.testing.texts import CLS, PAD, SEP, VOCABULARY, tiny_bert, tiny_encoder

__all__ = ["ENCODERS", "LIKE_BERT", "OFTEN", "tiny_text_backbone"]

LIKE_BERT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
DEBERTA: dict[str, Any] = LIKE_BERT | {
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "max_relative_positions": -1,
    "position_biased_input": False,
}
LIKE_LLAMA: dict[str, Any] = LIKE_BERT | {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}


def _modernbert(seed: int, **options: Any) -> Backbone:
    special = {"bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
    range_ = {"initializer_cutoff_factor": 2.0, "global_attn_every_n_layers": 2, "local_attention": 8}
    config = transformers.ModernBertConfig(**LIKE_BERT, **special, **range_)
    for name, value in options.items():
        setattr(config, name, value)
    return tiny_encoder(transformers.ModernBertModel, config, seed=seed)


def _like_bert(name: str, seed: int, first: bool = True, **options: Any) -> Backbone:
    kind, config = getattr(transformers, f"{name}Model"), getattr(transformers, f"{name}Config")
    return tiny_encoder(kind, config(**LIKE_BERT | options), seed=seed, first=first)


def _mpnet(seed: int) -> Backbone:
    """Its padding has the id 1, whatever the configuration says."""
    options = LIKE_BERT | {"pad_token_id": 1}
    return tiny_encoder(
        transformers.MPNetModel, transformers.MPNetConfig(**options), seed=seed, special=(CLS, PAD, SEP)
    )


def _distilbert(seed: int) -> Backbone:
    options = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 96}
    config = transformers.DistilBertConfig(vocab_size=VOCABULARY, initializer_range=0.2, **options)
    return tiny_encoder(transformers.DistilBertModel, config, seed=seed)


def _gpt2(seed: int) -> Backbone:
    options = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GPT2Config(vocab_size=VOCABULARY, initializer_range=0.2, **options)
    return tiny_encoder(transformers.GPT2Model, config, seed=seed, first=False)


def _t5(seed: int) -> Backbone:
    options: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(vocab_size=VOCABULARY, feed_forward_proj="gated-gelu", **options)
    return tiny_encoder(transformers.T5EncoderModel, config, seed=seed, first=False)


ENCODERS: dict[str, Callable[[int], Backbone]] = {
    "bert": tiny_bert,
    "roberta": lambda seed: _like_bert("Roberta", seed),
    "distilbert": _distilbert,
    "deberta-v2": lambda seed: _like_bert("DebertaV2", seed, **DEBERTA),
    "deberta-v3": lambda seed: _like_bert("DebertaV2", seed, **DEBERTA, share_att_key=True, norm_rel_ebd="layer_norm"),
    "modernbert": _modernbert,
    "modernbert-eager": lambda seed: _modernbert(seed, _attn_implementation="eager"),
    "mpnet": _mpnet,
    "electra": lambda seed: _like_bert("Electra", seed, embedding_size=16),
    "albert": lambda seed: _like_bert("Albert", seed, embedding_size=16),
    "gpt2": _gpt2,
    "llama": lambda seed: _like_bert("Llama", seed, **LIKE_LLAMA),
    "qwen2": lambda seed: _like_bert("Qwen2", seed, False, **LIKE_LLAMA),
    "t5": _t5,
}
"""By the name of the architecture: seed -> a backbone of two layers and 32 features."""

OFTEN = ("bert", "deberta-v3", "modernbert", "gpt2", "llama")
"""The architectures that tests try every time; the others, by `pytest -m slow`."""


def tiny_text_backbone(name: str = "bert", seed: int = 0) -> Backbone:
    """A backbone of one of `ENCODERS`."""
    return ENCODERS[name](seed)
