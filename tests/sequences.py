"""Samples that are no images: sequences of tokens, padded batch by batch, and a small encoder of them for tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.backbones import Backbone
from lamella.common.randomness import generator
from lamella.data.samples import CPU, Batch, Samples, View
from lamella.data.tasks import Source

PAD, FIRST, WORDS = 0, 1, 40
"""The token of padding, the one that every sequence begins with, and how many tokens there are."""
WIDTH, HEADS, LONGEST = 16, 2, 64


@dataclass(frozen=True)
class Tokens:
    """A transform of sequences, which pads each batch to its longest one, and by `extra` tokens more."""

    extra: int = 0

    @property
    def noun(self) -> str:
        return "sequence"

    def view(
        self, device: torch.device = CPU, augmentation: Any = None, n: int = 0, generator: torch.Generator | None = None
    ) -> View:
        if augmentation is not None:
            raise ValueError("sequences are not augmented; leave out [augment]")
        return lambda raw, index: self.padded(raw).to(device)

    def example(self, n: int, generator: torch.Generator | None = None) -> Batch:
        if generator is None:
            return self.padded([(FIRST, 2, 3)] * n)
        lengths = torch.randint(1, 9, (n,), generator=generator).tolist()
        return self.padded([(FIRST, *torch.randint(2, WORDS, (k,), generator=generator).tolist()) for k in lengths])

    def describe(self) -> dict[str, Any]:
        return {"words": WORDS}

    def padded(self, raw: Sequence[Sequence[int]]) -> Batch:
        longest = max(map(len, raw), default=1) + self.extra
        ids = torch.tensor([[*one, *[PAD] * (longest - len(one))] for one in raw]).reshape(len(raw), longest)
        return Batch({"input_ids": ids, "attention_mask": ids != PAD})


class SequenceSet:
    """Labelled sequences of tokens; they stay as they are until a batch of them is read."""

    def __init__(self, raw: Sequence[Sequence[int]], labels: Tensor, keys: Sequence[str]) -> None:
        self.raw, self.labels, self.keys, self.noun = list(raw), labels, tuple(keys), "sequence"

    def __len__(self) -> int:
        return len(self.raw)

    def subset(self, index: Tensor | Sequence[int]) -> Self:
        places = torch.as_tensor(index, dtype=torch.int64)
        chosen = places.tolist()
        return type(self)([self.raw[i] for i in chosen], self.labels[places], [self.keys[i] for i in chosen])

    def relabelled(self, labels: Tensor, keys: Sequence[str] | None = None) -> Self:
        return type(self)(self.raw, labels, self.keys if keys is None else keys)

    def concatenate(self, others: Sequence[Self]) -> Self:
        sets = (self, *others)
        raw, keys = [one for part in sets for one in part.raw], [key for part in sets for key in part.keys]
        return type(self)(raw, torch.cat([part.labels for part in sets]), keys)

    def batch(self, index: Tensor | Sequence[int], view: View) -> Samples:
        places = torch.as_tensor(index, dtype=torch.int64)
        return view([self.raw[i] for i in places.tolist()], places)

    def identity(self, i: int) -> bytes:
        return repr(self.raw[i]).encode()


def sequences(classes: Sequence[int], per_class: int, part: str) -> SequenceSet:
    """Sequences of 2 to 13 tokens, most of them from the four that are their class's own."""
    raw: list[tuple[int, ...]] = []
    for label in classes:
        draws = generator(7, part, label)
        for _ in range(per_class):
            length = int(torch.randint(1, 13, (), generator=draws))
            own = 2 + 4 * label + torch.randint(0, 4, (length,), generator=draws)
            any_ = torch.randint(2, WORDS, (length,), generator=draws)
            raw.append((FIRST, *torch.where(torch.rand(length, generator=draws) < 0.8, own, any_).tolist()))
    labels = torch.tensor(classes).repeat_interleave(per_class)
    return SequenceSet(raw, labels, [f"{part}/{label}/{i}" for label in classes for i in range(per_class)])


def source(*classes: int, per_class: int = 8) -> Source:
    """The data set of these classes alone, which are numbered anew."""
    parts = [
        data.relabelled(torch.tensor([classes.index(c) for c in data.labels.tolist()]))
        for data in (sequences(classes, per_class, "train"), sequences(classes, 4, "test"))
    ]
    return Source(f"classes {min(classes)}-{max(classes)}", *parts, tuple(f"class {c}" for c in classes))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v, mask[:, None, None]).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(h)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH), Attention()
        self.norm2, self.mlp = nn.LayerNorm(WIDTH), Mlp()

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        h = h + self.attn(self.norm1(h), mask)
        return h + self.mlp(self.norm2(h))


class Encoder(nn.Module):
    """Two blocks of a transformer over a batch with a mask; features are the first token's, or the mean over tokens."""

    def __init__(self, pooling: str) -> None:
        super().__init__()
        self.has_class_token = pooling == "first"
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Batch) -> Tensor:
        ids, mask = x["input_ids"], x["attention_mask"]
        h = self.words(ids) + self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            h = block(h, mask)
        h = self.norm(h)
        return h[:, 0] if self.has_class_token else (h * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


def encoder(name: str = "encoder", *, pooling: str = "mean", extra: int = 0, seed: int = 0) -> Backbone:
    """What stands in for `load_backbone` in tests of whole learners: the keys of [backbone] are these arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Encoder(pooling)
    return Backbone(model, name=name, width=WIDTH, transform=Tokens(extra))
