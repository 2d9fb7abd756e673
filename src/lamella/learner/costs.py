"""The costs of a learned model: parameters by part, bytes on disk, passes of a prediction, and seconds.

A method that is built on a base method declares what it adds to it (`MethodOnBase`). The rest are the costs of the
base.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lamella.adapters.branches import Adapted, adapter_names
from lamella.adapters.few_bits import FewBitsLinear
from lamella.backbones.language_model import LanguageModel
from lamella.learner.records import TaskRecord
from lamella.learner.store.state import stored_bytes
from lamella.memory.resizable import Resizable
from lamella.methods.method import Method
from lamella.methods.on_base import MethodOnBase

__all__ = ["costs_of_base", "parameter_counts", "passes"]


def parameter_counts(method: Method, plugins: Collection[str] = (), *, classifier: bool = True) -> dict[str, int]:
    """Count the numbers that a prediction needs, by part of the model.

    The parts are "backbone" without adapters, "adapters" and "plugins" within it, "head" for all heads, and each
    further module or buffer of the method under its own name, such as "extractors". Parameters and floating-point
    buffers, such as class means, are counted. The statistics of batch norm are not, nor is what only training needs
    (`for_training`).

    Args:
        method: the method that has learned.
        plugins: the names of adapters that another method added to the backbone of this one.
        classifier: whether the heads and the method's own buffers are counted, which classify.

    Returns:
        The count of each part that has any numbers.
    """
    counts: Counter[str] = Counter()
    if isinstance(method, MethodOnBase):
        classifies = classifier and not method.reads_features
        counts.update(parameter_counts(method.base, {*plugins, *method.own_adapters}, classifier=classifies))
    else:
        adapter_of = adapter_names(method.backbone.model)
        for name, tensor in method.backbone.model.named_parameters():
            adapter = adapter_of(name)
            part = "plugins" if adapter in plugins else "adapters" if adapter else "backbone"
            counts[part] += tensor.numel()
        frozen = (m for m in method.backbone.model.modules() if isinstance(m, FewBitsLinear))
        counts["backbone"] += sum(layer.in_features * layer.out_features for layer in frozen)
    for name, tensor in _held(method):
        if classifier or not (name.startswith("heads.") or "." not in name):
            part = name.partition(".")[0]
            counts["head" if part == "heads" else part] += tensor.numel()
    return {part: count for part, count in counts.items() if count}


def _held(method: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors of the method itself that predictions need, without its backbone and its base."""
    for_training = [m for m in method.modules() if isinstance(m, Resizable) and m.for_training]
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


@torch.no_grad()
def passes(method: Method) -> float | None:
    """Count what a prediction computes, in forward passes of the backbone without adapters.

    The products of matrices and convolutions of one prediction, divided by those of one such pass, to two digits. So it
    is a little above 1 for adapters beside the weights, and a little above 2 where another pass finds the task.

    Args:
        method: the method that has learned.

    Returns:
        The ratio; None for a network without such products, before the first task, and for language models.
    """
    from torch.utils.flop_counter import FlopCounterMode

    if isinstance(method.backbone.model, LanguageModel) or not method.classes:
        return None
    x = method.backbone.example(8)  # several, so that what is computed once a batch hardly counts
    layers = [module for module in method.backbone.model.modules() if isinstance(module, Adapted)]
    with FlopCounterMode(display=False) as whole:
        method.predict(x)
    before = [layer.acting for layer in layers]
    try:
        for layer in layers:
            layer.acting = {}
        with FlopCounterMode(display=False) as alone:
            method.backbone(x)
    finally:
        for layer, acting in zip(layers, before, strict=True):
            layer.acting = acting
    one = alone.get_total_flops()
    return round(whole.get_total_flops() / one, 2) if one else None


def costs_of_base(method: Method, records: Sequence[TaskRecord], depth: int) -> dict[str, Any]:
    """Return the costs of a method's base, that is, what the base would cost without what is built on it.

    Args:
        method: the method that has learned.
        records: the records of all tasks, oldest first.
        depth: 1 for the base, 2 for the base of the base.

    Returns:
        The costs under the keys of a result file. The "seconds" of learning exclude the calls of what is built on the
        base. The seconds of testing are left out, because one pass gives all readouts. "trainable_parameters" is None
        if an older version of Lamella has not recorded them.

    Raises:
        ValueError: `depth` is larger than the number of methods below this one.
    """
    calls: tuple[str, ...] = ()
    adapters: set[str] = set()
    with ExitStack() as levels:
        for _ in range(depth):
            if not isinstance(method, MethodOnBase):
                raise ValueError(f"{type(method).__name__} is built on no other method; depth {depth} is too large")
            calls, adapters = (*calls, *method.own_calls), {*adapters, *method.own_adapters}
            method = levels.enter_context(method.base_alone())
        counts = parameter_counts(method, adapters)
        size = stored_bytes(method, without=adapters)
        computed = passes(method)
    phases: Counter[str] = Counter()
    learn: list[float] = []
    for record in records:
        taken_off = {call: s for call, s in record.seconds.items() if call.startswith(calls)}
        learn.append(record.seconds["total"] - sum(taken_off.values()))
        phases.update({call: s for call, s in record.seconds.items() if call not in (*taken_off, "total")})
    trained = [n for record in records for call, n in (record.trained or {}).items() if not call.startswith(calls)]
    counts.pop("plugins", None)
    return {
        "seconds": {"learn": learn},
        "phase_seconds": dict(phases),
        "trainable_parameters": max(trained, default=0)
        if all(record.trained is not None for record in records)
        else None,
        "parameters": counts,
        "stored_bytes": size,
        "passes": computed,
    }
