"""Variants of branches: each computes what PEFT's layer does, and is refused where it breaks a method's claim."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from streams import Spy, build_shallow, configured, learn, learn_all, shallow_backbone, stream
from torch import Tensor, nn

from lamella import Learner, LoRA
from lamella.adapters.acting import ActingBranch, added
from lamella.adapters.adapter import Branch, Site, adapt, grow, merge, using
from lamella.backbones import load_backbone
from lamella.common.randomness import generator
from lamella.learner.export import export
from lamella.methods import METHODS
from lamella.testing import check_method
from lamella.training.variants import NEEDS, VARIANTS, broken

RANK = 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(self.conv(x).mean(1).flatten(1))))


def network() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().requires_grad_(False)


def inputs(n: int = 4) -> Tensor:
    return torch.randn(n, 2, 2, 3, generator=generator(0, "inputs"))


def grown(lora: LoRA, layers: Any = ("first", "second"), name: str = "a", **options: Any) -> tuple[Net, Any, Any]:
    model = network()
    sites = adapt(model, list(layers))
    return model, sites, lora.grow(sites, name, generator(0, name), **options)


def trained(branches: list[Branch]) -> None:
    """Numbers as training could have left them in everything that is trained."""
    draws = generator(0, "trained")
    for branch in branches:
        for factor in branch.factors:
            change = torch.randn(factor.shape, generator=draws)
            factor.data.add_(0.3 * change * (factor.abs().mean() if factor is branch.magnitude else 1))


def into_peft(tuned: Any, sites: tuple[Site, ...], branches: list[Branch]) -> None:
    """Put our numbers into PEFT's layers."""
    for site, branch in zip(sites, branches, strict=True):
        theirs = tuned.get_submodule(f"base_model.model.{site.name}")
        if branch.inner is not None:
            theirs.vera_lambda_d["default"].data.copy_(branch.inner)
            theirs.vera_lambda_b["default"].data.copy_(branch.outer)
            theirs.vera_A["default"][:, : branch.A.shape[1]] = branch.A
            theirs.vera_B["default"][: len(branch.B)] = branch.B
            continue
        theirs.base_layer.weight.data.copy_(site.layer.weight)
        theirs.lora_A["default"].weight.data.copy_(branch.A)
        theirs.lora_B["default"].weight.data.copy_(branch.B)
        if branch.magnitude is not None:
            own = theirs.lora_magnitude_vector["default"].weight
            own.data.copy_(branch.magnitude.reshape(own.shape))


FORMS: dict[str, tuple[LoRA, dict[str, Any]]] = {
    "alpha over rank": (LoRA(rank=RANK, alpha=6), {"lora_alpha": 6}),
    "alpha over the root of rank": (LoRA(rank=RANK, alpha=6, scaling="root"), {"lora_alpha": 6, "use_rslora": True}),
    "dora": (LoRA(rank=RANK, alpha=6, form="dora"), {"lora_alpha": 6, "use_dora": True}),
    "dora and root": (
        LoRA(rank=RANK, alpha=6, form="dora", scaling="root"),
        {"lora_alpha": 6, "use_dora": True, "use_rslora": True},
    ),
    "pissa": (LoRA(rank=RANK, alpha=6, start="pissa"), {"lora_alpha": 6, "init_lora_weights": "pissa"}),
    "vera": (LoRA(rank=RANK, form="vera"), {}),
}


def tuned_by_peft(name: str, layers: list[str], **more: Any) -> Any:
    peft: Any = pytest.importorskip("peft")
    options = {"r": RANK, "target_modules": layers, **FORMS[name][1], **more}
    return peft.get_peft_model(network(), (peft.VeraConfig if name == "vera" else peft.LoraConfig)(**options))


@pytest.mark.parametrize("layers", [["first", "second"], ["conv"]], ids=["linear", "convolution"])
@pytest.mark.parametrize("name", [name for name in FORMS])
def test_a_variant_computes_outputs_and_gradients_of_pefts_own_layer(name: str, layers: list[str]) -> None:
    if layers == ["conv"] and name in ("vera", "pissa"):
        pytest.skip("PEFT has it for linear layers only")
    tuned = tuned_by_peft(name, layers)
    model, sites, branches = grown(FORMS[name][0], layers)
    trained(branches)
    into_peft(tuned, sites, branches)
    ours, theirs = model(inputs()), tuned(inputs())
    torch.testing.assert_close(ours, theirs)
    for branch in branches:
        for factor in branch.factors:
            factor.requires_grad_(True)
    model(inputs()).square().sum().backward()
    tuned(inputs()).square().sum().backward()
    parts = {"A": "lora_A", "B": "lora_B", "magnitude": "lora_magnitude_vector", "inner": "vera_lambda_d"}
    parts |= {"outer": "vera_lambda_b"}
    gradients = {n: p.grad for n, p in tuned.named_parameters() if p.grad is not None}
    for site, branch in zip(sites, branches, strict=True):
        for part, factor in branch.named_parameters():
            if any(factor is f for f in branch.factors):
                (found,) = [g for n, g in gradients.items() if f"{site.name}.{parts[part]}" in n]
                torch.testing.assert_close(factor.grad, found.reshape(factor.shape))


@pytest.mark.parametrize("name", [name for name in FORMS if name != "alpha over rank"])
def test_a_variant_starts_without_changing_outputs_and_folds_into_what_it_was(name: str) -> None:
    lora = FORMS[name][0]
    model, sites, branches = grown(lora, ["conv", "first", "second"] if name != "vera" else ["first", "second"])
    torch.testing.assert_close(model(inputs()), network()(inputs()), rtol=0, atol=1e-5)
    trained(branches)
    with using(sites, {"a": 0.5}):
        halved = model(inputs())
    half = copy.deepcopy(model)
    layers: dict[str, Any] = dict(half.named_modules())
    for name_, layer in layers.items():
        for site, branch in zip(sites, branches, strict=True):
            if name_ == site.name:
                layer.weight.data += added(site.layer.weight, [ActingBranch("a", branch, 0.5)]).float()
                del layer.branches["a"]
    torch.testing.assert_close(half(inputs()), halved, rtol=0, atol=1e-5)
    before = model(inputs())
    merge(sites, "a")
    torch.testing.assert_close(model(inputs()), before, rtol=0, atol=1e-5)


def test_coefficients_of_samples_weigh_the_whole_update_of_dora() -> None:
    model, sites, branches = grown(LoRA(rank=RANK, form="dora"), ["conv", "first", "second"])
    other = LoRA(rank=2, form="dora").grow(sites, "b", generator(0, "b"))
    trained([*branches, *other])
    x, weights = inputs(), torch.tensor([0.0, 1.0, 0.25, -1.0])
    with using(sites, {"a": weights, "b": 1 - weights}):
        found = model(x)
    for i, w in enumerate(weights.tolist()):
        with using(sites, {"a": w, "b": 1 - w}):
            torch.testing.assert_close(found[i : i + 1], model(x[i : i + 1]), rtol=0, atol=1e-5)


def test_dora_turns_rows_of_a_weight_so_it_has_no_class_tokens_and_no_coefficients_of_directions() -> None:
    sites = adapt(network(), ["first", "second"])
    with pytest.raises(ValueError, match="use tokens = 'all'"):
        grow(sites, "b", 2, form="dora", tokens="class")
    grow(sites, "c", 2, form="dora")
    with using(sites, {"c": torch.ones(4, 2)}), pytest.raises(ValueError, match="one value for each of the 4 samples"):
        sites[0].layer(torch.ones(4, sites[0].layer.weight.shape[1]))


@pytest.mark.parametrize("form", ["dora", "vera"])
def test_a_branch_of_another_form_comes_back_from_its_state(form: str) -> None:
    model, _, branches = grown(LoRA(rank=RANK, form=form))
    trained(branches)
    again = network()
    adapt(again, ["first", "second"])
    again.load_state_dict(model.state_dict())
    assert again(inputs()).equal(model(inputs()))
    sites = adapt(network(), "conv")
    with pytest.raises(ValueError, match="'kernel' have no form"):
        grow(sites, "b", 2, factorisation="kernel", form=form)


def test_pissa_and_milora_take_the_named_part_of_the_weight() -> None:
    for start, part in (("pissa", slice(RANK)), ("milora", slice(5 - RANK, 5))):
        _, (site,), (branch,) = grown(LoRA(rank=RANK, alpha=6, start=start), ["second"])
        weight = network().second.weight
        U, s, Vh = torch.linalg.svd(weight, full_matrices=False)
        torch.testing.assert_close(branch.delta(weight.shape), U[:, part] @ torch.diag(s[part]) @ Vh[part])
        torch.testing.assert_close(branch.A @ branch.A.T, torch.diag(s[part] / 2), rtol=0, atol=1e-5)
        torch.testing.assert_close(site.layer.weight + branch.delta(weight.shape), weight)
    with pytest.raises(ValueError, match="has 5 singular values for a branch to start with, and the rank is 6"):
        grown(LoRA(rank=6, start="pissa"), ["second"])


def test_the_starts_of_pissa_are_pefts() -> None:
    tuned = tuned_by_peft("pissa", ["first", "second"])
    _, sites, branches = grown(FORMS["pissa"][0])
    for site, branch in zip(sites, branches, strict=True):
        theirs = tuned.get_submodule(f"base_model.model.{site.name}")
        torch.testing.assert_close(theirs.base_layer.weight, site.layer.weight, rtol=0, atol=1e-6)
        product = theirs.lora_B["default"].weight @ theirs.lora_A["default"].weight
        torch.testing.assert_close(branch.B @ branch.A, product, rtol=0, atol=1e-6)


def test_orthonormal_rows_are_orthonormal_and_drawn_by_name() -> None:
    _, _, (one, *_) = grown(LoRA(rank=RANK, start="orthonormal"))
    _, _, (again, *_) = grown(LoRA(rank=RANK, start="orthonormal"))
    torch.testing.assert_close(one.A @ one.A.T, torch.eye(RANK))
    assert one.A.equal(again.A)
    assert not one.B.any()


def spectrum() -> tuple[Tensor, Tensor]:
    """A second moment (6, 6) with known eigenvectors and energies 8, 4, 2, 1, 0.5, 0.5, of 16."""
    Q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator(0, "Q")))
    return (Q * torch.tensor([8, 4, 2, 1, 0.5, 0.5])) @ Q.T, Q


def test_eva_reads_the_leading_directions_of_the_inputs() -> None:
    G, Q = spectrum()
    _, _, (branch,) = grown(LoRA(rank=RANK, start="eva"), ["first"], moments={"first": G})
    torch.testing.assert_close((branch.A.double() @ Q).abs(), torch.eye(6).double()[:RANK], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="second moment of the inputs of layer 'first' is needed"):
        grown(LoRA(rank=RANK, start="eva"), ["first"])


def test_eva_has_the_directions_that_peft_finds_in_centred_inputs() -> None:
    peft: Any = pytest.importorskip("peft")
    x = torch.randn(200, 6, generator=generator(0, "x")) @ torch.diag(torch.tensor([5.0, 3.0, 2.0, 0.5, 0.4, 0.3]))
    x = x - x.mean(0)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=RANK, target_modules=["0"], init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.0))
    tuned = peft.get_peft_model(nn.Sequential(nn.Linear(6, 8)), config)
    peft.initialize_lora_eva_weights(
        tuned,
        [x] * 3,
        forward_fn=lambda m, b: m(b),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    theirs = tuned.base_model.model[0].lora_A["default"].weight
    _, _, (branch,) = grown(LoRA(rank=RANK, start="eva"), ["first"], moments={"first": x.double().T @ x.double()})
    torch.testing.assert_close((branch.A @ theirs.T).abs(), torch.eye(RANK), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("share", "rank"), [(0.5, 1), (0.51, 2), (0.75, 2), (0.9, 4), (1.0, 4)])
def test_the_rank_is_the_smallest_that_explains_the_share(share: float, rank: int) -> None:
    lora = LoRA(rank=4, alpha=8, explained=share)
    _, _, (branch,) = grown(lora, ["first"], moments={"first": spectrum()[0]})
    assert branch.rank == rank
    assert branch.scale == 2, "the scale is that of the recipe, so that it does not depend on the data"


def test_the_rate_of_b_is_that_of_pefts_lora_plus() -> None:
    peft: Any = pytest.importorskip("peft")
    from peft.optimizers import create_loraplus_optimizer

    _, sites, branches = grown(LoRA(rank=RANK, b_rate=16))
    weights = [f for b in branches for f in b.factors]
    ours = {len(g["params"]): g.get("lr") for g in LoRA(b_rate=16).groups(weights, sites, 0.01)}
    groups = LoRA(rank=RANK, b_rate=16).groups(weights, sites, 0.01)
    assert [id(w) for w in groups[1]["params"]] == [id(b.B) for b in branches]
    assert ours == {2: 0.16}
    assert "lr" not in groups[0]
    assert LoRA().groups(weights, sites, 0.01) == [{"params": weights}]
    tuned = peft.get_peft_model(network(), peft.LoraConfig(r=RANK, target_modules=["first", "second"]))
    theirs = create_loraplus_optimizer(tuned, torch.optim.SGD, lr=0.01, loraplus_lr_ratio=16)
    assert {g["lr"] for g in theirs.param_groups if g["params"]} == {0.01, 0.16}


# methods --------------------------------------------------------------------------------------------------------------

WITH_LORA = ("seq-lora", "olora", "ewc-lora", "lora-sub", "color", "sdlora", "ranpac", "inflora", "splitlora", "loda")
SETTINGS: dict[str, dict[str, Any]] = {
    "alpha": {"alpha": 4.0},
    'scaling = "root"': {"alpha": 4.0, "scaling": "root"},
    "b_rate": {"b_rate": 4.0},
    "dropout": {"dropout": 0.1},
    "explained": {"explained": 0.8},
} | {
    f'{key} = "{value}"': {key: value}
    for key, value in (
        ("start", "orthonormal"), ("start", "eva"), ("start", "pissa"), ("start", "milora"),
        ("form", "dora"), ("form", "vera"),
    )
}  # fmt: skip
QUICK = {"rank": 2, "epochs": 1, "batch_size": 8, "blocks": 2}


def test_every_variant_is_tried_and_every_need_is_broken_by_one() -> None:
    assert {variant.setting for variant in VARIANTS} == set(SETTINGS)
    assert {need for variant in VARIANTS for need in variant.breaks} == set(NEEDS)
    for variant in VARIANTS:
        assert variant.chosen(LoRA(**SETTINGS[variant.setting]))
        assert not variant.chosen(LoRA())
        assert bool(variant.breaks) == bool(variant.why)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", [*WITH_LORA, "duallora"])
def test_a_combination_learns_or_is_refused_in_one_line(name: str, setting: str) -> None:
    (variant,) = [v for v in VARIANTS if v.setting == setting]
    method: Any = METHODS[name]
    options = QUICK | SETTINGS[setting] | ({"projections": 20} if name == "ranpac" else {})
    if broken(method.needs, variant):
        with pytest.raises(ValueError, match="cannot have branches with") as error:
            configured(method, shallow_backbone(), **options)
        assert "\n" not in str(error.value)
        return
    built = configured(method, shallow_backbone(), **options)
    learn_all(built, stream(classes=4, tasks=2, per_class=4))
    with torch.no_grad():
        assert built.predict(torch.randn(3, 3, 32, 32, generator=generator(0, "x"))).isfinite().all()


# folders of PEFT ------------------------------------------------------------------------------------------------------

VIT = {"name": "test_vit", "weights": "random", "size": 32, "crop": 1.0}


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True, "lora_alpha": 6, "target_modules": ["attn.qkv", "mlp.fc1", "patch_embed.proj"]},
        {"use_dora": True, "use_rslora": True, "target_modules": ["attn.qkv"]},
        {"init_lora_weights": "pissa", "target_modules": ["attn.qkv", "mlp.fc2"]},
        {"init_lora_weights": "olora", "target_modules": ["attn.qkv"]},
        {"init_lora_weights": "orthogonal", "target_modules": ["attn.qkv"]},
        {"vera": True, "target_modules": ["attn.qkv", "mlp.fc1"]},
    ],
    ids=["dora", "dora and rslora", "pissa", "olora", "orthogonal", "vera"],
)
def test_what_peft_trained_is_added_as_peft_adds_it(options: dict[str, Any], tmp_path: Path) -> None:
    peft, timm = pytest.importorskip("peft"), pytest.importorskip("timm")
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    model.load_state_dict(load_backbone(**VIT).model.state_dict(), strict=False)
    vera = options.pop("vera", False)
    torch.manual_seed(0)
    config = (peft.VeraConfig if vera else peft.LoraConfig)(r=4, modules_to_save=["head"], **options)
    tuned = peft.get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name or "vera_" in name:
            parameter.data += 0.2 * torch.randn(parameter.shape) * (parameter.abs().mean() if "magn" in name else 1)
    tuned.save_pretrained(str(tmp_path / "tuned"))
    inside: Any = tuned.merge_and_unload().eval()
    x, found = torch.randn(3, 3, 32, 32), load_backbone(**VIT, adapter=str(tmp_path / "tuned"))
    with torch.no_grad():
        expected = inside.forward_head(inside.forward_features(x), pre_logits=True)
        torch.testing.assert_close(found(x), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert float((found(x) - load_backbone(**VIT)(x)).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("method", "options", "sites"),
    [
        ("seq-lora", {"form": "dora"}, ["key+value"]),
        ("seq-lora", {"form": "dora", "alpha": 4.0, "scaling": "root"}, ["query", "value", "mlp"]),
        ("color", {"form": "dora"}, ["query", "value"]),
        ("seq-lora", {"form": "vera"}, ["key+value"]),
        ("seq-lora", {"start": "pissa", "alpha": 4.0}, ["key+value"]),
        ("seq-lora", {"start": "eva", "explained": 0.9}, ["key+value"]),
    ],
)
def test_what_a_variant_learned_is_a_folder_that_peft_loads_and_comes_back(
    method: str, options: dict[str, Any], sites: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    table = {"name": method, "epochs": 1, "batch_size": 8, "rank": 2, "lr": 0.01, "sites": sites, **options}
    learner = Learner.create(backbone=VIT, method=table, fit={"device": "cpu"})
    tasks = stream(classes=4, tasks=2, per_class=4)
    for i in range(2):
        learner.learn(tasks[i])
    lines = export(learner.model, "peft", tmp_path / "tuned", per_task=method == "color")
    assert lines, "the export compares logits with those of PEFT itself"
    folder = tmp_path / "tuned" / "task1" if method == "color" else tmp_path / "tuned"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["use_dora"] == (options.get("form") == "dora")
    again = load_backbone(**VIT, adapter=str(folder))
    x = torch.randn(3, 3, 32, 32, generator=generator(0, "x"))
    network: Any = learner.backbone.model
    with torch.no_grad(), using(learner.method.sites, "task1" if method == "color" else "lora"):
        expected = network.forward_head(network.forward_features(x), pre_logits=True)
        torch.testing.assert_close(again(x), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_dora_is_not_truncated_since_its_change_has_no_low_rank(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    table = {"name": "seq-lora", "epochs": 1, "batch_size": 8, "rank": 2, "form": "dora"}
    learner = Learner.create(backbone=VIT, method=table, fit={"device": "cpu"})
    learner.learn(stream(classes=4, tasks=2, per_class=4)[0])
    with pytest.raises(ValueError, match=r"is a DoRA, which scales whole rows .* leave out --rank and --energy"):
        learner.export(tmp_path / "out", "peft", rank=1)


def test_the_mean_of_weights_is_not_taken_beneath_a_dora_that_stays() -> None:
    from lamella.methods.parts.mean_weights import MeanWeights

    stays = configured(METHODS["seq-lora"], shallow_backbone(), form="dora", **QUICK)
    with pytest.raises(ValueError, match="mean_weights"):
        MeanWeights(stays)
    MeanWeights(configured(METHODS["seq-lora"], shallow_backbone(), form="dora", fresh=True, **QUICK))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("seq-lora", {"form": "dora", "start": "eva", "dropout": 0.1}),
        pytest.param("seq-lora", {"start": "pissa"}, marks=pytest.mark.slow),
        pytest.param(
            "seq-lora", {"fresh": True, "start": "milora", "form": "dora", "b_rate": 4.0}, marks=pytest.mark.slow
        ),
        ("color", {"form": "vera"}),
        ("sdlora", {"start": "eva", "explained": 0.9}),
    ],
)
def test_a_method_with_variants_keeps_the_contract(name: str, options: dict[str, Any]) -> None:
    check_method(lambda backbone, seed: configured(METHODS[name], backbone, seed=seed, **QUICK | options))


ROW = {"blocks.1.attn.proj.lora_A.weight": torch.ones(2, 64), "blocks.1.attn.proj.lora_B.weight": torch.ones(64, 2)}
VECTORS = {"blocks.1.attn.proj.vera_lambda_b": torch.ones(64), "blocks.1.attn.proj.vera_lambda_d": torch.ones(2)}
RANDOM = {"vera_A": torch.ones(2, 64), "vera_B": torch.ones(64, 2)}


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (ROW | {"blocks.1.attn.proj.lora_magnitude_vector": torch.ones(3)}, {"use_dora": True}, "64 finite numbers"),
        (ROW, {"init_lora_weights": "corda"}, "a variant of it that began with init_lora_weights 'corda'"),
        (ROW, {"init_lora_weights": "pissa_niter_4"}, "began with init_lora_weights 'pissa_niter_4'"),
        (VECTORS, {"peft_type": "VERA"}, "is a VeRA without its vera_A; save it with save_projection=True"),
        (dict([*VECTORS.items()][:1]) | RANDOM, {"peft_type": "VERA"}, "of 'base_model.model.blocks.1.attn.proj' with"),
        (VECTORS | RANDOM | {"vera_B": torch.ones(9, 2)}, {"peft_type": "VERA"}, "do not fit its vera_A and vera_B"),
        (VECTORS | RANDOM | {"vera_A": torch.ones(2, 9)}, {"peft_type": "VERA"}, "does not fit this backbone"),
    ],
)  # fmt: skip
def test_a_variant_that_cannot_be_read_is_told_in_one_line(
    tensors: dict[str, Tensor], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4, **config}))
    save_file({f"base_model.model.{k}": v for k, v in tensors.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        load_backbone(**VIT, adapter=str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scaling": "root"}, "scaling 'root' divides alpha by the root of the rank, and alpha is left out; set alpha"),
        ({"scaling": "sqrt", "alpha": 1.0}, "scaling 'sqrt' is unknown; use one of rank, root"),
        ({"form": "dara"}, "form 'dara' is unknown; use one of lora, dora, vera"),
        ({"start": "zero"}, "start 'zero' is unknown; use one of kaiming, orthonormal, pissa, milora, eva"),
        ({"explained": 0.0}, "explained is 0.0; it must be above 0 and at most 1, such as 0.9"),
        ({"b_rate": 0.0}, "b_rate is 0.0; it must be above 0, and 1 trains B as A"),
        ({"form": "vera", "start": "eva"}, "form 'vera' draws A and B once for all layers and trains neither"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused_in_one_line(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRA(**wrong)


def test_each_factor_is_trained_once_where_a_layer_has_several_sites() -> None:
    method, given = build_shallow("seq-lora", sites=("query", "value")), []
    learn(method, 0, stream()[0], Spy(method, lambda loss, data, params: given.extend(params)))
    trained = [id(tensor) for tensor in given]
    assert len(trained) == len(set(trained)) == 2 * len(method.sites) + len(list(method.heads[0].parameters()))
