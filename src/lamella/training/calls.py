"""The state of a call of `fit`, and its stored form, from which the call is resumed after a kill."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lamella.common.checksums import checksums
from lamella.training import processes
from lamella.training.checkpoints import Checkpoints

__all__ = ["Place", "ScanCall", "TrainingCall"]


class Place(NamedTuple):
    """Where the state of a call is stored.

    Attributes:
        checkpoints: the files; None stores nothing.
        task: the name of the task.
        call: the name of the call within the task.
    """

    checkpoints: Checkpoints | None
    task: str
    call: str

    def due(self) -> bool:
        return self.checkpoints is not None and self.checkpoints.due()

    def save(self, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        if self.checkpoints is not None:
            self.checkpoints.save(self.task, self.call, tensors, position)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self.checkpoints.load(self.task, self.call) if self.checkpoints is not None else None


class Stopwatch:
    """Measures the seconds spent in a call, over all processes that worked on it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = time.monotonic()

    def read(self) -> float:
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        return self.seconds


class TrainingCall:
    """Everything that a call of `fit` changes: tensors, the optimiser's state, and the position within the epochs.

    A checkpoint contains the trained tensors, and the module's buffers except those of a memory. It also contains the
    other parameters whose content has changed since the call began: `before_step` and `after_step` may change any of
    them, for example an average of trained parameters, or a weight of the backbone. Contents are compared by checksum,
    so a change through `tensor.data`, which torch does not count, is found too. Checksums are computed when the call
    begins and when a checkpoint is due, and not at all without checkpoints. Tensors that are neither parameters nor
    buffers are not stored.

    Args:
        place: where the call is stored.
        module: the method.
        tensors: the trained tensors, in the order of the optimiser's groups.
        engine: the optimiser of these tensors.
    """

    def __init__(
        self, place: Place, module: nn.Module, tensors: Sequence[Tensor], engine: torch.optim.Optimizer
    ) -> None:
        self.place, self.module, self.tensors, self.engine = place, module, tensors, engine
        self.epoch = self.step = 0
        self.losses: list[float] = []
        self.checked = False
        self._untrained = _Untrained(module, tensors) if place.checkpoints is not None else None
        self._total: Tensor | float = 0.0
        self._count = 0
        self._watch = Stopwatch()
        self._restored_whole = False

    def advance(self, loss: Tensor | float, n: int) -> None:
        """Count a finished step, and store a checkpoint if one is due.

        Args:
            loss: the mean loss over the examples of the step.
            n: the number of examples.
        """
        self.step += 1
        self._total = self._total + loss * n
        self._count += n
        if self.place.due():
            self._save(with_optimizer=True)

    def next_epoch(self) -> float:
        """Close the epoch and return its mean loss."""
        self.losses.append(float(self._total) / max(self._count, 1))
        self.epoch, self.step, self._total, self._count = self.epoch + 1, 0, 0.0, 0
        return self.losses[-1]

    def finish(self) -> float:
        """Store the result and return the seconds that the call took."""
        if not self._restored_whole:
            self._watch.read()
            self._save(with_optimizer=False)
        return self._watch.seconds

    def _save(self, *, with_optimizer: bool) -> None:
        if self._untrained is None:
            return
        state = {f"parameter.{i}": t for i, t in enumerate(self.tensors)}
        state |= {f"buffer.{name}": b for name, b in _moving_buffers(self.module)}
        state |= {f"untrained.{name}": t for name, t in self._untrained.changed().items()}
        if with_optimizer:
            for i, t in enumerate(self.tensors):
                entries = self.engine.state[t].items()
                state |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in entries if v is not None}
        position = {
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.losses,
            "total": float(self._total),
            "count": self._count,
            "seconds": self._watch.read(),
        }
        self.place.save(state, position)

    @torch.no_grad()
    def restore(self, epochs: int) -> None:
        """Restore the stored state, if there is one.

        Args:
            epochs: the number of epochs of the call; a call that was stored after the last of them is finished.
        """
        found = self.place.load()
        if found is None:
            return
        state, position = found
        for i, t in enumerate(self.tensors):
            t.copy_(state[f"parameter.{i}"])
        for name, buffer in _moving_buffers(self.module):
            buffer.copy_(state[f"buffer.{name}"])
        for name, parameter in self.module.named_parameters():
            if f"untrained.{name}" in state:
                parameter.copy_(state[f"untrained.{name}"])
        for key, value in state.items():
            if key.startswith("optimizer."):
                _, i, entry = key.split(".", 2)
                tensor = self.tensors[int(i)]
                # Adam keeps its step counter on the CPU, on whichever device its tensors are.
                self.engine.state[tensor][entry] = value if value.ndim == 0 else value.to(tensor.device)
        self.epoch, self.step, self.losses = position["epoch"], position["step"], position["losses"]
        self._total, self._count, self._watch.seconds = position["total"], position["count"], position["seconds"]
        self._restored_whole = self.epoch >= epochs


class _Untrained:
    """The parameters of a module that a call does not train, compared with their content when the call began."""

    def __init__(self, module: nn.Module, trained: Sequence[Tensor]) -> None:
        self._module, self._trained = module, {id(t) for t in trained}
        self._before = self._read()

    def changed(self) -> dict[str, Tensor]:
        """Return the parameters whose content has changed, by name.

        Raises:
            RuntimeError: a parameter was added, was removed, or has another shape or type, which no checkpoint can
                restore.
        """
        now = self._read()
        if moved := now.keys() ^ self._before.keys():
            raise RuntimeError(
                f"parameter '{min(name for name, *_ in moved)}' was added, removed or given another shape or type by "
                "before_step or after_step, which no checkpoint can restore; do that before or after the call of fit"
            )
        found = dict(self._module.named_parameters())
        return {form[0]: found[form[0]] for form, content in now.items() if content != self._before[form]}

    def _read(self) -> dict[tuple[str, torch.Size, torch.dtype], int]:
        """Return the checksum of each parameter, by its name, shape and type."""
        mine = {(n, p.shape, p.dtype): p for n, p in self._module.named_parameters() if id(p) not in self._trained}
        return dict(zip(mine, checksums(list(mine.values())), strict=True))


def _moving_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return all buffers, except those of modules whose attribute `still_in_training` is true."""
    still = {id(b) for m in module.modules() if getattr(m, "still_in_training", False) for b in m.buffers()}
    return [(name, b) for name, b in module.named_buffers() if id(b) not in still]


class ScanCall:
    """The state of a pass without training: the number of finished examples, and the buffers that it fills.

    Args:
        place: where the call is stored.
        keep: the modules whose buffers the pass fills, by name; nothing is stored without them.
        divided: whether each process fills them from a share of the examples. Then their sums are stored, at the end.
    """

    def __init__(self, place: Place, keep: Mapping[str, nn.Module], *, divided: bool = False) -> None:
        self.place = place
        self.divided = divided
        self.seen = 0
        self._buffers = {f"{key}|{name}": b for key, m in keep.items() for name, b in m.named_buffers()}
        self._watch = Stopwatch()

    def advance(self, n: int) -> None:
        self.seen += n
        if self._buffers and not self.divided and self.place.due():
            self._save()

    def finish(self, seen: int) -> float:
        """Store the result and return the seconds that the call took.

        Args:
            seen: the number of examples that all processes have seen.
        """
        self.seen = seen
        if self.divided:
            processes.summed(self._buffers.values())
        if self._buffers:
            self._save()
        return self._watch.read()

    def _save(self) -> None:
        self.place.save(self._buffers, {"seen": self.seen, "seconds": self._watch.read()})

    def restore(self) -> None:
        found = self.place.load() if self._buffers else None
        if found is not None:
            state, position = found
            for key, buffer in self._buffers.items():
                buffer.copy_(state[key])
            self.seen, self._watch.seconds = position["seen"], position["seconds"]
        if self.divided and not processes.leads():  # what was there before counts once
            for buffer in self._buffers.values():
                buffer.zero_()
