"""`lamella merge`: adapters of models and of PEFT become one folder, which PEFT and a backbone load."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file, save_file
from streams import stream
from test_export import VIT, learned

from lamella import Learner, load_backbone
from lamella.adapters.merging import Merging, merged
from lamella.adapters.pairs import Pair
from lamella.learner.merge.folder import merge_folders
from lamella.learner.merge.sources import read_source

LAYERS = ("blocks.0.attn.qkv", "blocks.1.mlp.fc1")


def network() -> Any:
    import timm

    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=3).eval()


def peft_folder(place: Path, seed: int, **options: Any) -> Any:
    """Save a LoRA of random numbers by PEFT itself, and return PEFT's model."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": list(LAYERS)} | options)
    model = peft.get_peft_model(network(), config).eval()
    draws = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        if "lora_" in name:
            tensor.data = 0.1 * torch.randn(tensor.shape, generator=draws)
    model.save_pretrained(str(place))
    return model


def change(model: Any, layer: str) -> torch.Tensor:
    """What PEFT adds to the weight of a layer, by PEFT's own code."""
    return model.base_model.model.get_submodule(layer).get_delta_weight("default").detach()


def test_scales_of_peft_are_those_of_peft(tmp_path: Path) -> None:
    cases: list[dict[str, Any]] = [
        {"lora_alpha": 8},
        {"lora_alpha": 8, "use_rslora": True},
        {"rank_pattern": {LAYERS[0]: 2}, "alpha_pattern": {LAYERS[1]: 3}},
    ]
    for i, options in enumerate(cases):
        model = peft_folder(tmp_path / str(i), i, **options)
        pairs = read_source(tmp_path / str(i)).pairs
        for layer in LAYERS:
            assert (pairs[layer].delta() - change(model, layer)).abs().max() < 1e-6


@pytest.mark.parametrize("rule", ["sum", "mean", "tsv", "iso-c", "opcm"])
def test_peft_adds_the_merged_update_to_the_weights(rule: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    a = peft_folder(tmp_path / "a", 1)
    b = peft_folder(tmp_path / "b", 2, r=2, use_rslora=True)
    merge_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "c", Merging(rule))
    loaded = peft.PeftModel.from_pretrained(network(), str(tmp_path / "c")).eval()
    changes = [{layer: change(model, layer) for layer in LAYERS} for model in (a, b)]
    adapters = [{layer: Pair(torch.eye(D.shape[1]), D) for layer, D in own.items()} for own in changes]
    wanted = merged(adapters, Merging(rule))
    for layer in LAYERS:
        assert (change(loaded, layer) - wanted[layer].delta()).abs().max() < 1e-5
    if rule == "sum":
        assert (change(loaded, LAYERS[0]) - change(a, LAYERS[0]) - change(b, LAYERS[0])).abs().max() < 1e-6
    begun = load_backbone("test_vit", weights="random", adapter=str(tmp_path / "c"), size=32)
    plain = load_backbone("test_vit", weights="random", size=32)
    added = begun.model.get_submodule(LAYERS[0]).weight - plain.model.get_submodule(LAYERS[0]).weight  # type: ignore
    assert (added - wanted[LAYERS[0]].delta()).abs().max() < 1e-5


def test_models_of_lamella_are_merged_and_an_export_counts_as_the_model(tmp_path: Path, lamella: Run) -> None:
    for place, method in (("north", "seq-lora"), ("south", "olora")):
        table = {"name": method, "epochs": 1, "batch_size": 8, "rank": 2, "lr": 0.01}
        learner = Learner.create(backbone=VIT | {"name": "test_vit"}, method=table, fit={"device": "cpu"})
        learner.learn(stream(classes=4, tasks=2, per_class=4)[0])
        learner.save(tmp_path / place)
    places = [tmp_path / "north", tmp_path / "south"]
    code, out, err = lamella("merge", *places, "--rule", "sum", "--out", tmp_path / "both")
    assert code == 0, err
    assert "left out of" in out
    a, b, c = (read_source(tmp_path / name).pairs for name in ("north", "south", "both"))
    assert set(c) == set(a) == set(b)
    for layer in a:
        assert (a[layer].delta() + b[layer].delta() - c[layer].delta()).abs().max() < 1e-6
        assert a[layer].delta().abs().max() > 1e-5
    merge_folders([tmp_path / "both", tmp_path / "south"], tmp_path / "d", Merging("weighted"), weights=[1.0, -1.0])
    d = read_source(tmp_path / "d").pairs
    assert all((d[layer].delta() - a[layer].delta()).abs().max() < 1e-6 for layer in a)


@pytest.mark.parametrize("rule", ["iso-c", "iso-cts", "tsv", "opcm"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_directions_that_differ_by_the_rounding_of_the_files_are_one(
    kind: torch.dtype, rule: str, tmp_path: Path
) -> None:
    draws = torch.Generator().manual_seed(3)
    A = torch.randn(4, 64, generator=draws, dtype=torch.float64)
    for name in "ab":
        peft_folder(tmp_path / name, 1, target_modules=[LAYERS[0]])
        M = torch.randn(4, 4, generator=draws, dtype=torch.float64)  # the same rows, in other factors
        with_tensor(tmp_path / name, FIRST, (M @ A).to(kind))
        B = torch.randn(192, 4, generator=draws, dtype=torch.float64)
        with_tensor(tmp_path / name, FIRST.replace("lora_A", "lora_B"), B.to(kind))
    lines = merge_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "c", Merging(rule))
    assert lines[0] == "rank 4 on 1 layer"


def test_rules_on_entries_are_truncated_to_a_rank_and_say_what_that_keeps(tmp_path: Path) -> None:
    peft_folder(tmp_path / "a", 1)
    peft_folder(tmp_path / "b", 2)
    lines = merge_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "c", Merging("elect"), rank=6)
    assert lines[0] == "rank 6 on 2 layers"
    assert "rank 6 keeps" in lines[1]


def edited(place: Path, **changes: Any) -> None:
    file = place / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def with_tensor(place: Path, name: str, tensor: torch.Tensor) -> None:
    file = place / "adapter_model.safetensors"
    save_file(load_file(file) | {name: tensor}, file)


FIRST = f"base_model.model.{LAYERS[0]}.lora_A.weight"
SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "DoRA": (lambda b: edited(b, use_dora=True), "is a DoRA, whose change is no scaled product"),
    "a start": (lambda b: edited(b, init_lora_weights="pissa"), "is a LoRA that began with 'pissa'"),
    "no kind": (lambda b: edited(b, peft_type=None), "has no 'peft_type'"),
    "another kind": (lambda b: edited(b, peft_type="IA3"), "is no plain LoRA but IA3"),
    "biases": (lambda b: edited(b, bias="all"), "has trained biases"),
    "more than LoRA": (lambda b: with_tensor(b, "base_model.model.norm.weight", torch.ones(4)), "'norm.weight'"),
    "another base": (lambda b: edited(b, base_model_name_or_path="some/other"), "belongs to the network 'some/other'"),
    "transposed": (lambda b: edited(b, fan_in_fan_out=True), "differ in fan_in_fan_out"),
    "alpha": (lambda b: edited(b, lora_alpha=-1), "has alpha -1"),
    "shapes": (lambda b: with_tensor(b, FIRST, torch.ones(4, 7)), "the shape"),
    "ranks": (lambda b: with_tensor(b, FIRST, torch.ones(3, 64)), "only linear layers are merged"),
    "NaN": (lambda b: with_tensor(b, FIRST, torch.full((4, 64), float("nan"))), "not finite"),
    "no adapter": (lambda b: (b / "adapter_config.json").unlink(), "holds neither a model of Lamella nor"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_what_cannot_be_merged_is_refused_in_one_line_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        peft_folder(tmp_path / name, seed)
        edited(tmp_path / name, base_model_name_or_path="owner/net")
    spoil, message = SPOILT[case]
    spoil(tmp_path / "b")
    with pytest.raises(ValueError, match=message) as error:
        merge_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "c", Merging())
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rule", "average"), "rule 'average' is unknown"),
        (("--rule", "regmean"), "needs the inputs"),
        (("--rule", "ties"), "say by --rank"),
        (("--rule", "weighted", "--weights", "1"), "1 weights were given for 2 adapters"),
        (("--rule", "weighted", "--weights", "1,x"), "is no list of numbers"),
        (("--rule", "weighted", "--weights", "1,nan"), "is not finite"),
        (("--scale", "inf"), "scale is inf"),
        (("--scale", "1e300"), "is too large for float32"),
        (("--rule", "weighted", "--weights", "1,-1"), "is zero on every layer"),
        (("--rule", "dare", "--drop", "0.9999999", "--rank", "4"), "is zero on every layer"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, lamella: Run
) -> None:
    peft_folder(tmp_path / "a", 1)
    code, _, err = lamella("merge", tmp_path / "a", tmp_path / "a", *arguments, "--out", tmp_path / "c")
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_model_that_chooses_adapters_is_refused_with_a_way_out(tmp_path: Path) -> None:
    learner = learned("color", blocks=1)
    learner.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"chooses adapters for each sample.*--per-task") as error:
        read_source(tmp_path / "model")
    assert "\n" not in str(error.value)
