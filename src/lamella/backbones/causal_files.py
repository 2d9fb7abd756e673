"""What describes a language model beside its weights: how its conversations are written, and what ends them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from lamella.backbones.encoder_files import EncoderFiles, read_encoder, table_of
from lamella.data.chat import PLAIN_TEMPLATE, ChatTemplate, plain_template_of_pairs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["START", "CausalFiles", "chat_of", "chat_of_pairs", "read_causal", "special_tokens"]

TEMPLATE = "chat_template.jinja"
START = "decoder_start_token_id"
"""The key of what the decoder of an encoder-decoder starts from."""
NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")


class CausalFiles(NamedTuple):
    """What describes a language model beside its weights.

    Attributes:
        files: its configuration, tokenizer, and where its weights are.
        chat: how its conversations are written.
        ends: ids of the tokens that end what it writes.
    """

    files: EncoderFiles
    chat: ChatTemplate
    ends: tuple[int, ...]


def read_causal(folder: Path) -> CausalFiles:
    """Read the description in a folder of transformers.

    Args:
        folder: the folder.

    Raises:
        FileNotFoundError: it has no tokenizer.
        ValueError: a file is not of the usual form, or the folder brings code of its own.
    """
    files = read_encoder(folder, pool="last")
    settings = table_of(files.weights / "tokenizer_config.json")
    names = _names(table_of(files.weights / "special_tokens_map.json")) | _names(settings)
    generation = table_of(files.weights / "generation_config.json")
    if files.config.get(START) is None and START in generation:
        files = files._replace(config=files.config | {START: generation[START]})
    return chat_of(files, _template(files.weights, settings), names, generation.get("eos_token_id"))


def chat_of(
    files: EncoderFiles, template: str | None, names: Mapping[str, str], ends: int | list[int] | None = None
) -> CausalFiles:
    """Return what describes a language model.

    Args:
        files: its configuration and its tokenizer.
        template: its chat template; None for the plain one.
        names: its special tokens by the names that templates have for them.
        ends: ids of tokens that end what it writes, beside those of the configuration and of the template.
    """
    tokenizer, known = files.tokenizer, dict(names)
    own = [*_ids(files.config.get("eos_token_id")), *_ids(ends)]
    if "eos_token" not in known and own and (token := tokenizer.id_to_token(own[0])) is not None:
        known["eos_token"] = token
    chat = ChatTemplate(special_tokens(tokenizer), template=template, names=known, begin=_outer(tokenizer, 0))
    found = [*own, *(tokenizer.token_to_id(token) for token in (known.get("eos_token"), chat.end) if token)]
    return CausalFiles(files, chat, tuple(dict.fromkeys(i for i in found if i is not None)))


def chat_of_pairs(described: CausalFiles) -> ChatTemplate:
    """Return how conversations are written for an encoder-decoder: by its template, or as its tokenizer marks texts."""
    chat, tokenizer = described.chat, described.files.tokenizer
    if chat.template != PLAIN_TEMPLATE:
        return chat
    template = plain_template_of_pairs(chat.begin, _outer(tokenizer, -1))
    return ChatTemplate(special_tokens(tokenizer), template=template, names=chat.names, begin=chat.begin)


def special_tokens(tokenizer: "Tokenizer") -> list[str]:
    """The special tokens of a tokenizer, in the order of their ids."""
    added = tokenizer.get_added_tokens_decoder()
    return [token.content for _, token in sorted(added.items()) if token.special]


def _outer(tokenizer: "Tokenizer", place: int) -> str:
    """The special token that the tokenizer puts at place 0 or -1 of every text; "" where it puts none."""
    found = tokenizer.encode("a")
    is_special = bool(found.ids) and found.special_tokens_mask[place] == 1
    return (tokenizer.id_to_token(found.ids[place]) or "") if is_special else ""


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [i for i in values if type(i) is int and i >= 0]


def _names(table: Mapping[str, Any]) -> dict[str, str]:
    tokens = {name: table.get(name) for name in NAMED}
    plain = {name: t.get("content") if isinstance(t, Mapping) else t for name, t in tokens.items()}
    return {name: token for name, token in plain.items() if isinstance(token, str)}


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):  # several by name, of which one is for conversations
        named = [cast(dict[str, Any], entry) for entry in found if isinstance(entry, dict)]
        found = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    return found if isinstance(found, str) and found.strip() else None
