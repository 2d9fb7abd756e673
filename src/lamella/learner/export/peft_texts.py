"""An adapter for PEFT beside an encoder of transformers."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from lamella.backbones.encoder_network import quiet
from lamella.backbones.encoder_places import is_path
from lamella.backbones.encoders import Encoder
from lamella.backbones.language_model import LanguageModel
from lamella.learner.export.check import compare
from lamella.learner.export.describe import metadata
from lamella.learner.export.low_rank import adapter_tensors, lora_options, told_ranks
from lamella.learner.export.peft_parts import Adapter
from lamella.learner.export.predict_program import CLASSIFIER, PROGRAM, logits_of, program
from lamella.learner.export.transformers_files import (
    encoder_of,
    loading,
    save_labels,
    save_network,
    save_tokenizer,
)
from lamella.learner.model import Model

__all__ = ["BASE", "PREFIX", "base_is_ours", "write_for_transformers"]

PREFIX = "network."
"""What the names of layers begin with in a backbone, and not in transformers."""
BASE = "base"


def write_for_transformers(folder: Path, model: Model, adapter: Adapter) -> list[str]:
    """Write the adapter, the classifier, predict.py, and where it is needed the folder "base" of the original network.

    Args:
        folder: the folder to write.
        model: the model.
        adapter: what it has learned.

    Returns:
        Lines with the result of the check, the ranks, and how to load the adapter.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    encoder, (_, transform) = cast(Encoder, adapter.loaded), encoder_of(model.backbone)
    pairs = {name.removeprefix(PREFIX): pair for name, pair in adapter.pairs.items()}
    ours = base_is_ours(model, encoder)
    name = None if ours else model.backbone.name
    turned = any(layer in pairs for layer in encoder.transposed)
    options = lora_options(pairs) | {"base_model_name_or_path": name, "fan_in_fan_out": turned}
    tensors, classifier, described = adapter_tensors(pairs), adapter.of_classes.state_dict(), adapter.described
    notes = {"format": "pt"} | metadata(described)
    folder.mkdir()
    with quiet():
        LoraConfig(**options, task_type="FEATURE_EXTRACTION").save_pretrained(str(folder))
        encoder.network.config.save_pretrained(folder)
    save_labels(folder, described)
    save_tokenizer(transform, folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata=notes)
    save_file(classifier, folder / CLASSIFIER, metadata=notes)

    base = f'HERE / "{BASE}"' if ours else repr(name)
    with TemporaryDirectory(dir=folder.parent) as elsewhere:  # what others download, to be compared with
        place = folder / BASE if ours else Path(elsewhere, BASE)
        save_network(encoder, place)
        save_tokenizer(transform, place)
        file = folder / PROGRAM
        temperature = described["temperature"]
        file.write_text(program(encoder, adapter.of_classes, temperature, repr(str(place))), encoding="utf-8")
        found = compare(adapter.own, logits_of(file), model.backbone)
        file.write_text(program(encoder, adapter.of_classes, temperature, base), encoding="utf-8")
    shown = repr(str(folder / BASE)) if ours else repr(name)
    return [
        str(found),
        told_ranks(pairs),
        *adapter.notes,
        f"run it: python {folder / PROGRAM} 'a text'",
        f"load it: import peft, transformers; model = transformers.{loading(encoder, shown)[1]}; "
        f"model = peft.PeftModel.from_pretrained(model, '{folder}')",
    ]


def base_is_ours(model: Model, encoder: Encoder | LanguageModel) -> bool:
    """Return whether the weights that the adapter belongs to cannot be downloaded by the model's name of them.

    Nor can they where positions got projections of their own when they were loaded: downloaded ones share them with
    tokens, so that the adapter would change both.
    """
    table, name = model.config["backbone"], model.backbone.name
    parted = any(layer.endswith(("pos_key_proj", "pos_query_proj")) for layer, _ in encoder.network.named_modules())
    of_hub = "/" in name and not is_path(name)
    return parted or not of_hub or "adapter" in table or table.get("weights", "pretrained") != "pretrained"
