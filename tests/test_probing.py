"""Rows of fused layers are what they seem or are refused, blocks are counted as they run, odd views are kept."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from lamella import Learner, load_backbone
from lamella.backbones import Backbone
from lamella.backbones.from_folder import backbone_table
from lamella.backbones.probing import call_order, is_fused_as_thought
from lamella.backbones.roles import find_places, in_order
from lamella.common.files import write_json
from lamella.data.transform import InputTransform, plain_view

D, HEADS = 8, 2


class Attention(nn.Module):
    """Attention whose fused rows lie one role after the other, or one head after the other."""

    def __init__(self, by_head: bool) -> None:
        super().__init__()
        self.by_head = by_head
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        if self.by_head:
            q, k, v = self.qkv(x).view(n, tokens, HEADS, 3 * D // HEADS).transpose(1, 2).chunk(3, dim=3)
        else:
            q, k, v = self.qkv(x).view(n, tokens, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(2, 3)).softmax(3) @ v
        return self.proj(mixed.transpose(1, 2).reshape(n, tokens, D))


class Network(nn.Module):
    """Blocks that run in another order than they are defined in."""

    def __init__(self, by_head: bool, order: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__()
        self.order = order
        self.stem = nn.Conv2d(3, D, 8, 8)
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn": Attention(by_head)}) for _ in order)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for i in self.order:
            x = x + self.blocks[i]["attn"](x)
        return x.mean(1)


def backbone(by_head: bool, order: tuple[int, ...] = (0, 1, 2)) -> Backbone:
    torch.manual_seed(0)
    return Backbone(Network(by_head, order), name="toy", width=D, transform=InputTransform(16))


def test_rows_of_a_fused_layer_are_probed() -> None:
    assert len(backbone(by_head=False).sites("key+value", "query")) == 6
    assert len(backbone(by_head=True).sites("out")) == 3, "no row of the fused layer is used"
    with pytest.raises(ValueError, match=r"rows of 'blocks\.0\.attn\.qkv' in 'toy' are not query, key, value"):
        backbone(by_head=True).sites("key+value")


def test_a_branch_for_the_values_changes_no_query_where_the_probe_agrees() -> None:
    for by_head in (False, True):
        model = Network(by_head)
        places = find_places(model)
        fused = [place for place in places if "value" in place.roles]
        x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        agreed = is_fused_as_thought(model, fused, partial(model, x))
        assert set(agreed.values()) == {not by_head}


def test_blocks_are_counted_as_they_run() -> None:
    one = backbone(False, order=(2, 0, 1))
    assert [site.name for site in one.sites("key+value", blocks=1)] == ["blocks.2.attn.qkv"]
    places = find_places(one.model)
    called = call_order(one.model, places, lambda: one.model(torch.zeros(1, 3, 16, 16)))
    assert [place.block for place in in_order(places, called)] == [1, 1, 2, 2, 0, 0]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("swin_tiny_patch4_window7_224", ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"]),
        ("cait_xxs24_224", ["blocks.0", "blocks.1", "blocks.2"]),
        ("xcit_nano_12_p16_224", ["blocks.0", "blocks.1", "blocks.2"]),
    ],
)
def test_the_first_blocks_of_networks_that_name_them_otherwise(name: str, first: list[str]) -> None:
    sites = load_backbone(name, weights="random").sites("key+value", blocks=3)
    assert [site.name.rsplit(".", 2)[0] for site in sites] == first


def test_a_network_without_such_layers_names_a_way_out() -> None:
    with pytest.raises(ValueError, match=r"Class statistics \(--no-train\) need no such layers"):
        Learner.create(backbone={"name": "resnet18", "weights": "random"}, method="inflora")


def test_an_image_is_squashed_as_timm_does_it(tmp_path: Path) -> None:
    from timm.data.transforms_factory import create_transform

    Image.effect_noise((90, 40), 80).convert("RGB").resize((90, 40)).save(tmp_path / "wide.png")
    image = Image.open(tmp_path / "wide.png")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(40, 90, 3).permute(2, 0, 1)
    for crop in (1.0, 0.8):
        options: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": crop, "crop_mode": "squash"}
        theirs: Any = create_transform(32, is_training=False, interpolation="bilinear", **options)
        ours = plain_view(InputTransform(32, interpolation="bilinear", crop=crop, crop_mode="squash"))
        found = ours([pixels.contiguous()], torch.zeros(1, dtype=torch.int64))[0]
        assert float((found - theirs(image)).abs().max()) < 2.1 * 2 / 255, "timm rounds to whole levels in between"


def test_an_imported_folder_keeps_its_view_or_is_refused(tmp_path: Path) -> None:
    def folder(**transform: Any) -> str:
        usual = {"input_size": [3, 160, 160], "mean": [0.5] * 3, "std": [0.5] * 3}
        write_json(tmp_path / "config.json", {"architecture": "test_vit", "pretrained_cfg": usual | transform})
        return str(tmp_path)

    table = backbone_table(folder(interpolation="bilinear", crop_mode="squash", crop_pct=0.9))
    assert {key: table[key] for key in ("interpolation", "crop_mode", "crop")} == {
        "interpolation": "bilinear",
        "crop_mode": "squash",
        "crop": 0.9,
    }
    with pytest.raises(ValueError, match="takes images of 96 x 160 pixels, and only square ones can be had"):
        backbone_table(folder(input_size=[3, 96, 160]))
    with pytest.raises(ValueError, match="crop_mode 'border' is unknown; use one of center, squash"):
        load_backbone("test_vit", weights="random", crop_mode="border")


def _smallest_of_each_family() -> list[str]:
    """Name one small network of timm for each file that defines networks, and a few more of the common families."""
    words = ("tiny", "nano", "pico", "femto", "atto", "small", "s12", "s0", "xxs", "_b0", "18", "050", "micro", "mini")
    found: list[str] = []
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        small = [name for name in names if any(word in name for word in words)] or names
        found += sorted(small, key=len)[:1]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", _smallest_of_each_family())
def test_networks_of_timm_learn_and_come_back_or_are_refused(name: str, tmp_path: Path) -> None:
    """Features equal timm's; rows are probed; a model learns, is stored, loads and is exported."""
    warnings.simplefilter("ignore")
    try:
        own = load_backbone(name, weights="random")
    except ValueError as error:
        told = str(error)
        assert "\n" not in told
        return
    x = own.example(2, torch.Generator().manual_seed(0))
    theirs = timm.create_model(name, num_classes=0).eval()
    theirs.load_state_dict(own.model.state_dict())
    with torch.no_grad():
        expected = theirs(x)  # with random weights, features may be as large as 1e11
        size = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(own(x) / size, expected / size, rtol=1e-3, atol=1e-4)
    for place, color in enumerate(("a", "b")):
        for i in range(3):
            (tmp_path / "data" / color).mkdir(parents=True, exist_ok=True)
            Image.effect_noise((40, 40), 20 + 60 * place).convert("RGB").save(tmp_path / "data" / color / f"{i}.png")
    table, quick = {"name": name, "weights": "random"}, {"epochs": 1, "batch_size": 2, "blocks": 2, "rank": 2}
    try:
        learner = Learner.create(backbone=table, method={"name": "inflora", **quick})
    except (ValueError, TypeError) as error:
        told = str(error)
        assert "\n" not in told
        learner = Learner.create(backbone=table, method="nearest-mean")
    try:
        learner.learn_from(tmp_path / "data", folder=tmp_path / "model")
    except RuntimeError as error:
        if "the inputs of every adapted layer are zero" not in str(error):
            raise
        return
    loaded = Learner.load(tmp_path / "model")
    images = sorted((tmp_path / "data").rglob("*.png"))
    assert loaded.predict(images) == learner.predict(images)


def test_the_checkpoint_of_a_distilled_model_is_its_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    name = "deit_tiny_distilled_patch16_224"
    theirs = timm.create_model(name).eval()
    assert "head_dist.weight" in theirs.state_dict()
    save_file(dict(theirs.state_dict()), tmp_path / "model.safetensors")
    own = load_backbone(name, weights=str(tmp_path))
    theirs.reset_classifier(0)  # type: ignore[operator]
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(x)  # with random weights, features may be as large as 1e11
        size = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(own(x) / size, expected / size, rtol=1e-3, atol=1e-4)
