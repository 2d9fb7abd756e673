"""Export as folders that PEFT loads: the change of the weights as LoRA in its numerical rank, and the classifier."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Site, using
from lamella.common.files import write_json
from lamella.learner.export.check import compare
from lamella.learner.export.describe import architecture, description, metadata, needed, new_timm_model, timm_config
from lamella.learner.export.network import ActingBranch, Fixed, acting_branches, adapted_layers, fixed, update
from lamella.learner.model import Model
from lamella.methods import Method
from lamella.methods.shared.heads import Head, linear_layer

__all__ = ["export_peft", "export_peft_tasks", "low_rank"]

Differences = Mapping[str, tuple[Tensor, Tensor]]
"""By layer, the change of its weight (float64), and the original weight."""


class Pair(NamedTuple):
    """The change B A of a weight.

    Attributes:
        A: (rank, d_in).
        B: (d_out, rank).
    """

    A: Tensor
    B: Tensor


def low_rank(change: Tensor, weight: Tensor, merges: int = 1) -> Pair:
    """Factorise the change of a float32 weight, in its numerical rank.

    Singular values above the rounding noise count. Each addition to the weight rounds its entries by up to eps / 2 of
    their size. After `merges` additions that is a random matrix whose norm is about eps / sqrt 12 x rms x
    (sqrt m + sqrt n) x sqrt(merges).

    Args:
        change: (m, n).
        weight: (m, n).
        merges: how many times a change was added to the weight.
    """
    D = change.double()
    rms = weight.double().square().mean().sqrt()
    eps = torch.finfo(torch.float32).eps
    noise = eps * rms * (D.shape[0] ** 0.5 + D.shape[1] ** 0.5) * merges**0.5
    _, s, Vh = torch.linalg.svd(D, full_matrices=False)
    A = Vh[: int((s > noise).sum())]
    return Pair(A.float().contiguous(), (D @ A.T).float().contiguous())  # rows of zeros stay zero


def export_peft(model: Model, method: Method, folder: Path) -> list[str]:
    """Write one adapter with the whole change of the backbone since it was loaded, and the classifier.

    Raises:
        ValueError: the model is not one network with a linear classifier, timm does not build that network, or its
            weights changed in ways that LoRA cannot express.
        RuntimeError: PEFT is not installed.
    """
    needed("peft", "peft")
    architecture(model)  # refuses what timm does not build, before other reasons that name timm as the way out
    network = fixed(method)
    loaded = model.new_backbone().model
    adapter = _Adapter(model, loaded, _differences(method, network, loaded), network.classifier)
    described = description(model, method, method.classes)
    return adapter.write(folder, described, method.predict, len(model.tasks))


def export_peft_tasks(model: Model, method: Method, folder: Path) -> list[str]:
    """Write an adapter and a classifier for each task, in the folders task0, task1, ...

    Raises:
        ValueError: the method has no adapter for each task, or as for `export_peft`.
        RuntimeError: PEFT is not installed.
    """
    needed("peft", "peft")
    tasks = _tasks_apart(method, len(model.tasks))
    loaded = model.new_backbone().model
    sites = [Site(n, layer, slice(None)) for n, layer in adapted_layers(method.backbone.model).items()]
    weights = {name: layer.weight for name, layer in adapted_layers(method.backbone.model).items()}
    folder.mkdir()
    lines: list[str] = []
    for t, layers in tasks.items():
        head = method.head_of(t)
        coefficients = {a.adapter: a.coefficient for acting in layers.values() for a in acting}
        changes = {n: (update(weights[n].shape, acting), weights[n]) for n, acting in layers.items()}
        classifier = linear_layer(head.weight, head.bias)

        def own(x: Tensor, head: Head = head, coefficients: Mapping[str, float] = coefficients) -> Tensor:
            with using(sites, coefficients):
                return head(method.backbone(x))

        described = description(model, method, list(head.classes)) | {"tasks": [model.tasks[t].name]}
        adapter = _Adapter(model, loaded, changes, classifier)
        lines += [f"task{t}: {line}" for line in adapter.write(folder / f"task{t}", described, own, 1)]
    return lines


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


def _differences(method: Method, network: Fixed, loaded: nn.Module) -> Differences:
    before, after = loaded.state_dict(), network.backbone.model.state_dict()
    linear = {f"{name}.weight" for name, layer in loaded.named_modules() if type(layer) is nn.Linear}
    changed = [key for key in before if not torch.equal(before[key], after[key].to(before[key]))]
    if strange := [key for key in changed if key not in linear]:
        raise ValueError(
            f"this method changed '{strange[0]}' too, and {len(changed)} tensors in all, which LoRA on "
            "linear layers does not hold; use --format timm"
        )
    # Branches that are not merged are added in float64, so that they are not rounded to the precision of the weight.
    acting, own = acting_branches(method), method.backbone.model.state_dict()
    return {
        key.removesuffix(".weight"): (
            own[key].double() - before[key].double() + update(before[key].shape, acting.get(key[:-7], [])),
            before[key],
        )
        for key in changed
    }


class _Adapter:
    """Writes one folder for PEFT.

    Args:
        model: the model.
        loaded: the original network of the backbone, which users of the export load too.
        differences: the changes of its weights.
        classifier: the linear classifier.
    """

    def __init__(self, model: Model, loaded: nn.Module, differences: Differences, classifier: nn.Linear) -> None:
        self.model, self.loaded, self.differences, self.classifier = model, loaded, differences, classifier

    def write(self, folder: Path, described: dict[str, Any], own: Callable[[Tensor], Tensor], merges: int) -> list[str]:
        """Write adapter_config.json, adapter_model.safetensors, config.json, and base.safetensors if it is needed.

        Args:
            folder: the folder to write.
            described: the description of the export.
            own: the prediction that the export is compared with.
            merges: how many times a change was added to the weights.

        Returns:
            Lines with the result of the check, the ranks, and how to load the adapter.

        Raises:
            ValueError: no weight changed, or the change of a weight has no low rank.
        """
        from peft import LoraConfig, PeftModel
        from safetensors.torch import load_file, save_file

        pairs = self._pairs(merges)
        base = {k: v.contiguous() for k, v in self.loaded.state_dict().items()}
        model, head = new_timm_model(self.model, len(described["class_names"]), base)
        ranks = {name: len(pair.A) for name, pair in pairs.items()}
        largest = max(ranks.values())
        config = LoraConfig(
            r=largest,
            lora_alpha=largest,
            target_modules=list(ranks),
            rank_pattern=ranks,
            alpha_pattern=ranks,
            lora_dropout=0.0,
            bias="none",
            modules_to_save=[head],
            inference_mode=True,
        )
        tensors = {f"{name}.lora_{letter}.weight": t for name, p in pairs.items() for letter, t in p._asdict().items()}
        tensors |= {f"{head}.{key}": value.contiguous() for key, value in self.classifier.state_dict().items()}
        tensors = {f"base_model.model.{key}": value for key, value in tensors.items()}
        folder.mkdir()
        config.save_pretrained(str(folder))
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"} | metadata(described))
        write_json(folder / "config.json", timm_config(self.model, described))
        if self._base_is_ours():
            save_file(base, folder / "base.safetensors", metadata={"format": "pt"})
            model.load_state_dict(load_file(folder / "base.safetensors"), strict=False)

        plain = PeftModel.from_pretrained(model, str(folder)).eval()
        found = compare(own, plain, self.model.backbone)
        return [
            str(found),
            f"rank {_range(ranks.values())} on {len(ranks)} layers",
            self._how_to_load(folder, described),
        ]

    def _pairs(self, merges: int) -> dict[str, Pair]:
        pairs = {name: low_rank(change, weight, merges) for name, (change, weight) in self.differences.items()}
        pairs = {name: pair for name, pair in pairs.items() if len(pair.A)}
        if not pairs:
            raise ValueError("no weight of the backbone changed, so there is no adapter; use --format timm")
        full = [n for n, p in pairs.items() if len(p.A) * sum(self.differences[n][1].shape) >= p.A.shape[1] * len(p.B)]
        if full:
            raise ValueError(
                f"the change of layer '{full[0]}' has the rank {len(pairs[full[0]].A)}, so that LoRA would be larger "
                "than the weight; use --format timm"
            )
        return pairs

    def _base_is_ours(self) -> bool:
        """Return whether timm cannot download the weights that the adapter belongs to."""
        table = self.model.config["backbone"]
        return table["weights"] != "pretrained" or "adapter" in table or table["name"] != architecture(self.model)[0]

    def _how_to_load(self, folder: Path, described: dict[str, Any]) -> str:
        name, options = architecture(self.model)
        given = "".join(f", {key}={value!r}" for key, value in options.items())
        ours = self._base_is_ours()
        create = f"timm.create_model('{name}', {'' if ours else 'pretrained=True, '}num_classes="
        file = folder / "base.safetensors"
        base = f"model.load_state_dict(safetensors.torch.load_file('{file}'), strict=False); " if ours else ""
        return (
            f"load it: import peft, safetensors.torch, timm; model = {create}{len(described['class_names'])}{given}); "
            f"{base}model = peft.PeftModel.from_pretrained(model, '{folder}')"
        )


def _range(ranks: Any) -> str:
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low} to {high}"
