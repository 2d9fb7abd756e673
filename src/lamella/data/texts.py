"""Sets of labelled texts."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Self, TypeVar

import torch
from torch import Tensor

from lamella.data.images import UNKNOWN_CLASS
from lamella.data.samples import Samples

__all__ = ["TextSet", "keys_of_texts", "normal_text"]

AnySamples = TypeVar("AnySamples", bound=Samples)
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


class TextSet:
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
        self.texts = tuple(texts)
        self.labels = labels.to(torch.int64)
        self.keys = tuple(keys_of_texts(self.texts) if keys is None else keys)
        if not len(self.texts) == len(self.labels) == len(self.keys):
            counts = f"{len(self.texts)} texts, {len(self.labels)} labels and {len(self.keys)} keys"
            raise ValueError(f"every text needs one label and one key, but there are {counts}")
        if len(set(self.keys)) != len(self.keys):
            twice = next(key for key, count in Counter(self.keys).items() if count > 1)
            raise ValueError(f"two texts share the key {twice!r}; keys must differ, they decide the split")

    @classmethod
    def unlabelled(cls, texts: Sequence[str]) -> Self:
        """Texts whose classes are not known."""
        return cls(texts, torch.full((len(texts),), UNKNOWN_CLASS), [str(i) for i in range(len(texts))])

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"TextSet({len(self)} texts of {len(self.labels.unique())} classes)"

    def subset(self, index: Tensor | Sequence[int]) -> Self:
        """The texts at these positions of this set, in this order."""
        positions = torch.as_tensor(index, dtype=torch.int64, device="cpu").tolist()
        texts, keys = [self.texts[i] for i in positions], [self.keys[i] for i in positions]
        return type(self)(texts, self.labels[positions], keys)

    def relabelled(self, labels: Tensor, keys: Sequence[str] | None = None) -> Self:
        """The same texts with other labels (n,), and with other keys where they are given."""
        return type(self)(self.texts, labels, self.keys if keys is None else keys)

    def concatenate(self, others: Sequence[Self]) -> Self:
        """The texts of this set and then those of the others."""
        sets = (self, *others)
        texts, keys = [text for part in sets for text in part.texts], [key for part in sets for key in part.keys]
        return type(self)(texts, torch.cat([part.labels for part in sets]), keys)

    def batch(self, index: Tensor | Sequence[int], view: Callable[[list[str], Tensor], AnySamples]) -> AnySamples:
        """The texts at these positions as a backbone takes them."""
        positions = torch.as_tensor(index, dtype=torch.int64, device="cpu")
        return view([self.texts[i] for i in positions.tolist()], positions)

    def identity(self, i: int) -> bytes:
        """The text itself."""
        return self.texts[i].encode()
