"""Export as folders that PEFT loads: the change of the weights as LoRA in its numerical rank, and the classifier."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lamella.adapters.acting import ActingBranch, added
from lamella.adapters.adapter import Site, using
from lamella.adapters.few_bits import has_few_bits
from lamella.data.samples import Samples
from lamella.learner.export.describe import architecture, description, needed
from lamella.learner.export.dora_pairs import dora_pairs
from lamella.learner.export.low_rank import Differences, Stored, pairs_of
from lamella.learner.export.network import (
    WHOLE,
    Fixed,
    acting_branches,
    adapted_layers,
    fixed,
    next_tokens,
    own_logits,
)
from lamella.learner.export.peft_answers import write_for_answers
from lamella.learner.export.peft_parts import Adapter, Write
from lamella.learner.export.peft_texts import write_for_transformers
from lamella.learner.export.peft_timm import write_for_timm
from lamella.learner.export.transformers_files import encoder_of
from lamella.learner.export.truncation import Truncation
from lamella.learner.model import Model
from lamella.methods import Method
from lamella.methods.shared.heads import Head
from lamella.methods.shared.objectives import learns_answers
from lamella.methods.shared.plain_classifier import PlainClassifier

__all__ = ["differences", "export_peft", "export_peft_tasks"]


def export_peft(model: Model, method: Method, folder: Path, truncation: Truncation | None = None) -> list[str]:
    """Write one adapter with the whole change of the backbone since it was loaded, and the classifier of classes.

    Args:
        model: the model.
        method: its method, or one that this is built on.
        folder: the folder to write.
        truncation: how far the change of each layer is truncated; None for not at all.

    Returns:
        Lines with the result of the check, the ranks, what truncation costs, and how to load the adapter.

    Raises:
        ValueError: the model is not one network with such a classifier, its network is not one that timm or
            transformers builds, or its weights changed in ways that LoRA cannot express.
        RuntimeError: PEFT is not installed.
    """
    needed("peft", "peft")
    write, noun = _writer(model)
    network = fixed(method, linear=noun == "image")
    backbone = model.new_backbone()
    loaded = backbone.model
    pairs: Mapping[str, Stored] | None = dora_pairs(acting_branches(method), _weights(method), _weights(method, loaded))
    if pairs is None:
        pairs = pairs_of(differences(method, network, loaded), len(model.tasks), f"use --format {WHOLE[noun]}")
    described = description(model, method, None if network.classifier is None else method.classes)
    adapter = Adapter(loaded, pairs, network.classifier, described, own_logits(method))
    return write(folder, model, truncation.of(adapter, backbone) if truncation else adapter)


def export_peft_tasks(model: Model, method: Method, folder: Path, truncation: Truncation | None = None) -> list[str]:
    """Write an adapter and a classifier for each task, in the folders task0, task1, ...

    Arguments and lines are those of `export_peft`; each line begins with the task.

    Raises:
        ValueError: the method has no adapter for each task, or as for `export_peft`.
        RuntimeError: PEFT is not installed.
    """
    needed("peft", "peft")
    write, noun = _writer(model)
    tasks = _tasks_apart(method, len(model.tasks))
    backbone = model.new_backbone()
    loaded = backbone.model
    sites = [Site(n, layer, slice(None)) for n, layer in adapted_layers(method.backbone.model).items()]
    weights = _weights(method)
    folder.mkdir()
    lines: list[str] = []
    for t, layers in tasks.items():
        head = None if learns_answers(method.backbone) else method.head_of(t)
        coefficients = {a.adapter: a.coefficient for acting in layers.values() for a in acting}
        pairs = dora_pairs(layers, weights, _weights(method, loaded))
        if pairs is None:
            changes = {n: (added(weights[n], acting), weights[n]) for n, acting in layers.items()}
            pairs = pairs_of(changes, 1, f"use --format {WHOLE[noun]}")

        def own(x: Samples, head: Head | None = head, coefficients: Mapping[str, float] = coefficients) -> Tensor:
            with using(sites, coefficients):
                return next_tokens(method.backbone, x) if head is None else head(method.backbone(x))

        described = description(model, method, None if head is None else list(head.classes))
        described["tasks"] = [model.tasks[t].name]
        classifier = None if head is None else PlainClassifier(head.weight, head.bias)
        adapter = Adapter(loaded, pairs, classifier, described, own)
        adapter = truncation.of(adapter, backbone) if truncation else adapter
        lines += [f"task{t}: {line}" for line in write(folder / f"task{t}", model, adapter)]
    return lines


def _writer(model: Model) -> tuple[Write, str]:
    """Return the function that writes an adapter of this kind of model, and what the model takes.

    What cannot be loaded elsewhere is refused here, before other reasons that name another format as the way out.
    """
    noun = model.backbone.transform.noun
    _check_float(model.backbone.model)
    if noun == "answer":
        return write_for_answers, noun
    if noun == "text":
        encoder_of(model.backbone)
        return write_for_transformers, noun
    architecture(model)
    return write_for_timm, noun


def _tasks_apart(method: Method, learned: int) -> dict[int, dict[str, list[ActingBranch]]]:
    """Return by task, then by layer, the branches of this task alone.

    Raises:
        ValueError: the method has no adapter for each task.
    """
    layers = adapted_layers(method.backbone.model)
    every = {name for layer in layers.values() for name in layer.branches}
    own = {t: set(method.adapters_of(t)) & every for t in range(learned)}
    folded = method.merges or method.changes_backbone
    if folded or not all(own.values()) or every != set().union(*own.values()):
        raise ValueError("this method keeps no adapter for each task; leave out --per-task")
    acting = (
        {n: [ActingBranch(a, b, 1.0) for a in layer.branches for b in layer.of(a)] for n, layer in layers.items()}
        if method.routed
        else acting_branches(method)
    )
    return {t: {n: [a for a in found if a.adapter in own[t]] for n, found in acting.items()} for t in own}


def _weights(method: Method, network: nn.Module | None = None) -> dict[str, Tensor]:
    """By adapted layer, its weight without branches, as it is in the method, or in another network of the same form."""
    state = method.backbone.model.state_dict() if network is None else network.state_dict()
    return {name: state[f"{name}.weight"] for name in adapted_layers(method.backbone.model)}


def _check_float(loaded: nn.Module) -> None:
    if has_few_bits(loaded):
        raise ValueError(
            "this model was learned on weights in few bits, and an adapter by itself is for those in float32, with "
            "which it computes something else; use --format timm or hf, which write its network"
        )


def differences(method: Method, network: Fixed, loaded: nn.Module) -> Differences:
    """Return what a method changed in the linear layers of its backbone.

    Args:
        method: the method.
        network: the method as one network.
        loaded: the network of the backbone before anything was learned.

    Raises:
        ValueError: something else was changed too, or the backbone keeps its weights in few bits.
    """
    _check_float(loaded)
    before, after = loaded.state_dict(), network.backbone.model.state_dict()
    linear = {f"{name}.weight" for name, layer in loaded.named_modules() if type(layer) is nn.Linear}
    changed = [key for key in before if not torch.equal(before[key], after[key].to(before[key]))]
    if strange := [key for key in changed if key not in linear]:
        raise ValueError(
            f"this method changed '{strange[0]}' too, and {len(changed)} tensors in all, which LoRA on "
            f"linear layers does not hold; use --format {WHOLE[method.backbone.transform.noun]}"
        )
    # Branches that are not merged are added in float64, so that they are not rounded to the precision of the weight.
    acting, own = acting_branches(method), method.backbone.model.state_dict()
    return {
        key.removesuffix(".weight"): (
            own[key].double() - before[key].double() + added(own[key], acting.get(key[:-7], [])),
            before[key],
        )
        for key in changed
    }
