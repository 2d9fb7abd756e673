"""Export as a folder that timm loads: merged weights under timm's own keys, and its config.json."""

from pathlib import Path

from lamella.common.files import write_json
from lamella.learner.export.check import compare
from lamella.learner.export.describe import architecture, description, metadata, new_timm_model, timm_config
from lamella.learner.export.network import fixed
from lamella.learner.model import Model
from lamella.methods import Method

__all__ = ["export_timm"]


def export_timm(model: Model, method: Method, folder: Path) -> list[str]:
    """Write model.safetensors and config.json.

    Raises:
        ValueError: the model is not one network with a linear classifier, or timm does not build that network.
    """
    from safetensors.torch import load_file, save_file

    network = fixed(method, linear=True)
    described = description(model, method, method.classes)
    count = len(method.classes)
    backbone = {k: v.contiguous() for k, v in network.backbone.model.state_dict().items()}
    _, head = new_timm_model(model, count, {})
    state = backbone | {f"{head}.{key}": value for key, value in network.of_classes.as_linear().state_dict().items()}
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"} | metadata(described))
    config = timm_config(model, described)
    write_json(folder / "config.json", config)

    plain, _ = new_timm_model(model, count, {})
    plain.load_state_dict(load_file(folder / "model.safetensors"))
    found = compare(method.predict, plain, model.backbone)
    name, options = architecture(model)
    given = "".join(f", {key}={value!r}" for key, value in options.items())
    return [
        str(found),
        f"load it: import timm; model = timm.create_model('local-dir:{folder}', pretrained=True)",
        f"or by hand: import safetensors.torch, timm; model = timm.create_model('{name}', num_classes={count}{given}); "
        f"model.load_state_dict(safetensors.torch.load_file('{folder / 'model.safetensors'}'))",
    ]
