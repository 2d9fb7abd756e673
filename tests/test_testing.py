"""`lamella.testing.check_method`: what it finds, and what it says of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella import Backbone, Fit, Method, Task
from lamella.methods.shared.heads import Head, Heads, only_columns
from lamella.testing import MethodCheckError, check_method, tiny_resnet


class Sound(Method):
    """Heads on a frozen backbone; a buffer counts the tasks."""

    counted: Tensor

    def __init__(self, backbone: Backbone, *, seed: int = 0, epochs: int = 5, batch_size: int = 4) -> None:
        super().__init__()
        self.backbone, self.seed = backbone, seed
        self.epochs, self.batch_size = epochs, batch_size
        self.heads = Heads(backbone.width, seed=seed)
        self.register_buffer("counted", torch.zeros(1))

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        self.train_on(task.train, self.heads.grow(task.classes), fit)
        self.counted += 1

    def train_on(self, data: Any, head: Head, fit: Fit) -> None:
        def loss(x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(head(self.backbone(x)), head.columns(y))

        fit(data, loss, head.parameters(), epochs=self.epochs, batch_size=self.batch_size, after_step=self.after_step)

    def after_step(self) -> None:
        """Nothing."""

    def weight(self) -> nn.Parameter:
        return self.backbone.model.get_parameter("blocks.0.mlp.fc1.weight")


class OnlyTheLastHead(Sound):
    def classify(self, features: Tensor) -> Tensor:
        return self.heads[len(self.heads) - 1](features)


class SortedClasses(Sound):
    @property
    def classes(self) -> tuple[int, ...]:
        return tuple(sorted(self.heads.classes))


class Infinite(Sound):
    def classify(self, features: Tensor) -> Tensor:
        return super().classify(features) / 0.0


class Flat(Sound):
    def features(self, x: Tensor) -> Tensor:
        return self.backbone(x).flatten()

    def predict(self, x: Tensor, task: tuple[int, ...] | None = None) -> Tensor:
        return only_columns(self.classify(self.backbone(x)), self.classes, task)


class LeftTrainable(Sound):
    def learn(self, task: Task, fit: Fit) -> None:
        super().learn(task, fit)
        self.heads[0].weight.requires_grad_(True)


class ShrinksTheBackbone(Sound):
    @torch.no_grad()
    def learn(self, task: Task, fit: Fit) -> None:
        with torch.enable_grad():
            super().learn(task, fit)
        self.weight().mul_(0.9)


class SaysThatItMerges(Sound):
    merges = True


class CentredInItsBatch(Sound):
    def classify(self, features: Tensor) -> Tensor:
        return super().classify(features - features.mean(0))


class CountsPredictions(Sound):
    def predict(self, x: Tensor, task: tuple[int, ...] | None = None) -> Tensor:
        self.counted += len(x)
        return super().predict(x, task)


class IgnoresTheTask(Sound):
    def predict(self, x: Tensor, task: tuple[int, ...] | None = None) -> Tensor:
        return super().predict(x)


class OtherReadout(Sound):
    def readouts(self, x: Tensor) -> dict[str, Tensor]:
        return {"": self.predict(x) + 1}


class UnregisteredMean(Sound):
    def learn(self, task: Task, fit: Fit) -> None:
        super().learn(task, fit)
        self.means = {task.id: fit.features(task.train, self.features).mean(0)}


class UnregisteredHead(Sound):
    def learn(self, task: Task, fit: Fit) -> None:
        super().learn(task, fit)
        self.old = [Head(4, task.classes)]


class NotContiguous(Sound):
    def __init__(self, backbone: Backbone, *, seed: int = 0, epochs: int = 1) -> None:
        super().__init__(backbone, seed=seed, epochs=epochs)
        self.counted = torch.zeros(2, 3).T


class PlainFactor(Sound):
    factor = 1.0

    def learn(self, task: Task, fit: Fit) -> None:
        super().learn(task, fit)
        self.factor = self.factor + 1

    def classify(self, features: Tensor) -> Tensor:
        return super().classify(features) * self.factor


class PlainCount(Sound):
    seen = 0

    def learn(self, task: Task, fit: Fit) -> None:
        super().learn(task, fit)
        self.seen = self.seen + 1
        self.counted.fill_(self.seen)


class PlainSteps(Sound):
    steps = 0

    def learn(self, task: Task, fit: Fit) -> None:
        self.steps = 0
        super().learn(task, fit)
        self.counted.fill_(self.steps)

    def after_step(self) -> None:
        self.steps += 1


class GlobalDraws(Sound):
    def learn(self, task: Task, fit: Fit) -> None:
        super().learn(task, fit)
        self.counted = torch.rand(1)


class ForgetsReturningClasses(Sound):
    def classify(self, features: Tensor) -> Tensor:
        return torch.cat([head(features) for head in self.heads.heads], 1)


class ReadsValidation(Sound):
    def learn(self, task: Task, fit: Fit) -> None:
        super().learn(task, fit)
        fit.features(task.validation or task.train, self.features)


@pytest.mark.parametrize(
    ("method", "what"),
    [
        (OnlyTheLastHead, r"predict gave \[2, 2, 2\] logits; give one for every class seen so far"),
        (SortedClasses, r"classes is \(0, 1, 2, 3, 4, 5\) .* in the order in which they were first learned"),
        (Infinite, "logits that are not finite"),
        (Flat, r"features of 8 samples have the shape \(\d+,\); give finite \(n, d\)"),
        (LeftTrainable, "'heads.heads.0.weight' is still trainable"),
        (ShrinksTheBackbone, "changed 'blocks.0.mlp.fc1.weight' of the backbone; say so in the class"),
        (SaysThatItMerges, r"says that it changes weights .* but learning left all as they were"),
        (CentredInItsBatch, "predicted alone differ from those in a batch"),
        (CountsPredictions, "predict changed 'counted'"),
        (IgnoresTheTask, r"end predict with only_columns\(logits, self.classes, task\)"),
        (OtherReadout, "the readout '' is not what predict of OtherReadout gives"),
        (UnregisteredMean, r"learning left a tensor in 'self.means\[2\]'"),
        (UnregisteredHead, r"learning left a tensor in 'self.old\[0\].weight'.*nn.ModuleList"),
        (NotContiguous, "'counted' is not contiguous"),
        (PlainFactor, "predicts otherwise than the stored one.*The attribute 'factor', which is neither"),
        (PlainCount, "learned the next task otherwise.*'counted' differ.*The attribute 'seen'"),
        (PlainSteps, "after a kill at checkpoint .* 'counted' differ.*The attribute 'steps'"),
        (GlobalDraws, r"learned the next task otherwise.*generator\(self.seed"),
        (ForgetsReturningClasses, "a task whose classes came back gave the classes"),
        (ReadsValidation, "learn read task.validation.*read task.train only"),
    ],
)
def test_each_mistake_is_found_and_the_message_says_what_to_change(method: type[Method], what: str) -> None:
    with pytest.raises(MethodCheckError, match=what) as caught:
        check_method(method)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, AssertionError), "pytest calls it a failure"


def test_a_draw_of_the_running_generator_is_found_even_where_everything_is_stored() -> None:
    class DrawnStart(Sound):
        def __init__(self, backbone: Backbone, *, seed: int = 0) -> None:
            super().__init__(backbone, seed=seed, epochs=1)
            self.counted = torch.rand(1)

    with pytest.raises(MethodCheckError, match="learned twice with the same seed, 'counted' differ"):
        check_method(DrawnStart)


def test_a_sound_method_passes_and_the_checks_are_named() -> None:
    names = check_method(Sound)
    assert len(names) == len(set(names)) >= 12
    assert "an_interrupted_learning_ends_with_the_same_bits" in names


def test_a_function_builds_with_other_settings_on_another_backbone() -> None:
    built: list[Method] = []

    def build(backbone: Backbone, seed: int) -> Method:
        built.append(Sound(backbone, seed=seed, epochs=1))
        return built[-1]

    check_method(build, backbone=tiny_resnet)
    assert {method.backbone.name for method in built} == {"tiny"}


class PositionalRank(Sound):
    def __init__(self, backbone: Backbone, rank: int = 2, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)


class NoDefault(Sound):
    def __init__(self, backbone: Backbone, *, seed: int = 0, rank: int) -> None:
        super().__init__(backbone, seed=seed)


class NoAnnotation(Sound):
    def __init__(self, backbone: Backbone, *, seed: int = 0, rank=2) -> None:  # type: ignore[no-untyped-def]
        super().__init__(backbone, seed=seed)


class NoSeed(Sound):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)


class OnABase(Sound):
    def __init__(self, backbone: Backbone, *, base: Method, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)


class NoLearn(Method):
    pass


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (PositionalRank, r"takes 'rank: int = 2' otherwise than by keyword alone"),
        (NoDefault, "'rank' of NoDefault lacks an annotation or a default"),
        (NoAnnotation, "'rank' of NoAnnotation lacks an annotation or a default"),
        (NoSeed, "takes no seed; add 'seed: int = 0'"),
        (OnABase, "learns on top of another method; hand check_method a function that builds both"),
        (NoLearn, "NoLearn does not write learn"),
        (nn.Linear, "Linear does not derive from lamella.Method"),
        (lambda backbone, seed: backbone, "is a Backbone; derive its class from lamella.Method"),
    ],
)
def test_what_no_configuration_could_build_is_told(kind: Callable[..., Any], what: str) -> None:
    with pytest.raises(MethodCheckError, match=what):
        check_method(kind)
