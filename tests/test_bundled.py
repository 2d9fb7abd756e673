"""The bundled backbone keeps its promises: small, strict to load, better than random; its formulas are reproducible."""

import hashlib
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lamella.backbones import bundled

PRETRAIN = Path(__file__).parents[1] / "tools" / "pretrain"


@pytest.fixture
def pretrain_module(monkeypatch):
    """Imports a module of `tools/pretrain`, which is a folder of scripts and no package."""
    monkeypatch.syspath_prepend(str(PRETRAIN))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (PRETRAIN / f"{name}.py").exists():
            del sys.modules[name]


def pretrained():
    network = bundled.build()
    state = {key: tensor.float() for key, tensor in load_file(bundled.weights_path()).items()}
    network.load_state_dict(state, strict=True)
    return network


def test_file_and_network_are_small():
    assert bundled.weights_path().stat().st_size <= 3_000_000
    assert sum(p.numel() for p in bundled.build().parameters()) <= 1_500_000
    assert all(tensor.dtype == torch.float16 for tensor in load_file(bundled.weights_path()).values())


def test_weights_load_strictly_and_give_finite_features():
    features = pretrained().eval()(torch.rand(4, 3, 32, 32) * 2 - 1)
    assert features.shape == (4, bundled.ARCHITECTURE["embed_dim"])
    assert features.isfinite().all()


def test_model_card_states_the_hash_of_the_file():
    card = bundled.weights_path().with_name("MODEL_CARD.md").read_text()
    assert hashlib.sha256(bundled.weights_path().read_bytes()).hexdigest() in re.findall(r"[0-9a-f]{64}", card)


def test_nearest_mean_on_digits_beats_random_initialisation(pretrain_module):
    scoring = pretrain_module("nearest_mean")
    train, test = scoring.split_digits()
    torch.manual_seed(0)
    start = bundled.build()
    pretrain_module("pretrain").initialise(start)
    ours = scoring.nearest_mean_accuracy(pretrained(), train, test)
    assert ours >= 0.8
    assert ours >= scoring.nearest_mean_accuracy(start, train, test) + 0.05


def test_formulas_are_a_function_of_the_seed(pretrain_module):
    mixture = pretrain_module("formulas").mixture
    appear = pretrain_module("appearance").appear

    def images(class_seed: int, draw_seed: int) -> torch.Tensor:
        classes, g = mixture(3, 3, 3, 3, seed=class_seed), torch.Generator().manual_seed(draw_seed)
        return appear(classes.draw(torch.arange(12), g), g)

    assert torch.equal(images(0, 1), images(0, 1))
    assert not torch.equal(images(0, 1), images(0, 2))
    assert not torch.equal(images(0, 1), images(1, 1))


def test_formulas_draw_varied_images_in_range(pretrain_module):
    classes = pretrain_module("formulas").mixture(8, 8, 8, 8, seed=0)
    labels = torch.arange(32).repeat_interleave(10)
    g = torch.Generator().manual_seed(0)
    grey = classes.draw(labels, g)
    assert grey.shape == (320, 32, 32)
    assert grey.min() >= 0
    assert grey.max() <= 1
    assert (grey.flatten(1).std(dim=1) > 0.02).all(), "an image is blank"
    drawn = grey.view(32, 10, -1)
    assert (drawn.std(dim=1).mean(dim=1) > 0.01).all(), "a class draws one image over and over"
    means = drawn.mean(dim=1)
    assert torch.pdist(means).min() > 0.5, "two classes draw the same"
    inputs = pretrain_module("appearance").appear(grey, g)
    assert inputs.shape == (320, 3, 32, 32)
    assert inputs.min() >= -1
    assert inputs.max() <= 1


def test_pretraining_is_reproducible_and_lowers_the_loss(pretrain_module, monkeypatch, capsys):
    pretrain, formulas = pretrain_module("pretrain"), pretrain_module("formulas")
    monkeypatch.setitem(bundled.ARCHITECTURE, "depth", 1)
    monkeypatch.setattr(pretrain, "BATCH", 32)

    def train(steps: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        network = bundled.build()
        pretrain.initialise(network)
        pretrain.pretrain(network, formulas.mixture(4, 2, 2, 2, seed=0), torch.Generator().manual_seed(1), steps)
        return network.state_dict()

    first, second = train(5), train(5)
    assert all(torch.equal(first[key], second[key]) for key in first)
    train(100)
    (loss,) = re.findall(r"classes ([\d.]+)", capsys.readouterr().out)
    assert float(loss) < 2.303, "no better than guessing among ten classes"
