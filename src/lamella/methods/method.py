"""The contract of a method: an abstract class that asks for `learn` and has a default for everything else."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from lamella.adapters.adapter import Site, rows_read
from lamella.backbones import Backbone
from lamella.backbones.language_model import LanguageModel, language_model
from lamella.data.loading import Examples
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.memory.exemplars import Exemplars
from lamella.memory.signatures import Signature
from lamella.memory.subspace import Subspace
from lamella.methods.shared.heads import Head, Heads, only_columns
from lamella.methods.shared.plain_classifier import PlainClassifier
from lamella.methods.shared.refusals import APART, TASK_BY_TASK, TRAINED, TRAINED_ON_THEM
from lamella.training.fit import Fit
from lamella.training.variants import EVERYTHING

__all__ = ["STATISTICS_GO_ON", "Method"]

STATISTICS_GO_ON = "their statistics take in the new {noun}s beside the old ones"
"""What a method that classifies by class statistics makes of more samples of a class."""


class Method(nn.Module, ABC):
    """A continual-learning method: it learns one task after another and predicts among all classes seen so far.

    A method is built as `MyMethod(backbone, *, seed=0, **hyper_parameters)`. Hyper-parameters are keyword-only, have
    defaults and annotations, and are stored under their own names: they are the keys of the table `[method]`. Training
    data enters only through `learn`. What has to survive saving and loading is a parameter or a buffer.

    Only `learn` must be written. The defaults are those of a method with one linear head a task: it keeps them in
    `self.heads`, and its logits are the outputs of all heads side by side. A method that classifies otherwise writes
    `classes` and either `classify` or `predict`; the other members follow from these:

        class OwnHeads(Method):
            def __init__(self, backbone: Backbone, *, seed: int = 0, epochs: int = 5) -> None:
                super().__init__()
                self.backbone, self.seed, self.epochs = backbone, seed, epochs
                self.heads = Heads(backbone.width, seed=seed)

            def learn(self, task: Task, fit: Fit) -> None:
                head = self.heads.grow(task.classes)
                loss = lambda x, y: F.cross_entropy(head(self.features(x)), head.columns(y))
                fit(task.train, loss, head.parameters(), epochs=self.epochs, lr=0.01, batch_size=64)

    In the shapes below n is the number of samples in a batch, d the width of the features, and "classes" the number of
    classes seen so far.

    Attributes:
        backbone: The feature extractor, which a method may adapt or train.
        seed: The number from which all random draws are made, together with their names.
        heads: The linear heads of all tasks, where the method has such heads; the defaults use them.
        exemplars: The samples that are kept of old tasks, where the method keeps any; the defaults use them.
        base: The method that this one is built on; None for a method that stands alone. See `MethodOnBase`.
        sites: Where the method's adapters sit; empty where it has none.
        needs: What it needs of a branch, names of `training.variants.NEEDS`; variants of LoRA that break any of it are
            refused. By default it is everything, so that a method says itself what it can do without.
        routed: Whether experts are chosen for each sample. Then a given task changes the features, and the experts of
            old tasks stay as they are, so that samples of a new task cannot show how features of old ones drift.
        widens: Whether the features get wider with each task.
        changes_backbone: Whether the backbone's own weights are trained.
        answers: Whether it can learn answers, where its backbone is a language model; else it needs classes.
        federates: Whether it asks of samples only training steps and sums, so that these can stay with several owners.
        beyond_sums: Those of its settings that ask for more of samples than sums, such as "drift = 'local'"; without
            them it could be learned by several owners wherever its base can.
        not_online: Why it cannot learn a stream of small batches that are seen once, in which known classes come again
            (`Fit.once`), as the end of a sentence about it; "" where it can.
        merges: Whether adapters are folded into the weights of the layers in `sites`.
        free_rank: How many free directions of a layer the branch of a new task wants, where `protected` tells which
            are taken; None where no branch is kept away from them.
        most_tasks: How many tasks it can learn in all; None where there is no such limit.
    """

    backbone: Backbone
    seed: int
    heads: Heads
    base: "Method | None"
    sites: Sequence[Site] = ()
    needs: frozenset[str] = EVERYTHING
    routed: bool = False
    widens: bool = False
    changes_backbone: bool = False
    answers: bool = False
    federates: bool = False
    beyond_sums: tuple[str, ...] = ()
    not_online: str = TASK_BY_TASK
    merges: bool = False
    free_rank: int | None = None
    most_tasks: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.base = None  # not in the class: an attribute of the class would hide a module of the same name

    # learning and forgetting

    @abstractmethod
    def learn(self, task: Task, fit: Fit) -> None:
        """Learn one task from `task.train` alone. The loop is `fit`'s; see `lamella.Fit`."""

    @property
    def can_forget(self) -> bool:
        """Whether the method has a `forget` of its own."""
        return type(self).forget is not Method.forget

    def forget(self, number: int) -> None:
        """Drop a task so that what is left does not depend on its data.

        A method whose tasks share no tensor overrides this.

        Args:
            number: The place of the task in the order of learning, from 0.

        Raises:
            ValueError: Tensors that other tasks need hold traces of the task.
        """
        raise ValueError(
            f"{type(self).__name__} cannot forget task {number}: weights or statistics that tasks share hold it; go "
            "back to what was stored before it was learned"
        )

    def merge_classes(self, source: int, target: int) -> None:
        """Make one class of two, as if all samples of both had been learned as the second.

        A method that keeps nothing of classes but their statistics overrides this.

        Args:
            source: The global id of the class that ends.
            target: The global id of the class that takes it in.

        Raises:
            ValueError: Something that was trained holds the class.
        """
        raise ValueError(f"this method cannot merge classes: {APART}")

    def drop_class(self, label: int) -> None:
        """Drop a class, as if it had never been learned.

        A method that keeps nothing of classes but their statistics overrides this.

        Args:
            label: The global id of the class.

        Raises:
            ValueError: Something that was trained, or that classes share, holds the class.
        """
        raise ValueError(f"this method cannot drop a class: {TRAINED}")

    def traces_of(self, number: int, counts: Sequence[int]) -> str:
        """What holds samples of a task beside sums over samples, which they could be taken out of; "" if nothing does.

        A method that keeps sums over frozen features overrides this and `take_out`.

        Args:
            number: The place of the task in the order of learning, from 0.
            counts: How many samples each task was learned from.
        """
        return TRAINED_ON_THEM

    def take_out(self, features: Tensor, labels: Tensor, right: Tensor | None = None, gone: Sequence[int] = ()) -> None:
        """Take out samples as if they had never been learned, or, with `right`, as if they had been learned as that.

        It is asked only of samples of tasks of which nothing has other traces (`traces_of`).

        Args:
            features: (n, d), what `features` makes of the samples.
            labels: (n,) global ids of the classes that they were learned as.
            right: (n,) global ids of the classes that they are of, all among `classes`; None takes them out.
            gone: The classes of which nothing is left then, which end.

        Raises:
            ValueError: These cannot be samples that were learned. Nothing has changed then.
        """
        raise ValueError(f"samples cannot be taken out: {TRAINED_ON_THEM}")

    def what_more_images_do(self) -> str:
        """What becomes of a class that comes back with more samples, as the end of a sentence about them."""
        noun = self.backbone.transform.noun
        if isinstance(self._modules.get("exemplars"), Exemplars):
            return f"learned anew from these {noun}s and those that the memory has of them"
        if isinstance(self._modules.get("heads"), Heads):
            return f"learned anew from these {noun}s alone: what their earlier {noun}s taught no longer counts for them"
        return STATISTICS_GO_ON.format(noun=noun)

    def with_exemplars(self, data: Examples) -> Examples:
        """The data and all samples that the method keeps of old tasks, as one set; `data` where it keeps none."""
        exemplars = self._modules.get("exemplars")
        return exemplars.join(data) if isinstance(exemplars, Exemplars) else data

    # predicting

    def losses(self, x: Samples) -> Tensor:
        """(targets,) float32, what each target token of a batch of answers costs, in nats.

        Raises:
            ValueError: The backbone is no language model.
        """
        with self.acting(x):
            return self.backbone.run(x, language_model(self.backbone.model, "a loss of answers").losses)

    def acting(self, x: Samples) -> AbstractContextManager[None]:
        """The context in which the backbone computes with these samples as the method does, in this order.

        A method whose adapters act in another way than all of them with coefficient 1 overrides this.

        Args:
            x: n samples; of answers, what comes before them is enough.
        """
        return nullcontext()

    @property
    def classes(self) -> tuple[int, ...]:
        """Global class ids in the order of the columns of `predict`: the order in which they were first learned."""
        return self._heads("classes").classes

    def features(self, x: Samples) -> Tensor:
        """(n, d) features of n samples, as the backbone takes them, on which the method classifies."""
        with self.acting(x):
            return self.backbone(x)

    def classify(self, features: Tensor) -> Tensor:
        """(n, classes) finite logits of features (n, d)."""
        return self._heads("classify")(features)

    def features_and_logits(self, x: Samples) -> tuple[Tensor, Tensor]:
        """(n, d) features and (n, classes) logits of samples, from one forward pass where that can be."""
        features = self.features(x)
        return features, self._logits(features, x)

    def predict(self, x: Samples, task: tuple[int, ...] | None = None) -> Tensor:
        """(n, classes) finite logits of n samples; those of a sample do not depend on its batch.

        Args:
            x: Samples as the backbone takes them, such as normalised images (n, 3, size, size).
            task: The global ids of the classes to choose from, where the test names them; all others then fall far
                below these. All classes compete where it is left out.
        """
        # Not always by `features_and_logits`, whose default asks `predict` where a class overrides that: such a class
        # may call this default.
        whole = type(self).features_and_logits is not Method.features_and_logits
        logits = self.features_and_logits(x)[1] if whole else self.classify(self.features(x))
        return only_columns(logits, self.classes, task)

    def readouts(self, x: Samples) -> Mapping[str, Tensor]:
        """All classifications that one training gives, from one forward pass, each (n, classes).

        They are named by what was taken off: "" is the method's own prediction, "base" that of what it is built on,
        "base.base" that of what this is built on in turn.
        """
        return {"": self.predict(x)}

    def features_and_readouts(self, x: Samples) -> tuple[Tensor, Mapping[str, Tensor]]:
        """(n, d) features and all `readouts`, from one forward pass."""
        features, logits = self.features_and_logits(x)
        return features, {"": logits}

    def logits_and_typicality(self, x: Samples) -> tuple[Tensor, Tensor]:
        """(n, classes) logits and (n,) `typicality` of samples, from one forward pass."""
        if not self.by_features:
            logits = self.predict(x)
            return logits, energy(logits)
        features = self.features(x)
        logits = self.classify(features)
        return logits, self.typicality(features, logits)

    def typicality(self, features: Tensor, logits: Tensor) -> Tensor:
        """(n,) scores that are low for samples like none that were learned.

        Only a method that classifies by features alone is asked (`by_features`); for others it is the default.

        Args:
            features: (n, d) features of the samples.
            logits: (n, classes) logits of the samples.
        """
        return energy(logits)

    # features that are kept

    @property
    def by_features(self) -> bool:
        """Whether a prediction is `classify(features(x))`, so that features are enough to classify a sample again."""
        own = type(self).predict, type(self).features_and_logits
        return own == (Method.predict, Method.features_and_logits)

    @property
    def one_weight(self) -> bool:
        """Whether each layer in `sites` acts as one weight for all samples, and every task changes these weights.

        The weights may be folded, or have branches beside them whose coefficients are numbers. By default so are all
        adapters, if they are not routed.
        """
        return bool(self.sites) and not (self.routed or self.changes_backbone)

    @property
    def features_stay(self) -> bool:
        """Whether features of a sample are the same after a later task; else `learn` may tell how: `fit.tell_drift`.

        By default they stay if nothing that computes them is trained.
        """
        return not (self.sites or self.changes_backbone or self.widens or self.merges)

    # what exports and inspections ask

    def linear_classifier(self) -> nn.Linear:
        """The classifier as one layer on the features (n, d) of the backbone, rows in the order of `classes`.

        Raises:
            ValueError: The method classifies in another way, or on other features.
        """
        own = type(self).predict, type(self).features_and_logits, type(self).classify
        plain = own == (Method.predict, Method.features_and_logits, Method.classify)
        if not plain or not self._has_heads_on_the_backbone():
            raise ValueError(
                f"{type(self).__name__} does not classify by one linear layer on the features of one network"
            )
        return self.heads.as_linear()

    def plain_classifier(self) -> PlainClassifier:
        """The classifier on the features (n, d) of the backbone as a few tensors, rows in the order of `classes`.

        Raises:
            ValueError: The method classifies in another way, or on other features.
        """
        return PlainClassifier.of_linear(self.linear_classifier())

    def head_of(self, task: int) -> Head:
        """The linear head (classes of the task, d) of one task, by its place in the order of learning.

        Raises:
            ValueError: Tasks have no heads of their own on the features of the backbone.
        """
        if not self._has_heads_on_the_backbone():
            raise ValueError(f"{type(self).__name__} has no linear head for each task on the features of one network")
        return self.heads[task]

    def adapters_of(self, task: int) -> tuple[str, ...]:
        """Names of the adapters in the backbone that are this task's own, by its place in the order of learning."""
        return ()

    def rows_read(self, task: int) -> dict[str, Tensor]:
        """By layer, what a task's own branches read of its inputs: the rows (ranks, d_in) of their A's."""
        return rows_read(self.backbone.model, self.adapters_of(task))

    def protected(self) -> Mapping[str, Subspace | Signature]:
        """By layer, the directions of its inputs that old tasks use and that new ones are kept away from."""
        return {}

    def _logits(self, features: Tensor, x: Samples) -> Tensor:
        """(n, classes) of samples with these features: by `predict` where the class writes that, else by `classify`."""
        return self.classify(features) if type(self).predict is Method.predict else self.predict(x)

    def _has_heads_on_the_backbone(self) -> bool:
        heads = self._modules.get("heads")
        return isinstance(heads, Heads) and heads.width == self.backbone.width

    def _heads(self, member: str) -> Heads:
        heads = self._modules.get("heads")
        if isinstance(self.backbone.model, LanguageModel):
            raise ValueError(f"'{self.backbone.name}' learns answers, which have no classes: there is no `{member}`")
        if not isinstance(heads, Heads):
            raise NotImplementedError(
                f"{type(self).__name__} has no Heads in `self.heads`, which the default of `{member}` uses; keep heads "
                f"there, or write `{member}` in the class"
            )
        return heads


def energy(logits: Tensor) -> Tensor:
    """(n,) negative energies of logits (n, classes), which are low for samples like none that were learned.

    The log of the sum of exponentiated logits: Liu et al., NeurIPS 2020, arXiv 2010.03759.
    """
    return logits.float().logsumexp(1)
