"""From texts to token ids and the mask that tells them from padding: what an encoder takes."""

from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lamella.data.samples import CPU, Batch, View, refuse_augmentation

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = ["IDS", "MASK", "TokenTransform", "padded"]

IDS = "input_ids"
"""Name of a batch's tensor (n, tokens) int64 of token ids."""
MASK = "attention_mask"
"""Name of a batch's tensor (n, tokens) bool that is False where samples are padded."""


class TokenTransform:
    """What an encoder of texts expects as input; a `Transform`.

    Padding goes to the right, to the longest text of a batch. Longer texts than `max_length` lose their end. What looks
    like a special token within a text is encoded as plain text.

    Args:
        tokenizer: of the encoder.
        max_length: the largest number of tokens of a text, special ones included; at least 3.
        pad_id: the id that stands for padding. It is never seen.
    """

    noun = "text"

    def __init__(self, tokenizer: "Tokenizer", *, max_length: int, pad_id: int = 0) -> None:
        if max_length < 3:
            raise ValueError(f"max_length = {max_length} leaves no room for a text; give 3 tokens or more")
        self.max_length = max_length
        self.pad_id = pad_id
        self.tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)

    def view(
        self,
        device: torch.device = CPU,
        augmentation: Any = None,
        n: int = 0,
        generator: torch.Generator | None = None,
    ) -> View:
        """What turns texts into a batch of token ids. There is no augmentation; see `Transform.view`."""
        refuse_augmentation(augmentation, self.noun)

        def view(texts: list[str], index: Tensor) -> Batch:
            return self.batch([encoding.ids for encoding in self.encode(texts)]).to(device)

        return view

    def encode(self, texts: Sequence[str]) -> "list[Encoding]":
        """The tokens of each text."""
        self.tokenizer.encode_special_tokens = True  # said here, since a copy of a tokenizer forgets it
        return self.tokenizer.encode_batch(list(texts))

    def lengths(self, raw: Sequence[str]) -> Tensor:
        """(n,) the number of tokens of each text, special ones included."""
        return torch.tensor([max(len(encoding), 1) for encoding in self.encode(raw)], dtype=torch.int64)

    def batch(self, ids: Sequence[Sequence[int]]) -> Batch:
        """Token ids of any lengths, padded to one length. A text without tokens counts as one of padding."""
        return Batch(padded(ids, self.pad_id))

    def example(self, n: int, generator: torch.Generator | None = None) -> Batch:
        """Texts of one word, or with a generator of 3 to 16 tokens that are drawn from the vocabulary."""
        if generator is None:
            return self.batch([encoding.ids for encoding in self.encode(["a"] * n)])
        longest = min(16, self.max_length)
        lengths = torch.randint(3, longest + 1, (n,), generator=generator).tolist()
        vocabulary = self.tokenizer.get_vocab_size()
        return self.batch([torch.randint(vocabulary, (k,), generator=generator).tolist() for k in lengths])

    def describe(self) -> dict[str, Any]:
        """The length at which texts are cut, and a digest of the tokenizer."""
        digest = sha256(self.tokenizer.to_str().encode()).hexdigest()
        return {"max_length": self.max_length, "tokenizer_sha256": digest}


def padded(rows: Sequence[Sequence[int]], pad_id: int, *, left: bool = False) -> dict[str, Tensor]:
    """Return token ids (n, tokens) of rows of any lengths, and the mask (n, tokens) that is False for padding.

    A row without tokens counts as one of padding.

    Args:
        rows: the ids of each sample.
        pad_id: the id that stands for padding.
        left: whether padding stands before the tokens of a sample and not behind them.
    """
    lengths = torch.tensor([max(len(row), 1) for row in rows])
    width = int(lengths.max())
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    for i, row in enumerate(rows):
        start = width - len(row) if left else 0
        ids[i, start : start + len(row)] = torch.tensor(row, dtype=torch.int64)
    places = torch.arange(width)
    return {IDS: ids, MASK: places >= width - lengths[:, None] if left else places < lengths[:, None]}
