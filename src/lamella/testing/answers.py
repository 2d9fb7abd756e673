"""Tokenizers and answers for small language models; nothing is downloaded."""

from typing import TYPE_CHECKING, Any

import torch

from lamella.backbones import Backbone
from lamella.backbones.encoder_decoder import EncoderDecoder
from lamella.backbones.language_model import LanguageModel
from lamella.data.answer_pairs import AnswerPairs
from lamella.data.answer_tokens import AnswerTokens
from lamella.data.chat import ChatTemplate, plain_template_of_pairs
from lamella.testing.texts import CLS, PAD, SEP, byte_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "CHATML",
    "CHAT_SPECIAL",
    "answer_tokens",
    "causal_config",
    "chat_tokenizer",
    "tiny_causal",
    "tiny_network",
]

START, END = "<|im_start|>", "<|im_end|>"
CHAT_SPECIAL = (PAD, CLS, SEP, START, END)
"""The special tokens of `chat_tokenizer`, whose ids are 0 to 4; the id of a byte is the byte + 5."""
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The chat template of many models."""

SIZES: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "T5": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
        "initializer_factor": 2.0,
    },
    "Bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 128,
        "init_std": 0.2,
        "pad_token_id": 0,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
    },
}
"""The sizes of families that call them by names of their own."""


def chat_tokenizer() -> "Tokenizer":
    """A tokenizer of bytes that has the special tokens of CHATML."""
    from tokenizers import decoders

    tokenizer = byte_tokenizer(special=CHAT_SPECIAL)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def answer_tokens(template: str | None = None, *, max_length: int = 64, begins: bool = True) -> AnswerTokens:
    """What makes inputs of answers by `chat_tokenizer`.

    Args:
        template: the chat template; the plain one where left out.
        max_length: the largest number of tokens of an answer.
        begins: whether every text begins with [CLS].
    """
    begin = CLS if begins else ""
    chat = ChatTemplate(CHAT_SPECIAL, template=template, names={"eos_token": SEP}, begin=begin)
    return AnswerTokens(chat_tokenizer(), chat, max_length=max_length)


def causal_config(family: str, **options: Any) -> Any:
    """The configuration of a language model of two layers and 32 features on the tokens of `chat_tokenizer`.

    Args:
        family: the name of its classes in transformers, such as "Llama", "GPT2", "T5" or "Bart".
        options: further values of the configuration.
    """
    import transformers

    common = {"vocab_size": len(CHAT_SPECIAL) + 256, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}
    usual = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    }
    sizes = SIZES.get(family, usual)
    return getattr(transformers, f"{family}Config")(**common | sizes | options)


def tiny_causal(family: str = "Llama", *, seed: int = 0, template: str | None = None, **options: Any) -> Backbone:
    """A language model with random weights; it takes answers.

    Args:
        family: the name of its classes in transformers, such as "Llama", "GPT2", "T5" or "Bart".
        seed: of the weights.
        template: its chat template; the plain one where left out.
        options: further values of its configuration.
    """
    network = tiny_network(family, seed=seed, **options)
    transform = answer_tokens(template)
    ends = transform.ids_of(SEP + transform.chat.end)
    if network.config.is_encoder_decoder:
        start = network.config.decoder_start_token_id
        chat = ChatTemplate(
            CHAT_SPECIAL,
            template=template or plain_template_of_pairs(CLS, SEP),
            names=transform.chat.names,
            begin=CLS,
        )
        transform = AnswerPairs(chat_tokenizer(), chat, max_length=64, start=start)
        model = EncoderDecoder(network, ends, start=start)
    else:
        model = LanguageModel(network, ends)
    return Backbone(model, name=f"tiny-{family.lower()}", width=32, transform=transform)


def tiny_network(family: str, *, seed: int = 0, **options: Any) -> Any:
    """The network of `tiny_causal`, of transformers; the arguments are the same."""
    import transformers

    config = causal_config(family, **options)
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind.from_config(config).eval()
