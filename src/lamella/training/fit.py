"""The only training loop.

A method receives `fit` as an argument and keeps the mathematics; device, precision, progress, randomness, checkpoints
and what is trainable are decided here. `fit` trains exactly the tensors it is given, for exactly that call.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lamella.common.randomness import generator
from lamella.data.loading import Examples, batch_sizes
from lamella.training.calls import TrainingCall
from lamella.training.checks import check_call, check_gradients, check_loss
from lamella.training.compilation import compiled_blocks
from lamella.training.optimizers import build_optimizer, parameter_groups, trainable
from lamella.training.passes import Passes
from lamella.training.precision import computing

__all__ = ["Examples", "Fit", "Loss"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""(inputs (n, ...), global class ids (n,)) -> scalar to minimise."""


class Fit(Passes):
    """The loop that a method's `learn(task, fit)` calls.

    Its arguments, and its passes without training, are those of `Passes`.
    """

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
            before_step: called between backward and the optimiser's step. after_step: after it. What they change of the
                module's parameters and buffers is part of every checkpoint, whether it is trained or not.
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
