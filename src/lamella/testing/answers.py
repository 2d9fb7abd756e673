"""Tokenizers and answers for small causal language models; nothing is downloaded."""

from typing import TYPE_CHECKING

from lamella.data.answer_tokens import AnswerTokens
from lamella.data.chat import ChatTemplate
from lamella.testing.texts import CLS, PAD, SEP, byte_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["CHATML", "CHAT_SPECIAL", "answer_tokens", "chat_tokenizer"]

START, END = "<|im_start|>", "<|im_end|>"
CHAT_SPECIAL = (PAD, CLS, SEP, START, END)
"""The special tokens of `chat_tokenizer`, whose ids are 0 to 4; the id of a byte is the byte + 5."""
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The chat template of many models."""


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
        begins: whether every text begins with [CLS], where the template is the plain one.
    """
    names = {"eos_token": SEP} | ({"bos_token": CLS} if begins else {})
    chat = ChatTemplate(CHAT_SPECIAL, template=template, names=names)
    return AnswerTokens(chat_tokenizer(), chat, max_length=max_length)
