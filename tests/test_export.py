"""Exports: others load them without Lamella, they compute what the model computes, and what cannot be says why not."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from streams import stream, tiny_backbone
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from lamella import Learner
from lamella.adapters.pairs import low_rank
from lamella.backbones import load_backbone
from lamella.learner.export import export
from lamella.learner.export.check import Check, compare, random_samples
from lamella.learner.export.drafts import atomic_output
from lamella.methods.shared.heads import OTHER_TASK_PENALTY
from lamella.methods.shared.routing import ROUTERS

VIT = {"name": "test_vit", "weights": "random", "size": 32, "crop": 1.0}
OUTSIDE = """
import sys
sys.modules["lamella"] = None  # so that importing it fails
import json, timm, torch
from pathlib import Path
from peft import PeftModel
from safetensors.torch import load_file
folder, images = Path(sys.argv[1]), load_file(sys.argv[2])["images"]
config = json.loads((folder / "timm" / "config.json").read_text())

def new():
    return timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])

plain = new()
plain.load_state_dict(load_file(folder / "timm" / "model.safetensors"))
at_once = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True)
adapted = new()
adapted.load_state_dict(load_file(folder / "peft" / "base.safetensors"), strict=False)
adapted = PeftModel.from_pretrained(adapted, str(folder / "peft"))
with torch.no_grad():
    found = {"timm": plain.eval()(images), "at_once": at_once.eval()(images), "peft": adapted.eval()(images)}
assert not [name for name in sys.modules if name.startswith("lamella.")]
print(json.dumps({name: logits.tolist() for name, logits in found.items()}))
"""


@register_model
def two_blocks(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """A transformer whose graph is small: the time of ONNX's exporter goes by the number of nodes."""
    size = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return VisionTransformer(**size, num_classes=options["num_classes"])


OF_ALIGN = ("own_covariance", "own_directions", "head")
CLASS_TOKENS: dict[str, Any] = {"tokens": "class", "sites": ("out", "mlp"), "residual": "none", "calibration": 0}


@cache
def learned(method: str, part: str = "", backbone: str = "test_vit", **options: Any) -> Learner:
    """A learner of two tasks of two classes; `part`: align or calibrate, `options`: of the method, or of align."""
    quick = {} if method in ("nearest-mean", "streaming-lda") else {"epochs": 2, "batch_size": 8}
    of_part = {key: options.pop(key) for key in list(options) if part and key in OF_ALIGN}
    table = {"name": method, **quick, **options} | ({part: of_part} if part else {})
    of_backbone = VIT | {"name": backbone} | ({"size": 16} if backbone == "resnet20" else {})
    learner = Learner.create(backbone=of_backbone, method=table, fit={"device": "cpu"})
    for task in stream(classes=4, tasks=2, per_class=4):
        learner.learn(task)
    return learner


def images(count: int = 3, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def run_onnx(file: Path, x: Tensor) -> Tensor:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def assert_same(logits: Any, expected: Tensor) -> None:
    torch.testing.assert_close(
        torch.as_tensor(logits), expected.float(), rtol=0, atol=1e-4 * float(expected.abs().max())
    )


def test_timm_and_peft_load_it_without_lamella(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from safetensors.torch import save_file

    learner = learned("inflora", "align")
    for form in ("timm", "peft"):
        export(learner.model, form, tmp_path / form)
    x = images()
    save_file({"images": x}, tmp_path / "images.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDE, str(tmp_path), str(tmp_path / "images.safetensors")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for logits in (found["timm"], found["at_once"], found["peft"]):
        assert_same(logits, learner.logits(x))


@pytest.mark.parametrize(
    ("method", "part", "options"),
    [("seq-lora", "", {}), ("sdlora", "", {}), ("olora", "align", {"head": "refit"}), ("seq-finetune", "", {}),
     ("e2lora", "", {}), ("loda", "", {"head": "linear"}), ("streaming-lda", "", {}), ("linear-probe", "", {})],
)  # fmt: skip
def test_timm_computes_what_the_method_computes(
    method: str, part: str, options: dict[str, Any], tmp_path: Path
) -> None:
    import timm
    from safetensors.torch import load_file

    learner = learned(method, part, **options)
    export(learner.model, "timm", tmp_path / "model")
    model = timm.create_model("test_vit", num_classes=4, img_size=32).eval()
    model.load_state_dict(load_file(tmp_path / "model" / "model.safetensors"))
    x = images()
    with torch.no_grad():
        assert_same(model(x), learner.logits(x))


def test_the_bundled_backbone_is_one_of_timms(tmp_path: Path) -> None:
    import timm

    learner = Learner.create(method="streaming-lda", fit={"device": "cpu"})
    learner.learn(stream(classes=4, tasks=1, per_class=4)[0])
    export(learner.model, "timm", tmp_path / "model")
    model = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    with torch.no_grad():
        assert_same(model(images()), learner.logits(images()))


def assert_described(notes: dict[str, str], learner: Learner) -> None:
    assert json.loads(notes["class_names"]) == [learner.class_names[i] for i in learner.method.classes]
    transform = json.loads(notes["transform"])
    assert (transform["size"], transform["interpolation"]) == (32, learner.backbone.transform.interpolation)
    assert transform["mean"] == list(learner.backbone.transform.mean)
    assert float(notes["temperature"]) == learner.confidence.temperature


def test_names_and_transform_travel_in_every_form(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from safetensors import safe_open

    learner = learned("seq-lora")
    places = {"timm": "model.safetensors", "peft": "adapter_model.safetensors", "adapters": "learned.safetensors"}
    for form, file in places.items():
        learner.export(tmp_path / form, form)
        with safe_open(tmp_path / form / file, "pt") as opened:
            assert_described(opened.metadata(), learner)
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert config["label_names"] == [learner.class_names[i] for i in learner.method.classes]


def test_alignment_is_one_layer_of_an_onnx_file_that_takes_batches_of_any_size(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    learner, file = learned("inflora", "align", "two_blocks"), tmp_path / "model.onnx"
    export(learner.model, "onnx", file)
    model = onnx.load(file)
    assert_described({p.key: p.value for p in model.metadata_props}, learner)
    ends = [value.type.tensor_type.shape.dim for value in (*model.graph.input, *model.graph.output)]
    shapes = [[axis.dim_param or axis.dim_value for axis in end] for end in ends]
    assert shapes == [["n", 3, 32, 32], ["n", 4]]
    assert [node.op_type for node in model.graph.node][-1] == "Gemm"
    for count in (1, 7):
        assert_same(run_onnx(file, images(count)), learner.logits(images(count)))


def test_covariances_of_a_few_directions_are_products_in_an_onnx_file_without_a_loop(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    learner, file = learned("inflora", "align", "two_blocks", own_covariance=0.2, own_directions=3), tmp_path / "m.onnx"
    assert "the graph runs whole batches" in export(learner.model, "onnx", file)
    assert not {node.op_type for node in onnx.load(file).graph.node} & {"Scan", "Loop"}
    for count in (1, 4, 7):
        assert_same(run_onnx(file, images(count)), learner.logits(images(count)))


def test_peft_holds_the_exact_change_in_its_rank_and_leaves_the_query_alone(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from safetensors.torch import load_file

    learner = learned("inflora", rank=3)
    lines = export(learner.model, "peft", tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    loaded = Learner(learner.config).backbone.model.state_dict()
    width = learner.backbone.width
    for name, rank in config["rank_pattern"].items():
        A, B = (tensors[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
        change = learner.backbone.model.state_dict()[f"{name}.weight"] - loaded[f"{name}.weight"]
        assert len(A) == rank <= 6, "two tasks of rank 3"
        assert not B[:width].any()
        torch.testing.assert_close(B @ A, change, rtol=0, atol=1e-6)
    assert any(line.startswith("rank ") and "layers" in line for line in lines)


def test_the_rank_is_that_of_the_update_not_of_rounding() -> None:
    draw = torch.Generator().manual_seed(0)
    W = torch.randn(96, 32, generator=draw)
    change = torch.randn(96, 4, generator=draw) @ torch.randn(4, 32, generator=draw) / 100
    folded = W + change  # rounds every entry
    pair = low_rank(folded - W, W)
    assert len(pair.A) == 4
    torch.testing.assert_close(pair.B @ pair.A, change, rtol=0, atol=2e-6)
    assert len(low_rank(torch.zeros(96, 32), W).A) == 0


def changes(folder: Path) -> dict[str, Tensor]:
    """By layer the change B A that a folder of PEFT holds, (d_out, d_in)."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    of_A = {key: tensor for key, tensor in tensors.items() if key.endswith("lora_A.weight")}
    return {key: tensors[key.replace("lora_A", "lora_B")].double() @ A.double() for key, A in of_A.items()}


def test_a_rank_truncates_each_layer_to_the_nearest_and_says_what_it_keeps_and_costs(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    learner = learned("inflora", rank=3)
    learner.export(tmp_path / "whole", "peft")
    lines = learner.export(tmp_path / "two", "peft", rank=2)
    whole, two, shares = changes(tmp_path / "whole"), changes(tmp_path / "two"), []
    for name, change in whole.items():
        U, S, Vh = torch.linalg.svd(change)
        torch.testing.assert_close(two[name], U[:, :2] * S[:2] @ Vh[:2], rtol=0, atol=1e-6 * float(S[0]))
        shares.append(float(S[:2].square().sum() / S.square().sum()))
    (told,) = [line for line in lines if line.startswith("truncated from")]
    least, mean = (float(share) for share in re.findall(r"([\d.]+) %", told))
    assert abs(least - 100 * min(shares)) < 0.011
    assert abs(mean - 100 * sum(shares) / len(shares)) < 0.011
    assert least < 100
    assert "rank 2 on" in lines[1]


def test_the_cost_of_truncation_is_the_distance_of_the_logits_of_the_export_from_the_model(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import timm
    from safetensors.torch import load_file

    learner = learned("inflora", rank=3)
    lines = learner.export(tmp_path / "one", "peft", rank=1)
    (told,) = [line for line in lines if "differs from the model" in line]
    network = timm.create_model("test_vit", num_classes=4, img_size=32)
    network.load_state_dict(load_file(tmp_path / "one" / "base.safetensors"), strict=False)
    network = peft.PeftModel.from_pretrained(network, str(tmp_path / "one")).eval()
    x = random_samples(learner.backbone, 16)
    with torch.no_grad():
        wanted, found = learner.logits(x), network(x)
    distance = float((wanted - found).abs().max())
    assert distance > 1e-3
    assert float(re.findall(r"up to ([\d.e+-]+) in its logits", told)[0]) == pytest.approx(distance, rel=0.06)
    assert f"same class for {int((wanted.argmax(1) == found.argmax(1)).sum())} of 16 random images" in told


def test_an_energy_gives_each_layer_the_smallest_rank_that_keeps_it(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    learner = learned("inflora", rank=3)
    learner.export(tmp_path / "whole", "peft")
    learner.export(tmp_path / "cut", "peft", energy=0.9)
    ranks = json.loads((tmp_path / "cut" / "adapter_config.json").read_text())["rank_pattern"]
    for name, change in changes(tmp_path / "whole").items():
        squares = torch.linalg.svdvals(change).square()
        rank = ranks[name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")]
        assert squares[:rank].sum() >= 0.9 * squares.sum() > squares[: rank - 1].sum()


def test_truncation_says_for_each_task_what_it_costs(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lines = learned("sdlora").export(tmp_path / "tasks", "peft", per_task=True, rank=1)
    assert [line.partition(":")[0] for line in lines if "differs from the model" in line] == ["task0", "task1"]


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("timm", {"rank": 2}, "format 'timm' has no low rank to truncate; leave out --rank"),
        ("onnx", {"energy": 0.9}, "format 'onnx' has no low rank"),
        ("adapters", {"rank": 2}, "format 'adapters' has no low rank"),
        ("peft", {"rank": 0}, "rank 0 is too small; give at least 1"),
        ("peft", {"energy": 1.5}, "energy 1.5 must be above 0 and at most 1"),
        ("peft", {"energy": float("nan")}, "energy nan must be above 0"),
        ("peft", {"rank": 2, "energy": 0.9}, "either to a rank .* or to a share"),
    ],
)
def test_truncation_that_cannot_be_is_refused_in_one_line(
    form: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        learned("seq-lora").export(tmp_path / "out", form, **options)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["color", "sdlora"])
def test_tasks_kept_apart_become_a_folder_each(method: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import timm
    from safetensors.torch import load_file

    learner = learned(method)
    export(learner.model, "peft", tmp_path / "tasks", per_task=True)
    assert sorted(p.name for p in (tmp_path / "tasks").iterdir()) == ["task0", "task1"]
    x, every = images(), learner.method.classes
    for t in range(2) if method == "color" else ():
        folder = tmp_path / "tasks" / f"task{t}"
        model = timm.create_model("test_vit", num_classes=2, img_size=32)
        model.load_state_dict(load_file(folder / "base.safetensors"), strict=False)
        model = peft.PeftModel.from_pretrained(model, str(folder)).eval()
        own = [every.index(c) for c in learner.tasks[t].classes]
        with torch.no_grad():
            assert_same(model(x), learner.logits(x, task=t)[:, own])


@pytest.mark.parametrize(
    ("method", "part", "options"),
    [
        pytest.param("inflora", "align", {"own_covariance": 0.2, "own_directions": "all"}, marks=pytest.mark.slow),
        pytest.param("duallora", "", {"blocks": 1}, marks=pytest.mark.slow),  # the third has all that these two have
        pytest.param("duallora", "", CLASS_TOKENS | {"calibration": 1}, marks=pytest.mark.slow),
        pytest.param(
            *("duallora", "", CLASS_TOKENS | {"residual": "current", "gate": "vector", "calibration": 1}),
            marks=pytest.mark.slow,
        ),
        ("color", "", {"blocks": 1}),
        *(pytest.param("color", "", {"blocks": 1, "router": r}, marks=pytest.mark.slow) for r in ROUTERS[1:]),
        pytest.param("coda-prompt", "", {"blocks": 1}, marks=pytest.mark.slow),
        pytest.param("loda", "", {"blocks": 1}, marks=pytest.mark.slow),  # its heads and branches are those of others
    ],
)
def test_onnx_computes_the_whole_prediction_for_batches_of_any_size(
    method: str, part: str, options: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    learner = learned(method, part, "two_blocks", **options)
    export(learner.model, "onnx", tmp_path / "model.onnx")
    for count in (1, 4, 7):
        assert_same(run_onnx(tmp_path / "model.onnx", images(count)), learner.logits(images(count)))


def test_adapters_are_the_learned_tensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    learner = learned("seq-lora")
    export(learner.model, "adapters", tmp_path / "numbers")
    tensors = load_file(tmp_path / "numbers" / "learned.safetensors")
    assert torch.equal(tensors["heads.heads.1.weight"], learner.method.heads[1].weight)
    assert {k for k in tensors if ".branches.lora." in k}, "the adapter is among them"
    assert set(json.loads((tmp_path / "numbers" / "learned.json").read_text())["tensors"]) == set(tensors)


@pytest.mark.parametrize("form", ["timm", "peft", "adapters"])
def test_who_can_read_new_files_can_read_all_files_of_an_export(form: str, tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    export(learned("seq-lora").model, form, tmp_path / "out")
    modes = {file.stat().st_mode for file in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "usual").stat().st_mode}


def test_no_image_of_a_memory_is_exported(tmp_path: Path) -> None:
    learner = learned("replay", backbone="resnet20", memory=4)
    export(learner.model, "adapters", tmp_path / "numbers")
    listed = json.loads((tmp_path / "numbers" / "learned.json").read_text())["tensors"]
    assert not [name for name, of in listed.items() if of["dtype"] == "uint8"]


@pytest.mark.parametrize(
    ("form", "method", "part", "options", "message"),
    [
        ("timm", "inflora", "align", {"own_covariance": 0.2}, "--readout base"),
        ("timm", "color", "", {}, "for each image.*--format onnx"),
        ("timm", "coda-prompt", "", {}, "makes prompts for each image.*--format onnx"),
        ("timm", "duallora", "", CLASS_TOKENS, "act on class tokens alone.*--format onnx"),
        ("peft", "duallora", "", CLASS_TOKENS, "act on class tokens alone.*--format onnx"),
        ("timm", "nearest-mean", "", {}, "one linear layer.*--format onnx"),
        ("peft", "seq-finetune", "", {}, "this method changed .*--format timm"),
        ("peft", "linear-probe", "", {}, "no weight of the backbone changed"),
    ],
)  # fmt: skip
def test_what_cannot_be_says_why_and_what_else(
    form: str, method: str, part: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if form == "peft":
        pytest.importorskip("peft")
    with pytest.raises(ValueError, match=message) as error:
        export(learned(method, part, **options).model, form, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_own_heads_beneath_a_discriminant_are_exported_by_their_readout(tmp_path: Path) -> None:
    import timm

    learner = learned("inflora", "align", own_covariance=0.2)
    export(learner.model, "timm", tmp_path / "heads", readout="base")
    model = timm.create_model(f"local-dir:{tmp_path / 'heads'}", pretrained=True).eval()
    with torch.no_grad():
        assert_same(model(images()), learner.method.base.predict(images()))
    with pytest.raises(ValueError, match="no readout 'bse'; use 'base', or leave it out for the model's own"):
        export(learner.model, "timm", tmp_path / "more", readout="bse")
    with pytest.raises(ValueError, match="no readout 'base'; its method is built on no other, so leave it out"):
        export(learned("seq-lora").model, "timm", tmp_path / "more", readout="base")


def test_a_timm_checkpoint_is_a_start_for_a_new_model(tmp_path: Path) -> None:
    learner = learned("seq-finetune")
    export(learner.model, "timm", tmp_path / "tuned")
    again = load_backbone("test_vit", weights=str(tmp_path / "tuned" / "model.safetensors"), size=32)
    with torch.no_grad():
        torch.testing.assert_close(again(images()), learner.backbone(images()), rtol=0, atol=1e-5)


def test_networks_that_timm_does_not_build_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    for form in ("timm", "peft"):
        with pytest.raises(ValueError, match=r"'resnet20' is no network that timm builds.*--format onnx"):
            export(learned("replay", backbone="resnet20", memory=4), form, tmp_path / "out")


def test_tasks_that_were_folded_into_one_weight_are_not_taken_apart(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="this method keeps no adapter for each task"):
        export(learned("inflora"), "peft", tmp_path / "out", per_task=True)


def test_an_export_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lamella.learner.export.network.added", lambda weight, acting: torch.zeros(weight.shape)
    )  # forgets them
    with pytest.raises(RuntimeError, match="does not compute what the model computes, so it was not kept"):
        export(learned("seq-lora"), "timm", tmp_path / "deep" / "out")
    assert not list(tmp_path.iterdir())


def test_the_tolerance_is_a_share_of_the_largest_logit() -> None:
    base, backbone = torch.tensor([[100.0, 0.0]]), tiny_backbone()

    def logits(shift: float) -> Any:
        return lambda x: base.repeat(len(x), 1) + shift

    found = compare(logits(0), logits(0.009), backbone)
    assert found == Check(pytest.approx(0.009, rel=1e-2), 100.0, 6, "image")  # pyright: ignore
    for wrong in (0.011, float("nan")):
        with pytest.raises(RuntimeError, match=r"allowed 1\.0e-02"):
            compare(logits(0), logits(wrong), backbone)
    with pytest.raises(RuntimeError, match="shape"):
        compare(logits(0), lambda x: base, backbone)


def test_logits_of_tasks_that_are_ruled_out_do_not_widen_the_tolerance() -> None:
    base, backbone = torch.tensor([[10.0, 0.0, -OTHER_TASK_PENALTY - 10]]), tiny_backbone()

    def logits(*shift: float) -> Any:
        return lambda x: base.repeat(len(x), 1) + torch.tensor(shift)

    found = compare(logits(0, 0, 0), logits(0.0005, 0, 0.5), backbone)
    assert (found.largest, found.difference) == (10.0, pytest.approx(0.0005, rel=1e-2))
    for wrong, allowed in ((logits(0.01, 0, 0), r"1\.0e-03"), (logits(0, 0, 2.0), r"1\.0e\+00")):
        with pytest.raises(RuntimeError, match=f"allowed {allowed}"):
            compare(logits(0, 0, 0), wrong, backbone)


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="exists already"), atomic_output(tmp_path / "there"):
        pass

    def interrupted() -> None:
        with atomic_output(tmp_path / "new" / "model") as place:
            place.mkdir()
            (place / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RuntimeError, match=r"pip install 'lamella\[peft\]'"):
        export(learned("seq-lora"), "peft", tmp_path / "out")


def test_the_command_prints_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from lamella.cli import main

    learned("seq-lora").save(tmp_path / "model")
    monkeypatch.setattr(
        sys, "argv", ["lamella", "export", str(tmp_path / "model"), "--format", "timm", "--out", str(tmp_path / "out")]
    )
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    assert not left.value.code, err
    assert "largest difference of logits" in out
    assert "allowed" in out
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_example_learns_folders_and_its_exports_say_what_its_model_says(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    example = Path(__file__).parents[1] / "examples" / "export.py"
    done = subprocess.run([sys.executable, example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    right, of = map(int, re.findall(r"tuesday: (\d+) of (\d+) held-back images right", done.stdout)[0])
    assert right > 0.7 * of, "four classes, so chance is a quarter; 57 of 57 when this was written"
    assert "never learned" in done.stdout
    learner = Learner.load(tmp_path / "model")
    assert [task.name for task in learner.tasks] == ["monday", "tuesday"]
    assert_same(run_onnx(tmp_path / "model.onnx", images(2)), learner.logits(images(2)))
    assert (tmp_path / "model-timm" / "model.safetensors").is_file()
