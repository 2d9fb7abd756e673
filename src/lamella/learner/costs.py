"""What a learned model costs: numbers by part, bytes on disk, seconds; of a method, and of what it is built on.

A method that is built on another one says what it adds to it (`MethodOnBase`). What is left is the base's.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lamella.learner.records import TaskRecord
from lamella.learner.store.state import stored_bytes
from lamella.memory.resizable import Growing
from lamella.methods.method import Method, MethodOnBase

__all__ = ["costs_of_base", "parameter_counts"]


def parameter_counts(method: Method, plugins: Collection[str] = (), *, classifier: bool = True) -> dict[str, int]:
    """Numbers of a learned model that a prediction needs, by part.

    "backbone" without adapters, "adapters" or "plugins" within it, "head" for all heads, and each further module or
    buffer of the method under its own name, such as "extractors". Parameters count, and so do floating-point buffers,
    such as class means; not the statistics of batch norm, nor what is of use to training alone (`for_training`).

    Args:
        plugins: names of adapters that another method put into this one's backbone.
        classifier: whether heads and the method's own buffers count, which classify.
    """
    counts: Counter[str] = Counter()
    if isinstance(method, MethodOnBase):
        beneath = classifier and not method.reads_features
        counts.update(parameter_counts(method.base, {*plugins, *method.own_adapters}, classifier=beneath))
    else:
        for name, tensor in method.backbone.model.named_parameters():
            adapter = name.partition(".branches.")[2].partition(".")[0]
            part = "plugins" if adapter in plugins else "adapters" if adapter else "backbone"
            counts[part] += tensor.numel()
    for name, tensor in _held(method):
        if classifier or not (name.startswith("heads.") or "." not in name):
            part = name.partition(".")[0]
            counts["head" if part == "heads" else part] += tensor.numel()
    return {part: count for part, count in counts.items() if count}


def _held(method: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The method's own tensors that predictions need, beside its backbone and its base, by their names."""
    for_training = [m for m in method.modules() if isinstance(m, Growing) and m.for_training]
    training = {inner for outer in for_training for inner in outer.modules()}
    seen: set[int] = set()
    for path, module in method.named_modules():
        if path.partition(".")[0] in ("backbone", "base") or module in training:
            continue
        normalises = isinstance(module, nn.modules.batchnorm._BatchNorm)
        buffers = [] if normalises else module.named_buffers(recurse=False)
        for name, tensor in (*module.named_parameters(recurse=False), *buffers):
            if torch.is_floating_point(tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{path}.{name}".lstrip("."), tensor


def costs_of_base(method: Method, records: Sequence[TaskRecord], depth: int) -> dict[str, Any]:
    """What a method's base cost, in the fields of a result file: what it would cost alone.

    Args:
        records: the learner's, one a task. depth: 1 for the base, 2 for the base's base.

    Returns:
        "seconds" of learning are the task's, less the calls of what was taken off; those of testing are left out, since
        one pass gives all readouts. None for what an older model has not recorded.
    """
    calls: tuple[str, ...] = ()
    adapters: set[str] = set()
    for _ in range(depth):
        if not isinstance(method, MethodOnBase):
            raise ValueError(f"{type(method).__name__} is built on no other method; depth {depth} is too large")
        calls, adapters = (*calls, *method.own_calls), {*adapters, *method.own_adapters}
        method = method.base
    phases: Counter[str] = Counter()
    learn: list[float] = []
    for record in records:
        taken_off = {call: s for call, s in record.seconds.items() if call.startswith(calls)}
        learn.append(record.seconds["total"] - sum(taken_off.values()))
        phases.update({call: s for call, s in record.seconds.items() if call not in (*taken_off, "total")})
    trained = [n for record in records for call, n in (record.trained or {}).items() if not call.startswith(calls)]
    counts = parameter_counts(method, adapters)
    counts.pop("plugins", None)
    return {
        "seconds": {"learn": learn},
        "phase_seconds": dict(phases),
        "trainable_parameters": max(trained, default=0)
        if all(record.trained is not None for record in records)
        else None,
        "parameters": counts,
        "stored_bytes": stored_bytes(method, without=adapters),
    }
