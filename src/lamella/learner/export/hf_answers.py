"""Export as a folder that transformers and servers of language models load: merged weights and a chat template."""

from pathlib import Path
from typing import cast

from lamella.backbones.gguf_files import is_gguf
from lamella.backbones.language_model import LanguageModel
from lamella.common.files import read_json, write_json
from lamella.data.answer_tokens import AnswerTokens
from lamella.learner.export.causal_files import load_causal, loading_causal, save_causal
from lamella.learner.export.check import compare
from lamella.learner.export.describe import description
from lamella.learner.export.network import fixed, own_logits
from lamella.learner.model import Model
from lamella.methods import Method

__all__ = ["export_hf_of_answers"]


def export_hf_of_answers(model: Model, method: Method, folder: Path) -> list[str]:
    """Write the files of transformers.

    Raises:
        ValueError: the method is not one network with fixed weights.
        RuntimeError: the export does not make the tokens or the logits that the model makes.
    """
    network = fixed(method).backbone
    language = cast(LanguageModel, network.model)
    save_causal(language, cast(AnswerTokens, network.transform), folder)
    config = folder / "config.json"
    write_json(config, read_json(config) | {"lamella": description(model, method, None)})

    found = compare(own_logits(method), load_causal(language, folder), model.backbone)
    notes = (
        ["the base came from a GGUF file: its rounded weights are float32 here, which is larger and no better"]
        if is_gguf(model.config["backbone"]["name"])
        else []
    )
    shown = repr(str(folder))
    return [
        str(found),
        *notes,
        f"load it: import transformers; model = {loading_causal(language, shown)}; "
        f"tokenizer = transformers.AutoTokenizer.from_pretrained({shown})",
    ]
