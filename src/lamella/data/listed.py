"""Sets of samples that are Python objects, such as texts or answers, with a label and a key for each."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from lamella.data.one_class import check_one_label
from lamella.data.samples import Samples

__all__ = ["ListedSet"]

Item = TypeVar("Item")
AnySamples = TypeVar("AnySamples", bound=Samples)


class ListedSet(Generic[Item]):
    """Samples in a list. A kind of samples derives from it, with its noun and its `identity`.

    Args:
        items: the samples.
        labels: (n,) int64, global class ids; -1 where a class is not known.
        keys: a stable identity of each sample; no two are equal.

    Raises:
        ValueError: the lengths differ, or a key comes twice.
    """

    noun = "sample"

    def __init__(self, items: Sequence[Item], labels: Tensor, keys: Sequence[str]) -> None:
        self.items = tuple(items)
        check_one_label(labels, self.noun)
        self.labels = labels.to(torch.int64)
        self.keys = tuple(keys)
        if not len(self.items) == len(self.labels) == len(self.keys):
            counts = f"{len(self.items)} {self.noun}s, {len(self.labels)} labels and {len(self.keys)} keys"
            raise ValueError(f"every {self.noun} needs one label and one key, but there are {counts}")
        if len(set(self.keys)) != len(self.keys):
            twice = next(key for key, count in Counter(self.keys).items() if count > 1)
            raise ValueError(f"two {self.noun}s share the key {twice!r}; keys must differ, they decide the split")

    def __len__(self) -> int:
        return len(self.items)

    def subset(self, index: Tensor | Sequence[int]) -> Self:
        """The samples at these positions of this set, in this order."""
        positions = torch.as_tensor(index, dtype=torch.int64, device="cpu").tolist()
        items, keys = [self.items[i] for i in positions], [self.keys[i] for i in positions]
        return type(self)(items, self.labels[positions], keys)

    def relabelled(self, labels: Tensor, keys: Sequence[str] | None = None) -> Self:
        """The same samples with other labels (n,), and with other keys where they are given."""
        return type(self)(self.items, labels, self.keys if keys is None else keys)

    def concatenate(self, others: Sequence[Self]) -> Self:
        """The samples of this set and then those of the others."""
        sets = (self, *others)
        items, keys = [item for part in sets for item in part.items], [key for part in sets for key in part.keys]
        return type(self)(items, torch.cat([part.labels for part in sets]), keys)

    def batch(self, index: Tensor | Sequence[int], view: Callable[[list[Item], Tensor], AnySamples]) -> AnySamples:
        """The samples at these positions as a backbone takes them."""
        positions = torch.as_tensor(index, dtype=torch.int64, device="cpu")
        return view([self.items[i] for i in positions.tolist()], positions)
