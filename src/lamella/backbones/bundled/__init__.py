"""The backbone that comes with the package: a small ViT pre-trained on procedurally generated images only.

`MODEL_CARD.md` beside this file says how it was made; `tools/pretrain/pretrain.py` makes it again.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

NAME = "fractal-vit-micro"

ARCHITECTURE: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 128,
    "depth": 6,
    "num_heads": 4,
    "mlp_ratio": 4.0,
    "num_classes": 0,
    "global_pool": "token",
}


def weights_path() -> Path:
    """Where the weights lie: float16 tensors under timm's key names, to be raised to float32 on loading."""
    return Path(str(files(__name__) / "fractal_vit_micro.safetensors"))


def build() -> VisionTransformer:
    """Builds the network with random weights; inputs are `(n, 3, 32, 32)` with mean and std 0.5."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**ARCHITECTURE)
