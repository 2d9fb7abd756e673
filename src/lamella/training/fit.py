"""The only training loop.

A method gets `fit` as an argument and contains the mathematics. Device, precision, progress, randomness, checkpoints
and which tensors are trainable are decided here. `fit` trains exactly the tensors that it is given, in this call only.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lamella.common.randomness import generator, named_seed
from lamella.data.lengths import in_windows
from lamella.data.loading import Examples, step_sizes
from lamella.data.transform import Augmentation
from lamella.training import processes
from lamella.training.batch_norm import norms_of_whole_batches
from lamella.training.calls import TrainingCall
from lamella.training.checks import check_examples, check_finite, check_gradients, check_loss, check_mean
from lamella.training.compilation import compiled_blocks
from lamella.training.dropout import dropping, without_dropout
from lamella.training.listening import tell
from lamella.training.optimizers import build_optimizer, parameter_groups, trainable
from lamella.training.passes import Passes
from lamella.training.precision import attending, computing, move
from lamella.training.recipe import Training
from lamella.training.recomputation import recomputed_blocks

__all__ = ["Examples", "Fit", "Loss"]

Loss = Callable[[Any, Tensor], Tensor]
"""(inputs of n samples, global class ids (n,)) -> the scalar to minimise."""


class Fit(Passes):
    """The training loop that a method's `learn(task, fit)` calls.

    `Passes` describes the arguments, and the passes without training.
    """

    def __call__(
        self,
        data: Examples,
        loss: Loss | Sequence[Loss],
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        training: Training | None = None,
        *,
        augment: bool = True,
        crop: float | None = None,
        before_step: Callable[[], None] | None = None,
        after_step: Callable[[], None] | None = None,
        count: Callable[[Any, Tensor], int] | None = None,
        name: str = "train",
        **settings: Any,
    ) -> list[float]:
        """Train `params` to minimise `loss` on `data`. Nothing else changes, and nothing is trainable afterwards.

        Args:
            data: the training data, shuffled in every epoch. The last batch may be smaller; if it would be a single
                example, the example joins the batch before it, because batch norm needs more than one value.
            loss: (inputs (n, ...), global class ids (n,)) -> the mean over these examples. Each of several processes
                computes that of its share of a batch, so the first batch is tried: another function is refused. With
                several losses each batch gives a step of the optimiser for each of them, one after the other, with the
                same draws, and the hooks are called at each. The first must reach every tensor.
            params: the tensors to train, or optimiser groups `{"params": [...], "lr": ...}`.
            training: the recipe; `Training()` if left out.
            augment: whether samples are augmented.
            crop: the smallest share of an image's area that random crops show in this call, above 0, at most 1; that
                of the run's augmentation if left out. Without one, images are cropped only.
            before_step: called after each backward pass of a step, before gradients are clipped and applied.
            after_step: called after each step of the optimiser. Checkpoints contain all parameters and buffers of the
                module that `before_step` and `after_step` change, trained or not.
            count: (inputs, global class ids) -> how many things the loss of a batch is the mean of, where those are not
                its examples, such as target tokens. The loss of a step is then the mean over the things of all of its
                batches.
            name: the name of this call within the task, under which draws and checkpoints are found.
            settings: fields of `Training` that replace those of `training`, such as `epochs=3, lr=1e-3`.

        Returns:
            The mean loss of each epoch.

        Raises:
            RuntimeError: a tensor got no gradient from the first batch (the model bypasses its layer), or the loss is
                not finite.
            ValueError: there are no data or no tensors, `Training` refuses a value, or several processes cannot train
                with this loss, with several losses, or with this network.
            TypeError: `Training` does not have a setting.
        """
        check_examples(self.task, len(data))
        recipe = replace(training or Training(), **settings)
        recipe = replace(recipe, epochs=1, min_steps=None) if self.once else recipe.of_examples(len(data))
        turns = [loss] if callable(loss) else list(loss)
        self._check_turns(turns)
        call = self._call(name)
        move(self.module, self.device)
        groups = parameter_groups(params, recipe.lr)
        tensors = [t for group in groups for t in group["params"]]
        engine = build_optimizer(recipe.optimizer, groups, weight_decay=recipe.weight_decay, momentum=recipe.momentum)
        saved = TrainingCall(self._place(call), self.module, tensors, engine)
        self.trained[call] = sum(t.numel() for t in tensors)
        steps = step_sizes(len(data), recipe.batch_size, recipe.accumulate)
        with ExitStack() as during:
            during.enter_context(trainable(tensors))
            during.enter_context(norms_of_whole_batches(self.module, self.device, min(map(min, steps))))
            if self.compile:
                own = processes.share(torch.arange(recipe.batch_size))
                during.enter_context(compiled_blocks(self.module, len(own)))
            if self.recompute:
                during.enter_context(recomputed_blocks(self.module))
            dropout = during.enter_context(dropping(self.module, self.device))
            advance = during.enter_context(self.progress(f"task {self.task} {name}", recipe.epochs * len(steps)))
            view = self._cropped(crop) if augment else None
            hooks = (before_step, after_step)
            job = _Job(data, turns, recipe, steps, view, *hooks, count, engine, saved, dropout, advance)
            saved.restore(recipe.epochs)
            advance(saved.epoch * len(steps) + saved.step, "")
            if processes.count() > 1 and saved.epoch < recipe.epochs:
                self._check_mean(job)
            while saved.epoch < recipe.epochs:
                factor = recipe.factor(saved.epoch)
                for group, start in zip(engine.param_groups, groups, strict=True):
                    group["lr"] = start["lr"] * factor
                self._epoch(job)
            check_finite(f"weights of task {self.task}", tensors)
            self.seconds[call] = saved.finish()
        return saved.losses

    def _check_turns(self, turns: Sequence[Loss]) -> None:
        """Refuse no loss, and several where a batch cannot give several steps."""
        if not turns:
            raise ValueError("fit was given no loss; give a function, or a list of functions for a step each")
        if len(turns) > 1 and self.compile:
            raise ValueError(
                f"a batch gives {len(turns)} steps here, by parts of it, and fit.compile is for batches of one size; "
                "leave it out"
            )
        if len(turns) > 1 and processes.count() > 1:
            raise ValueError(
                f"a batch gives {len(turns)} steps here, which several processes cannot share; train in one process"
            )

    def _cropped(self, share: float | None) -> Augmentation | None:
        """Return the augmentation of a call, whose crops show at least this share of an image."""
        if share is None:
            return self.augmentation
        return replace(self.augmentation or Augmentation(flip=False), scale=(share, 1.0))

    def _check_mean(self, job: "_Job") -> None:
        """Make sure that the loss of a batch is the mean over the shares of the processes."""
        named = (self.task, job.saved.place.call, "mean")
        index = torch.randperm(len(job.data), generator=generator(self.seed, *named))[: job.steps[0][0]]

        def measured(part: Tensor) -> Tensor:
            view = self.feed.view(len(job.data), job.augmentation, *named)
            total = torch.zeros(2, dtype=torch.float64)
            job.dropout(named_seed(self.seed, *named))
            parts, _ = job.counted(self.feed(job.data, part, [len(part)] * bool(len(part)), view), len(part))
            for x, y, counted in parts:
                with torch.no_grad(), computing(self.device, self.precision):
                    total += torch.tensor([float(job.turns[0](x, y)) * counted, counted])
            return total

        with without_dropout(self.module):
            total = measured(processes.share(index))
            processes.summed([total])
            whole, of = processes.from_first(lambda: measured(index)).tolist()
        check_mean(job.saved.place.call, whole / max(of, 1), float(total[0]) / max(of, 1), self.precision)

    def _epoch(self, job: "_Job") -> None:
        """Train the rest of the current epoch, with checkpoints when they are due."""
        saved = job.saved
        named = (self.task, saved.place.call, saved.epoch)
        order = torch.randperm(len(job.data), generator=generator(self.seed, *named, "order"))
        if self.like_sizes and (lengths := self.feed.lengths(job.data)) is not None:
            every = [size for sizes in job.steps for size in sizes]
            order = in_windows(order, every, lengths, generator(self.seed, *named, "windows"))
        view = self.feed.view(len(job.data), job.augmentation, *named)
        steps = job.steps[saved.step :]
        left = [size for sizes in steps for size in sizes]
        own, parts_of = processes.shares(order[len(order) - sum(left) :], left)
        mine = iter(parts_of)
        with closing(self.feed(job.data, own, [size for size in parts_of if size], view)) as batches:
            for sizes in steps:
                number = sum(size > 0 for size in islice(mine, len(sizes)))
                parts, whole = job.counted(islice(batches, number), sum(sizes))
                seed = named_seed(self.seed, *named, saved.step, "dropout")
                saved.advance(self._step(job, parts, whole, seed), whole)
                job.advance(1, f"epoch {saved.epoch + 1}")
        mean = saved.next_epoch()
        check_loss(self.task, saved.epoch, mean)
        tell(self.task, saved.place.call, saved.epoch, mean)

    def _step(self, job: "_Job", parts: Iterable[tuple[Any, Tensor, int]], whole: int, seed: int) -> Tensor | float:
        """Train on the batches of a step, a turn for each loss of the call, and return their mean loss.

        Args:
            job: the call.
            parts: inputs and global class ids of each batch, and how many things its loss is the mean of.
            whole: how many these are in all processes.
            seed: of what is drawn; each turn draws the same.
        """
        losses: list[Tensor | float] = []
        repeated = list(parts) if len(job.turns) > 1 else parts
        for loss in job.turns:
            job.engine.zero_grad(set_to_none=True)
            job.dropout(seed)
            total: Tensor | float = 0.0
            for x, y, counted in repeated:
                with computing(self.device, self.precision):
                    value = loss(x, y)
                part = counted / whole
                with attending(self.device, self.precision):
                    value.backward(torch.full_like(value, part))
                total = total + value.detach() * part
            losses.append(processes.sum_gradients(job.saved.tensors, total, first=not job.saved.checked))
            job.step(self.module)
        return sum(losses) / len(losses)


@dataclass
class _Job:
    """The arguments of a call of `fit`, and the objects that it works with."""

    data: Examples
    turns: Sequence[Loss]
    recipe: Training
    steps: list[list[int]]
    augmentation: Augmentation | None
    before_step: Callable[[], None] | None
    after_step: Callable[[], None] | None
    count: Callable[[Any, Tensor], int] | None
    engine: torch.optim.Optimizer
    saved: TrainingCall
    dropout: Callable[[int], object]
    advance: Callable[[int, str], None]

    def counted(
        self, batches: Iterable[tuple[Any, Tensor]], examples: int
    ) -> tuple[Iterable[tuple[Any, Tensor, int]], int]:
        """Return this process's batches of a step, each with how many things its loss is the mean of, and how many
        these are in all processes.

        Args:
            batches: inputs and global class ids of each batch.
            examples: the number of examples in all processes.
        """
        if self.count is None:
            return ((x, y, len(y)) for x, y in batches), examples
        parts = [(x, y, self.count(x, y)) for x, y in batches]
        whole = torch.tensor(sum(counted for *_, counted in parts))
        processes.summed([whole])
        return parts, int(whole)

    def step(self, module: nn.Module) -> None:
        """Apply the current gradients to the tensors."""
        if not self.saved.checked:
            check_gradients(module, self.saved.tensors)
            self.saved.checked = True
        if self.before_step:
            self.before_step()
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.saved.tensors, self.recipe.clip)
        self.engine.step()
        if self.after_step:
            self.after_step()
