"""The hub, where weights come from that are not on this machine: whether it may be asked, and those of timm."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from lamella.backbones.weight_files import WeightsNotFound
from lamella.common.checks import first_line

__all__ = ["SECONDS", "hub_options", "is_closed", "not_found", "without_hub"]

FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
SECONDS = 10.0
"""How long the hub may take to answer the first question."""


_closed: ContextVar[bool] = ContextVar("lamella_hub_closed", default=False)
"""Whether the hub is not asked. Each thread has its own value, since a server loads models in several."""


@contextmanager
def without_hub() -> Iterator[None]:
    """Never ask the hub while this runs. Weights that it gave earlier are still found in its cache."""
    before = _closed.set(True)
    try:
        yield
    finally:
        _closed.reset(before)


def is_closed() -> bool:
    """Whether the hub must not be asked, since `without_hub` runs."""
    return _closed.get()


def hub_options(name: str) -> dict[str, Any]:
    """Return the options that `timm.create_model` needs to load the weights of a backbone.

    The download itself tries again for most of a minute before it gives up, so the hub is asked first whether it
    answers. Under `without_hub` nothing is asked: a cached safetensors file is loaded by its path, because timm would
    ask the hub whether there is a newer one.

    Args:
        name: the name of a model of timm.

    Raises:
        WeightsNotFound: the hub cannot be reached or must not be asked, and the weights are not in its cache.
    """
    import huggingface_hub as hub
    import timm

    usual = timm.get_pretrained_cfg(name)
    repository = getattr(usual, "hf_hub_id", None)
    if _closed.get():
        cached = hub.try_to_load_from_cache(repository, FILES[0]) if repository else None
        if not isinstance(cached, str) or getattr(usual, "custom_load", False):
            raise not_found(name, "and a model that is not trusted has nothing fetched from timm's hub")
        return {"pretrained_cfg_overlay": {"file": cached}}
    _check_answer(name, repository)
    return {}


def _check_answer(name: str, repository: str | None) -> None:
    import huggingface_hub as hub

    if not repository or any(isinstance(hub.try_to_load_from_cache(repository, file), str) for file in FILES):
        return
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, FILES[0]), timeout=SECONDS)
    except hub.errors.HfHubHTTPError:
        return  # it answers; what it says of this file is for the download to judge
    except Exception as error:  # each version of the hub's library has its own kinds of network errors
        raise not_found(name, f"and timm's hub cannot be reached ({first_line(error)})") from error


def not_found(name: str, why: str) -> WeightsNotFound:
    """Return an error that says where the weights of a backbone were looked for, and what to do.

    Args:
        name: the name of the backbone, which is also the name of the folder that may hold its weights.
        why: what else was tried and failed, beginning with "and".
    """
    root = os.environ.get("LAMELLA_DATA")
    here = f"'{Path(root, name)}' does not exist" if root else "$LAMELLA_DATA is not set"
    return WeightsNotFound(
        f"the weights of '{name}' are not on this machine ({here}), {why}; put them into a folder '{name}' of the "
        "folder that $LAMELLA_DATA names, or give their path as backbone.weights=PATH"
    )
