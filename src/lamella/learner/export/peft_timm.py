"""An adapter for PEFT beside a network of timm."""

from pathlib import Path

from lamella.common.files import write_json
from lamella.learner.export.check import compare
from lamella.learner.export.describe import architecture, metadata, new_timm_model, timm_config
from lamella.learner.export.low_rank import adapter_tensors, lora_options, told_ranks
from lamella.learner.export.peft_parts import Adapter
from lamella.learner.model import Model

__all__ = ["write_for_timm"]


def write_for_timm(folder: Path, model: Model, adapter: Adapter) -> list[str]:
    """Write adapter_config.json, adapter_model.safetensors, config.json, and base.safetensors if it is needed.

    Args:
        folder: the folder to write.
        model: the model.
        adapter: what it has learned.

    Returns:
        Lines with the result of the check, the ranks, and how to load the adapter.
    """
    from peft import LoraConfig, PeftModel
    from safetensors.torch import load_file, save_file

    described, classes = adapter.described, len(adapter.described["class_names"])
    base = {k: v.contiguous() for k, v in adapter.loaded.state_dict().items()}
    network, head = new_timm_model(model, classes, base)
    config = LoraConfig(**lora_options(adapter.pairs), modules_to_save=[head])
    classifier = adapter.of_classes.as_linear().state_dict()
    tensors = adapter_tensors(adapter.pairs)
    tensors |= {f"base_model.model.{head}.{key}": value.contiguous() for key, value in classifier.items()}
    folder.mkdir()
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"} | metadata(described))
    write_json(folder / "config.json", timm_config(model, described))
    if _base_is_ours(model):
        save_file(base, folder / "base.safetensors", metadata={"format": "pt"})
        network.load_state_dict(load_file(folder / "base.safetensors"), strict=False)

    plain = PeftModel.from_pretrained(network, str(folder)).eval()
    found = compare(adapter.own, plain, model.backbone)
    return [str(found), told_ranks(adapter.pairs), *adapter.notes, _how_to_load(folder, model, classes)]


def _base_is_ours(model: Model) -> bool:
    """Return whether timm cannot download the weights that the adapter belongs to."""
    table = model.config["backbone"]
    return table["weights"] != "pretrained" or "adapter" in table or table["name"] != architecture(model)[0]


def _how_to_load(folder: Path, model: Model, classes: int) -> str:
    name, options = architecture(model)
    given = "".join(f", {key}={value!r}" for key, value in options.items())
    ours = _base_is_ours(model)
    create = f"timm.create_model('{name}', {'' if ours else 'pretrained=True, '}num_classes="
    file = folder / "base.safetensors"
    base = f"model.load_state_dict(safetensors.torch.load_file('{file}'), strict=False); " if ours else ""
    return (
        f"load it: import peft, safetensors.torch, timm; model = {create}{classes}{given}); "
        f"{base}model = peft.PeftModel.from_pretrained(model, '{folder}')"
    )
