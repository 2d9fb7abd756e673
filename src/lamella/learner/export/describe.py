"""What an export says of itself: class names, the input transform, and the network as timm names it."""

import json
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from lamella.backbones import bundled
from lamella.backbones.resnets import BLOCKS
from lamella.common.version import __version__
from lamella.data.transform import of_images
from lamella.learner.model import Model
from lamella.methods import Method

__all__ = ["architecture", "description", "metadata", "needed", "new_timm_model", "timm_config"]


def needed(module: str, extra: str) -> Any:
    """A package that only this export needs.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        raise RuntimeError(f"this export needs the package {module}: pip install 'lamella[{extra}]'") from None


def description(model: Model, method: Method, classes: Sequence[int]) -> dict[str, Any]:
    """Class names in the order of the logits, the transform, the temperature of the softmax, and what it comes from."""
    own = method is model.method
    return {
        "class_names": [model.class_names[i] for i in classes],
        "transform": model.backbone.transform.describe(),
        "tasks": [task.name for task in model.tasks],
        "method": model.name,
        "readout": "" if own else type(method).__name__,
        "temperature": model.confidence.temperature if own else 1.0,
        "backbone": model.backbone.name,
        "weights_sha256": model.backbone.weights_sha256,
        "written_by": f"lamella {__version__}",
    }


def metadata(described: dict[str, Any]) -> dict[str, str]:
    """The same as a file's metadata, which is text: text as it is, all else as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in described.items()}


def architecture(model: Model) -> tuple[str, dict[str, Any]]:
    """Name and arguments with which `timm.create_model` builds the backbone.

    Raises:
        ValueError: it cannot.
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
    """timm's own model with a classifier that has its start, and the name of that classifier.

    Args:
        base: weights of all else.

    Raises:
        ValueError: its classifier is not one linear layer.
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
    """A config.json as timm reads it from a folder."""
    name, options = architecture(model)
    transform, names = of_images(model.backbone.transform, "a network of timm"), described["class_names"]
    cfg = {
        "input_size": [3, transform.size, transform.size],
        "interpolation": transform.interpolation,
        "crop_pct": transform.crop,
        "crop_mode": "center",
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
