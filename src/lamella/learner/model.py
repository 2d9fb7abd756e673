"""The state of a learner: a backbone, a method, the class names, and the records of the learned tasks."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamella.backbones import Backbone
from lamella.backbones.hub import without_hub
from lamella.common.progress import Progress, silent
from lamella.common.version import __version__
from lamella.data.loading import Examples
from lamella.data.names import normal_name
from lamella.data.samples import Samples
from lamella.data.scenario import Source, Task
from lamella.federated.federation import Federation
from lamella.federated.fit import FederatedFit
from lamella.learner.confidence import Confidence, HeldBackScore, fitted_temperature, histogram, of_records
from lamella.learner.config.document import (
    build_augmentation,
    build_backbone,
    build_method,
    method_name,
    on_device,
    up_to_date,
)
from lamella.learner.config.own_methods import method_digests, recognise_methods
from lamella.learner.config.precision import choose
from lamella.learner.costs import parameter_counts
from lamella.learner.held_back import HeldBack
from lamella.learner.records import TaskRecord, tasks_from_json
from lamella.learner.reference import Beside, Reference
from lamella.learner.seen import Seen
from lamella.learner.store.kept_backbone import from_copy, keep_backbone, without_weights
from lamella.learner.store.manifest import plain_file
from lamella.learner.store.state import learned_state, restore_state
from lamella.learner.store.versions import load_model, manifest_file, save_model
from lamella.learner.untrusted import check_untrusted
from lamella.methods import METHODS, Method
from lamella.training import processes
from lamella.training.checkpoints import Checkpoints
from lamella.training.fit import Fit

__all__ = ["Model", "load", "save"]


class Model:
    """A backbone, a method, and what they have learned so far.

    Args:
        config: the complete tables "backbone", "method", "augment", "fit" and "run"; see `config.document`. A precision
            of "auto" is replaced by the faster one, which is measured here; the model's own `config` records it.
        backbone_copy: a file of weights that replaces the ones that `config` names; see store/kept_backbone.py. None
            for no replacement.
        trusted: whether the weights of the backbone may be fetched from timm's hub.

    Attributes:
        backbone: the feature extractor.
        method: the method that learns on the backbone.
        class_names: the name of each global class id.
        former_names: the global id of each name that a class had before it was renamed or merged.
        tasks: the record of each learned task, oldest first.
        held_back: the features of held-back samples of these tasks, where the method can follow them.
        seen: which samples it has learned from, as far as they came from a data set on disk.
        reference: what the model would know without training, where it trains.
        notes: JSON values that a run stores with the model, such as its scores.
        half_learned: the name of a task whose learning failed; else "". The model must then be loaded again before it
            can be used.
    """

    def __init__(self, config: Mapping[str, Any], *, backbone_copy: Path | None = None, trusted: bool = True) -> None:
        self.config: dict[str, Any] = dict(config)
        self.trusted = trusted
        self.backbone_copy = backbone_copy
        self.seed = int(config["run"]["seed"])
        self.backbone = self.new_backbone()
        self.config = choose(self.config, self.backbone)
        self.method: Method = build_method(self.config, self.backbone)
        self.class_names: dict[int, str] = {}
        self.former_names: dict[str, int] = {}
        self.tasks: list[TaskRecord] = []
        self.held_back = HeldBack()
        self.seen = Seen()
        self.reference = Reference()
        self.notes: dict[str, Any] = {}
        self.half_learned = ""
        self._confidence: Confidence | None = None  # of the held-back samples; None until it is computed

    def ids(self) -> dict[str, int]:
        """Return the global id of each class by its name in the usual form, and by its former names."""
        return self.former_names | {normal_name(name): i for i, name in self.class_names.items()}

    @property
    def name(self) -> str:
        """The name of the method with its parts, such as "inflora+align"."""
        return method_name(self.config)

    @property
    def confidence(self) -> Confidence:
        """The confidence of predictions, computed from the held-back samples as the method classifies them now."""
        if not len(self.held_back):
            return of_records([task.held_back for task in self.tasks if task.held_back is not None])
        if self._confidence is None:
            logits, typicality = self.classified()
            self._confidence = Confidence(fitted_temperature(logits, self.columns(self.held_back.labels)), typicality)
        return self._confidence

    def classified(self) -> tuple[Tensor, Tensor]:
        """The logits (n, classes) and the typicality (n,) of the held-back samples as the method is now, on the CPU."""
        features = self.held_back.features.to(next(self.method.parameters()).device)
        with torch.no_grad():
            logits = self.method.eval().classify(features)
            return logits.float().cpu(), self.method.typicality(features, logits).float().cpu()

    def columns(self, labels: Tensor) -> Tensor:
        """The columns of the logits that belong to these global class ids, (n,)."""
        column = {c: i for i, c in enumerate(self.method.classes)}
        return torch.tensor([column[label] for label in labels.tolist()])

    def new_backbone(self) -> Backbone:
        """Build the backbone as it is before anything is learned."""
        with nullcontext() if self.trusted else without_hub():
            return build_backbone(from_copy(self.config, self.backbone_copy))

    def parameter_counts(self) -> dict[str, int]:
        """Count the numbers that a prediction needs, by part of the model; see costs.py."""
        return parameter_counts(self.method)

    def fit(
        self,
        *,
        checkpoints: Checkpoints | None = None,
        progress: Progress = silent,
        federation: Federation | None = None,
        loop: Callable[..., FederatedFit] = FederatedFit,
    ) -> Fit:
        """Create the training loop that the configuration describes.

        Args:
            checkpoints: where the loop saves its state, so that it can be resumed; None saves nothing.
            progress: opens a progress bar.
            federation: the clients that learn; None where all samples are here.
            loop: makes the loop over these clients.

        Raises:
            ValueError: the method needs more than clients may tell, or several processes learn together, of which each
                would play all clients.
        """
        known = ("device", "precision", "compile", "recompute", "like_sizes")
        chosen = {key: value for key, value in self.config["fit"].items() if key in known}
        if federation is not None and processes.count() > 1:
            raise ValueError("clients are played in one process; start a federated run without torchrun or srun")
        if federation is not None and not self.method.federates:
            raise ValueError(
                f"method '{self.name}' cannot be learned by clients that keep their samples; {self._federable()}"
            )
        make = Fit if federation is None else partial(loop, federation=federation)
        return make(
            self.method,
            self.backbone.transform,
            augmentation=build_augmentation(self.config),
            seed=self.seed,
            checkpoints=checkpoints,
            progress=progress,
            **chosen,
        )

    def _federable(self) -> str:
        """What to do where the method cannot be learned by clients, as the end of a sentence about it."""
        base, settings = self.method.base, ", ".join(self.method.beyond_sums)
        if settings and base is not None and base.federates:
            return f"it can be without {settings}, for which clients would have to send more than sums"
        classes = {n: b for n, b in METHODS.items() if isinstance(b, type) and issubclass(b, Method)}
        able = sorted(name for name, build in classes.items() if build.federates)
        return f"choose one of {', '.join(able)}, alone or with align (whose drift is affine, mean or none)"

    def check_whole(self) -> None:
        """Make sure that the last learning did not fail half-way.

        Raises:
            RuntimeError: it did, so the model cannot be used.
        """
        if self.half_learned:
            raise RuntimeError(
                f"learning '{self.half_learned}' did not finish, so this learner is in an undefined state; load the "
                "stored model again (the files on disk are intact)"
            )

    def check_takes(self, source: Source) -> None:
        """Make sure that a data set holds what the backbone takes.

        Raises:
            ValueError: it holds samples of another kind.
        """
        noun, other = self.backbone.transform.noun, source.train.noun
        if noun != other:
            raise ValueError(
                f"this model takes {noun}s, by the backbone {self.backbone.name}, and {source.name} holds {other}s; "
                f"give {noun}s, or teach a new model on a backbone that takes {other}s"
            )

    def logits(self, x: Samples, task: int | None = None) -> Tensor:
        """(n, classes seen) logits of n samples, on the device of x.

        Args:
            x: inputs `(n, ...)` as the backbone's transform returns them.
            task: the number of the task that the samples belong to; None if it is not known.
        """
        self.check_whole()
        allowed = None if task is None else self.tasks[task].classes
        with torch.no_grad():
            return self.method.eval().predict(x.to(next(self.method.parameters()).device), allowed).to(x.device)

    def read(self, data: Examples, fit: Fit, name: str) -> tuple[Tensor, Tensor]:
        """Compute the logits `(n, classes)` and the typicality `(n,)` of samples, on the CPU.

        Args:
            data: the samples. Their labels are ignored.
            fit: the loop that reads them.
            name: the name of the pass.
        """
        method = self.method.eval()

        def compute(x: Samples) -> dict[str, Tensor]:
            logits, typicality = method.logits_and_typicality(x)
            return {"logits": logits.clone(), "typicality": typicality.clone()}

        found = fit.outputs(data, compute, name=name)
        return found["logits"].cpu().float(), found["typicality"].cpu().float()

    def follow_drift(self, fit: Fit) -> None:
        """Move the kept features as those of the method have moved in the task that `fit` has just trained."""
        self.held_back.follow(self.method, fit.drift)
        self._confidence = None

    def compare(self, task: Task, held_back: Examples, fit: Fit) -> Beside | None:
        """Take the newest task into the reference, and compare the model with it on all held-back samples.

        Args:
            task: the newest task.
            held_back: the samples of its classes that were held back.
            fit: the loop that reads them.

        Returns:
            The comparison; None if the model trains nothing, if features of old held-back samples cannot be followed,
            or if the reference lacks old tasks.
        """
        known = set() if self.reference.statistics is None else set(self.reference.statistics.classes)
        learned = {c for record in self.tasks for c in record.classes}
        if self.method.features_stay or not self.method.by_features or not learned <= known:
            return None
        frozen = self.new_backbone().to(fit.device).eval()
        self.reference.add(fit.features(task.train, frozen, name="reference"), task.train.labels, task.classes)
        if len(held_back):
            held = fit.features(held_back, frozen, name="reference-held-back")
            self.reference.held_back.add(held, held_back.labels, len(self.tasks))
        if not len(self.held_back) or len(self.held_back) != len(self.reference.held_back):
            return None
        logits, _ = self.classified()
        right = int((logits.argmax(1) == self.columns(self.held_back.labels)).sum())
        return Beside(len(self.held_back), right, *self.reference.count())

    def follow_classes(self) -> None:
        """Compute confidences anew after classes were merged or dropped."""
        self._confidence = None

    def hold_back(self, data: Examples, fit: Fit) -> HeldBackScore:
        """Classify samples of the newest task that were held back, keep their features, and return what was measured.

        Args:
            data: the samples, with global class ids.
            fit: the loop that reads them.
        """
        wanted, method = self.columns(data.labels), self.method.eval()
        if method.by_features:
            features = fit.outputs(data, lambda x: {"": method.features(x).clone()}, name="held-back")[""].cpu()
            self.held_back.add(features, data.labels, len(self.tasks))
            self._confidence = None
            logits = method.classify(features.to(next(method.parameters()).device)).cpu()
            return HeldBackScore(len(wanted), int((logits.argmax(1) == wanted).sum()))
        logits, typicality = self.read(data, fit, "held-back")
        right = int((logits.argmax(1) == wanted).sum())
        return HeldBackScore(len(wanted), right, fitted_temperature(logits, wanted), histogram(typicality))


def save(model: Model, folder: Path, *, what: str, keep: int | None, whole: bool = True) -> int:
    """Save a model as a new version in a folder.

    The other arguments and the return value are those of `Learner.save`.

    Args:
        model: the model.
        folder: its folder.
        what: a short text for the history.
        keep: how many versions are kept; None for all.
        whole: whether the version shares no file with an earlier one; see `save_model`.
    """
    kept = keep_backbone(folder, from_copy(model.config, model.backbone_copy), model.backbone)
    manifest = {
        "written_by": __version__,
        "config": on_device(model.config, None),
        "weights_sha256": model.backbone.weights_sha256,
        "backbone_copy": kept,
        "class_names": [[i, name] for i, name in model.class_names.items()],
        "former_names": [[i, name] for name, i in model.former_names.items()],
        "tasks": [task.to_json() for task in model.tasks],
        "notes": model.notes,
    }
    if files := method_digests(model.config):
        manifest["method_files"] = files
    state = learned_state(model.method) | model.held_back.tensors() | model.seen.tensors() | model.reference.tensors()
    return save_model(folder, state, manifest, what=what, keep=keep, whole=whole)


def load(
    folder: Path,
    version: int | None = None,
    *,
    device: str | None = None,
    only_facts: bool = False,
    trusted: bool = True,
) -> Model:
    """Load a model from a folder. The other arguments and the errors are those of `Learner.load`.

    Args:
        folder: the model's folder.
        version: the number of a version; None for the current one.
        device: what to compute on; None for a GPU if there is one. It is no property of a model.
        only_facts: leave the weights of the backbone where they are. Such a model tells what it has learned, and its
            predictions mean nothing.
        trusted: whether what the folder names outside of itself is read and run; see untrusted.py.
    """
    state, manifest = load_model(folder, version)
    if not trusted:
        check_untrusted(folder, manifest["config"], manifest.get("backbone_copy"))
    recognise_methods(manifest["config"], manifest.get("method_files", {}))
    copy = manifest.get("backbone_copy")
    if copy and (folder / copy).exists():
        plain_file(folder / copy)
    config = on_device(up_to_date(manifest["config"]), device)
    kept = folder / copy if copy else None
    if only_facts:
        model = Model(without_weights(config, kept), trusted=trusted)
        model.backbone.weights_sha256 = manifest["weights_sha256"]
    else:
        model = Model(config, backbone_copy=kept, trusted=trusted)
    if model.backbone.weights_sha256 != manifest["weights_sha256"]:
        also = " or another tokenizer" if model.backbone.transform.noun == "text" else ""
        raise ValueError(
            f"'{folder}' was learned on other weights{also} of {model.backbone.name} than the ones found here; "
            "put the original ones back"
        )
    model.held_back = HeldBack.taken_from(state)
    model.seen = Seen.taken_from(state)
    model.reference = Reference.taken_from(state)
    restore_state(model.method, state)
    model.class_names = {int(i): str(name) for i, name in manifest["class_names"]}
    model.former_names = {str(name): int(i) for i, name in manifest.get("former_names", [])}
    model.tasks = tasks_from_json(manifest["tasks"], manifest_file(folder, version))
    model.notes = manifest["notes"]
    return model
