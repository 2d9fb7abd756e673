"""The description in an export: class names, the input transform, and the name of the network in timm."""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lamella.backbones import bundled
from lamella.backbones.encoder_places import is_path
from lamella.backbones.resnets import BLOCKS
from lamella.common.version import __version__
from lamella.data.transform import of_images
from lamella.learner.model import Model
from lamella.methods import Method

__all__ = ["architecture", "description", "metadata", "needed", "new_timm_model", "timm_config"]


def needed(module: str, extra: str) -> Any:
    """Import a package that only some exports need.

    Args:
        module: the name of the package.
        extra: the extra of Lamella that installs it.

    Raises:
        RuntimeError: the package is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        raise RuntimeError(f"this export needs the package {module}: pip install 'lamella[{extra}]'") from None


def description(model: Model, method: Method, classes: Sequence[int] | None) -> dict[str, Any]:
    """Describe an export: class names in the order of the logits, transform, temperature of the softmax, and origin.

    Args:
        model: the model.
        method: its method, or one that this is built on.
        classes: the global class ids, in the order of the logits; None for a model of answers.
    """
    own = method is model.method
    of_classes = (
        {}
        if classes is None
        else {
            "class_names": [model.class_names[i] for i in classes],
            "temperature": model.confidence.temperature if own else 1.0,
        }
    )
    return of_classes | {
        "transform": model.backbone.transform.describe(),
        "tasks": [task.name for task in model.tasks],
        "method": model.name,
        "readout": "" if own else type(method).__name__,
        "backbone": Path(name).name if is_path(name := model.backbone.name) else name,
        "weights_sha256": model.backbone.weights_sha256,
        "written_by": f"lamella {__version__}",
    }


def metadata(described: dict[str, Any]) -> dict[str, str]:
    """Return a description as the metadata of a file, which are text: other values become JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in described.items()}


def architecture(model: Model) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments with which `timm.create_model` builds the backbone.

    Raises:
        ValueError: timm cannot build it.
    """
    import timm

    size = of_images(model.backbone.transform, "a network of timm").size
    table, name = model.config["backbone"], model.backbone.name
    if model.backbone.pool != "model" or table["stem"] != "model" or name in BLOCKS:
        what = f"'{name}'" if name in BLOCKS else f"'{name}' with another pool or stem"
        raise ValueError(f"{what} is no network that timm builds; export the graph with --format onnx")
    if name == bundled.NAME:
        return "vit_tiny_patch16_224", {k: v for k, v in bundled.ARCHITECTURE.items() if k != "num_classes"}
    fixed_size = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    return name, {"img_size": size} if fixed_size and table.get("size") else {}


def new_timm_model(model: Model, classes: int, base: dict[str, Tensor]) -> tuple[nn.Module, str]:
    """Return timm's model with an untrained classifier, and the name of the classifier in it.

    Args:
        model: the model.
        classes: the number of classes.
        base: the other weights, by key.

    Raises:
        ValueError: timm cannot build the backbone, or its classifier is not one linear layer.
    """
    import timm

    name, options = architecture(model)
    network: Any = timm.create_model(name, num_classes=classes, **options)
    head = network.pretrained_cfg.get("classifier")
    if not isinstance(head, str) or not isinstance(network.get_submodule(head), nn.Linear):
        raise ValueError(f"timm's classifier of '{model.backbone.name}' is not one linear layer; use --format onnx")
    network.load_state_dict(base, strict=False)
    return network.eval(), head


def timm_config(model: Model, described: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a config.json that timm reads from a folder.

    Args:
        model: the model.
        described: its `description`.
    """
    name, options = architecture(model)
    transform, names = of_images(model.backbone.transform, "a network of timm"), described["class_names"]
    cfg = {
        "input_size": [3, transform.size, transform.size],
        "interpolation": transform.interpolation,
        "crop_pct": transform.crop,
        "crop_mode": transform.crop_mode,
        "mean": list(transform.mean),
        "std": list(transform.std),
        "num_classes": len(names),
    }
    return {
        "architecture": name,
        "num_classes": len(names),
        "num_features": model.backbone.width,
        "model_args": options,
        "label_names": names,
        "pretrained_cfg": cfg,
        "lamella": described,
    }
