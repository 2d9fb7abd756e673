"""What one does with a model: create it, teach it, ask it, measure it, keep it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lamella.backbones import Backbone
from lamella.backbones.feature_cache import Recall
from lamella.common.progress import Progress, silent
from lamella.data.loading import Examples
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.learner.confidence import Confidence
from lamella.learner.config.new_config import BACKBONE, METHOD, new_config
from lamella.learner.config.own_methods import name_in_table
from lamella.learner.config.wanted import Wanted
from lamella.learner.export import export
from lamella.learner.folder import learn_from
from lamella.learner.forgetting import forget
from lamella.learner.learning import learn
from lamella.learner.model import Model, load, save
from lamella.learner.predictions import Prediction, predict
from lamella.learner.records import TaskRecord
from lamella.learner.scores import Score, score_task
from lamella.methods import Method
from lamella.training.checkpoints import Checkpoints
from lamella.training.fit import Fit

__all__ = ["Learner", "Prediction"]


class Learner:
    """Learns tasks one after another, predicts, saves and loads.

    Args:
        config: complete tables "backbone", "method", "augment", "fit" and "run" as in a configuration file; usually
            `Learner.create` makes them.

    Attributes:
        model: what it consists of and what it has learned; the most used parts of it can be read from the learner
            itself (`backbone`, `method`, `class_names`, `tasks`, ...).
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.model = Model({**config, "method": name_in_table(config["method"], Path.cwd())})

    @classmethod
    def create(
        cls,
        *,
        backbone: str | Mapping[str, Any] = BACKBONE,
        method: str | Mapping[str, Any] = METHOD,
        align: bool | None = None,
        seed: int = 0,
        augment: Mapping[str, Any] | None = None,
        fit: Mapping[str, Any] | None = None,
    ) -> "Learner":
        """A learner that knows nothing yet.

        Args:
            backbone: a name, a folder that `lamella export` or timm wrote, "NAME+FOLDER" for a name and a LoRA of PEFT,
                or a table of `load_backbone`'s arguments.
            method: a name, a class of a file such as "my_file.py:EMALoRA", or a table {"name": ..., hyper-parameters}.
                The name says which parts the method carries and
                on which base it learns: "inflora+align" (the default), "inflora" without alignment, "dlc(wa)".
            align: deprecated; write method="inflora+align" for True, and method="inflora" for False.
            seed: of every draw, 0 or more.
            augment: how training images are augmented: a table of `Augmentation`'s arguments.
            fit: a table such as {"device": "cpu", "precision": "auto"}.

        Raises:
            ValueError: an unknown name or option, or a name that a table contradicts.
        """
        return cls(new_config(backbone=backbone, method=method, align=align, seed=seed, augment=augment, fit=fit))

    @classmethod
    def of(cls, model: Model) -> "Learner":
        """The learner that a model belongs to."""
        learner = cls.__new__(cls)
        learner.model = model
        return learner

    @classmethod
    def load(cls, folder: str | Path, version: int | None = None, *, method: str | None = None) -> "Learner":
        """The learner that a model folder holds.

        Args:
            folder: of the model.
            version: the number of an earlier version; the current one where left out.
            method: its method, such as "my_file.py:EMALoRA"; needed where that is a class of a file of the user's own,
                which runs. Without it such a model is only loaded if this process has named the file before, or the
                environment variable LAMELLA_METHODS lists it.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, foreign, newer, or was learned on other weights; or there is no such version; or
                it has another method, or one of a file that was not named.
        """
        wanted = Wanted(method=method).with_files_named()
        model = load(Path(folder), version)
        for other in wanted.differences(model.config):
            raise ValueError(f"'{folder}' is another model than was asked for: {other}")
        return cls.of(model)

    def save(self, folder: str | Path, *, what: str = "", keep: int | None = None) -> int:
        """Make this learner a new version of the model at `folder`, which is whole at every moment.

        Args:
            folder: of the model; it is made where there is none.
            what: what made this version, for its history.
            keep: how many of the newest versions stay; all by default.

        Returns:
            The bytes of what was learned.
        """
        self.model.check_whole()
        return save(self.model, Path(folder), what=what, keep=keep)

    @property
    def config(self) -> dict[str, Any]:
        """The complete configuration."""
        return self.model.config

    @property
    def seed(self) -> int:
        """The seed of every draw."""
        return self.model.seed

    @property
    def backbone(self) -> Backbone:
        """The feature extractor."""
        return self.model.backbone

    @property
    def method(self) -> Method:
        """What learns on the backbone."""
        return self.model.method

    @property
    def name(self) -> str:
        """The method with its parts, such as "inflora+align"."""
        return self.model.name

    @property
    def class_names(self) -> dict[int, str]:
        """The name of each global class id."""
        return self.model.class_names

    @property
    def tasks(self) -> list[TaskRecord]:
        """A record of each learned task, oldest first."""
        return self.model.tasks

    @property
    def notes(self) -> dict[str, Any]:
        """What a run keeps beside the model, such as its scores."""
        return self.model.notes

    @property
    def confidence(self) -> Confidence:
        """How sure predictions may be, from the samples that were held out."""
        return self.model.confidence

    def parameter_counts(self) -> dict[str, int]:
        """How many numbers a prediction needs, by part; see costs.py."""
        return self.model.parameter_counts()

    def fit(self, *, checkpoints: Checkpoints | None = None, progress: Progress = silent) -> Fit:
        """The training loop that the configuration asks for."""
        return self.model.fit(checkpoints=checkpoints, progress=progress)

    def learn(
        self,
        task: Task,
        *,
        held_back: Examples | None = None,
        checkpoints: Checkpoints | None = None,
        progress: Progress = silent,
    ) -> TaskRecord:
        """Learn one task.

        Args:
            task: its classes and training samples.
            held_back: samples of the task's classes that it is not trained on. They tell how sure predictions may be;
                what the record says of them is all that is kept.
            checkpoints: where an interrupted learning goes on; nothing is kept without.
            progress: opens a progress bar.

        Returns:
            The task's record.

        Raises:
            ValueError: a class id or name means another class than before, or a class has no sample.
            RuntimeError: learning an earlier task failed half-way.
        """
        return learn(self.model, task, held_back=held_back, checkpoints=checkpoints, progress=progress)

    def learn_from(
        self, data: str | Path, *, folder: str | Path | None = None, progress: Progress = silent
    ) -> TaskRecord:
        """Learn a folder of class folders, a CSV, an archive or a named data set as the next task.

        A fifth of each class is held out, or the data's own test part. Files that cannot be read are left out, with a
        warning, and the record names them.

        Args:
            data: where the samples are.
            folder: of this learner's model. With it no other process can change the model meanwhile, a learning that
                is interrupted goes on when this is called again, and what was learned is stored there as a new
                version. Without, it is learned in memory alone.
            progress: opens a progress bar.

        Returns:
            The task's record.

        Raises:
            FileNotFoundError, ValueError: as `load_readable`; or the samples cannot be this learner's next task.
            ValueError: `folder` holds something else than this learner.
            BlockingIOError: another process is learning into `folder`.
        """
        return learn_from(self.model, data, folder=None if folder is None else Path(folder), progress=progress)

    def forget(self, task: str) -> None:
        """Forget a task exactly, where tasks share nothing: see forgetting.py.

        Raises:
            ValueError: there is no such task, or others hold traces of it.
        """
        self.model.check_whole()
        forget(self.model, task)

    def logits(self, x: Samples, task: int | None = None) -> Tensor:
        """(n, classes seen) logits of n samples, on the device of x.

        Args:
            x: samples as the backbone's transform gives them, such as normalised images (n, 3, size, size).
            task: the number of the task that the samples are from, where it is given.
        """
        return self.model.logits(x, task)

    def predict(self, images: Sequence[str | Path] | Examples, *, top: int = 5) -> list[Prediction]:
        """Class names with confidences for image files or a set of samples.

        Args:
            images: files, or a set of samples of any kind, whose labels are not looked at; at least one.
            top: how many classes a prediction names, at least 1.

        Raises:
            ValueError: nothing was learned yet, there is no sample, or one cannot be read (it is named).
        """
        return predict(self.model, images, top=top)

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
        """Count what is right on a task's samples: a score for each readout, "" being the method's own prediction.

        Args:
            data: labelled with global class ids of learned classes.
            classes: of the task, for the accuracy with the task given.
            shared_classes: whether other tasks have these classes too.
            recall: for samples that are evaluated again as more is learned: what remembers their features, one for
                each set of samples.
            progress: opens a progress bar.
            name: of the pass.

        Raises:
            ValueError: there is no sample, or a class was never learned.
        """
        self.model.check_whole()
        unknown = sorted(set(data.labels.tolist()) - set(self.method.classes))
        if unknown or not len(data):
            what = f"classes {unknown} were never learned" if unknown else f"there is no {data.noun}"
            raise ValueError(f"nothing can be scored: {what}; this learner knows {sorted(self.class_names.values())}")
        fit = self.fit(progress=progress)
        fit.begin(name)
        self.method.eval()
        return score_task(self.method, fit, data, classes, shared_classes=shared_classes, name="score", recall=recall)

    def export(self, out: str | Path, format: str, *, readout: str = "", per_task: bool = False) -> list[str]:
        """Write what was learned in a form that needs no Lamella.

        Arguments, returned lines and errors are those of `learner.export.export`.
        """
        self.model.check_whole()
        return export(self.model, format, out, readout=readout, per_task=per_task)
