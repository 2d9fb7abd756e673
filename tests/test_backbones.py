"""Backbones of other families than plain ViTs: their width, their image size, and the weights that act."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from streams import build, learn_all, stream, tiny_backbone

from lamella.backbones import Backbone, load_backbone
from lamella.learner.learner import Learner


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "mobilenetv3_small_050"])
def test_the_width_is_that_of_the_features_and_any_size_is_taken(name: str) -> None:
    backbone = load_backbone(name, weights="random", size=64)
    assert backbone.transform.size == 64
    with torch.no_grad():
        assert backbone(torch.zeros(2, 3, 64, 64)).shape == (2, backbone.width)


def test_a_transformer_is_built_for_its_size() -> None:
    with torch.no_grad():
        assert load_backbone("test_vit", weights="random", size=48)(torch.zeros(1, 3, 48, 48)).shape == (1, 64)


@pytest.mark.parametrize("size", [-1, 0])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "resnet20", "fractal-vit-micro"])
def test_a_size_that_is_none_is_refused_by_its_name(name: str, size: int) -> None:
    with pytest.raises(ValueError, match=f"size {size} is no size of images; give a number of pixels"):
        load_backbone(name, weights="random", size=size)


def test_a_size_below_a_patch_is_refused_before_weights_are_fitted_to_it(tmp_path: Path) -> None:
    save_file(load_backbone("test_vit", weights="random").model.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="backbone 'test_vit' takes no images of 4 pixels"):
        load_backbone("test_vit", weights=str(tmp_path / "model.safetensors"), size=4)


def test_the_class_token_beside_the_mean_of_the_others() -> None:
    backbone = load_backbone("test_vit", weights="random", size=32, pool="class+mean")
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = backbone.model.forward_features(x)
        features = backbone(x)
        torch.testing.assert_close(features[:, :64], backbone.model(x))
    assert features.shape == (2, backbone.width) == (2, 128)
    torch.testing.assert_close(features[:, 64:], tokens[:, 1:].sum(1) / (tokens.shape[1] - 1))
    with pytest.raises(ValueError, match="'test_resnet' has no class token"):
        load_backbone("test_resnet", weights="random", pool="class+mean")
    with pytest.raises(ValueError, match="pool 'max' is unknown"):
        load_backbone("test_vit", weights="random", pool="max")


def test_more_blocks_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match=r"blocks = 99, but 'test_vit' has 6 blocks; use 1 to 6"):
        tiny_backbone().sites("key+value", blocks=99)
    with pytest.raises(ValueError, match="blocks = 0"):
        tiny_backbone().sites("key+value", blocks=0)


class WithSpare(torch.nn.Module):
    """A network that carries a layer its features do not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x.mean((2, 3)))


def test_weights_that_do_nothing_are_not_trained() -> None:
    backbone = Backbone(WithSpare(), name="spare", width=4, transform=tiny_backbone().transform)
    assert {id(p) for p in backbone.used_weights()} == {id(p) for p in backbone.model.used.parameters()}
    assert not any(p.requires_grad for p in backbone.parameters())
    method = build("seq-finetune", backbone=backbone, epochs=1, batch_size=8)
    before = backbone.model.spare.weight.clone()
    learn_all(method, stream(4, 2))
    assert torch.equal(backbone.model.spare.weight, before)


def test_a_learner_that_failed_half_way_says_so_and_the_stored_one_is_whole(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = stream(4, 2)
    learner = Learner.create(backbone={"name": "test_vit", "weights": "random", "size": 32}, method="nearest-mean")
    learner.learn(scenario[0])
    learner.save(tmp_path)

    def fails(*_: Any) -> None:
        raise RuntimeError("the power went")

    monkeypatch.setattr(type(learner.method), "learn", fails)
    with pytest.raises(RuntimeError, match="the power went"):
        learner.learn(scenario[1])
    monkeypatch.undo()
    for use in (lambda: learner.learn(scenario[1]), lambda: learner.save(tmp_path), lambda: learner.predict([])):
        with pytest.raises(RuntimeError, match=f"learning '{scenario[1].name}' did not finish.*load the stored model"):
            use()
    again = Learner.load(tmp_path)
    again.learn(scenario[1])
    assert len(again.tasks) == 2


def test_random_weights_are_the_same_when_threads_draw_at_once() -> None:
    alone = load_backbone("test_vit", weights="random", size=32).weights_sha256
    with ThreadPoolExecutor(4) as threads:
        drawn = threads.map(lambda _: load_backbone("test_vit", weights="random", size=32).weights_sha256, range(12))
        assert set(drawn) == {alone}
