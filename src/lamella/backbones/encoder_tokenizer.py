"""The tokenizer of an encoder: read from its folder, and a digest of what it does."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.common.checks import first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["pad_token", "read_tokenizer", "tokenizer_digest", "tokenizer_of_text"]

FILE = "tokenizer.json"
OLDER = ("vocab.txt", "vocab.json", "*.model", "*.tiktoken")
"""Files of tokenizers that transformers makes one of."""
SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "  NAÏVE Café\tStraße\n\n#42: 3.14159 % (x+y)_z; don't, e-mail@host.org",
    "Съешь ещё этих мягких булок. 你好，世界 こんにちは 안녕하세요 مرحبا नमस्ते 🙂",
    "[CLS] [MASK] <s> </s> <|endoftext|>",
    "unaccountably antidisestablishmentarianism " * 2,
    "",
)
"""Texts whose token ids stand for what a tokenizer does."""


def read_tokenizer(folder: Path, *, lower: bool = False) -> "Tokenizer":
    """Read the tokenizer of a folder.

    Args:
        folder: of transformers.
        lower: whether texts are lower-cased first.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read.
    """
    from tokenizers import normalizers

    path = folder / FILE
    if path.is_file():
        tokenizer = tokenizer_of_text(path.read_text(encoding="utf-8"), path)
    elif any(any(folder.glob(pattern)) for pattern in OLDER):
        tokenizer = _made_by_transformers(folder)
    else:
        raise FileNotFoundError(
            f"'{folder}' has no tokenizer ({FILE}); save the one of the encoder there with save_pretrained"
        )
    if lower:
        own = tokenizer.normalizer
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([own] if own else [])])
    return tokenizer


def _made_by_transformers(folder: Path) -> "Tokenizer":
    """Make a tokenizer of the older files, which hold a vocabulary and no rules."""
    from transformers import AutoTokenizer

    from lamella.backbones.encoder_network import quiet

    try:
        with quiet():
            made = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # it needs other packages for some, and says so in several kinds of errors
        raise ValueError(
            f"the tokenizer of '{folder}' cannot be read ({first_line(error)}); save it as {FILE} with save_pretrained"
        ) from error
    if (tokenizer := getattr(made, "backend_tokenizer", None)) is None:
        raise ValueError(f"the tokenizer of '{folder}' is none of the package tokenizers; save it as {FILE}")
    return tokenizer


def tokenizer_of_text(text: str, path: Path) -> "Tokenizer":
    """The tokenizer that the text of a tokenizer.json describes.

    Args:
        text: the content of the file.
        path: where it comes from, for the message.

    Raises:
        ValueError: it describes none.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the package raises nothing more special
        raise ValueError(f"'{path}' describes no tokenizer ({first_line(error)}); get the file again") from error


def pad_token(*tables: Mapping[str, Any]) -> str | None:
    """The token that stands for padding, by the first of a folder's tables that names one."""
    for table in tables:
        token = table.get("pad_token")
        token = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(token, str):
            return token
    return None


def tokenizer_digest(tokenizer: "Tokenizer") -> str:
    """A digest of a tokenizer's vocabulary and of what it makes of some texts.

    So it stays the same where another version of the package writes the same tokenizer in another way.
    """
    found = sha256()
    for token, number in sorted(tokenizer.get_vocab().items()):
        found.update(f"{number} {token!r}\n".encode())
    for encoding in tokenizer.encode_batch(list(SAMPLES)):
        found.update(f"{encoding.ids}\n".encode())
    return found.hexdigest()
