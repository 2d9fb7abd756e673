"""An adapter for PEFT beside a language model of transformers."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from lamella.backbones.encoder_network import quiet
from lamella.backbones.language_model import LanguageModel
from lamella.data.answer_tokens import AnswerTokens
from lamella.learner.export.causal_files import load_causal, loading_causal, save_causal, save_chat_tokenizer
from lamella.learner.export.check import compare
from lamella.learner.export.describe import metadata
from lamella.learner.export.low_rank import adapter_tensors, lora_options, told_ranks
from lamella.learner.export.peft_parts import Adapter
from lamella.learner.export.peft_texts import BASE, PREFIX, base_is_ours
from lamella.learner.model import Model

__all__ = ["write_for_answers"]


def write_for_answers(folder: Path, model: Model, adapter: Adapter) -> list[str]:
    """Write the adapter, the tokenizer, and where it is needed the folder "base" of the original network.

    Args:
        folder: the folder to write.
        model: the model.
        adapter: what it has learned.

    Returns:
        Lines with the result of the check, the ranks, and how to load the adapter.
    """
    from peft import LoraConfig, PeftModel
    from safetensors.torch import save_file

    base, transform = cast(LanguageModel, adapter.loaded), cast(AnswerTokens, model.backbone.transform)
    pairs = {name.removeprefix(PREFIX): pair for name, pair in adapter.pairs.items()}
    ours = base_is_ours(model, base)
    turned = any(layer in pairs for layer in base.transposed)
    options = lora_options(pairs) | {
        "base_model_name_or_path": None if ours else model.backbone.name,
        "fan_in_fan_out": turned,
    }
    folder.mkdir()
    with quiet():
        LoraConfig(**options, task_type=base.peft_task).save_pretrained(str(folder))
    notes = {"format": "pt"} | metadata(adapter.described)
    save_file(adapter_tensors(pairs), folder / "adapter_model.safetensors", metadata=notes)
    save_chat_tokenizer(base, transform, folder)

    def adapted(network: Any) -> Any:
        return PeftModel.from_pretrained(network, str(folder))

    with TemporaryDirectory(dir=folder.parent) as elsewhere:  # what others download, to be compared with
        place = folder / BASE if ours else Path(elsewhere, BASE)
        save_causal(base, transform, place)
        found = compare(adapter.own, load_causal(base, place, adapted), model.backbone)
    shown = repr(str(folder / BASE)) if ours else repr(model.backbone.name)
    return [
        str(found),
        told_ranks(pairs),
        *adapter.notes,
        f"load it: import peft, transformers; model = {loading_causal(base, shown)}; "
        f"model = peft.PeftModel.from_pretrained(model, '{folder}')",
    ]
