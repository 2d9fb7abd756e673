"""Backbones of images: the bundled one, small ResNets, and any image model of timm; hub weights, a file, or random."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lamella.adapters.few_bits import STORAGES, store_in
from lamella.backbones import bundled
from lamella.backbones.backbone import Backbone
from lamella.backbones.drawing import drawn_by
from lamella.backbones.hub import hub_options, not_found
from lamella.backbones.peft_lora import add_peft_lora
from lamella.backbones.resnets import BLOCKS, ResNet, use_small_stem
from lamella.backbones.weight_files import WeightsNotFound, load_strict, read_state, weights_file
from lamella.common.checks import check_one_of, did_you_mean, first_line
from lamella.data.transform import InputTransform

__all__ = ["IMAGE_BACKBONES", "build_image_backbone"]

IMAGE_BACKBONES: dict[str, str] = {
    bundled.NAME: "the bundled one: a small ViT for 32 x 32 images, pre-trained on formulas; needs no download",
    "vit_tiny_patch16_224": "timm's ViT-Tiny/16, ImageNet-21k then 1k (AugReg)",
    "vit_base_patch16_224.augreg_in21k": "timm's ViT-B/16, ImageNet-21k (AugReg): the one of most published results",
    "resnet32": 'He et al.\'s ResNet-32 for 32 x 32 images (also resnet20); weights="random", or trained on CIFAR-10',
    "resnet18": 'timm\'s ResNet-18, ImageNet-1k; with stem="small" and weights="random" for small images',
    "test_vit": "timm's smallest ViT, for tests",
}


def build_image_backbone(
    name: str,
    *,
    weights: str = "pretrained",
    adapter: str | None = None,
    size: int | None = None,
    normalise: str = "auto",
    crop: float | None = None,
    crop_mode: str | None = None,
    interpolation: str | None = None,
    pool: str = "model",
    stem: str = "model",
    storage: str = "float32",
    seed: int = 0,
) -> Backbone:
    """Build a frozen backbone of images.

    Args:
        name: the bundled backbone, "resnet20" or "resnet32", or any of timm's image models.
        weights: "pretrained" (a folder of that name under $LAMELLA_DATA where there is one, else timm's hub), "random",
            or the path of a safetensors or torch file, or of a folder that holds one.
        adapter: the folder of a LoRA that PEFT trained on these weights; it is added to them.
        size: image side in pixels; the model's own by default. Position embeddings are interpolated bicubically; a
            network that takes any size simply gets larger or smaller images.
        normalise: "auto" takes mean and standard deviation of the model's own configuration, "none" leaves 0..1.
        crop: the share of the resized image that the centre crop keeps, the model's own by default; 1.0 keeps it whole.
        crop_mode: "center", or "squash" for images whose sides are both resized to `size`; the model's own by default.
        interpolation: how images are resized, "bicubic" or "bilinear"; the model's own by default.
        pool: "model", or "class+mean" for the class token beside the mean of the other tokens (twice the width).
        stem: "model", or "small" for timm's ResNets on small images (32 pixels where no size is given): a 3 x 3
            convolution of stride 1, no pooling. It has no pre-trained weights.
        storage: how the weights of linear layers are kept: "float32", "int8" for a quarter of the memory, or
            "nf4" for an eighth; in few bits nothing can be folded into them, and they cannot be trained.
        seed: of random weights.

    Raises:
        ValueError: an unknown name or option. FileNotFoundError: no such weights.
    """
    check_one_of("storage", storage, STORAGES)
    if size is not None and size < 1:
        raise ValueError(f"size {size} is no size of images; give a number of pixels, 1 or more")
    if normalise not in ("auto", "none"):
        raise ValueError(f"normalise '{normalise}' is unknown; use 'auto' or 'none'")
    if stem not in ("model", "small"):
        raise ValueError(f"stem '{stem}' is unknown; use 'model' or 'small'")
    if stem == "small" and (name == bundled.NAME or name in BLOCKS):
        raise ValueError(f"'{name}' is made for small images already; leave stem out")
    if stem == "small" and weights == "pretrained":
        raise ValueError("stem 'small' has no pre-trained weights; use weights='random' or weights=PATH")
    with drawn_by(seed, "backbone", name):
        if name == bundled.NAME:
            model, transform = _build_bundled(weights, size)
        elif name in BLOCKS:
            model, transform = _build_resnet(name, weights, size)
        else:
            model, transform = _build_timm(name, weights, size, stem)
    model = model.float()
    if adapter is not None:
        add_peft_lora(model, Path(adapter))
    store_in(storage, model)
    mean, std = ((0.0,) * 3, (1.0,) * 3) if normalise == "none" else (transform.mean, transform.std)
    transform = InputTransform(
        transform.size,
        mean,
        std,
        interpolation or transform.interpolation,
        transform.crop if crop is None else crop,
        transform.crop_mode if crop_mode is None else crop_mode,
    )
    return Backbone(_laid_out(model), name=name, width=_width(model), transform=transform, pool=pool)


def _laid_out(model: nn.Module) -> nn.Module:
    """Channels last where most of the work is convolutions: faster on a CPU (`benchmarks/ratios.py memory-layout`)."""
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    return model.to(memory_format=torch.channels_last) if convolutions > 1 else model


def _width(model: nn.Module) -> int:
    """Of the features: some convolutional networks widen them before the classifier."""
    return int(getattr(model, "head_hidden_size", None) or getattr(model, "num_features", 0))


def _build_bundled(weights: str, size: int | None) -> tuple[nn.Module, InputTransform]:
    if size not in (None, bundled.ARCHITECTURE["img_size"]):
        raise ValueError(f"{bundled.NAME} takes images of {bundled.ARCHITECTURE['img_size']} pixels, not {size}")
    model = bundled.build()
    if weights != "random":
        path = bundled.weights_path() if weights == "pretrained" else weights_file(Path(weights))
        load_strict(model, read_state(path), path)
    half = (0.5, 0.5, 0.5)
    return model, InputTransform(int(bundled.ARCHITECTURE["img_size"]), half, half, "bicubic", 1.0)


def _build_resnet(name: str, weights: str, size: int | None) -> tuple[nn.Module, InputTransform]:
    model = ResNet(BLOCKS[name])
    path = _local_weights(name, weights)
    if weights == "pretrained" and path is None:
        root = os.environ.get("LAMELLA_DATA")
        path = next(iter(sorted(Path(root, "resnet_cifar10").glob(f"{name}-*.th"))), None) if root else None
        if path is None:
            where = f"'{Path(root, 'resnet_cifar10')}' holds no {name}-*.th" if root else "$LAMELLA_DATA is not set"
            raise WeightsNotFound(
                f"the weights of '{name}' are not on this machine ({where}); put {name}-*.th into a folder "
                "'resnet_cifar10' of the folder that $LAMELLA_DATA names, give their path as backbone.weights=PATH, or "
                "start from random ones with backbone.weights=random"
            )
    if path is not None:
        state = {k.replace("layer", "stage"): v for k, v in read_state(path).items() if not k.startswith("linear.")}
        counters = {k: v for k, v in model.state_dict().items() if k.endswith(".num_batches_tracked")}
        load_strict(model, counters | state, path)  # older files do not count batches
    # What the CIFAR-10 weights were trained with.
    return model, InputTransform(size or 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 1.0)


def _build_timm(name: str, weights: str, size: int | None, stem: str) -> tuple[nn.Module, InputTransform]:
    import timm
    from timm.data.config import resolve_data_config

    if not timm.is_model(name.split(".")[0]):
        known = dict.fromkeys([*IMAGE_BACKBONES, *timm.list_models()])
        ways = "; `lamella list backbones` names some, and an encoder of texts is called owner/name"
        raise ValueError(f"unknown backbone '{name}'{did_you_mean(name, known) or ways}")
    # A network of any input size, such as a convolutional one, has no argument for it.
    sized = size is not None and _has_fixed_size(name)
    options: dict[str, Any] = {"num_classes": 0} | ({"img_size": size} if sized else {})
    path = _local_weights(name, weights)
    if path is not None or stem == "small":
        model = _from_hub(name, False, options)
    else:
        model = _from_hub(name, weights == "pretrained", options)
    if stem == "small":
        use_small_stem(model)
    if size is not None:
        _check_size(model, name, size)
    if path is not None:
        _load_timm(model, path)
    found = resolve_data_config({}, model=model)
    height, side, crop = *map(int, found["input_size"][-2:]), float(found["crop_pct"])
    if size is None and height != side:
        raise ValueError(
            f"'{name}' takes images of {height} x {side} pixels, and only square ones can be had; give size"
        )
    if found["crop_mode"] not in ("center", "squash"):
        raise ValueError(f"'{name}' crops images by '{found['crop_mode']}', which cannot be had; give crop_mode")
    side, crop = (32, 1.0) if stem == "small" else (side, min(crop, 1.0))  # timm pads with black above 1
    mean, std = tuple(found["mean"]), tuple(found["std"])
    return model, InputTransform(size or side, mean, std, found["interpolation"], crop, found["crop_mode"])


def _check_size(model: nn.Module, name: str, size: int) -> None:
    """Raise ValueError where the network does not take images of this size."""
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"backbone '{name}' takes no images of {size} pixels: {first_line(error)}") from error


def _has_fixed_size(name: str) -> bool:
    import timm

    return bool(getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False))


def _from_hub(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    import timm

    weights = hub_options(name) if pretrained else {}
    try:
        return timm.create_model(name, pretrained=pretrained, **options, **weights)
    except AssertionError as error:
        refused = first_line(error)
        raise ValueError(f"backbone '{name}' does not take {options} ({refused}); give another size") from error
    except TypeError as error:
        raise ValueError(f"backbone '{name}' does not take {options} ({error})") from error
    except (OSError, RuntimeError) as error:
        raise not_found(name, f"and could not be had from timm's hub ({first_line(error)})") from error


def _local_weights(name: str, weights: str) -> Path | None:
    if weights == "random":
        return None
    if weights != "pretrained":
        return weights_file(Path(weights))
    root = os.environ.get("LAMELLA_DATA")
    folder = Path(root) / name if root else None
    return weights_file(folder) if folder is not None and folder.is_dir() else None


def _load_timm(model: nn.Module, path: Path) -> None:
    """Load through timm's own filter of ViTs, which renames old keys and interpolates position embeddings."""
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    state = read_state(path)
    if isinstance(model, VisionTransformer):
        state = checkpoint_filter_fn(state, model, interpolation="bicubic", antialias=True)
    load_strict(model, state, path)
