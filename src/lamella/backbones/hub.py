"""timm's hub, where pre-trained weights come from that are not on this machine."""

import os
from pathlib import Path

from lamella.backbones.weight_files import WeightsNotFound
from lamella.common.checks import first_line

__all__ = ["check_hub", "not_found"]

FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
SECONDS = 10.0
"""How long the hub may take to answer the first question."""


def check_hub(name: str) -> None:
    """Make sure that the hub answers where weights would have to be downloaded.

    The download itself tries again for most of a minute before it gives up.

    Raises:
        WeightsNotFound: it cannot be reached.
    """
    import huggingface_hub as hub
    import timm

    repository = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)
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
