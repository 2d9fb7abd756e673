"""Sets of labelled texts."""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Self

import torch
from torch import Tensor

from lamella.data.images import UNKNOWN_CLASS
from lamella.data.listed import ListedSet

__all__ = ["TextSet", "keys_of_texts", "normal_text"]

MARKS = 30
"""No script puts more marks on one letter (UAX 15, stream-safe text)."""


def normal_text(text: str) -> str:
    r"""Return a text in the usual form of Unicode (NFC), without white space around it.

    >>> normal_text("  caf\u0065\u0301\n")
    'café'
    """
    if not text.isascii():
        text = "".join(unicodedata.normalize("NFC", part) for part in _cut_in_marks(text))
    return text.strip()


def _cut_in_marks(text: str) -> Iterator[str]:
    """Yield the parts of a text, which is cut where too many marks follow a letter.

    The time of sorting such marks grows with the square of their number: 20,000 of them take seconds.
    """
    start = marks = 0
    for i, sign in enumerate(text):
        marks = marks + 1 if unicodedata.combining(sign) else 0
        if marks > MARKS:
            yield text[start:i]
            start, marks = i, 1
    yield text[start:]


def keys_of_texts(texts: Sequence[str]) -> list[str]:
    """Return a stable identity of each text: a digest of its content, and a number where a text comes again.

    So whether a text is held back does not depend on the row that it stands in.

    Args:
        texts: in their usual form.
    """
    seen: Counter[str] = Counter()
    keys: list[str] = []
    for text in texts:
        digest = sha256(text.encode()).hexdigest()[:24]
        seen[digest] += 1
        keys.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return keys


class TextSet(ListedSet[str]):
    """Labelled texts.

    Args:
        texts: the texts.
        labels: (n,) int64, global class ids.
        keys: a stable identity of each text; no two are equal. A digest of its content where left out.

    Raises:
        ValueError: the lengths differ, or a key comes twice.
    """

    noun = "text"

    def __init__(self, texts: Sequence[str], labels: Tensor, keys: Sequence[str] | None = None) -> None:
        super().__init__(texts, labels, keys_of_texts(texts) if keys is None else keys)

    @classmethod
    def unlabelled(cls, texts: Sequence[str]) -> Self:
        """Texts whose classes are not known."""
        return cls(texts, torch.full((len(texts),), UNKNOWN_CLASS), [str(i) for i in range(len(texts))])

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts themselves."""
        return self.items

    def __repr__(self) -> str:
        return f"TextSet({len(self)} texts of {len(self.labels.unique())} classes)"

    def identity(self, i: int) -> bytes:
        """The text itself."""
        return self.items[i].encode()
