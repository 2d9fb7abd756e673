"""What a method is: two verbs."""

from typing import Protocol

from torch import Tensor

from lamella.backbones import Backbone
from lamella.data.scenario import Task
from lamella.training.fit import Fit

__all__ = ["Method"]


class Method(Protocol):
    """A continual-learning method: an `nn.Module` built as `M(backbone, *, seed, **hyper_parameters)`.

    Hyper-parameters are keyword-only and stored under their own names; data enters only through `learn`. State that
    travels is a buffer or a parameter. Optional: `features(x)`, which parts such as alignment need; `readouts(x)`, the
    logits of what it is built on too, from one forward pass (compose/readouts.py names them); `features_and_logits(x)`,
    both from one forward pass, where logits are more than heads on features; `changes_backbone = True` where backbone
    weights are trained; `routed = True` where experts are chosen for each image, so that a given task changes the
    features, and new images show no drift of the old; `widens = True` where features get wider with each task. A
    method whose tasks share nothing has `forget(number)`, which drops one and leaves what it would be without it. A
    method on a base says what it adds (costs.py); a module with `for_training = True` is of no use to predictions.
    """

    backbone: Backbone

    @property
    def classes(self) -> tuple[int, ...]:
        """Global class ids in the column order of `predict`: the order in which they were first learned."""
        ...

    def learn(self, task: Task, fit: Fit) -> None:
        """Learn one task from its train data alone."""
        ...

    def predict(self, x: Tensor, task: tuple[int, ...] | None = None) -> Tensor:
        """Finite logits (n, classes) of all classes seen; `task` names the classes to choose from, if the test does."""
        ...
