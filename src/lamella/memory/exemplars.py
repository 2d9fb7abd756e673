"""A memory of images: a few of each old class, in the size that the backbone takes, with their original keys."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lamella.common.checks import check_one_of
from lamella.common.randomness import generator
from lamella.data.images import ImageSet, PixelArray, concatenate
from lamella.data.loading import Examples
from lamella.data.samples import Transform
from lamella.data.transform import InputTransform, plain_view
from lamella.memory.resizable import Resizable
from lamella.training.fit import Fit

__all__ = ["Exemplars", "Kept"]

CHOICES = ("herding", "random", "reservoir")
CHUNK = 64  # images that are read at once; photos are large before they are resized


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
    """The images that are kept of old tasks. Those of each class are in the order in which they were chosen.

    Args:
        transform: the input transform of the backbone, in whose size images are stored.
        total: the number of images of all classes together, shared out evenly; 0 keeps none.
        per_class: the number of images of each class; if given, it replaces `total`.
        choose: which images are kept: "herding" (those whose mean feature is closest to that of their class), "random"
            (a random choice within each class), or "reservoir" (a uniform random choice among all images so far,
            whatever their class; Vitter 1985). A reservoir may have no image of a rare class.
        seed: the seed of random choices.

    Attributes:
        images: (m, 3, size, size) uint8, not augmented.
        labels: (m,) int64, global class ids.
        sources: (bytes,) uint8, the original keys of the images as JSON.
        seen: () int64, the number of images that a reservoir chose from so far.

    Raises:
        ValueError: the choice is unknown, there is no limit or a negative one, a reservoir has a limit for each class,
            or images shall be kept but the backbone takes samples of another kind.
    """

    for_training = True
    still_in_training = True  # so that checkpoints of `fit` do not contain the images
    resizable = ("images", "labels", "sources")
    images: Tensor
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
            raise ValueError(f"a memory of {limit} images is none; give 0 or more, for all classes or for each")
        if choose == "reservoir" and per_class is not None:
            raise ValueError("a reservoir knows no classes: leave out the images per class, or choose 'random'")
        if limit and not isinstance(transform, InputTransform):
            raise ValueError(f"a memory keeps images, and this backbone takes {transform.noun}s; set the memory to 0")
        size = transform.size if isinstance(transform, InputTransform) else 0
        self.size, self.total, self.per_class, self.choose, self.seed = size, total, per_class, choose, seed
        self.register_buffer("images", torch.zeros(0, 3, size, size, dtype=torch.uint8))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("sources", _encode(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> tuple[int, ...]:
        """Global ids of the classes that have an image here, in the order of their first images."""
        return tuple(dict.fromkeys(self.labels.tolist()))

    @property
    def keys(self) -> tuple[str, ...]:
        """The original key of each image."""
        return tuple(json.loads(bytes(self.sources.tolist())))

    @property
    def bytes(self) -> int:
        """The number of bytes of all pixels."""
        return self.images.numel()

    def counts(self) -> dict[int, int]:
        """Return the number of images of each class."""
        return {c: int((self.labels == c).sum()) for c in self.classes}

    def quota(self, classes: int) -> int:
        """Return how many images each class may keep; 0 if the memory keeps none.

        Args:
            classes: the number of classes.

        Raises:
            ValueError: the memory is too small for one image of each class.
        """
        if self.per_class is not None or not self.total:
            return self.per_class or 0
        share = self.total // max(classes, 1)
        if share == 0 and self.choose != "reservoir":
            raise ValueError(
                f"a memory of {self.total} images cannot hold one of each of {classes} classes; raise it to {classes} "
                "or more, or set it to 0 for none"
            )
        return share

    def quota_with(self, classes: Sequence[int]) -> int:
        """Return how many images each class may keep when these classes are added; some may already be known."""
        return self.quota(len({*self.classes, *classes}))

    def join(self, data: Examples, classes: Sequence[int] = ()) -> Examples:
        """Return the training data of a task: `data` and all kept images, or `data` itself if there are none.

        Args:
            data: the task's own data.
            classes: global ids of the task's classes.

        Raises:
            ValueError: the memory is too small for these classes. This is checked here, before anything is trained.
        """
        self.quota_with(classes)
        return concatenate([_images(data), self.as_set()]) if len(self) else data

    def as_set(self) -> ImageSet:
        """Return the kept images, on the CPU. The key of an image with the original key KEY is "exemplar/i/KEY"."""
        keys = [f"exemplar/{i}/{key}" for i, key in enumerate(self.keys)]
        return ImageSet(PixelArray(self.images.cpu()), self.labels.cpu(), keys)

    def refill(self, data: Examples, extract: Callable[[Tensor], Tensor], fit: Fit, classes: Sequence[int]) -> None:
        """Choose images at the end of a task, with features that are computed only if herding needs them.

        The features are stored in the checkpoints. So a resumed task chooses the same images, even on a machine that
        rounds differently.

        Args:
            data: the training data of the task, from `join`.
            extract: images (n, 3, size, size) -> features (n, d).
            fit: computes the features.
            classes: global ids of the task's classes.
        """
        herds = self.choose == "herding" and self.quota_with(classes) > 0
        self.select(data, fit.features(data, extract, keep=True, name="herding") if herds else None, classes)

    @torch.no_grad()
    def select(self, data: Examples, features: Tensor | None, classes: Sequence[int]) -> None:
        """Keep images of a finished task, and remove images of older classes to make room for them.

        Args:
            data: the task's images, alone or from `join` together with the kept ones. With the kept ones, the images of
                a class that comes back are chosen among the old and the new ones.
            features: (n, d), one row for each image of `data`; only herding needs them.
            classes: global ids of the task's classes.

        Raises:
            ValueError: the memory is too small for one image of each class, `data` are not images, or herding gets no
                features.
        """
        quota = self.quota_with(classes)
        if not (self.total if self.choose == "reservoir" else quota):
            return
        data = _images(data)
        own = {f"exemplar/{i}/{key}": key for i, key in enumerate(self.keys)}
        keys = [own.get(key, key) for key in data.keys]
        if self.choose == "reservoir":
            return self._sample([i for i, key in enumerate(data.keys) if key not in own], data)
        twice = {key: i for i, key in reversed(list(enumerate(keys)))}  # a kept image may come back too
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
            raise ValueError("herding needs a feature of each image; give them, or choose 'random'")
        unit = nn.functional.normalize(features[candidates.to(features.device)].double(), dim=1)
        return herding(unit, count).cpu()

    def _sample(self, offered: Sequence[int], data: ImageSet) -> None:
        """Offer images one by one to a reservoir, which keeps each image with the same probability."""
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
        """Keep at most `per_class` images of each class, those that were chosen first."""
        places = [(self.labels == label).nonzero()[:per_class, 0] for label in self.classes]
        self._keep(torch.cat(places).sort().values.tolist() if places else [])

    def _keep(self, index: Sequence[int]) -> None:
        keys, place = self.keys, torch.tensor(index, dtype=torch.int64, device=self.labels.device)
        self.images, self.labels = self.images[place], self.labels[place]
        self.sources = _encode([keys[i] for i in index]).to(self.labels.device)

    def _store(self, stay: Sequence[int], chosen: Sequence[int], data: ImageSet, keys: Sequence[str]) -> None:
        """Keep the images at `stay` and add those at `chosen` of `data`, whose original keys are `keys`."""
        index = torch.tensor(chosen, dtype=torch.int64)
        images = torch.cat([self._compact(data.pixels(part)) for part in index.split(CHUNK)])
        self._keep(stay)
        self.sources = _encode((*self.keys, *keys)).to(self.labels.device)
        self.images = torch.cat([self.images, images.to(self.images.device)])
        self.labels = torch.cat([self.labels, data.labels[index].to(self.labels.device)])

    def _compact(self, pixels: list[Tensor]) -> Tensor:
        """Return (n, 3, size, size) uint8 images: the centre, after the shorter side was resized to `size`."""
        if all(image.shape[1:] == (self.size, self.size) for image in pixels):
            return torch.stack([image.cpu() for image in pixels]) if pixels else self.images[:0].cpu()
        view = plain_view(InputTransform(self.size, (0.0,) * 3, (1.0,) * 3))
        return (255 * view(pixels, torch.arange(len(pixels)))).round().to(torch.uint8).cpu()


def _images(data: Examples) -> ImageSet:
    if not isinstance(data, ImageSet):
        raise ValueError(f"a memory keeps images, and these are {data.noun}s; set it to 0")
    return data


def _encode(keys: Sequence[str]) -> Tensor:
    return torch.tensor(list(json.dumps(list(keys)).encode()), dtype=torch.uint8)


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
