"""The learner: create a model, teach it tasks, predict, evaluate, save, export."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from lamella.backbones import Backbone
from lamella.backbones.feature_cache import FeatureCache
from lamella.backbones.generating import Generating
from lamella.common.progress import Progress, silent
from lamella.data.answers import Answer, AnswerSet
from lamella.data.loading import Examples
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.data.sources.pointed import pointed_at, read_corrections
from lamella.federated.federation import Federation
from lamella.federated.fit import FederatedFit
from lamella.learner.answers.measuring import MeasuredAnswers, measure_answers
from lamella.learner.answers.writing import write_answers
from lamella.learner.confidence import Confidence
from lamella.learner.config.new_config import new_config
from lamella.learner.config.own_methods import name_in_table
from lamella.learner.config.wanted import Wanted
from lamella.learner.corrections import Corrected, correct, remove
from lamella.learner.drift_alarm import EVERY, DriftAlarm
from lamella.learner.export import export
from lamella.learner.folder import ModelFolder
from lamella.learner.forgetting import forget
from lamella.learner.from_data import learn_from
from lamella.learner.learning import learn
from lamella.learner.model import Model, load, save
from lamella.learner.predictions import Prediction, predict
from lamella.learner.records import TaskRecord
from lamella.learner.scores import Score, score_task
from lamella.learner.streaming import Stream
from lamella.methods import Method
from lamella.training.checkpoints import Checkpoints
from lamella.training.fit import Fit

__all__ = ["Learner", "Prediction"]


class Learner:
    """Learns tasks one after another, predicts, saves and loads.

    Args:
        config: the complete tables "backbone", "method", "augment", "fit" and "run" of a configuration file. Usually
            `Learner.create` makes them.

    Attributes:
        model: the state: the backbone, the method, and what they have learned. Its most used parts are also attributes
            of the learner (`backbone`, `method`, `class_names`, `tasks`, ...).
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.model = Model({**config, "method": name_in_table(config["method"], Path.cwd())})

    @classmethod
    def create(
        cls,
        *,
        backbone: str | Mapping[str, Any] | None = None,
        method: str | Mapping[str, Any] | None = None,
        align: bool | None = None,
        seed: int = 0,
        augment: Mapping[str, Any] | None = None,
        fit: Mapping[str, Any] | None = None,
    ) -> "Learner":
        """Create a learner that has learned nothing yet.

        Args:
            backbone: a name, a folder that `lamella export` or timm wrote, "NAME+FOLDER" for a name and a LoRA of PEFT,
                or a table of `load_backbone`'s arguments. If left out, that of the configuration `photos`: timm's
                ViT-Tiny. "fractal-vit-micro" is bundled and needs no download, for digits and other small images.
            method: a name, a class of a file such as "my_file.py:EMALoRA", or a table {"name": ..., hyper-parameters}.
                The name says which parts the method carries and on which base it learns: "inflora+align", "inflora"
                without alignment, "dlc(wa)". If left out, method and augmentation are those of `lamella learn`: of the
                configuration `photos`, of `small-images` with the bundled backbone, of `texts` with a backbone of
                texts, and of `answers` with a language model.
            align: deprecated; the name of the method says it: "inflora+align" is with alignment, "inflora" without.
            seed: the seed of all random draws, 0 or more.
            augment: the augmentation of training images, as a table of the arguments of `Augmentation`.
            fit: the options of the training loop, such as {"device": "cpu", "precision": "auto"}.

        Raises:
            ValueError: a name or an option is unknown, or the name contradicts the table.
        """
        return cls(new_config(backbone=backbone, method=method, align=align, seed=seed, augment=augment, fit=fit))

    @classmethod
    def of(cls, model: Model) -> "Learner":
        """Create a learner for an existing model."""
        learner = cls.__new__(cls)
        learner.model = model
        return learner

    @classmethod
    def load(
        cls,
        folder: str | Path,
        version: int | None = None,
        *,
        method: str | None = None,
        device: str | None = None,
        trusted: bool = True,
    ) -> "Learner":
        """The learner that a model folder holds.

        Args:
            folder: of the model.
            version: the number of an earlier version; the current one where left out.
            method: its method, such as "my_file.py:EMALoRA"; needed where that is a class of a file of the user's own,
                which runs. Without it such a model is only loaded if this process has named the file before, or the
                environment variable LAMELLA_METHODS lists it.
            device: what to compute on, such as "cpu" or "cuda:1"; None for a GPU if there is one. A model can be loaded
                on any device.
            trusted: False for a folder of a stranger. Then nothing outside of it is read or run, and nothing is fetched
                from a network: no file of weights or LoRA elsewhere, no Python file of a method, even if it was named,
                and no weights of timm's hub. Bundled weights, the user's own below $LAMELLA_DATA, and what the hub's
                cache has are used.

        Raises:
            FileNotFoundError: there is none, or the weights of its backbone are not on this machine.
            ValueError: it is damaged, foreign, newer, or was learned on other weights; or there is no such version; or
                it has another method, or one of a file that was not named; or it is not trusted and names something
                outside of its folder.
        """
        wanted = Wanted(method=method).with_files_named()
        model = load(Path(folder), version, device=device, trusted=trusted)
        for other in wanted.differences(model.config):
            raise ValueError(f"'{folder}' is another model than was asked for: {other}")
        return cls.of(model)

    def save(self, folder: str | Path, *, what: str = "", keep: int | None = None) -> int:
        """Save the learner as a new version in a model's folder. The folder is consistent at every moment.

        Args:
            folder: the model's folder, which is created if it does not exist.
            what: a short text for the history that says what made this version.
            keep: how many of the newest versions are kept, at least 1; None keeps all.

        Returns:
            The size of the learned state in bytes.

        Raises:
            RuntimeError: learning a task failed half-way.
            OSError: the folder cannot be written, or the disk is full. The stored model is unchanged.
            BlockingIOError: another process is changing the model in this folder.
        """
        self.model.check_whole()
        place = ModelFolder(Path(folder))
        with place.held() if place.version else nullcontext():  # nobody else changes a model that is not there yet
            return save(self.model, place.path, what=what, keep=keep)

    @property
    def config(self) -> dict[str, Any]:
        """The complete configuration."""
        return self.model.config

    @property
    def seed(self) -> int:
        """The seed of all random draws."""
        return self.model.seed

    @property
    def backbone(self) -> Backbone:
        """The feature extractor."""
        return self.model.backbone

    @property
    def method(self) -> Method:
        """The method that learns on the backbone."""
        return self.model.method

    @property
    def name(self) -> str:
        """The name of the method with its parts, such as "inflora+align"."""
        return self.model.name

    @property
    def class_names(self) -> dict[int, str]:
        """The name of each global class id."""
        return self.model.class_names

    @property
    def tasks(self) -> list[TaskRecord]:
        """The record of each learned task, oldest first."""
        return self.model.tasks

    @property
    def notes(self) -> dict[str, Any]:
        """JSON values that a run stores with the model, such as its scores."""
        return self.model.notes

    @property
    def confidence(self) -> Confidence:
        """The confidence of predictions, computed from the held-back samples."""
        return self.model.confidence

    def parameter_counts(self) -> dict[str, int]:
        """Count the numbers that a prediction needs, by part of the model; see costs.py."""
        return self.model.parameter_counts()

    def fit(self, *, checkpoints: Checkpoints | None = None, progress: Progress = silent) -> Fit:
        """Create the training loop that the configuration describes.

        Args:
            checkpoints: where the loop saves its state, so that it can be resumed; None saves nothing.
            progress: opens a progress bar.
        """
        return self.model.fit(checkpoints=checkpoints, progress=progress)

    def learn(
        self,
        task: Task,
        *,
        held_back: Examples | None = None,
        checkpoints: Checkpoints | None = None,
        progress: Progress = silent,
        federation: Federation | None = None,
        loop: Callable[..., FederatedFit] = FederatedFit,
        stream: Stream | None = None,
    ) -> TaskRecord:
        """Learn one task.

        Args:
            task: the classes and training samples.
            held_back: held-back samples of the task's classes, which the model is not trained on. They calibrate the
                confidence of predictions. Their features are kept where the method can follow how
                features drift; their number and how many were right stand in the record. Of answers it has what they
                cost before the task and after it, and nothing of them is kept.
            checkpoints: where training saves its state, so that it can be resumed; None saves nothing.
            progress: opens a progress bar.
            federation: the clients among which the samples are shared out, and which learn from their own alone; None
                learns from all samples at once.
            loop: makes the loop over these clients, for clients that are not in this process.
            stream: how the task comes in batch by batch, each of which is seen once; None learns it as a whole. The
                method must be one of those with `not_online` "".

        Returns:
            The record of the task.

        Raises:
            ValueError: a class id or name stands for another class than before, a class has no sample, or clients
                cannot learn by this method, or it cannot learn a stream.
            RuntimeError: learning an earlier task failed half-way.
        """
        return learn(
            self.model,
            task,
            held_back=held_back,
            checkpoints=checkpoints,
            progress=progress,
            federation=federation,
            loop=loop,
            stream=stream,
        )

    def learn_from(
        self,
        data: str | Path,
        *,
        folder: str | Path | None = None,
        name: str | None = None,
        again: bool = False,
        progress: Progress = silent,
    ) -> TaskRecord:
        """Learn a data set as the next task.

        The test part of the data set is held back; if it has none, a fifth of each class. Files that cannot be read are
        left out with a warning, and the record names them. Images that this learner has learned before as the same
        class are left out, too, whatever their files are called now.

        Args:
            data: a folder of class folders, a table of images, texts or answers, an archive, or the name of a data set.
            folder: the folder of this learner's model. With it, no other process can change the model meanwhile, and
                what was learned is stored there as a new version. An interrupted learning is resumed by a new call for
                the same data with `Learner.load(folder)`, or, if nothing was stored yet, with a new learner of the
                same settings; the learner at hand is half trained then. Without a folder, nothing is stored.
            name: the name of the task; None for that of the data set, with a number if a task has that name already.
            again: whether images that were learned before are learned once more, and so count twice.
            progress: opens a progress bar.

        Returns:
            The record of the task.

        Raises:
            FileNotFoundError: the data set is missing.
            ValueError: the data set cannot be read, it cannot be the next task of this learner, all its images were
                learned before, a task has this name, or `folder` holds something else than this learner.
            BlockingIOError: another process is learning into `folder`.
        """
        place = None if folder is None else Path(folder)
        return learn_from(self.model, data, folder=place, name=name, again=again, progress=progress)

    def forget(self, task: str) -> None:
        """Forget a task exactly. This is possible if the tasks share nothing; see forgetting.py.

        Args:
            task: the name of the task.

        Raises:
            ValueError: there is no such task, or what was learned later depends on it.
        """
        self.model.check_whole()
        forget(self.model, task)

    def remove(
        self, paths: str | Path | Sequence[str | Path], *, whole_classes: bool = False, known_only: bool = False
    ) -> Corrected:
        """Take samples out exactly, as if they had never been learned or held back; see corrections.py.

        Args:
            paths: files, folders and tables of the samples; which class they were learned as is known.
            whole_classes: whether classes of which nothing is left end; else samples that a class needs are refused.
            known_only: whether samples that were never learned are left out; else they are refused.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: some were never learned, a class needs them, or what they taught cannot be taken out exactly.
        """
        several = [paths] if isinstance(paths, str | Path) else paths
        given = pointed_at([Path(path) for path in several], self.backbone.transform.noun)
        return remove(self.model, given, whole_classes=whole_classes, known_only=known_only)

    def correct(self, table: str | Path, *, whole_classes: bool = False) -> Corrected:
        """Correct the classes of samples exactly, as if they had been learned so; see corrections.py.

        Args:
            table: a table as one that is learned, with one more column, `right`.
            whole_classes: whether classes of which nothing is left end; else samples that a class needs are refused.

        Raises:
            FileNotFoundError: there is no such table, or no image that it lists.
            ValueError: one was not learned as its label says, the right class is unknown, or what it taught cannot be
                corrected exactly.
        """
        given = read_corrections(Path(table), self.backbone.transform.noun)
        return correct(self.model, given, whole_classes=whole_classes)

    def drift_alarm(self, *, every: float = EVERY) -> DriftAlarm:
        """Create an alarm for when samples that come in look unlike what was learned; see drift_alarm.py.

            alarm = learner.drift_alarm()
            if alarm.observe(prediction.familiarity for prediction in learner.predict(files)):
                print(alarm.told("image"))

        Args:
            every: how many samples there are between two false alarms, at least and on average; above 1.

        Raises:
            ValueError: nothing was held back while tasks were learned, or `every` is out of its range.
        """
        return DriftAlarm(self.confidence.images if self.tasks else 0, every=every, seed=self.seed)

    def logits(self, x: Samples, task: int | None = None) -> Tensor:
        """(n, classes seen) logits of n samples, on the device of x.

        Args:
            x: samples as the backbone's transform gives them, such as normalised images (n, 3, size, size).
            task: the number of the task that the samples are from, where it is given.
        """
        return self.model.logits(x, task)

    def answer(self, prompts: Sequence[str | Answer], how: Generating = Generating()) -> list[str]:
        """Answers to prompts, by a model of answers; see `lamella.backbones.generating.generate`.

        Args:
            prompts: what is asked: texts, or whole conversations.
            how: how answers are written: their greatest length, and whether tokens are drawn.

        Raises:
            ValueError: the backbone is no language model, or the prompts leave no room for an answer.
        """
        self.model.check_whole()
        asked = [Answer.to(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        self.model.method.eval().to(self.fit().device)
        return write_answers(self.model.method, asked, how)

    def predict(self, images: Sequence[str | Path] | Examples, *, top: int = 5) -> list[Prediction]:
        """Class names with confidences for image files, texts, or a set of samples.

        Args:
            images: image files, or for a model of texts the texts themselves; or a set of samples of any kind, whose
                labels are not looked at. At least one.
            top: how many classes a prediction names, at least 1.

        Returns:
            One prediction for each sample.

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
        recall: FeatureCache | None = None,
        progress: Progress = silent,
        name: str = "test",
        right: dict[str, Tensor] | None = None,
    ) -> dict[str, Score]:
        """Count the correctly classified samples of a task.

        Args:
            data: the samples, labelled with the global ids of learned classes.
            classes: the global ids of the task's classes, for the accuracy with a given task.
            shared_classes: whether other tasks have these classes too.
            recall: a cache of the features of these samples, if they are evaluated again after further tasks. Each set
                of samples needs its own.
            progress: opens a progress bar.
            name: the name of the pass.
            right: receives by readout which samples are classified correctly: (2, n) bool in the order of the data,
                among all classes seen, and among those of their own task.

        Returns:
            The score of each readout by name. The name of the method's own prediction is "".

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
        shared = shared_classes
        return score_task(
            self.method, fit, data, classes, shared_classes=shared, name="score", recall=recall, right=right
        )

    def evaluate_answers(
        self, data: AnswerSet, how: Generating | None = Generating(), *, choices: Sequence[str] = ()
    ) -> MeasuredAnswers:
        """Measure a model of answers: what the answers cost it, what it writes itself, and what it would choose.

        Args:
            data: the answers.
            how: how it writes answers; None where it should write none.
            choices: the answers to choose from, for all prompts that bring none of their own.

        Raises:
            ValueError: the backbone is no language model, or no answer fits into it.
            ModuleNotFoundError: rouge-score or sacrebleu is not installed.
        """
        self.model.check_whole()
        fit = self.fit()
        self.method.eval().to(fit.device)
        return measure_answers(
            self.method, data, how, choices=choices, device=str(fit.device), precision=self.config["fit"]["precision"]
        )

    def export(
        self,
        out: str | Path,
        format: str,
        *,
        readout: str = "",
        per_task: bool = False,
        rank: int | None = None,
        energy: float | None = None,
    ) -> list[str]:
        """Export the model to a format that can be used without Lamella.

        Arguments, return value and errors are those of `learner.export.export`.
        """
        self.model.check_whole()
        return export(self.model, format, out, readout=readout, per_task=per_task, rank=rank, energy=energy)
