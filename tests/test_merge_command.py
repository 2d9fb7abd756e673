"""`lamella merge`: adapters of models and of PEFT become one folder, which PEFT and a backbone load."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image
from safetensors.torch import load_file, save_file
from streams import stream
from test_export import VIT, learned

from lamella import Learner, load_backbone
from lamella.adapters.merging import Merging, merged
from lamella.adapters.pairs import Pair
from lamella.data.answers import Answer, AnswerSet
from lamella.data.scenario import Source as Data
from lamella.data.sources.readable import load_readable
from lamella.learner.merge.folder import merge_folders
from lamella.learner.merge.searched import TEMPERATURES, leave_one_out_loss, search_weights
from lamella.learner.merge.sources import Source, read_source
from lamella.testing.answers import tiny_causal

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


def few_images(place: Path, *, per_class: int = 4, classes: int = 3) -> Path:
    """An archive of images of noise around a colour of each class."""
    rng = np.random.default_rng(0)
    y = np.arange(classes).repeat(per_class)
    pixels = np.clip(12 * y[:, None, None, None] + rng.normal(90, 60, (len(y), 16, 16, 3)), 0, 255).astype(np.uint8)
    np.savez(place, x_train=pixels, y_train=y, x_test=pixels[:0], y_test=y[:0])
    return place


@pytest.fixture
def two_models(tmp_path: Path) -> list[Path]:
    """Two models that were learned apart."""
    for place, number in (("north", 0), ("south", 1)):
        table = {"name": "seq-lora", "epochs": 2, "batch_size": 8, "rank": 2, "lr": 0.05}
        learner = Learner.create(backbone=VIT | {"name": "test_vit"}, method=table, fit={"device": "cpu"})
        learner.learn(stream(classes=4, tasks=2, per_class=4)[number])
        learner.save(tmp_path / place)
    return [tmp_path / "north", tmp_path / "south"]


def test_the_loss_of_a_sample_is_that_without_it() -> None:
    x, y, all_ = (
        torch.randn(12, 5, generator=torch.Generator().manual_seed(0)).double(),
        torch.arange(12) % 3,
        range(12),
    )
    others = [[[j for j in all_ if y[j] == c and j != i] for c in range(3)] for i in all_]
    squares = torch.stack([torch.stack([(x[i] - x[own].mean(0)).square().sum() for own in others[i]]) for i in all_])
    squares = squares.double()
    unit = squares[torch.arange(12), y].mean()
    wanted = min(float(torch.nn.functional.cross_entropy(-squares / (unit * t), y)) for t in TEMPERATURES)
    assert leave_one_out_loss(x, y) == pytest.approx(wanted, rel=1e-5)
    assert leave_one_out_loss(7 * x, y + 4) == pytest.approx(wanted, rel=1e-5), "neither scale nor names count"


def test_weights_are_searched_by_a_few_samples(two_models: list[Path], tmp_path: Path, lamella: Run) -> None:
    pytest.importorskip("cmaes")
    few = few_images(tmp_path / "few.npz")
    sources = [read_source(place) for place in two_models]
    backbone = sources[0].backbone
    assert backbone is not None
    found = search_weights(sources, copy.deepcopy(backbone), load_readable(few).whole, evaluations=60)
    before, after = (float(number) for number in re.findall(r"from ([\d.]+) to ([\d.]+)", found.told)[0])
    assert after < before
    assert found.told.startswith("found on 12 images of 3 classes: ")

    merge_folders(two_models, tmp_path / "c", Merging("weighted"), weights=found.weights)
    merged_one = read_source(tmp_path / "c")
    with torch.no_grad():
        for layer, pair in merged_one.pairs.items():
            backbone.model.get_parameter(f"{layer}.weight").add_(pair.delta().float())
    data = load_readable(few).whole.train
    x = data.batch(torch.arange(len(data)), backbone.transform.view(torch.device("cpu")))
    assert leave_one_out_loss(backbone(x), data.labels) == pytest.approx(after, abs=2e-3)

    code, out, err = lamella("merge", *two_models, "--rule", "weighted", "--samples", few, "--out", tmp_path / "d")
    assert (code, err) == (0, "")
    assert "found on 12 images of 3 classes: " in out
    assert f"for {two_models[1]}; the loss fell from {before:.3f} to " in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rule", "tsv"), "samples are for the rule 'weighted', in place of weights"),
        (("--rule", "weighted", "--weights", "1,1"), "samples are for the rule 'weighted', in place of weights"),
        (("--rule", "weighted", "--backbone", "hashed-words"), "changes the layer 'blocks.0.attn.qkv'"),
    ],
)
def test_samples_that_do_not_fit_are_refused_in_one_line(
    options: tuple[str, ...], message: str, two_models: list[Path], tmp_path: Path, lamella: Run
) -> None:
    few = few_images(tmp_path / "few.npz")
    code, _, err = lamella("merge", *two_models, "--samples", few, *options, "--out", tmp_path / "d")
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_what_is_left_out_of_the_samples_is_said(two_models: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("cmaes")
    few = np.load(few_images(tmp_path / "few.npz"))
    for i, (pixels, label) in enumerate(zip(few["x_train"], few["y_train"], strict=True)):
        (tmp_path / "few" / "abc"[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "few" / "abc"[label] / f"{i}.png")
    (tmp_path / "few" / "a" / "bad.png").write_bytes(b"no image")
    lines = merge_folders(two_models, tmp_path / "c", Merging("weighted"), samples=tmp_path / "few")
    assert lines[0].startswith("found on 12 images of 3 classes: ")
    assert lines[1].startswith("left out of the samples, cannot be read: 1 image; the first is a/bad.png: ")

    model = tiny_causal()
    weight = dict(model.model.named_parameters())["network.model.layers.0.self_attn.q_proj.weight"]
    pair = Pair(torch.ones(1, weight.shape[1]), torch.ones(len(weight), 1))
    source = Source(tmp_path / "m", {"model.layers.0.self_attn.q_proj": pair}, None, None, False, "", model)
    answers = AnswerSet([Answer.to("a", "bb"), Answer.to("a", "b" * 500)])
    found = search_weights([source], model, Data("s", answers, answers.subset([]), ()), evaluations=20)
    assert found.told.startswith("found on 1 answer (1 more do not fit into the model): ")


def test_samples_must_show_what_separates_classes(two_models: list[Path], tmp_path: Path) -> None:
    search = lambda few: merge_folders(two_models, tmp_path / "d", Merging("weighted"), samples=few)  # noqa: E731
    with pytest.raises(ValueError, match=r"class '0' of 'one' has one image; give two at least of each class"):
        search(few_images(tmp_path / "one.npz", per_class=1))
    with pytest.raises(ValueError, match=r"'single' has one class, and weights are found by what separates classes"):
        search(few_images(tmp_path / "single.npz", classes=1))
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(f"word {i},{'ab'[i % 2]}" for i in range(8)))
    with pytest.raises(ValueError, match="holds texts, and 'test_vit' takes images"):
        search(tmp_path / "t.csv")
    peft_folder(tmp_path / "a", 1)
    with pytest.raises(ValueError, match="does not say which network it belongs to; weights are searched on it, so"):
        merge_folders([tmp_path / "a"], tmp_path / "d", Merging("weighted"), samples=few_images(tmp_path / "few.npz"))
    with pytest.raises(ValueError, match="the backbone is needed to search weights with samples, and there are none"):
        merge_folders([tmp_path / "a"], tmp_path / "d", Merging(), backbone="test_vit")


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
        (("--rule", "average"), "rule 'average' is unknown; use one of sum, mean, weighted, ties, dare, elect"),
        (("--rule", "regmean"), "needs the inputs"),
        (("--rule", "ties"), "say by --rank"),
        (("--rule", "weighted"), "needs weights, a number for each adapter (--weights 1,0.5), or samples"),
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


def test_a_model_that_trains_nothing_is_named_and_left_out(tmp_path: Path) -> None:
    learned("nearest-mean").save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"there is no adapter; leave '.*model' out, since only LoRAs are merged$"):
        read_source(tmp_path / "model")


def test_a_model_that_starts_from_a_merge_says_so(tmp_path: Path, lamella: Run) -> None:
    learner = Learner.create(method={"name": "seq-lora", "epochs": 1, "rank": 2}, fit={"device": "cpu"})
    learner.learn(stream(classes=2, tasks=1, per_class=4)[0])
    learner.save(tmp_path / "north")
    assert lamella("merge", tmp_path / "north", "--rule", "sum", "--out", tmp_path / "lora")[0] == 0
    few, named = few_images(tmp_path / "few.npz"), f"fractal-vit-micro+{tmp_path / 'lora'}"
    code, out, err = lamella("learn", tmp_path / "new", few, "--method", "nearest-mean", "--backbone", named)
    assert code == 0, err
    assert f"new model: nearest-mean on {named} at " in out
