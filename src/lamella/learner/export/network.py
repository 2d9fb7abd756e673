"""Converts a learned method into one network with fixed weights and a classifier of few tensors on its features.

The method gives its classifier; a language model has none, since its own head tells the next token. The branches that
act, and their coefficients, are observed in one prediction. The conversion is not possible if they differ from sample
to sample, or if samples pass through the network repeatedly.
"""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from lamella.adapters import acting
from lamella.adapters.acting import ActingBranch, added
from lamella.adapters.branches import Adapted
from lamella.adapters.few_bits import FewBitsLinear, to_float
from lamella.backbones import Backbone
from lamella.backbones.language_model import language_model
from lamella.data.samples import Samples
from lamella.learner.export.check import Logits, random_samples
from lamella.methods import Method
from lamella.methods.on_base import MethodOnBase
from lamella.methods.shared.objectives import learns_answers
from lamella.methods.shared.plain_classifier import PlainClassifier

__all__ = [
    "WHOLE",
    "Fixed",
    "acting_branches",
    "adapted_layers",
    "base_of",
    "fixed",
    "next_tokens",
    "own_logits",
    "predicting",
]

WHOLE = {"image": "timm", "text": "hf", "answer": "hf"}
"""By what a model takes, the format that holds all weights of its network."""
_TENSORS = "--format adapters writes what it learned as plain tensors"
_OTHERWISE = {
    "image": "export the graph with --format onnx",
    "answer": f"let lamella serve answer with it, or {_TENSORS}",
}
_APART = ", or write a folder for each task with --format peft --per-task"


class Fixed(nn.Module):
    """One network with fixed weights: a backbone without branches, and a classifier.

    Args:
        backbone: the feature extractor.
        classifier: the classifier on its features; None for a language model.
    """

    def __init__(self, backbone: Backbone, classifier: PlainClassifier | None) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier

    @property
    def of_classes(self) -> PlainClassifier:
        """The classifier of a network of classes."""
        assert self.classifier is not None
        return self.classifier

    def forward(self, x: Samples) -> Tensor:
        """(n, classes) logits of n samples, as the backbone takes them, or those of `next_tokens`."""
        return next_tokens(self.backbone, x) if self.classifier is None else self.classifier(self.backbone(x))


def next_tokens(backbone: Backbone, x: Samples) -> Tensor:
    """(tokens, vocabulary) logits of a language model behind every token of some answers."""
    return backbone.run(x, language_model(backbone.model, "an export of answers").every_logit)


def own_logits(method: Method) -> Logits:
    """Return what a method computes of samples: the logits of its classes, or of answers those of `next_tokens`."""
    if not learns_answers(method.backbone):
        return method.predict

    def logits(x: Samples) -> Tensor:
        with method.acting(x):
            return next_tokens(method.backbone, x)

    return logits


def base_of(method: Method, readout: str) -> Method:
    """Return the method whose prediction is a readout.

    Args:
        method: the method of the model.
        readout: "" for the method itself, "base" for the one it is built on, "base.base" for the next, and so on.

    Raises:
        ValueError: there is no such readout.
    """
    there = [""]
    while readout != there[-1]:
        if method.base is None:
            others = ", ".join(map(repr, there[1:]))
            instead = f"use {others}, or leave it out" if others else "its method is built on no other, so leave it out"
            raise ValueError(f"this model has no readout '{readout}'; {instead} for the model's own prediction")
        method = method.base
        there.append(f"{there[-1]}.base".lstrip("."))
    return method


@contextmanager
def predicting(method: Method, readout: str) -> Generator[Method]:
    """Within this context the method of a readout computes what it would compute alone.

    Args:
        method: the method of the model.
        readout: the readout, as in `base_of`, with its errors.
    """
    base_of(method, readout)
    with ExitStack() as levels:
        for _ in readout.split(".") if readout else ():
            if isinstance(method, MethodOnBase):
                method = levels.enter_context(method.base_alone())
        yield method


def fixed(method: Method, *, linear: bool = False) -> Fixed:
    """Convert a method into one network with fixed weights; predictions are the same up to rounding.

    Args:
        method: the method.
        linear: whether its classifier must be one linear layer.

    Raises:
        ValueError: the method is not one network with such a classifier.
    """
    branches = acting_branches(method)
    classifier = None if learns_answers(method.backbone) else _classifier(method, linear)
    backbone = deepcopy(method.backbone)
    to_float(backbone.model)
    for name in branches:
        layer: Any = backbone.model.get_submodule(name)
        wide = layer.weight.double()
        layer.weight.data.copy_(wide + added(layer.weight, branches[name]))
        if isinstance(layer, Adapted):
            layer.branches = nn.ModuleDict()
            layer.acting = None
    return Fixed(backbone, classifier).eval().requires_grad_(False)


def adapted_layers(model: nn.Module) -> dict[str, Adapted]:
    """The layers that can have branches by name; of those in few bits, those that have some."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}
    return {name: layer for name, layer in layers.items() if layer.branches or not isinstance(layer, FewBitsLinear)}


def acting_branches(method: Method) -> dict[str, list[ActingBranch]]:
    """Return for each adapted layer the branches that act in every prediction.

    Raises:
        ValueError: the branches that act, or their coefficients, depend on the sample.
    """
    samples = random_samples(method.backbone, 2)
    try:
        found = acting.acting_branches(adapted_layers(method.backbone.model), lambda: own_logits(method)(samples))
    except acting.DiffersBySample:
        raise _per_sample(method) from None
    if any(own.branch.tokens == "class" for branches in found.values() for own in branches):
        noun = method.backbone.transform.noun
        raise ValueError(
            "adapters of this method act on class tokens alone, so they cannot become part of the weights, which all "
            f"tokens pass; {_OTHERWISE.get(noun, _TENSORS)}"
        )
    return found


def _per_sample(method: Method) -> ValueError:
    noun = method.backbone.transform.noun
    return ValueError(
        f"this method weighs its adapters anew for each {noun}, so they cannot become part of the weights; "
        f"{_OTHERWISE.get(noun, _TENSORS)}{_APART if method.routed else ''}"
    )


def _classifier(method: Method, linear: bool) -> PlainClassifier:
    """Return the method's classifier.

    Raises:
        ValueError: it has none of this form; the message says why, and names another export.
    """
    try:
        return PlainClassifier.of_linear(method.linear_classifier()) if linear else method.plain_classifier()
    except ValueError as error:
        further = "" if method.base is None else ", or with --readout base the heads below, which predict otherwise"
        otherwise = _OTHERWISE.get(method.backbone.transform.noun, _TENSORS)
        raise ValueError(f"{error}; {otherwise}{further}") from None
