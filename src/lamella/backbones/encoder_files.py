"""What describes an encoder beside its weights: its configuration, its tokenizer and its pooling.

It is read as data only. Nothing of a folder is run, and transformers reads no weights itself.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from lamella.backbones.encoder_places import network_folder
from lamella.backbones.encoder_tokenizer import pad_token, read_tokenizer
from lamella.backbones.pooling import POOLS, pool_of_folder
from lamella.backbones.weight_files import read_state, weights_file
from lamella.common.files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["EncoderFiles", "read_encoder", "read_weights", "table_of"]

INDEX = "model.safetensors.index.json"
EXPORTED = "lamella"
"""The key of config.json by which `lamella export` marks its folders. In those of others the length of features is left
as it is, whatever their modules say: methods see to it themselves, and `normalise` chooses it."""
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


class EncoderFiles(NamedTuple):
    """What describes an encoder beside its weights.

    Attributes:
        config: the content of its config.json.
        tokenizer: of it.
        pool: how its tokens become one vector; None where nothing says it.
        limits: the lengths in tokens that its files call the largest.
        pad_id: the id of the token that stands for padding; None where there is none.
        weights: the file or the folder that its weights are in.
        unit: whether the model that it was exported from has features of length 1.
    """

    config: dict[str, Any]
    tokenizer: "Tokenizer"
    pool: str | None
    limits: tuple[int, ...]
    pad_id: int | None
    weights: Path
    unit: bool = False


def read_encoder(folder: Path, *, pool: str | None = None) -> EncoderFiles:
    """Read the description in a folder of transformers or sentence-transformers.

    Args:
        folder: the folder.
        pool: the pooling that was chosen; None for what the folder says.

    Raises:
        FileNotFoundError: it has no tokenizer.
        ValueError: a file is not of the usual form, the folder brings code of its own, or what follows its pooling
            cannot be had.
    """
    modules = _modules(folder)
    if modules and pool is None:
        _refuse_modules(folder, modules)
    inner = network_folder(folder, modules)
    settings = table_of(inner / "tokenizer_config.json")
    of_sentences = table_of(inner / "sentence_bert_config.json") or table_of(folder / "sentence_bert_config.json")
    config = table_of(inner / "config.json")
    for found, file in ((config, "config.json"), (settings, "tokenizer_config.json")):
        if "auto_map" in found:
            raise ValueError(
                f"'{inner / file}' asks for code of its own ('auto_map'), which is never run; use an encoder of an "
                "architecture that transformers has"
            )
    tokenizer = read_tokenizer(inner, lower=of_sentences.get("do_lower_case") is True)
    token = pad_token(settings, table_of(inner / "special_tokens_map.json"))
    lengths = of_sentences.get("max_seq_length"), settings.get("model_max_length")
    return EncoderFiles(
        config,
        tokenizer,
        pool_of_folder(folder) if pool is None else pool,
        tuple(length for length in lengths if type(length) is int and length > 0),
        None if token is None else tokenizer.token_to_id(token),
        inner,
        pool is None and EXPORTED in config and any(_kind(module) == "Normalize" for module in modules or ()),
    )


def _kind(module: dict[str, Any]) -> str:
    return str(module.get("type")).rpartition(".")[2]


def _modules(folder: Path) -> list[dict[str, Any]] | None:
    path = folder / "modules.json"
    if not path.is_file():
        return None
    modules = read_json(path)
    if not isinstance(modules, list) or not modules or not all(isinstance(module, dict) for module in modules):
        raise ValueError(f"'{path}' is no list of modules of sentence-transformers")
    return modules


def _refuse_modules(folder: Path, modules: list[dict[str, Any]]) -> None:
    kinds = [_kind(module) for module in modules]
    if kinds[0] != "Transformer":
        raise ValueError(f"'{folder}' holds no network of transformers but '{kinds[0]}'; choose another encoder")
    if strange := [kind for kind in kinds if kind not in KNOWN_MODULES]:
        raise ValueError(
            f"'{folder}' goes on after its pooling with '{strange[0]}', which cannot be had here; to do without it, "
            f"choose the pooling with backbone.pool, of {', '.join(POOLS)}"
        )


def table_of(path: Path) -> dict[str, Any]:
    """The content of a JSON file; nothing where there is none.

    Raises:
        ValueError: it holds no table.
    """
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' should hold a table, not {str(found)[:60]!r}")
    return found


def read_weights(place: Path) -> dict[str, Tensor]:
    """The tensors of a file or of a folder, by name; several safetensors files where an index lists them.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they cannot be read.
    """
    index = place / INDEX
    if not index.is_file() or (place / "model.safetensors").is_file():
        return read_state(weights_file(place, ("model.safetensors", "pytorch_model.bin")))
    files = table_of(index).get("weight_map")
    names = sorted(set(map(str, files.values()))) if isinstance(files, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise ValueError(f"'{index}' lists no safetensors files of its folder")
    return {key: tensor for name in names for key, tensor in read_state(weights_file(place / name)).items()}
