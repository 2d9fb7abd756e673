"""Export of the raw tensors that a model has learned."""

from pathlib import Path

import torch
from torch import nn

from lamella.common.files import write_json
from lamella.learner.export.check import compare
from lamella.learner.export.describe import description, metadata
from lamella.learner.export.network import base_of, own_logits
from lamella.learner.model import Model
from lamella.learner.store.state import learned_state, restore_state
from lamella.memory.resizable import Resizable
from lamella.methods import Method
from lamella.methods.shared.objectives import learns_answers

__all__ = ["export_adapters"]


def export_adapters(model: Model, method: Method, folder: Path) -> list[str]:
    """Write learned.safetensors and learned.json, which describes each tensor. Memories of samples are not exported.

    Branches are named LAYER.branches.ADAPTER.NUMBER.A and .B; `factor` * B A is added to the weight's rows `extent`,
    for all tokens, or where there is a `class_token` for each sample's first token alone. A weight KEY of a layer that
    adapters were merged into is there as a whole, or what was added to it one after the other: KEY.merged.shapes has
    first row, last row + 1, rank and columns of A for each addition, KEY.merged.scales its factor, and KEY.merged.A and
    KEY.merged.B the numbers of all A's and of all B's.

    Args:
        model: the model.
        method: its method, or one that this is built on.
        folder: the folder to write.

    Returns:
        Lines with the result of the check and the size of the export.
    """
    from safetensors.torch import load_file, save_file

    skipped = _of_no_use(method)
    state = learned_state(method)
    kept = {k: v.detach().cpu() for k, v in state.items() if not k.startswith(skipped)}
    tensors = {k: v.clone(memory_format=torch.contiguous_format) for k, v in kept.items()}
    described = description(model, method, None if learns_answers(model.backbone) else method.classes)
    listed = {
        name: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for name, t in tensors.items()
    }
    folder.mkdir()
    save_file(tensors, folder / "learned.safetensors", metadata={"format": "pt"} | metadata(described))
    write_json(folder / "learned.json", described | {"tensors": listed})

    fresh = Model(model.config, backbone_copy=model.backbone_copy, trusted=model.trusted)
    again = base_of(fresh.method.eval(), _readout(model.method, method))
    restore_state(again, state | load_file(folder / "learned.safetensors"))
    found = compare(own_logits(method), own_logits(again.eval()), model.backbone)
    return [str(found), f"{len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers"]


def _of_no_use(method: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of tensors that predictions do not need, since only training reads them."""
    training = [name for name, m in method.named_modules() if isinstance(m, Resizable) and m.for_training]
    return tuple(f"{name}." for name in training)


def _readout(outermost: Method, method: Method) -> str:
    names: list[str] = []
    while outermost is not method and outermost.base is not None:
        outermost = outermost.base
        names.append("base")
    return ".".join(names)
