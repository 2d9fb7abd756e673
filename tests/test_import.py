"""Imports: a checkpoint of timm or a LoRA of PEFT is a start for a model, which stands alone from then on."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from streams import stream
from torch import Tensor

from lamella import Learner
from lamella.backbones import load_backbone
from lamella.backbones.from_folder import backbone_table
from lamella.learner.config.document import on_device
from lamella.learner.export import export

VIT = {"name": "test_vit", "weights": "random", "size": 32, "crop": 1.0}
WIDTH = 64


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def learner_on(backbone: Any, method: str = "inflora", tasks: int = 2) -> Learner:
    quick = {"name": method, "epochs": 1, "batch_size": 8} if method != "streaming-lda" else {"name": method}
    learner = Learner.create(backbone=backbone, method=quick, fit={"device": "cpu"})
    for i in range(tasks):
        learner.learn(stream(classes=4, tasks=2, per_class=4)[i])
    return learner


def adapter(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """A folder as PEFT writes it, by hand."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4, **config}))
    save_file(
        {f"base_model.model.{key}": value for key, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return folder


def pair(layer: str, rows: int = WIDTH, rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    A, B = torch.randn(rank, WIDTH, generator=draws), torch.randn(rows, rank, generator=draws)
    return {f"{layer}.lora_A.weight": A, f"{layer}.lora_B.weight": B}


def weight(layer: str, folder: Path | None = None) -> Tensor:
    extra = {} if folder is None else {"adapter": str(folder)}
    return load_backbone(**VIT, **extra).model.state_dict()[f"{layer}.weight"]


@pytest.mark.parametrize("method", ["inflora", "sdlora"])
def test_an_exported_lora_comes_back_as_the_same_model(method: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    learner, x = learner_on(VIT, method), images()
    export(learner.model, "peft", tmp_path / "lora")
    again = Learner.create(backbone=str(tmp_path / "lora"), method="linear-probe", fit={"device": "cpu"})
    head = {k: v for k, v in load_file(tmp_path / "lora" / "adapter_model.safetensors").items() if ".head." in k}
    W, b = (head[f"base_model.model.head.{key}"] for key in ("weight", "bias"))
    logits, own = again.backbone(x) @ W.T + b, learner.logits(x)
    assert float((logits - own).abs().max()) <= 1e-4 * float(own.abs().max())
    assert again.backbone.transform == learner.backbone.transform


def test_it_adds_what_peft_adds(tmp_path: Path) -> None:
    """Ranks, alphas and scales of their own, a convolution, and trained biases, against PEFT itself."""
    peft = pytest.importorskip("peft")
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    model.load_state_dict(load_backbone(**VIT).model.state_dict(), strict=False)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, rank_pattern={"blocks.1.attn.qkv": 3}, alpha_pattern={"mlp.fc1": 9},
        target_modules=["attn.qkv", "attn.proj", "mlp.fc1", "patch_embed.proj"], modules_to_save=["head"],
        bias="lora_only", init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(0)
    tuned = peft.get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if name.endswith("attn.proj.base_layer.bias"):
            parameter.data += 0.5
    tuned.save_pretrained(str(tmp_path / "lora"))
    inside: Any = tuned.merge_and_unload().eval()
    x, found = images(), load_backbone(**VIT, adapter=str(tmp_path / "lora"))
    with torch.no_grad():
        expected = inside.forward_head(inside.forward_features(x), pre_logits=True)
        torch.testing.assert_close(found(x), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert float((found(x) - load_backbone(**VIT)(x)).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("name", "rows"),
    [("blocks.2.attn.q_proj", 0), ("vit.encoder.layer.2.attention.attention.key", 1), ("blocks.2.attn.value", 2)],
)
def test_a_query_key_or_value_of_its_own_goes_to_its_rows_of_the_fused_layer(
    name: str, rows: int, tmp_path: Path
) -> None:
    tensors = pair(name)
    folder = adapter(tmp_path / "lora", tensors)
    expected = weight("blocks.2.attn.qkv")
    A, B = tensors.values()
    expected[rows * WIDTH : (rows + 1) * WIDTH] += 4 / 2 * B @ A
    torch.testing.assert_close(weight("blocks.2.attn.qkv", folder), expected)


def test_layers_of_transformers_are_those_of_timm(tmp_path: Path) -> None:
    there = {"output.dense": "mlp.fc2", "attention.output.dense": "attn.proj", "intermediate.dense": "mlp.fc1"}
    shapes = {ours: weight(f"blocks.1.{ours}").shape for ours in there.values()}
    tensors: dict[str, Tensor] = {}
    for theirs, ours in there.items():
        rows, columns = shapes[ours]
        name = f"vit.encoder.layer.1.{theirs}"
        tensors |= {f"{name}.lora_A.weight": torch.ones(1, columns), f"{name}.lora_B.weight": torch.ones(rows, 1)}
    folder = adapter(tmp_path / "lora", tensors | pair("classifier", 9))
    for ours in there.values():
        torch.testing.assert_close(weight(f"blocks.1.{ours}", folder), weight(f"blocks.1.{ours}") + 4)


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (pair("blocks.9.attn.qkv", 192), {}, "has no layer 'blocks.9.attn.qkv' to add the LoRA to"),
        (pair("blocks.1.attn.qkv"), {}, r"'blocks.1.attn.qkv' has A \(2, 64\) and B \(64, 2\).*\(192, 64\)"),
        (pair("blocks.1.attn.qkv", 192) | {"norm.scale": torch.ones(2)}, {}, "has no 'norm.scale'"),
        ({"blocks.1.attn.qkv.lora_A.weight": torch.ones(2, 64)}, {}, "has lora_A of 'blocks.1.attn.qkv' without"),
        ({"blocks.1.attn.proj.ia3_l": torch.ones(2)}, {}, "holds no LoRA"),
        (pair("blocks.1.attn.proj"), {"use_dora": True}, "is a DoRA and has no lora_magnitude_vector of"),
        (pair("blocks.1.attn.proj"), {"peft_type": "IA3"}, "no plain LoRA but IA3"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_in_a_line(
    tensors: dict[str, Tensor], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_backbone(**VIT, adapter=str(adapter(tmp_path / "lora", tensors, **config)))
    assert "\n" not in str(error.value)


def test_a_folder_without_an_adapter_is_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"holds no adapter of PEFT: it has no adapter_config.json"):
            load_backbone(**VIT, adapter=str(path))


def test_a_model_stands_alone_when_the_files_it_was_made_of_are_gone(tmp_path: Path) -> None:
    save_file(load_backbone(**VIT).model.state_dict(), tmp_path / "tuned.safetensors")
    lora = adapter(tmp_path / "lora", pair("blocks.1.attn.qkv", 192))
    table = VIT | {"weights": str(tmp_path / "tuned.safetensors"), "adapter": str(lora)}
    learner, model, x = learner_on(table, tasks=1), tmp_path / "model", images()
    learner.save(model)
    (tmp_path / "tuned.safetensors").unlink()
    (lora / "adapter_model.safetensors").unlink()
    learner.save(model)  # what is kept needs no original
    again = Learner.load(model)
    assert torch.equal(again.logits(x), learner.logits(x))
    assert again.backbone.weights_sha256 == learner.backbone.weights_sha256
    assert again.config == on_device(learner.config, None), "it still says what it was made of"
    again.learn(stream(classes=4, tasks=2, per_class=4)[1])
    again.save(model)
    again.save(tmp_path / "elsewhere")
    for place in (model, tmp_path / "elsewhere"):
        assert len(list(place.glob("backbone-*"))) == 1, "one copy for all versions"
        assert torch.equal(Learner.load(place).logits(x), again.logits(x))
    assert export(again.model, "adapters", tmp_path / "numbers")


def test_a_copy_that_is_missing_or_changed_is_told(tmp_path: Path) -> None:
    lora = adapter(tmp_path / "lora", pair("blocks.1.attn.qkv", 192))
    learner = learner_on(VIT | {"adapter": str(lora)}, "streaming-lda", tasks=1)
    learner.save(tmp_path / "model")
    (copy,) = (tmp_path / "model").glob("backbone-*")
    tensors = load_file(copy)
    save_file(tensors | {"norm.bias": tensors["norm.bias"] + 1}, copy)
    with pytest.raises(ValueError, match="learned on other weights of test_vit"):
        Learner.load(tmp_path / "model")
    copy.unlink()
    with pytest.raises(FileNotFoundError, match="is missing, the backbone that this model was learned on"):
        Learner.load(tmp_path / "model")
    save_file(
        {k: 2 * v for k, v in load_file(lora / "adapter_model.safetensors").items()}, lora / "adapter_model.safetensors"
    )
    with pytest.raises(ValueError, match="changed since they were loaded"):
        learner.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_weights_that_have_a_name_are_not_copied(tmp_path: Path) -> None:
    learner_on(VIT, "streaming-lda", tasks=1).save(tmp_path)
    assert not list(tmp_path.glob("backbone-*"))


def test_a_folder_of_timm_is_a_backbone(tmp_path: Path) -> None:
    learner, x = learner_on(VIT | {"normalise": "none"}, "seq-finetune", tasks=1), images()
    export(learner.model, "timm", tmp_path / "tuned")
    found = Learner.create(backbone=str(tmp_path / "tuned"), method="linear-probe", fit={"device": "cpu"})
    with torch.no_grad():
        torch.testing.assert_close(found.backbone(x), learner.backbone(x), rtol=0, atol=1e-5)
    assert found.backbone.transform == learner.backbone.transform


def test_the_bundled_backbone_comes_back_by_its_name(tmp_path: Path) -> None:
    export(learner_on("fractal-vit-micro", "streaming-lda", tasks=1).model, "timm", tmp_path / "out")
    assert backbone_table(str(tmp_path / "out")) == {
        "name": "fractal-vit-micro", "weights": str(tmp_path / "out"), "crop": 1.0,
    }  # fmt: skip


def test_what_a_backbone_may_be_called(tmp_path: Path) -> None:
    assert backbone_table("resnet18") == {"name": "resnet18"}
    assert backbone_table(f"resnet18+{tmp_path}") == {"name": "resnet18", "adapter": str(tmp_path)}
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"does not say which network of timm it is of.*give NAME\+{tmp_path}"):
        backbone_table(str(tmp_path))
    config: dict[str, Any] = {"architecture": "test_vit", "model_args": {"depth": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'test_vit' built with depth, a network that no name stands for"):
        backbone_table(str(tmp_path))
    config = {"architecture": "test_vit", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "input_size": [3, 48, 48]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"by the mean \(0.1, 0.2, 0.3\).*only the latter, or none, can be had here"):
        backbone_table(str(tmp_path))
    del config["pretrained_cfg"]["mean"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert backbone_table(str(tmp_path)) == {"name": "test_vit", "adapter": str(tmp_path), "size": 48}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"alpha_pattern": {"([a-z0-9.]+)+!": 4}}, "is an expression that is not read; write the name of a layer"),
        ({"alpha_pattern": {"(": 4}}, "is an expression that is not read"),
        ({"alpha_pattern": {r"\d+\d+\d+": 4}}, "2 times at most"),
        ({"alpha_pattern": ["mlp"]}, "is no configuration that PEFT wrote"),
        ({"lora_alpha": math.nan}, "has alpha nan; it must be a number above 0"),
        ({"lora_alpha": "4"}, "has alpha '4'; it must be a number above 0"),
        ({"lora_alpha": None}, "has alpha None; it must be a number above 0, so set lora_alpha"),
        ({"lora_alpha": 0}, "has alpha 0; it must be a number above 0"),
        ({"r": 8}, "has tensors of rank 2, and its adapter_config.json says 8"),
        ({"r": 2, "rank_pattern": {"query": 8}}, "has tensors of rank 2, and its adapter_config.json says 8"),
        ({"rank_pattern": {"(": 4}}, "of 'rank_pattern' in .* is an expression that is not read"),
        ({"rank_pattern": [4]}, "is no configuration that PEFT wrote"),
    ],
)
def test_a_strange_configuration_of_peft_is_one_line_and_never_hangs(
    change: dict[str, Any], text: str, tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "lora", pair("vit.encoder.layer.0.attention.attention.query"))
    config = json.loads((folder / "adapter_config.json").read_text()) | change
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=text) as told:
        load_backbone(**VIT, adapter=str(folder))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["[]", "200000 brackets"])
def test_a_configuration_that_is_no_table_is_told(text: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "lora", pair("blocks.0.mlp.fc1"))
    (folder / "adapter_config.json").write_text(200_000 * "[" if text != "[]" else text)
    with pytest.raises(ValueError, match=r"is no configuration that PEFT wrote|is not a readable JSON file"):
        load_backbone(**VIT, adapter=str(folder))


def test_a_key_with_a_number_left_open_means_every_such_layer(tmp_path: Path) -> None:
    name = "blocks.2.attn.proj"
    for key, alpha in ((r"blocks\.\d+\.attn.proj", 8), ("^blocks.2.attn.proj", 8), ("blocks.3.attn.proj", 4)):
        tensors = pair(name)
        folder = adapter(tmp_path / key.strip("^").replace("\\", ""), tensors)
        config = json.loads((folder / "adapter_config.json").read_text()) | {"alpha_pattern": {key: alpha}}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        A, B = tensors.values()
        torch.testing.assert_close(weight(name, folder), weight(name) + alpha / 2 * B @ A)


def test_weights_that_are_not_finite_are_told_before_anything_is_learned(tmp_path: Path) -> None:
    state = load_backbone(**VIT).model.state_dict()
    state["norm.weight"] = torch.full_like(state["norm.weight"], math.inf)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has numbers in 'norm.weight' that are not finite"):
        load_backbone(**VIT | {"weights": str(tmp_path / "model.safetensors")})
    tensors = pair("blocks.0.attn.proj")
    next(iter(tensors.values()))[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"numbers in the LoRA of 'blocks.0.attn.proj' that are not finite"):
        load_backbone(**VIT, adapter=str(adapter(tmp_path / "lora", tensors)))


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"model_args": ["x"]}, "'model_args' should be a table"),
        ({"model_args": {"img_size": "big"}}, "'model_args.img_size' should be a whole number above 0, not 'big'"),
        ({"pretrained_cfg": ["a"]}, "'pretrained_cfg' should be a table"),
        ({"pretrained_cfg": {"input_size": 5}}, "'pretrained_cfg.input_size' should be three whole numbers, not '5'"),
        (
            {"pretrained_cfg": {"input_size": [3, "a", "a"]}},
            "'pretrained_cfg.input_size' should be three whole numbers",
        ),
        ({"pretrained_cfg": {"crop_pct": "x"}}, "'pretrained_cfg.crop_pct' should be a number, not 'x'"),
        ({"pretrained_cfg": {"mean": 5}}, "'pretrained_cfg.mean' should be three numbers, not '5'"),
        ({"pretrained_cfg": {"std": [0.5, math.nan, 0.5]}}, "'pretrained_cfg.std' should be three numbers"),
        ({"pretrained_cfg": {"interpolation": ["a"]}}, "'pretrained_cfg.interpolation' should be a text"),
    ],
)
def test_a_strange_configuration_of_timm_is_one_line(tmp_path: Path, table: dict[str, Any], text: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", **table}))
    with pytest.raises(ValueError, match=re.escape(text)) as told:
        backbone_table(str(tmp_path))
    assert "\n" not in str(told.value)
    (tmp_path / "config.json").write_text(200_000 * "[")
    with pytest.raises(ValueError, match="is not a readable JSON file"):
        backbone_table(str(tmp_path))
