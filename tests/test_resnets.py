"""ResNets: He et al.'s form for small images by its own count, weights from a file, and the cut into trunk and tail."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.adapters.adapter import adapt
from lamella.backbones import load_backbone
from lamella.backbones.resnets import ResNet, block_names, check_split, forward_from, forward_until, split
from lamella.common.files import tensors_to_bytes, write_atomic
from lamella.common.randomness import generator
from lamella.data.sources.load import load_source
from lamella.data.transform import InputTransform, plain_view


def draw(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator(0, *shape))


def tiny() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResNet(blocks=2, widths=(4, 8, 16)).eval()


@pytest.mark.parametrize(("blocks", "depth", "parameters"), [(3, 20, 0.27), (5, 32, 0.46), (7, 44, 0.66)])
def test_depth_and_parameters_are_those_of_the_paper(blocks: int, depth: int, parameters: float) -> None:
    """Table 6 of He et al. counts the classifier of ten classes: 650 numbers."""
    model = ResNet(blocks)
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) + 1 == depth  # and the classifier
    assert round((sum(p.numel() for p in model.parameters()) + 650) / 1e6, 2) == parameters
    assert model.get_parameter(f"stage3.{blocks - 1}.conv2.weight").shape == (64, 64, 3, 3)


def test_resnet32_has_463504_parameters_and_64_features() -> None:
    backbone = load_backbone("resnet32", weights="random")
    assert sum(p.numel() for p in backbone.parameters()) == 463_504
    assert (backbone.width, backbone.transform.size, backbone.transform.crop) == (64, 32, 1.0)
    with torch.no_grad():
        assert backbone(draw(2, 3, 32, 32)).shape == (2, 64)
        assert backbone(draw(2, 3, 20, 20)).shape == (2, 64)
        assert backbone.model.get_submodule("stage3")(draw(1, 32, 16, 16)).shape == (1, 64, 8, 8)


def test_where_a_stage_begins_the_shortcut_halves_and_pads() -> None:
    """With convolutions of zero a block is its shortcut alone."""
    block = tiny().get_submodule("stage2.0")
    assert isinstance(block, nn.Module)
    for name in ("conv1", "conv2"):
        nn.init.zeros_(block.get_parameter(f"{name}.weight"))
    x = draw(1, 4, 6, 6)
    with torch.no_grad():
        y = block(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()


class PaddedAfter(nn.Module):
    """A block of the same layers whose shortcut has all zeros after the old channels, as PyCIL's has."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        block, step = self.block, self.block.stride
        y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
        return F.relu(y + F.pad(x[:, :, ::step, ::step], (0, 0, 0, 0, 0, block.added)))


def test_zeros_on_both_sides_or_after_are_the_same_network_up_to_the_order_of_channels() -> None:
    """Reordered rows and columns of the weights are as likely a random start, so training from scratch is the same."""
    ours, theirs = tiny(), tiny()
    order = torch.arange(4)  # where the channels of the other network are in ours
    for name in block_names(ours):
        block: Any = theirs.get_submodule(name)
        before, new = block.added // 2, block.conv2.out_channels
        old = order + before
        after = torch.cat([old, torch.tensor([i for i in range(new) if i not in old.tolist()], dtype=torch.int64)])
        block.conv1.weight.data = block.conv1.weight.data[:, order]
        block.conv2.weight.data = block.conv2.weight.data[after]
        order = after
        stage, _, number = name.partition(".")
        theirs.get_submodule(stage)[int(number)] = PaddedAfter(block)  # type: ignore[index,operator]
    x = draw(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(theirs(x), ours(x)[:, order], atol=1e-5)
        assert not torch.allclose(theirs(x), ours(x), atol=1e-2)


def test_random_weights_follow_the_seed() -> None:
    first, again, other = (load_backbone("resnet20", weights="random", seed=s) for s in (0, 0, 1))
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256


def test_every_weight_is_used() -> None:
    for name, options in (("resnet20", {}), ("resnet18", {"stem": "small", "size": 16})):
        backbone = load_backbone(name, weights="random", **options)
        assert len(backbone.used_weights()) == len(list(backbone.parameters()))


# weights from a file -------------------------------------------------------------------------------------------------


def published(model: nn.Module) -> dict[str, Tensor]:
    """The state as the published files have it: other names, no counters, and a classifier."""
    state = {k.replace("stage", "layer"): v for k, v in model.state_dict().items() if "num_batches" not in k}
    state |= {"linear.weight": torch.zeros(10, 64), "linear.bias": torch.zeros(10)}
    return {f"module.{key}": value for key, value in state.items()}


def test_a_published_file_is_found_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"weights of 'resnet20' are not.*resnet_cifar10.*weights=random"):
        load_backbone("resnet20")
    random = load_backbone("resnet20", weights="random", seed=5)
    (tmp_path / "resnet_cifar10").mkdir()
    file = tmp_path / "resnet_cifar10" / "resnet20-0123.th"
    torch.save({"state_dict": published(random.model), "best_prec1": 91.0}, file)
    for found in (load_backbone("resnet20"), load_backbone("resnet20", weights=str(file))):
        assert found.weights_sha256 == random.weights_sha256
    with pytest.raises(ValueError, match=r"does not fit this backbone: it lacks 'stage1\.3"):
        load_backbone("resnet32", weights=str(file))


def test_the_cifar10_weights_classify_better_than_chance_by_far(real_data: Path) -> None:
    """They come with a classifier: CIFAR-10's classes have kin among those of CIFAR-100."""
    backbone = load_backbone("resnet32")
    file = next((real_data / "resnet_cifar10").glob("resnet32-*.th"))
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    kin = {"pickup_truck": 9, "streetcar": 9, "bus": 9, "lizard": 6, "wolf": 5, "leopard": 3}  # of CIFAR-10
    source = load_source("cifar100-part")
    names = [source.class_names[i] for i in source.test.labels.tolist()]
    chosen = [i for i, name in enumerate(names) if name in kin]
    with torch.no_grad():
        features = backbone(source.test.batch(chosen, plain_view(backbone.transform)))
        logits = features @ state["module.linear.weight"].T + state["module.linear.bias"]
    right = [kin[names[i]] == guess for i, guess in zip(chosen, logits.argmax(1).tolist(), strict=True)]
    assert sum(right) / len(right) > 0.4


# the small stem of timm's networks -----------------------------------------------------------------------------------


def test_the_small_stem_keeps_the_resolution(tmp_path: Path) -> None:
    backbone = load_backbone("resnet18", weights="random", stem="small")
    assert sum(p.numel() for p in backbone.parameters()) == 11_176_512 - 64 * 3 * (49 - 9)
    assert (backbone.width, backbone.transform.size, backbone.transform.crop) == (512, 32, 1.0)
    with torch.no_grad():
        assert forward_until(backbone.model, "layer1", draw(1, 3, 32, 32)).shape == (1, 64, 32, 32)
        assert forward_until(backbone.model, "layer4", draw(1, 3, 32, 32)).shape == (1, 256, 8, 8)
    write_atomic(tmp_path / "small.safetensors", tensors_to_bytes(backbone.model.state_dict()))
    again = load_backbone("resnet18", weights=str(tmp_path / "small.safetensors"), stem="small", seed=3)
    assert again.weights_sha256 == backbone.weights_sha256


def test_a_stem_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="stem 'tiny' is unknown; use 'model' or 'small'"):
        load_backbone("resnet18", weights="random", stem="tiny")
    with pytest.raises(ValueError, match="no pre-trained weights; use weights='random'"):
        load_backbone("resnet18", stem="small")
    with pytest.raises(ValueError, match="'resnet32' is made for small images already"):
        load_backbone("resnet32", weights="random", stem="small")
    with pytest.raises(ValueError, match="plain ResNets, such as resnet18, not for a VisionTransformer"):
        load_backbone("test_vit", weights="random", stem="small")


# trunk and tail ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["ours", "timm"])
def test_the_tail_of_the_trunk_is_the_whole_wherever_it_is_cut(family: str) -> None:
    model = tiny() if family == "ours" else load_backbone("test_resnet", weights="random", size=32).model
    names = block_names(model)
    stages = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in names))
    assert stages == (["stage1", "stage2", "stage3"] if family == "ours" else [f"layer{i}" for i in range(1, 5)])
    x = draw(3, 3, 32, 32)
    with torch.no_grad():
        whole = model(x)
        for at in (*names, *stages):
            assert torch.equal(forward_from(model, at, forward_until(model, at, x)), whole)


def test_the_cut_shares_the_layers_also_those_that_carry_branches() -> None:
    model = tiny()
    (site,) = adapt(model, "stage3.1.conv2")
    trunk, tail = split(model, "stage3")
    assert {id(p) for m in (trunk, tail) for p in m.parameters()} == {id(p) for p in model.parameters()}
    assert not {id(p) for p in trunk.parameters()} & {id(p) for p in tail.parameters()}
    assert any(layer is site.layer for layer in tail.modules())


def test_a_cut_that_cannot_be_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"no stage or block 'stage4'; stages are stage1, stage2, stage3, blocks stage1"
    ):
        split(tiny(), "stage4")
    with pytest.raises(ValueError, match="no stage or block 'conv1'"):
        split(tiny(), "conv1")
    with pytest.raises(ValueError, match="VisionTransformer, has no stages"):
        split(timm.create_model("test_vit"), "stage1")


class Shifted(ResNet):
    """It has the layers of a residual network, and adds a number between two stages, as visformers add positions."""

    def __init__(self, shift: float = 0.02) -> None:
        super().__init__(blocks=1, widths=(4, 8, 16))
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return forward_from(self, "stage3", forward_until(self, "stage3", x) + self.shift)


def test_a_network_that_does_more_than_its_layers_is_refused() -> None:
    visformer = timm.create_model("visformer_tiny", num_classes=0, img_size=32).eval()
    assert block_names(visformer)  # its names are those of a residual network
    for model, at in ((visformer, "stage2"), (visformer, "stage3.1"), (Shifted(), "stage3.0")):
        with pytest.raises(
            ValueError, match=rf"a {type(model).__name__} does more .* cut before '{at}'; use a"
        ) as refusal:
            check_split(model, at, InputTransform(32))
        assert "\n" not in str(refusal.value)
    check_split(Shifted(0.0), "stage3.0", InputTransform(32))


def test_the_check_of_a_cut_leaves_no_trace() -> None:
    model = tiny().train()
    model.get_submodule("stage2").eval()
    modes = [module.training for module in model.modules()]
    state, draws = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    check_split(model, "stage3", InputTransform(20))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), draws)
