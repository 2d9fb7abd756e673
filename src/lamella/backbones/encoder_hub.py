"""The hub of transformers, where encoders come from that are not on this machine."""

import fnmatch
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lamella.backbones.hub import SECONDS, is_closed
from lamella.backbones.weight_files import WeightsNotFound
from lamella.common.checks import first_line

__all__ = ["folder_of_hub"]

MODULES = "modules.json"
DESCRIPTIONS = (
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    MODULES,
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
    "[0-9]_*/config.json",
    "0_Transformer/*.json",
    "0_Transformer/*.txt",
)
WEIGHTS = (
    ("model.safetensors", "0_Transformer/model.safetensors"),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin", "0_Transformer/pytorch_model.bin"),
)
"""The files of weights, best first."""


def folder_of_hub(name: str, *, weights: bool) -> Path:
    """The folder of the hub's cache that holds an encoder, which is fetched where it is not there.

    The hub is asked once, and only for what the cache does not have. It is not asked under `without_hub`.

    Args:
        name: owner/name.
        weights: whether the weights are needed, too.

    Raises:
        WeightsNotFound: the encoder is not in the cache, and the hub does not have it, cannot be reached, or must not
            be asked.
    """
    cached, known = _cached(name, weights)
    if cached is not None and (known or is_closed()):
        return cached
    if is_closed():
        raise _not_found(name, "and a model that is not trusted has nothing fetched from the hub")
    try:
        return _fetched(name, weights)
    except WeightsNotFound:
        if cached is not None:
            return cached
        raise


def _cached(name: str, weights: bool) -> tuple[Path | None, bool]:
    """The folder in the cache if it is complete, and whether it is known if the hub has a modules.json."""
    import huggingface_hub as hub

    config, modules = (hub.try_to_load_from_cache(name, file) for file in ("config.json", MODULES))
    file = next((file for file in (config, modules) if isinstance(file, str)), None)
    if file is None:
        return None, False
    folder = Path(file).parent
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    there = any(_matching(names, patterns[-2:]) for patterns in WEIGHTS) or not weights
    return (folder if there else None), modules is not None


def _fetched(name: str, weights: bool) -> Path:
    import huggingface_hub as hub

    try:
        there = [file.rfilename for file in hub.model_info(name, timeout=SECONDS).siblings or ()]
    except hub.errors.HfHubHTTPError as error:
        raise _not_found(name, f"and the hub does not give them ({first_line(error)})") from error
    except Exception as error:  # each version of the hub's library has its own kinds of network errors
        raise _not_found(name, f"and the hub cannot be reached ({first_line(error)})") from error
    files = _matching(there, DESCRIPTIONS)
    if weights:
        files += next((found for patterns in WEIGHTS if (found := _matching(there, patterns))), [])
    try:
        folder = hub.snapshot_download(name, allow_patterns=[*map(_literal, files)])
        if MODULES not in there:  # the cache then remembers that there is none
            with suppress(hub.errors.EntryNotFoundError):
                hub.hf_hub_download(name, MODULES)
    except Exception as error:
        raise _not_found(name, f"and could not be had from the hub ({first_line(error)})") from error
    return Path(folder)


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    fitting = (
        name for name in names if any(fnmatch.fnmatch(name, p) and name.count("/") == p.count("/") for p in patterns)
    )
    return list(fitting)


def _literal(name: str) -> str:
    return name.replace("[", "[[]")


def _not_found(name: str, why: str) -> WeightsNotFound:
    root = os.environ.get("LAMELLA_DATA")
    here = f"'{Path(root, name)}' does not exist" if root else "$LAMELLA_DATA is not set"
    return WeightsNotFound(
        f"the encoder '{name}' is not on this machine ({here}), {why}; give a folder that holds one with --backbone "
        f"FOLDER, put it into a folder '{name}' of the folder that $LAMELLA_DATA names, or do without an encoder with "
        "--backbone hashed-words"
    )
