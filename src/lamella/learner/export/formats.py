"""The export formats by name, and the steps of every export: write to a temporary path, check, then move."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from lamella.common.options import near_matches
from lamella.data.transform import of_images
from lamella.learner.export.adapters import export_adapters
from lamella.learner.export.drafts import atomic_output
from lamella.learner.export.network import base_of
from lamella.learner.export.onnx_graph import export_onnx
from lamella.learner.export.peft_folder import export_peft, export_peft_tasks
from lamella.learner.export.timm_folder import export_timm
from lamella.learner.model import Model
from lamella.methods import Method

__all__ = ["FORMATS", "export"]

Export = Callable[[Model, Method, Path], list[str]]

FORMATS: dict[str, Export] = {
    "timm": export_timm,
    "peft": export_peft,
    "onnx": export_onnx,
    "adapters": export_adapters,
}


def export(model: Model, format: str, out: str | Path, *, readout: str = "", per_task: bool = False) -> list[str]:
    """Export a model and check the export. If anything fails, nothing is written.

    Args:
        model: the model, which has learned a task.
        format: one of FORMATS.
        out: the path to write, a file for "onnx" and a folder for the other formats; it must not exist.
        readout: the prediction to export: "" (that of the model), "base" (that of the method it is built on),
            "base.base", and so on.
        per_task: whether each task gets its own folder; only for "peft", and for methods with an adapter for each task.

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
    if not model.tasks:
        raise ValueError("this model has learned nothing yet; give it a task first")
    if format != "adapters":
        of_images(model.backbone.transform, f"format {format}")
    method = base_of(model.method.eval(), readout)
    write = export_peft_tasks if per_task else FORMATS[format]
    with atomic_output(Path(out)) as place, _on_the_cpu(model):
        return [line.replace(str(place), str(out)) for line in write(model, method, place)]


@contextmanager
def _on_the_cpu(model: Model) -> Generator[None]:
    """Move a model to the CPU within the context, so that exports do not depend on an accelerator's rounding."""
    device = next(model.method.parameters()).device
    model.method.cpu()
    try:
        yield
    finally:
        model.method.to(device)
