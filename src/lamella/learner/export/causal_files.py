"""Files of a language model as transformers has them: its network, tokenizer, chat template and what ends it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from lamella.backbones.encoder_network import longest_text, quiet
from lamella.backbones.language_model import LanguageModel
from lamella.common.files import write_json
from lamella.data.answer_tokens import AnswerTokens
from lamella.data.answers import ASSISTANT, USER, Answer, Turn
from lamella.data.chat import DATE, PLAIN_TEMPLATE
from lamella.data.samples import Batch
from lamella.data.tokens import IDS, MASK
from lamella.learner.export.transformers_files import own_tokenizer, pad_token, save_network

__all__ = ["load_causal", "loading_causal", "save_causal", "save_chat_tokenizer"]

_CONVERSATIONS = (
    (Turn(USER, "a"),),
    (Turn("system", "Be brief."), Turn(USER, "Grüße, 你好 😀\n\tend")),
    (Turn(USER, "Two words"), Turn(ASSISTANT, "{}, yes."), Turn(USER, "why?")),
)
"""What the tokenizers and the chat templates are compared on."""


def save_causal(model: LanguageModel, transform: AnswerTokens, folder: Path) -> None:
    """Write the network with its configurations, the tokenizer and the chat template.

    Args:
        model: a language model without branches, whose settings are changed.
        transform: makes its inputs.
        folder: the folder, which may be there already.

    Raises:
        RuntimeError: the tokenizer does not make the tokens that the model reads.
    """
    from transformers import GenerationConfig

    network: Any = model.network
    network.config.use_cache = True  # only training goes without one
    network.generation_config = GenerationConfig(
        eos_token_id=list(model.ends) or None,
        pad_token_id=transform.tokenizer.token_to_id(pad_token(transform)),
        do_sample=False,
        decoder_start_token_id=model.start,
    )
    save_network(model, folder)
    save_chat_tokenizer(model, transform, folder)


def save_chat_tokenizer(model: LanguageModel, transform: AnswerTokens, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, with which AutoTokenizer writes conversations as the model does.

    Args:
        model: the language model.
        transform: makes its inputs.
        folder: the folder, which is there already.

    Raises:
        RuntimeError: it does not.
    """
    from transformers import AutoTokenizer

    tokens = {name: token for name, token in transform.chat.names.items() if token}
    if transform.chat.template == PLAIN_TEMPLATE:
        tokens["bos_token"] = transform.chat.begin
    tokens["pad_token"] = pad_token(transform)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": [IDS, MASK],
        "model_max_length": longest_text(model.network) or transform.max_length,
        "padding_side": transform.padding_side,  # as answers are written; masks tell padding from tokens
        "clean_up_tokenization_spaces": False,
        "chat_template": _template(transform),
    }
    known = {name: token for name, token in tokens.items() if transform.tokenizer.token_to_id(token) is not None}
    write_json(folder / "tokenizer_config.json", settings | known)
    own_tokenizer(transform).save(str(folder / "tokenizer.json"))
    with quiet():
        again = AutoTokenizer.from_pretrained(folder)
    for turns in _CONVERSATIONS:
        try:
            (wanted,) = transform.prompts([Answer(turns)], room=1 << 30)
        except ValueError:  # the template refuses such a conversation, and will do so there
            continue
        messages = [turn._asdict() for turn in turns]
        found = again.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[IDS]
        if list(found) != wanted:
            raise RuntimeError("the tokenizer of the export writes conversations otherwise, so it was not kept")


def loading_causal(model: LanguageModel, place: str) -> str:
    """Return the expression that loads a language model.

    Args:
        model: the language model.
        place: an expression for the place that it is loaded from.
    """
    return f"transformers.{model.loaded_by}.from_pretrained({place})"


def load_causal(
    model: LanguageModel, folder: Path, wrap: Callable[[Any], Any] = lambda network: network
) -> Callable[[Batch], Tensor]:
    """Load a language model as others do, and return what it computes: (tokens, vocabulary) logits of a batch.

    Args:
        model: says what such a model takes.
        folder: with the files of transformers.
        wrap: what is made of the network, such as one with an adapter.
    """
    import transformers

    with quiet():
        network = wrap(getattr(transformers, model.loaded_by).from_pretrained(folder)).eval()

    def logits(x: Batch) -> Tensor:
        return network(**model.inputs(x)).logits[model.counted(x)]

    return logits


def _template(transform: AnswerTokens) -> str:
    """The chat template; what it was told while the model learned stands before it."""
    template = transform.chat.template
    if template == PLAIN_TEMPLATE and not transform.chat.begin:
        return template.replace("{{ bos_token }}", "")
    return f'{{%- set date_string = "{DATE}" %}}{template}' if "date_string" in template else template
