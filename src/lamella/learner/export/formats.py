"""The export formats by name, and the steps of every export: write to a temporary path, check, then move."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lamella.common.options import near_matches
from lamella.common.words import listed
from lamella.learner.export.adapters import export_adapters
from lamella.learner.export.drafts import atomic_output
from lamella.learner.export.hf_answers import export_hf_of_answers
from lamella.learner.export.hf_folder import export_hf
from lamella.learner.export.network import predicting
from lamella.learner.export.onnx_graph import export_onnx
from lamella.learner.export.onnx_texts import export_onnx_of_texts
from lamella.learner.export.peft_folder import export_peft, export_peft_tasks
from lamella.learner.export.timm_folder import export_timm
from lamella.learner.export.truncation import Truncation
from lamella.learner.model import Model
from lamella.methods import Method

__all__ = ["FORMATS", "export"]

Export = Callable[[Model, Method, Path], list[str]]

FORMATS: dict[str, dict[str, Export]] = {
    "timm": {"image": export_timm},
    "hf": {"text": export_hf, "answer": export_hf_of_answers},
    "peft": {"image": export_peft, "text": export_peft, "answer": export_peft},
    "onnx": {"image": export_onnx, "text": export_onnx_of_texts},
    "adapters": {},
}
"""By format and by what a model takes, the function that writes it; that of tensors takes any model."""


def export(
    model: Model,
    format: str,
    out: str | Path,
    *,
    readout: str = "",
    per_task: bool = False,
    rank: int | None = None,
    energy: float | None = None,
) -> list[str]:
    """Export a model and check the export. If anything fails, nothing is written.

    Args:
        model: the model, which has learned a task.
        format: one of FORMATS.
        out: the path to write, which must not exist: a folder, or a file for "onnx" of images.
        readout: the prediction to export: "" (that of the model), "base" (that of the method it is built on),
            "base.base", and so on.
        per_task: whether each task gets its own folder; only for "peft", and for methods with an adapter for each task.
        rank: the rank that the change of each layer is truncated to; only for "peft". None for its own.
        energy: the share of the squared norm of each layer's change that is kept at least, above 0 and up to 1, as the
            other way to say a rank; only for "peft".

    Returns:
        Lines with the result of the check, and how to load the export.

    Raises:
        ValueError: nothing was learned, `out` exists, or the model cannot be exported in this format.
        RuntimeError: a package is missing, or the export does not compute what the model computes.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format '{format}'; {near_matches(format, FORMATS)}")
    if per_task and format != "peft":
        raise ValueError(f"per-task exports are folders of PEFT, not of format '{format}'; leave out --per-task")
    cut = rank is not None or energy is not None
    if cut and format != "peft":
        raise ValueError(f"format '{format}' has no low rank to truncate; leave out --rank and --energy, or use peft")
    truncation = Truncation(rank, energy) if cut else None
    if not model.tasks:
        raise ValueError("this model has learned nothing yet; give it a task first")
    write = _writer(format, model.backbone.transform.noun)
    if format == "peft":
        write = partial(export_peft_tasks if per_task else export_peft, truncation=truncation)
    with atomic_output(Path(out)) as place, _on_the_cpu(model), predicting(model.method.eval(), readout) as method:
        return [line.replace(str(place), str(out)) for line in write(model, method, place)]


def _writer(format: str, noun: str) -> Export:
    """Return the function that writes a format for models of this kind of samples.

    Raises:
        ValueError: there is none.
    """
    if format == "adapters":
        return export_adapters
    found = FORMATS[format]
    if noun not in found:
        able = [name for name, of in FORMATS.items() if noun in of or name == "adapters"]
        raise ValueError(
            f"format {format} is for {listed([f'{kind}s' for kind in found])}, and this backbone takes {noun}s; "
            f"use --format {', '.join(able)}".replace(", adapters", " or adapters")
        )
    return found[noun]


@contextmanager
def _on_the_cpu(model: Model) -> Generator[None]:
    """Move a model to the CPU within the context, so that exports do not depend on an accelerator's rounding."""
    device = next(model.method.parameters()).device
    model.method.cpu()
    try:
        yield
    finally:
        model.method.to(device)
