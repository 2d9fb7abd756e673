"""The state of a learner: a backbone, a method, and the names of what they have learned."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamella.backbones import Backbone
from lamella.common.progress import Progress, silent
from lamella.common.version import __version__
from lamella.data.loading import Examples
from lamella.data.samples import Samples
from lamella.learner.confidence import Confidence
from lamella.learner.config.document import build_augmentation, build_backbone, build_method, method_name, up_to_date
from lamella.learner.config.own_methods import method_digests, recognise_methods
from lamella.learner.config.precision import choose
from lamella.learner.costs import parameter_counts
from lamella.learner.records import TaskRecord, tasks_from_json
from lamella.learner.store.kept_backbone import from_copy, keep_backbone
from lamella.learner.store.state import learned_state, restore_state
from lamella.learner.store.versions import load_model, save_model
from lamella.methods import Method
from lamella.training.checkpoints import Checkpoints
from lamella.training.fit import Fit

__all__ = ["Model", "load", "save"]


class Model:
    """A backbone, a method, and what they have learned so far.

    Args:
        config: complete tables "backbone", "method", "augment", "fit" and "run"; see `config.document`. A precision
            "auto" is chosen here, by measuring, and stands in the model's own `config` from then on.
        backbone_copy: a file of the backbone's weights that replaces those that `config` names; see
            store/kept_backbone.py.

    Attributes:
        backbone: the feature extractor.
        method: what learns on it.
        class_names: the name of each global class id.
        tasks: a record of each learned task, oldest first.
        notes: what a run keeps beside the model, such as its scores.
        half_learned: the name of a task whose learning failed, else "". Nothing works then until the model is loaded
            again.
    """

    def __init__(self, config: Mapping[str, Any], *, backbone_copy: Path | None = None) -> None:
        self.config: dict[str, Any] = dict(config)
        self.backbone_copy = backbone_copy
        self.seed = int(config["run"]["seed"])
        self.backbone = self.new_backbone()
        self.config = choose(self.config, self.backbone)
        self.method: Method = build_method(self.config, self.backbone)
        self.class_names: dict[int, str] = {}
        self.tasks: list[TaskRecord] = []
        self.notes: dict[str, Any] = {}
        self.half_learned = ""

    @property
    def name(self) -> str:
        """The method with its parts, such as "inflora+align"."""
        return method_name(self.config)

    @property
    def confidence(self) -> Confidence:
        """How sure predictions may be, from the samples that were held out."""
        return Confidence([task.held_back for task in self.tasks if task.held_back is not None])

    def new_backbone(self) -> Backbone:
        """The backbone as it is before anything is learned."""
        return build_backbone(from_copy(self.config, self.backbone_copy))

    def parameter_counts(self) -> dict[str, int]:
        """How many numbers a prediction needs, by part; see costs.py."""
        return parameter_counts(self.method)

    def fit(self, *, checkpoints: Checkpoints | None = None, progress: Progress = silent) -> Fit:
        """The training loop that the configuration asks for."""
        chosen = {key: self.config["fit"][key] for key in ("device", "precision", "compile")}
        return Fit(
            self.method,
            self.backbone.transform,
            augmentation=build_augmentation(self.config),
            seed=self.seed,
            checkpoints=checkpoints,
            progress=progress,
            **chosen,
        )

    def check_whole(self) -> None:
        """Refuse to work with a model whose last learning failed half-way.

        Raises:
            RuntimeError: it did.
        """
        if self.half_learned:
            raise RuntimeError(
                f"learning '{self.half_learned}' did not finish, so this learner holds half of it; load the stored "
                "model again (what is on disk is whole)"
            )

    def logits(self, x: Samples, task: int | None = None) -> Tensor:
        """(n, classes seen) logits of n samples, on the device of x.

        Args:
            x: inputs as the backbone's transform gives them.
            task: the number of the task that the samples are from, where it is given.
        """
        self.check_whole()
        allowed = None if task is None else self.tasks[task].classes
        with torch.no_grad():
            return self.method.eval().predict(x.to(next(self.method.parameters()).device), allowed).to(x.device)

    def read(self, data: Examples, fit: Fit, name: str) -> tuple[Tensor, Tensor]:
        """(n, classes) logits and (n,) typicality of each sample, on the CPU.

        Args:
            data: samples; their labels are not looked at.
            fit: the loop whose pass reads them.
            name: of the pass.
        """
        logits: list[Tensor] = []
        typicality: list[Tensor] = []

        def observe(x: Samples, y: Tensor) -> None:
            for parts, values in zip((logits, typicality), self.method.logits_and_typicality(x), strict=True):
                parts.append(values)

        self.method.eval()
        fit.scan(data, observe, name=name)
        return torch.cat([part.float().cpu() for part in logits]), torch.cat([p.float().cpu() for p in typicality])


def save(model: Model, folder: Path, *, what: str, keep: int | None) -> int:
    """Make the model a new version of the folder; arguments and return value are those of `Learner.save`."""
    kept = keep_backbone(folder, from_copy(model.config, model.backbone_copy), model.backbone)
    manifest = {
        "written_by": __version__,
        "config": model.config,
        "weights_sha256": model.backbone.weights_sha256,
        "backbone_copy": kept,
        "class_names": [[i, name] for i, name in model.class_names.items()],
        "tasks": [task.to_json() for task in model.tasks],
        "notes": model.notes,
    }
    if files := method_digests(model.config):
        manifest["method_files"] = files
    return save_model(folder, learned_state(model.method), manifest, what=what, keep=keep)


def load(folder: Path, version: int | None = None) -> Model:
    """The model that a folder holds; arguments and errors are those of `Learner.load`."""
    state, manifest = load_model(folder, version)
    recognise_methods(manifest["config"], manifest.get("method_files", {}))
    copy = manifest.get("backbone_copy")
    model = Model(up_to_date(manifest["config"]), backbone_copy=folder / copy if copy else None)
    if model.backbone.weights_sha256 != manifest["weights_sha256"]:
        raise ValueError(
            f"'{folder}' was learned on other weights of {model.backbone.name} than the ones found here; "
            "put the original weights back"
        )
    restore_state(model.method, state)
    model.class_names = {int(i): str(name) for i, name in manifest["class_names"]}
    model.tasks, model.notes = tasks_from_json(manifest["tasks"]), manifest["notes"]
    return model
