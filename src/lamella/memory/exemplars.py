"""A memory of samples: a few of each old class, images in the size that the backbone takes, with original keys."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lamella.common.checks import check_one_of
from lamella.common.randomness import generator
from lamella.data.images import concatenate
from lamella.data.loading import Examples
from lamella.data.samples import Transform
from lamella.memory.resizable import Resizable
from lamella.memory.stores import Images, Store, decoded, encoded, store_of
from lamella.training.fit import Fit

__all__ = ["Exemplars", "Kept"]

CHOICES = ("herding", "random", "reservoir")


@dataclass(frozen=True)
class Kept:
    """How many images of old classes a method keeps, and which.

    Args:
        memory: the number of images that are kept of all classes together, shared out evenly; 0 keeps none.
        memory_per_class: the number of images that are kept of each class; at least 0. It replaces `memory`. If left
            out, `memory` is the limit.
        choose: which images are kept: "herding" (those whose mean feature is closest to the mean of their class),
            "random" (a random choice within each class), or "reservoir" (a random choice among all images so far,
            whatever their class; not together with `memory_per_class`).
    """

    memory: int | None = 2000
    memory_per_class: int | None = None
    choose: str = "herding"

    def none_yet(self, transform: Transform, seed: int) -> "Exemplars":
        """Return an empty memory.

        Args:
            transform: the input transform of the backbone.
            seed: the seed of random choices.
        """
        return Exemplars(transform, total=self.memory, per_class=self.memory_per_class, choose=self.choose, seed=seed)


class Exemplars(Resizable):
    """The samples that are kept of old tasks. Those of each class are in the order in which they were chosen.

    They are images or texts, as the backbone takes them: `stores.py` says how each are kept.

    Args:
        transform: the input transform of the backbone, in whose size images are stored.
        total: the number of samples of all classes together, shared out evenly; 0 keeps none.
        per_class: the number of samples of each class; if given, it replaces `total`.
        choose: which images are kept: "herding" (those whose mean feature is closest to that of their class), "random"
            (a random choice within each class), or "reservoir" (a uniform random choice among all samples so far,
            whatever their class; Vitter 1985). A reservoir may have no sample of a rare class.
        seed: the seed of random choices.

    Attributes:
        images: (m, 3, size, size) uint8, not augmented, where samples are images.
        texts: (bytes,) uint8, where samples are texts.
        labels: (m,) int64, global class ids.
        sources: (bytes,) uint8, the original keys of the samples as JSON.
        seen: () int64, the number of samples that a reservoir chose from so far.

    Raises:
        ValueError: the choice is unknown, there is no limit or a negative one, a reservoir has a limit for each class,
            or samples shall be kept but the backbone takes neither images nor texts.
    """

    for_training = True
    still_in_training = True  # so that checkpoints of `fit` do not contain the samples
    resizable = ("images", "texts", "labels", "sources")  # those that there are
    images: Tensor
    texts: Tensor
    labels: Tensor
    sources: Tensor
    seen: Tensor

    def __init__(
        self,
        transform: Transform,
        *,
        total: int | None = 2000,
        per_class: int | None = None,
        choose: str = "herding",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_one_of("choose", choose, CHOICES)
        limit = total if per_class is None else per_class
        if limit is None or limit < 0:
            noun = transform.noun
            raise ValueError(f"a memory of {limit} {noun}s is none; give 0 or more, for all classes or for each")
        if choose == "reservoir" and per_class is not None:
            raise ValueError(
                f"a reservoir knows no classes: leave out the {transform.noun}s per class, or choose 'random'"
            )
        store = store_of(transform)
        if limit and store is None:
            raise ValueError(
                f"a memory keeps images or texts, and this backbone takes {transform.noun}s; set the memory to 0"
            )
        self.noun, self.total, self.per_class, self.choose, self.seed = transform.noun, total, per_class, choose, seed
        self.store: Store = store or Images(0)
        self.register_buffer(self.store.name, self.store.empty())
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("sources", encoded(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> tuple[int, ...]:
        """Global ids of the classes that have a sample here, in the order of their first samples."""
        return tuple(dict.fromkeys(self.labels.tolist()))

    @property
    def keys(self) -> tuple[str, ...]:
        """The original key of each sample."""
        return tuple(decoded(self.sources))

    @property
    def held(self) -> Tensor:
        """The tensor of all samples."""
        return self.get_buffer(self.store.name)

    @property
    def bytes(self) -> int:
        """The number of bytes of all samples, without labels and keys."""
        return self.held.numel() if len(self) else 0

    def counts(self) -> dict[int, int]:
        """Return the number of samples of each class."""
        return {c: int((self.labels == c).sum()) for c in self.classes}

    def quota(self, classes: int) -> int:
        """Return how many samples each class may keep; 0 if the memory keeps none.

        Args:
            classes: the number of classes.

        Raises:
            ValueError: the memory is too small for one sample of each class.
        """
        if self.per_class is not None or not self.total:
            return self.per_class or 0
        share = self.total // max(classes, 1)
        if share == 0 and self.choose != "reservoir":
            raise ValueError(
                f"a memory of {self.total} {self.noun}s cannot hold one of each of {classes} classes; raise it to "
                f"{classes} or more, or set it to 0 for none"
            )
        return share

    def quota_with(self, classes: Sequence[int]) -> int:
        """Return how many samples each class may keep when these classes are added; some may already be known."""
        return self.quota(len({*self.classes, *classes}))

    def join(self, data: Examples, classes: Sequence[int] = ()) -> Examples:
        """Return the training data of a task: `data` and all kept samples, or `data` itself if there are none.

        Args:
            data: the task's own data.
            classes: global ids of the task's classes.

        Raises:
            ValueError: the memory is too small for these classes. This is checked here, before anything is trained.
        """
        self.quota_with(classes)
        return concatenate([self.store.checked(data), self.as_set()]) if len(self) else data

    def as_set(self) -> Examples:
        """Return the kept samples, on the CPU. The key of one with the original key KEY is "exemplar/i/KEY"."""
        keys = [f"exemplar/{i}/{key}" for i, key in enumerate(self.keys)]
        return self.store.as_set(self.held, self.labels, keys)

    def refill(self, data: Examples, extract: Callable[[Any], Tensor], fit: Fit, classes: Sequence[int]) -> None:
        """Choose samples at the end of a task, with features that are computed only if herding needs them.

        The features are stored in the checkpoints. So a resumed task chooses the same samples, even on a machine that
        rounds differently.

        Args:
            data: the training data of the task, from `join`.
            extract: the inputs of n samples -> features (n, d).
            fit: computes the features.
            classes: global ids of the task's classes.
        """
        herds = self.choose == "herding" and self.quota_with(classes) > 0
        self.select(data, fit.features(data, extract, keep=True, name="herding") if herds else None, classes)

    @torch.no_grad()
    def select(self, data: Examples, features: Tensor | None, classes: Sequence[int]) -> None:
        """Keep samples of a finished task, and remove some of older classes to make room for them.

        Args:
            data: the task's samples, alone or from `join` together with the kept ones. With the kept ones, those of a
                class that comes back are chosen among the old and the new ones.
            features: (n, d), one row for each sample of `data`; only herding needs them.
            classes: global ids of the task's classes.

        Raises:
            ValueError: the memory is too small for one sample of each class, `data` are of another kind, or herding
                gets no features.
        """
        quota = self.quota_with(classes)
        if not (self.total if self.choose == "reservoir" else quota):
            return
        data = self.store.checked(data)
        own = {f"exemplar/{i}/{key}": key for i, key in enumerate(self.keys)}
        keys = [own.get(key, key) for key in data.keys]
        if self.choose == "reservoir":
            return self._sample([i for i, key in enumerate(data.keys) if key not in own], data)
        twice = {key: i for i, key in reversed(list(enumerate(keys)))}  # a kept sample may come back too
        first = torch.tensor([twice[key] == i for i, key in enumerate(keys)])
        chosen: list[int] = []
        for label in classes:
            candidates = ((data.labels == label) & first).nonzero()[:, 0]
            chosen += candidates[self._order(candidates, features, label, quota)].tolist()
        stay = [i for i, label in enumerate(self.labels.tolist()) if label not in classes]
        self._store(stay, chosen, data, [keys[i] for i in chosen])
        self.shrink(quota)

    def _order(self, candidates: Tensor, features: Tensor | None, label: int, count: int) -> Tensor:
        """Return the positions among the candidates (n,) of those to keep, best first."""
        if self.choose == "random":
            return torch.randperm(len(candidates), generator=generator(self.seed, "exemplars", label))[:count]
        if features is None:
            raise ValueError(f"herding needs a feature of each {self.noun}; give them, or choose 'random'")
        unit = nn.functional.normalize(features[candidates.to(features.device)].double(), dim=1)
        return herding(unit, count).cpu()

    def _sample(self, offered: Sequence[int], data: Examples) -> None:
        """Offer samples one by one to a reservoir, which keeps each with the same probability."""
        room, seen = self.total or 0, int(self.seen)
        slots: list[tuple[bool, int]] = [(False, i) for i in range(len(self))]  # (whether it is new, its position)
        draws = torch.rand(len(offered), dtype=torch.float64, generator=generator(self.seed, "exemplars", seen))
        order = torch.randperm(len(offered), generator=generator(self.seed, "exemplars", seen, "order"))
        for draw, i in zip(draws.tolist(), order.tolist(), strict=True):
            seen += 1
            if len(slots) < room:
                slots.append((True, offered[i]))
            elif (slot := int(draw * seen)) < room:
                slots[slot] = True, offered[i]
        chosen = [i for new, i in slots if new]
        self._store([i for new, i in slots if not new], chosen, data, [data.keys[i] for i in chosen])
        self.seen.fill_(seen)

    def shrink(self, per_class: int) -> None:
        """Keep at most `per_class` samples of each class, those that were chosen first."""
        places = [(self.labels == label).nonzero()[:per_class, 0] for label in self.classes]
        self._keep(torch.cat(places).sort().values.tolist() if places else [])

    def _keep(self, index: Sequence[int]) -> None:
        keys = self.keys
        setattr(self, self.store.name, self.store.taken(self.held, index))
        self.labels = self.labels[torch.tensor(index, dtype=torch.int64, device=self.labels.device)]
        self.sources = encoded([keys[i] for i in index]).to(self.labels.device)

    def _store(self, stay: Sequence[int], chosen: Sequence[int], data: Examples, keys: Sequence[str]) -> None:
        """Keep the samples at `stay` and add those at `chosen` of `data`, whose original keys are `keys`."""
        index = torch.tensor(chosen, dtype=torch.int64)
        self._keep(stay)
        setattr(self, self.store.name, self.store.added(self.held, data, index))
        self.sources = encoded((*self.keys, *keys)).to(self.labels.device)
        self.labels = torch.cat([self.labels, data.labels[index].to(self.labels.device)])


def herding(features: Tensor, count: int) -> Tensor:
    """Choose features whose mean is close to the mean of all.

    Each step brings the mean of the chosen ones closest to the mean of all: p_k = argmin |mu - (x + p_1 + ... +
    p_{k-1}) / k|, without repeats (Rebuffi et al., "iCaRL", CVPR 2017, arXiv 1611.07725, algorithm 4; after Welling,
    "Herding Dynamical Weights to Learn", ICML 2009).

    Args:
        features: (n, d).
        count: how many are chosen; all if there are fewer.

    Returns:
        (min(count, n),) int64 indices, in the order of choice.
    """
    x = features.double()
    mean, total = x.mean(0), torch.zeros_like(x.sum(0))
    free = torch.ones(len(x), dtype=torch.bool, device=x.device)
    chosen: list[int] = []
    for k in range(1, min(count, len(x)) + 1):
        distance = (mean - (total + x) / k).square().sum(1)
        nearest = int(distance.masked_fill(~free, torch.inf).argmin())
        chosen.append(nearest)
        free[nearest] = False
        total = total + x[nearest]
    return torch.tensor(chosen, dtype=torch.int64, device=x.device)
