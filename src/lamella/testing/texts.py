"""A small encoder of texts and texts for it; nothing is downloaded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lamella.backbones import Backbone
from lamella.backbones.encoders import Encoder, has_class_token
from lamella.common.randomness import generator
from lamella.data.texts import TextSet
from lamella.data.tokens import TokenTransform

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["byte_tokenizer", "pattern_texts", "tiny_bert", "tiny_encoder"]

PAD, CLS, SEP = "[PAD]", "[CLS]", "[SEP]"
SPECIAL = (PAD, CLS, SEP)
"""The special tokens of `byte_tokenizer`, whose ids are 0, 1 and 2 by default."""
VOCABULARY = len(SPECIAL) + 256


def tiny_bert(seed: int = 0) -> Backbone:
    """A BERT of two layers and 32 features with random weights, on bytes; it takes texts."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=96,
        initializer_range=0.2,
    )
    return tiny_encoder(BertModel, config, seed=seed)


def tiny_encoder(
    network: Any, config: Any, *, seed: int = 0, first: bool = True, special: Sequence[str] = SPECIAL
) -> Backbone:
    """A backbone of texts around a network of transformers with random weights.

    Args:
        network: the class of the network.
        config: its configuration, whose vocabulary has 259 tokens or more.
        seed: of the weights.
        first: whether each text begins with [CLS].
        special: the special tokens in the order of their ids.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(config).eval()
    transform = TokenTransform(byte_tokenizer(first=first, special=special), max_length=32, pad_id=special.index(PAD))
    encoder = Encoder(model, "mean", has_class_token=has_class_token(model, transform))
    return Backbone(encoder, name=f"tiny-{config.model_type}", width=config.hidden_size, transform=transform)


def byte_tokenizer(*, first: bool = True, special: Sequence[str] = SPECIAL) -> "Tokenizer":
    """A tokenizer whose tokens are the bytes of a text: the id is the byte + 3.

    Args:
        first: whether a text begins with [CLS]; it ends with [SEP] in any case.
        special: the special tokens in the order of their ids.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokens = {token: i for i, token in enumerate(special)}
    tokens |= {character: len(special) + byte for byte, character in enumerate(_characters_of_bytes())}
    tokenizer = Tokenizer(models.BPE(tokens, []))
    tokenizer.add_special_tokens(list(special))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ids = [(token, tokens[token]) for token in special]
    template = f"{CLS} $A {SEP}" if first else f"$A {SEP}"
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


def _characters_of_bytes() -> list[str]:
    """The character that stands for each byte in byte-level tokenizers: itself where it can be seen."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def pattern_texts(classes: int, per_class: int, part: str) -> TextSet:
    """Texts of two to seven words, most of them from the four that are their class's own.

    Args:
        classes: how many; labels are 0 to classes - 1, in their order.
        per_class: texts of each.
        part: such as "train"; another part has other texts.
    """
    words = [[_word(label, i) for i in range(4)] for label in range(classes)]
    common = [_word("common", i) for i in range(6)]
    texts: list[str] = []
    for label in range(classes):
        draws = generator(7, "texts", part, label)
        for _ in range(per_class):
            length = int(torch.randint(2, 8, (), generator=draws))
            own = torch.rand(length, generator=draws) < 0.7
            which = torch.randint(0, 12, (length,), generator=draws).tolist()
            chosen = zip(own.tolist(), which, strict=True)
            texts.append(" ".join(words[label][i % 4] if mine else common[i % 6] for mine, i in chosen))
    labels = torch.arange(classes).repeat_interleave(per_class)
    return TextSet(texts, labels, [f"{part}/{i}" for i in range(len(texts))])


def _word(*names: str | int) -> str:
    letters = torch.randint(0, 26, (3,), generator=generator(7, "word", *names)).tolist()
    return "".join(chr(ord("a") + letter) for letter in letters)
