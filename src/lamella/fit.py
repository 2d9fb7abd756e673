"""The only training loop, and the only pass without training.

A method receives `fit` as an argument and keeps the mathematics; device, precision, progress, randomness, checkpoints
and what is trainable are decided here. `fit` trains exactly the tensors it is given, for exactly that call.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lamella.calls import Place, ScanCall, TrainingCall
from lamella.checkpoints import Checkpoints
from lamella.checks import check_one_of
from lamella.compilation import compiled_blocks
from lamella.data.loading import Examples, batch_sizes
from lamella.data.transform import Augmentation, InputTransform
from lamella.feeding import Feed
from lamella.optimizers import build_optimizer, parameter_groups, trainable
from lamella.precision import PRECISIONS, computing, resolve_device
from lamella.progress import Progress, silent
from lamella.randomness import generator
from lamella.training_checks import check_call, check_gradients, check_loss

__all__ = ["Examples", "Fit", "Loss"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""(inputs (n, ...), global class ids (n,)) -> scalar to minimise."""


class Fit:
    """The loop that a method's `learn(task, fit)` calls.

    Args:
        module: the method; buffers that training may move (batch-norm statistics) are part of every checkpoint.
        transform: how images become inputs. augmentation: of training images, None for none.
        seed: of every draw, together with the task and the name of the call.
        device: "auto", "cpu", "cuda". precision: "float32" or "bf16" (autocast; statistics stay float32).
        compile: whether training runs compiled blocks; see compilation.py.
        checkpoints: where interrupted calls go on; None keeps nothing.
        progress: opens a progress bar.
        scan_batch_size: images per forward pass where nothing is trained.
    """

    def __init__(
        self,
        module: nn.Module,
        transform: InputTransform,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        device: str = "auto",
        precision: str = "float32",
        compile: bool = False,
        checkpoints: Checkpoints | None = None,
        progress: Progress = silent,
        scan_batch_size: int = 64,
    ) -> None:
        check_one_of("precision", precision, PRECISIONS)
        self.module = module
        self.transform = transform
        self.augmentation = augmentation
        self.seed = seed
        self.device = resolve_device(device)
        self.precision = precision
        self.compile = compile
        self.checkpoints = checkpoints
        self.progress = progress
        self.scan_batch_size = scan_batch_size
        self.begin("0")

    def begin(self, task: str) -> None:
        """A new task: call names start over, and so do the records: seconds, trained tensors, seconds without data."""
        self.task = task
        self._names: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.feed = Feed(self.transform, seed=self.seed, device=self.device)
        self.trained: dict[str, int] = {}
        self.module.to(self.device)

    @property
    def waited(self) -> float:
        """Seconds of this task in which nothing could be computed, because images were not there."""
        return self.feed.waited

    def __call__(
        self,
        data: Examples,
        loss: Loss,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        epochs: int,
        lr: float,
        batch_size: int,
        optimizer: str = "adam",
        schedule: Callable[[int, int], float] | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        augment: bool = True,
        before_step: Callable[[], None] | None = None,
        after_step: Callable[[], None] | None = None,
        name: str = "train",
    ) -> list[float]:
        """Train `params` to lower `loss` over `data`; nothing else changes, nothing stays trainable.

        Args:
            data: reshuffled every epoch; the last, smaller batch is used too. A single example that is left over joins
                the batch before it: batch norm knows no statistics of one value.
            params: tensors, or optimiser groups `{"params": [...], "lr": ...}`.
            epochs: at least 1. lr: of groups that name none.
            schedule: (epoch, epochs) -> factor of the learning rates.
            before_step: called between backward and the optimiser's step. after_step: after it.
            name: of this call within the task; draws and checkpoints are filed under it.

        Returns:
            The mean loss of each epoch.

        Raises:
            RuntimeError: a tensor got no gradient from the first batch (the model bypasses its layer), or the loss is
                not finite any more.
            ValueError: empty data, or an unknown optimiser.
        """
        check_call(self.task, len(data), optimizer=optimizer, epochs=epochs, batch_size=batch_size, lr=lr)
        call = self._call(name)
        self.module.to(self.device)
        groups = parameter_groups(params, lr)
        tensors = [t for group in groups for t in group["params"]]
        engine = build_optimizer(optimizer, groups, weight_decay=weight_decay, momentum=momentum)
        saved = TrainingCall(self._place(call), self.module, tensors, engine)
        self.trained[call] = sum(t.numel() for t in tensors)
        sizes = batch_sizes(len(data), batch_size)
        blocks = compiled_blocks(self.module, batch_size) if self.compile else nullcontext()
        with trainable(tensors), blocks, self.progress(f"task {self.task} {name}", epochs * len(sizes)) as advance:
            saved.restore(epochs)
            advance(saved.epoch * len(sizes) + saved.step, "")
            while saved.epoch < epochs:
                factor = schedule(saved.epoch, epochs) if schedule else 1.0
                for group, start in zip(engine.param_groups, groups, strict=True):
                    group["lr"] = start["lr"] * factor
                self._epoch(data, loss, engine, saved, sizes, augment, before_step, after_step, advance)
            self.seconds[call] = saved.finish()
        return saved.losses

    def _epoch(
        self, data: Examples, loss: Loss, engine: torch.optim.Optimizer, saved: TrainingCall, sizes: Sequence[int],
        augment: bool, before_step: Callable[[], None] | None, after_step: Callable[[], None] | None,
        advance: Callable[[int, str], None],
    ) -> None:  # fmt: skip
        """One epoch from where `saved` stands, with checkpoints when they are due."""
        named = (self.task, saved.place.call, saved.epoch)
        order = torch.randperm(len(data), generator=generator(self.seed, *named, "order"))
        view = self.feed.view(len(data), self.augmentation if augment else None, *named)
        seen = sum(sizes[: saved.step])
        for x, y in self.feed(data, order[seen:], sizes[saved.step :], view):
            engine.zero_grad(set_to_none=True)
            with computing(self.device, self.precision):
                value = loss(x, y)
            value.backward()
            if not saved.checked:
                check_gradients(self.module, saved.tensors)
                saved.checked = True
            if before_step:
                before_step()
            engine.step()
            if after_step:
                after_step()
            saved.advance(value.detach(), len(y))
            advance(1, f"epoch {saved.epoch + 1}")
        mean = saved.next_epoch()
        check_loss(self.task, saved.epoch, mean)

    def scan(
        self,
        data: Examples,
        observe: Callable[[Tensor, Tensor], Any],
        *,
        augment: bool = False,
        keep: Mapping[str, nn.Module] | None = None,
        batch_size: int | None = None,
        name: str = "scan",
    ) -> None:
        """One pass over `data` in its own order without training.

        Args:
            observe: called with inputs (n, ...) and global class ids (n,), gradients off.
            augment: whether images are augmented as in training.
            keep: the modules whose buffers `observe` fills. Given them, an interrupted pass goes on where it stood
                and a finished one is restored; without, it is simply repeated.
            batch_size: images per forward pass.
        """
        place, size = self._place(self._call(name)), batch_size or self.scan_batch_size
        self._scan(place, data, observe, augment, keep or {}, size, name)

    def _scan(
        self, place: Place, data: Examples, observe: Callable[[Tensor, Tensor], Any], augment: bool,
        keep: Mapping[str, nn.Module], size: int, name: str,
    ) -> None:  # fmt: skip
        for module in (self.module, *keep.values()):
            module.to(self.device)
        saved = ScanCall(place, keep)
        order = torch.arange(len(data))
        view = self.feed.view(len(data), self.augmentation if augment else None, self.task, place.call, 0)
        with torch.no_grad(), self.progress(f"task {self.task} {name}", math.ceil(len(data) / size)) as advance:
            saved.restore()
            advance(saved.seen // size, "")
            for x, y in self.feed(data, order[saved.seen :], size, view):
                with computing(self.device, self.precision):
                    observe(x, y)
                saved.advance(len(y))
                advance(1, "")
            self.seconds[place.call] = saved.finish()

    def features(
        self, data: Examples, extract: Callable[[Tensor], Tensor], *, keep: bool = False, name: str = "features"
    ) -> Tensor:
        """What `extract` makes of each example: (n, d) float32, in the order of `data`, no augmentation.

        Args:
            keep: whether they are filed once they are there. What is decided by them is then decided alike when the
                task is resumed, also on a machine that rounds differently; without, they are computed anew.
        """
        place = self._place(self._call(name))
        filed = place.load() if keep else None
        if filed is not None:
            state, position = filed
            self.seconds[place.call] = position["seconds"]
            return state["features"].to(self.device)
        parts: list[Tensor] = []

        def observe(x: Tensor, y: Tensor) -> None:
            # A copy: features are often a view of all tokens, which it would keep alive.
            parts.append(extract(x).to(torch.float32, copy=True))

        self._scan(place, data, observe, False, {}, self.scan_batch_size, name)
        features = torch.cat(parts)
        if keep:
            place.save({"features": features}, {"seconds": self.seconds[place.call]})
        return features

    def _call(self, name: str) -> str:
        """A name of its own for each call within the task: "train", then "train-1"."""
        number = self._names.get(name, 0)
        self._names[name] = number + 1
        return f"{name}-{number}" if number else name

    def _place(self, call: str) -> Place:
        return Place(self.checkpoints, self.task, call)
