"""Texts as counted words: vectors without a network, without weights, and without a download.

Each lower-cased word of a text, each pair of neighbouring words, and each group of letters of a word goes into one of
512 buckets, which a hash chooses, and counts there as +1 or -1, which the hash chooses, too. The vector has length 1.
It is what an encoder has to be better than.
"""

import re
from functools import lru_cache
from itertools import pairwise
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from lamella.backbones.backbone import Backbone
from lamella.data.samples import CPU, View, refuse_augmentation

__all__ = ["HASHED_WORDS", "HashedWords", "build_hashed_words"]

HASHED_WORDS = "hashed-words"
WIDTH = 512
LETTERS = (3, 4)
"""The lengths of the groups of letters; a word begins and ends with a blank."""
REMEMBERED = 20  # letters of a word whose hashes are kept; those of long ones could fill the memory of a server
VERSION = "1"  # of the vectors; another one is another backbone, on which nothing that was learned fits
_WORD = re.compile(r"\w+|[^\w\s]")


class HashedWords:
    """Makes vectors (512,) of texts; a `Transform`."""

    noun = "text"

    def view(
        self,
        device: torch.device = CPU,
        augmentation: Any = None,
        n: int = 0,
        generator: torch.Generator | None = None,
    ) -> View:
        """What turns texts into vectors, (n, 512) float32. There is no augmentation; see `Transform.view`."""
        refuse_augmentation(augmentation, self.noun)
        return lambda texts, index: self.vectors(texts).to(device)

    def vectors(self, texts: list[str]) -> Tensor:
        """(n, 512) float32; zeros for a text without words."""
        counts = torch.zeros(len(texts), WIDTH)
        for row, text in zip(counts, texts, strict=True):
            if parts := _parts(text):
                hashes = torch.tensor(sorted(parts))
                row.index_add_(0, hashes // 2 % WIDTH, 1.0 - 2.0 * (hashes % 2))
        damped = counts.sign() * counts.abs().sqrt()  # else the buckets that many parts share have too much weight
        return nn.functional.normalize(damped, dim=1)

    def example(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Vectors of a text of one word, or drawn ones."""
        if generator is None:
            return self.vectors(["a"] * n)
        return nn.functional.normalize(torch.randn(n, WIDTH, generator=generator), dim=1)

    def describe(self) -> dict[str, Any]:
        """The version of the vectors."""
        return {"hashed_words": VERSION}


class Vectors(nn.Module):
    """Gives the vectors as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.empty(0))  # no weight: it tells the device

    def forward(self, x: Tensor) -> Tensor:
        return x


def build_hashed_words(name: str = HASHED_WORDS) -> Backbone:
    """Build the backbone that counts words. It has no options, and no layers that branches could attach to."""
    return Backbone(Vectors(), name=name, width=WIDTH, transform=HashedWords(), marks={"hashed words": VERSION})


def _parts(text: str) -> set[int]:
    """A hash of each part; one that comes twice counts once."""
    words = _WORD.findall(text.lower())
    parts = {_hash(f"{first} {second}") for first, second in pairwise(words)}
    return parts.union(*(_of_word(word) if len(word) <= REMEMBERED else _hashes(word) for word in words))


@lru_cache(maxsize=20_000)
def _of_word(word: str) -> frozenset[int]:
    """The same as `_hashes`, remembered."""
    return _hashes(word)


def _hashes(word: str) -> frozenset[int]:
    """Of the word itself and of its groups of letters, which are told from words by a mark in front."""
    whole = f" {word} "
    groups = (whole[i : i + n] for n in LETTERS for i in range(max(1, len(whole) - n + 1)))
    return frozenset([_hash(word), *(_hash(f"\0{group}") for group in groups)])


def _hash(part: str) -> int:
    return crc32(part.encode("utf-8", "surrogatepass"))
