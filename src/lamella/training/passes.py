"""Passes without training, and what they share with the training loop: device, precision, names of calls, records."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lamella.common.checks import check_one_of
from lamella.common.progress import Progress, silent
from lamella.data.feeding import Feed
from lamella.data.lengths import OfManyLengths, in_order
from lamella.data.loading import Examples
from lamella.data.samples import Batch, Transform
from lamella.data.transform import Augmentation
from lamella.training import processes
from lamella.training.calls import Place, ScanCall
from lamella.training.checkpoints import Checkpoints
from lamella.training.checks import check_finite
from lamella.training.precision import PRECISIONS, computing, move, resolve_device, wait_for

__all__ = ["Passes"]


class Passes:
    """Passes over data in which nothing is trained.

    Args:
        module: the method; buffers that training may move (batch-norm statistics) are part of every checkpoint.
        transform: turns raw samples into inputs.
        augmentation: the augmentation of training samples; None for none.
        seed: the seed of every random draw, together with the task and the name of the call.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".
        precision: "float32" or "bf16" (autocast; statistics stay in float32).
        compile: whether training runs compiled blocks; see compilation.py.
        recompute: whether training computes blocks a second time in place of keeping what they computed; see
            recomputation.py.
        checkpoints: where the state of calls is stored, so that they can be resumed; None stores nothing.
        progress: opens a progress bar.
        like_sizes: whether samples of like lengths share a batch of training; see `data.lengths.in_windows`. Passes
            without training do that in any case.
        scan_batch_size: the number of samples in a forward pass without training; at least 1.

    Raises:
        ValueError: the precision or the device is unknown, samples of many lengths should be trained compiled, or those
            of one length should be sorted by it.
    """

    def __init__(
        self,
        module: nn.Module,
        transform: Transform,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        device: str = "auto",
        precision: str = "float32",
        compile: bool = False,
        recompute: bool = False,
        checkpoints: Checkpoints | None = None,
        progress: Progress = silent,
        like_sizes: bool = False,
        scan_batch_size: int = 64,
    ) -> None:
        check_one_of("precision", precision, PRECISIONS)
        if compile and isinstance(transform.example(1), Batch):
            raise ValueError(
                f"fit.compile is for batches of one shape, and {transform.noun}s are padded to many; leave it out"
            )
        if compile and recompute:
            raise ValueError("fit.compile and fit.recompute both change how blocks run; leave one of them out")
        if like_sizes and not isinstance(transform, OfManyLengths):
            raise ValueError(
                f"fit.like_sizes is for samples of many lengths, and {transform.noun}s have one; leave it out"
            )
        self.module = module
        self.transform = transform
        self.augmentation = augmentation
        self.seed = seed
        self.device = resolve_device(device)
        self.precision = precision
        self.compile = compile
        self.recompute = recompute
        self.like_sizes = like_sizes
        self.checkpoints = checkpoints
        self.progress = progress
        self.scan_batch_size = scan_batch_size
        self.begin("0")

    divided = False
    """Whether samples stay with several owners, so that of features only sums are known; see `pooled`."""
    once = False
    """Whether tasks are small batches of a stream: each sample is trained on once, and known classes come again."""

    def pooled(self, name: str, summed: Callable[..., dict[str, Tensor]], *rows: Tensor) -> dict[str, Tensor]:
        """Return sums over all samples of the task; where these have several owners, each sends those of its own.

        Args:
            name: the name of the sums within the task.
            summed: rows of n samples -> their sums by name.
            rows: (n, ...), in the order of the task's samples, such as features and labels.
        """
        return summed(*rows)

    def begin(self, task: str) -> None:
        """Begin a task: the names of calls start again, and the records (seconds, trained tensors) are empty.

        Args:
            task: the name of the task.
        """
        self.task = task
        self._names: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.feed = Feed(self.transform, seed=self.seed, device=self.device)
        self.trained: dict[str, int] = {}
        self.drift: Callable[[Tensor], Tensor] | None = None
        move(self.module, self.device)

    def tell_drift(self, drift: Callable[[Tensor], Tensor]) -> None:
        """Tell how the features of old samples have moved in this task, for those that are kept.

        Args:
            drift: features (n, d) from before the task -> as they would be computed after it.
        """
        self.drift = drift

    @property
    def waited(self) -> float:
        """The seconds of this task in which nothing was computed, because samples were not loaded yet."""
        return self.feed.waited

    def scan(
        self,
        data: Examples,
        observe: Callable[[Any, Tensor], Any],
        *,
        augment: bool = False,
        keep: Mapping[str, nn.Module] | None = None,
        batch_size: int | None = None,
        any_order: bool = False,
        name: str = "scan",
    ) -> Tensor:
        """Pass over data in their order, without training.

        Args:
            data: the samples.
            observe: called for each batch with the inputs of n samples and global class ids (n,), without gradients.
            augment: whether samples are augmented as in training.
            keep: the modules whose buffers `observe` fills, by name. With them an interrupted pass is resumed and a
                finished one is restored; without them the pass is repeated. Where the buffers of all are sums over
                samples, as their attribute `adds` says, several processes share the samples out; otherwise each passes
                over all of them.
            batch_size: the number of samples in a forward pass; `scan_batch_size` if left out.
            any_order: whether samples may come in another order: those of like lengths together, so that little is
                padding. It is the same one in each pass. Where all samples have one length, it is that of the set.
            name: the name of this call within the task.

        Returns:
            (n,) the positions of the samples in the set, in the order in which they were read.
        """
        place, size = self._place(self._call(name)), batch_size or self.scan_batch_size
        order = self.feed.any_order(data, size) if any_order else torch.arange(len(data))
        self._scan(place, data, order, observe, augment, keep or {}, size, name)
        return order

    def _scan(
        self,
        place: Place,
        data: Examples,
        order: Tensor,
        observe: Callable[[Any, Tensor], Any],
        augment: bool,
        keep: Mapping[str, nn.Module],
        size: int,
        name: str,
    ) -> None:
        for module in (self.module, *keep.values()):
            move(module, self.device)
        adds = bool(keep) and all(getattr(module, "adds", False) for module in keep.values())
        divided = adds and processes.count() > 1
        saved = ScanCall(place, keep, divided=divided)
        view = self.feed.view(len(data), self.augmentation if augment else None, self.task, place.call, 0)
        with torch.no_grad(), self.progress(f"task {self.task} {name}", math.ceil(len(order) / size)) as advance:
            saved.restore()
            advance(saved.seen // size, "")
            left = order[saved.seen :]
            for x, y in self.feed(data, processes.share(left) if divided else left, size, view):
                with computing(self.device, self.precision):
                    observe(x, y)
                saved.advance(len(y))
                advance(1, "")
            wait_for(self.device)  # so that its time counts for this call
            self.seconds[place.call] = saved.finish(len(order))

    def features(
        self, data: Examples, extract: Callable[[Any], Tensor], *, keep: bool = False, name: str = "features"
    ) -> Tensor:
        """Compute the features of each example, without augmentation.

        Args:
            data: the examples.
            extract: the inputs of n samples -> features (n, d).
            keep: whether the features are stored in a checkpoint. Then a resumed task makes the same decisions from
                them, even on a machine that rounds differently. Otherwise they are computed again.
            name: the name of this call within the task.

        Returns:
            (n, d) float32, in the order of `data`.
        """
        place = self._place(self._call(name))
        filed = place.load() if keep else None
        if filed is not None:
            state, position = filed
            self.seconds[place.call] = position["seconds"]
            return state["features"].to(self.device)
        # A copy, because features are often a view of all tokens, which would stay in memory.
        found = self._outputs(place, data, lambda x: {name: extract(x).to(torch.float32, copy=True)}, name)
        features = found[name]
        check_finite(f"features of task {self.task}", [features])
        if keep:
            place.save({"features": features}, {"seconds": self.seconds[place.call]})
        return features

    def outputs(
        self, data: Examples, compute: Callable[[Any], Mapping[str, Tensor]], *, name: str = "outputs"
    ) -> dict[str, Tensor]:
        """Compute some tensors of each example, without augmentation. Several processes share the examples out.

        Args:
            data: the examples; at least one.
            compute: the inputs of n samples -> tensors (n, ...) by name, which are no views of larger ones.
            name: the name of this call within the task.

        Returns:
            By name (examples, ...), in the order of `data`.

        Raises:
            ValueError: the samples have several owners.
        """
        if self.divided:
            raise ValueError(f"'{name}' reads samples one by one, which stay with their clients; choose another method")
        return self._outputs(self._place(self._call(name)), data, compute, name)

    def _outputs(
        self, place: Place, data: Examples, compute: Callable[[Any], Mapping[str, Tensor]], name: str
    ) -> dict[str, Tensor]:
        parts: list[Mapping[str, Tensor]] = []
        order, size = self.feed.any_order(data, self.scan_batch_size), self.scan_batch_size
        own = processes.share(order)
        self._scan(place, data, own, lambda x, _: parts.append(compute(x)), False, {}, size, name)
        found = processes.gathered(parts, len(data), self.device)
        return {key: in_order(values, order) for key, values in found.items()}

    def _call(self, name: str) -> str:
        """Return a unique name for each call within the task: "train", then "train-1"."""
        number = self._names.get(name, 0)
        self._names[name] = number + 1
        return f"{name}-{number}" if number else name

    def _place(self, call: str) -> Place:
        return Place(self.checkpoints, self.task, call)
