"""A backbone, a method, and what they have learned so far: what a benchmark drives and a model folder holds."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamella.backbones import Backbone
from lamella.backbones.feature_cache import Recall
from lamella.common.progress import Progress, silent
from lamella.data.images import Files, ImageSet, TensorSet
from lamella.data.keeping import keep_decoded
from lamella.data.scenario import Task
from lamella.learner.confidence import Confidence
from lamella.learner.config.document import build_augmentation, build_backbone, build_method, method_name
from lamella.learner.config.new_config import new_config
from lamella.learner.config.precision import choose
from lamella.learner.costs import parameter_counts
from lamella.learner.predictions import Prediction, as_predictions, held_back_record
from lamella.learner.records import check_task, task_record
from lamella.learner.scores import Score, score_task
from lamella.learner.store.kept_backbone import from_copy
from lamella.learner.stored_learner import load_learner, save_learner
from lamella.training.checkpoints import Checkpoints
from lamella.training.fit import Examples, Fit

__all__ = ["Learner", "Prediction"]


class Learner:
    """Learns tasks one after another, predicts, saves and loads.

    Args:
        config: tables "backbone", "method", "augment", "fit", "run" as in a configuration file; see `Learner.create`.
            A precision "auto" is chosen here, by measuring, and stands in the learner's own `config` from then on.
        backbone_copy: a file of its weights, in the place of those that `config` names; see kept_backbone.py.

    Attributes:
        backbone, method: what it is made of. class_names: name of each global class id.
        half_learned: the name of a task whose learning failed, else ""; nothing works then until it is loaded again.
        tasks: a record per learned task: name, classes, images, seconds and trained parameters by call, the hash of its
            data, and the directions that are protected after it, by layer.
    """

    def __init__(self, config: Mapping[str, Any], *, backbone_copy: Path | None = None) -> None:
        self.config, self.backbone_copy, self.seed = dict(config), backbone_copy, int(config["run"]["seed"])
        self.backbone = self.new_backbone()
        self.config = choose(self.config, self.backbone)
        self.method = build_method(self.config, self.backbone)
        self.class_names: dict[int, str] = {}
        self.tasks: list[dict[str, Any]] = []
        self.notes: dict[str, Any] = {}
        self.half_learned = ""

    @classmethod
    def create(
        cls,
        *,
        backbone: str | Mapping[str, Any] = "fractal-vit-micro",
        method: str | Mapping[str, Any] = "inflora",
        align: bool | None = None,
        seed: int = 0,
        augment: Mapping[str, Any] | None = None,
        fit: Mapping[str, Any] | None = None,
    ) -> "Learner":
        """A learner that knows nothing yet.

        Args:
            backbone: a name, a folder that `lamella export` or timm wrote, "NAME+FOLDER" for a name and a LoRA of PEFT,
                or a table of `load_backbone`'s arguments.
            method: a name, or a table {"name": ..., hyper-parameters}.
            align: whether the method carries alignment; by default InfLoRA does.
            fit: a table such as {"device": "cpu", "precision": "auto"}.

        Raises:
            ValueError: an unknown name or option.
        """
        return cls(new_config(backbone=backbone, method=method, align=align, seed=seed, augment=augment, fit=fit))

    def new_backbone(self) -> Backbone:
        """The backbone as it is before anything is learned."""
        return build_backbone(from_copy(self.config, self.backbone_copy))

    @property
    def name(self) -> str:
        """Of the method with its parts: "inflora+align"."""
        return method_name(self.config)

    def parameter_counts(self) -> dict[str, int]:
        """Numbers of the model that a prediction needs, by part (see costs.py)."""
        return parameter_counts(self.method)

    def fit(self, *, checkpoints: Checkpoints | None = None, progress: Progress = silent) -> Fit:
        """The loop this learner's configuration asks for."""
        chosen = {key: self.config["fit"][key] for key in ("device", "precision", "compile")}
        return Fit(
            self.method, self.backbone.transform, augmentation=build_augmentation(self.config), seed=self.seed,
            checkpoints=checkpoints, progress=progress, **chosen,
        )  # fmt: skip

    def learn(
        self, task: Task, *, held_back: Examples | None = None, checkpoints: Checkpoints | None = None,
        progress: Progress = silent,
    ) -> dict[str, Any]:  # fmt: skip
        """Learn one task; returns its record.

        Args:
            held_back: images of the task's classes that it is not trained on; they tell how sure predictions may be,
                and what the record says of "held_back" is all that is kept of them.

        Raises:
            ValueError: a class id or name means another class than before, or a class has no image.
            RuntimeError: learning an earlier task failed half-way.
        """
        self._check_whole()
        check_task(task, self.class_names)
        task = replace(task, train=keep_decoded(task.train, progress=progress))
        fit = self.fit(checkpoints=checkpoints, progress=progress)
        fit.begin(str(len(self.tasks)))
        started = time.monotonic()
        self.half_learned = task.name
        self.method.learn(task, fit)
        self.half_learned = ""
        self.class_names |= dict(zip(task.classes, task.class_names, strict=True))
        record = task_record(task, self.method, fit, time.monotonic() - started)
        self.tasks.append(record)
        if held_back is not None and len(held_back):
            logits, typicality = self._read(held_back, fit, "held-back")
            record["held_back"] = held_back_record(logits, typicality, held_back.labels, self.method.classes)
        return record

    def _read(self, data: Examples, fit: Fit, name: str) -> tuple[Tensor, Tensor]:
        """(n, classes) logits and (n,) typicality of each image, on the CPU."""
        parts: list[tuple[Tensor, Tensor]] = []
        self.method.eval()
        fit.scan(data, lambda x, y: parts.append(self.method.logits_and_typicality(x)), name=name)
        return tuple(torch.cat([part[i].float().cpu() for part in parts]) for i in range(2))  # type: ignore[return-value]

    def _check_whole(self) -> None:
        if self.half_learned:
            raise RuntimeError(
                f"learning '{self.half_learned}' did not finish, so this learner holds half of it; load the stored "
                "model again (what is on disk is whole)"
            )

    def learn_from(self, data: str | Path, *, progress: Progress = silent) -> dict[str, Any]:
        """Learn a folder of class folders, a CSV, an archive or a named data set as the next task; returns its record.

        A fifth of each class is held back, or the data's own test part. Files that cannot be read are left out, with a
        warning, and the record names them.

        Raises:
            FileNotFoundError, ValueError: as `load_readable`; or the images cannot be this learner's next task.
        """
        from lamella.learner.next_task import learn_from

        return learn_from(self, data, progress)

    def forget(self, task: str) -> None:
        """Forget a task exactly, where tasks share nothing: see forgetting.py.

        Raises:
            ValueError: there is no such task, or others hold traces of it.
        """
        from lamella.learner.forgetting import forget

        self._check_whole()
        forget(self, task)

    def export(self, out: str | Path, format: str, *, readout: str = "", per_task: bool = False) -> list[str]:
        """Write what was learned in a form that needs no Lamella; arguments, lines and errors are those of `export`."""
        from lamella.learner.export import export

        self._check_whole()
        return export(self, format, out, readout=readout, per_task=per_task)

    def logits(self, x: Tensor, task: int | None = None) -> Tensor:
        """(n, classes seen), on the device of x, for normalised images (n, 3, size, size).

        Args:
            task: number of a given task.
        """
        self._check_whole()
        allowed = None if task is None else tuple(self.tasks[task]["classes"])
        with torch.no_grad():
            return self.method.eval().predict(x.to(next(self.method.parameters()).device), allowed).to(x.device)

    def evaluate(
        self,
        data: Examples,
        classes: Sequence[int],
        *,
        shared_classes: bool = False,
        recall: Recall | None = None,
        progress: Progress = silent,
        name: str = "test",
    ) -> dict[str, Score]:
        """Count what is right on a task's images: a score for each readout, "" being the method's own prediction.

        Args:
            data: labelled with global class ids of learned classes.
            classes: of the task, for the accuracy with the task given.
            shared_classes: whether other tasks have these classes too.
            recall: for images that are evaluated again as more is learned: what remembers their features, one for
                each set of images.

        Raises:
            ValueError: there is no image, or a class was never learned.
        """
        self._check_whole()
        unknown = sorted(set(data.labels.tolist()) - set(self.method.classes))
        if unknown or not len(data):
            what = f"classes {unknown} were never learned" if unknown else "there is no image"
            raise ValueError(f"nothing can be scored: {what}; this learner knows {sorted(self.class_names.values())}")
        fit = self.fit(progress=progress)
        fit.begin(name)
        self.method.eval()
        return score_task(self.method, fit, data, classes, shared_classes=shared_classes, name="score", recall=recall)

    def predict(self, images: Sequence[str | Path] | ImageSet | TensorSet, *, top: int = 5) -> list[Prediction]:
        """Class names with confidences for image files or a set of images.

        Raises:
            ValueError: nothing was learned yet, there is no image, or one cannot be decoded (it is named).
        """
        self._check_whole()
        if not self.tasks:
            raise ValueError("this model has learned nothing yet; give it a task first")
        if not len(images):
            raise ValueError("there is no image to predict; give at least one")
        if not isinstance(images, ImageSet | TensorSet):
            paths = [Path(p) for p in images]
            images = ImageSet(Files(paths), torch.zeros(len(paths)), [str(i) for i in range(len(paths))])
        logits, typicality = self._read(images, self.fit(), "predict")
        return as_predictions(
            logits, typicality, self.method.classes, class_names=self.class_names, tasks=self.tasks,
            sure=self.confidence, top=top,
        )  # fmt: skip

    @property
    def confidence(self) -> Confidence:
        """How sure predictions may be, from the images that were held back."""
        return Confidence([task["held_back"] for task in self.tasks if "held_back" in task])

    def save(self, folder: str | Path, *, what: str = "", keep: int | None = None) -> int:
        """Make this learner a new version of the model at `folder`, which is whole at every moment.

        Args:
            what: what made this version, for its history. keep: how many of the newest versions stay; all by default.

        Returns:
            The bytes of what was learned.
        """
        self._check_whole()
        return save_learner(self, Path(folder), what=what, keep=keep)

    @classmethod
    def load(cls, folder: str | Path, version: int | None = None) -> "Learner":
        """The learner that `folder` holds: its current version, or the one named.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, foreign, newer, or was learned on other weights; or there is no such version.
        """
        return load_learner(cls, Path(folder), version)
