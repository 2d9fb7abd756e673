"""Compiled blocks: the same results, compiled once for all tasks, and gone afterwards."""

import copy
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from streams import build_shallow, fit_for, learn, stream, tiny_backbone
from torch import nn
from torch._dynamo.utils import counters

from lamella.adapters.adapter import grow
from lamella.backbones import load_backbone
from lamella.experiments.run import run
from lamella.learner.config.document import load_config
from lamella.learner.learner import Learner
from lamella.training import compilation
from lamella.training.compilation import compiled_blocks, repeated_blocks

LOW_RANK = ("inflora", "duallora", "color", "ranpac")
LIKE_INFLORA = ("seq-lora", "olora", "sdlora")
"""Methods whose branches are where those of inflora are, with the same gates: none."""


@pytest.fixture(autouse=True)
def forgotten() -> Generator[None]:
    """Nothing that another test compiled."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("name", [*LOW_RANK, *(pytest.param(name, marks=pytest.mark.slow) for name in LIKE_INFLORA)])
def test_later_tasks_compile_nothing_and_learn_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "eager")  # traced and guarded alike, and computed by the same kernels
    tasks = stream(classes=6, tasks=3, per_class=7)  # 14 images: a batch of 8 and one of 6
    compiled, plain = build_shallow(name), build_shallow(name)
    learn(compiled, 0, tasks[0], fit_for(compiled, compile=True))
    after_first = graphs()
    for number in (1, 2):
        learn(compiled, number, tasks[number], fit_for(compiled, compile=True))
    assert graphs() == after_first > 0
    for number in range(3):
        learn(plain, number, tasks[number])
    expected = plain.state_dict()
    for key, value in compiled.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_what_is_really_compiled_agrees_up_to_rounding() -> None:
    backbone = tiny_backbone()
    x = torch.randn(5, 3, 32, 32)
    expected = backbone(x)
    with compiled_blocks(backbone, 5):
        torch.testing.assert_close(backbone(x), expected, rtol=1e-4, atol=1e-5)
    assert graphs() > 0


def test_blocks_of_one_shape_share_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(compilation, "BACKEND", counting(calls))
    backbone = tiny_backbone()
    with compiled_blocks(backbone.model, 4):
        backbone.model(torch.randn(4, 3, 32, 32))
    assert len(calls) == len(list(repeated_blocks(backbone)))
    assert graphs() == 1


def test_batches_of_another_size_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(compilation, "BACKEND", counting(calls))
    backbone = tiny_backbone()
    with compiled_blocks(backbone, 4):
        backbone(torch.randn(3, 3, 32, 32))
        assert not calls
        backbone(torch.randn(4, 3, 32, 32))
        assert calls


def counting(calls: list[int]) -> Callable[..., Any]:
    def backend(graph: Any, _: Any) -> Any:
        def run(*inputs: Any) -> Any:
            calls.append(len(inputs))
            return graph.forward(*inputs)

        return run

    return backend


def test_a_gate_a_watcher_and_a_coefficient_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    from lamella.adapters.adapter import using, watch

    monkeypatch.setattr(compilation, "BACKEND", "eager")
    backbone = tiny_backbone()
    sites = backbone.sites("key+value")
    for branch in grow(sites, "one", 2):
        nn.init.ones_(branch.B)
        nn.init.ones_(branch.A)
    x = torch.randn(4, 3, 32, 32)
    seen: list[torch.Tensor] = []
    with compiled_blocks(backbone, 4):
        backbone(x)
        before = graphs()
        for share in (0.5, torch.rand(4), lambda x: x.mean((1, 2))):
            with using(sites, {"one": share}):
                inside = backbone(x)
            with watch(sites, lambda _: seen.append):
                backbone(x)
        assert graphs() == before
    assert len(seen) == 3 * len({site.name for site in sites})
    with using(sites, {"one": lambda x: x.mean((1, 2))}):
        assert torch.equal(backbone(x), inside)


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_everything_is_as_it_was(fails: bool) -> None:
    backbone = tiny_backbone()
    backbone.sites("key+value")
    own = [module for module in backbone.modules() if "forward" in vars(module)]
    try:
        with compiled_blocks(backbone, 4):
            assert len([m for m in backbone.modules() if "forward" in vars(m)]) > len(own)
            if fails:
                raise KeyError("stopped")
    except KeyError:
        pass
    assert [module for module in backbone.modules() if "forward" in vars(module)] == own


def test_a_copy_that_is_made_meanwhile_computes_with_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    backbone, x = tiny_backbone(), torch.randn(4, 3, 32, 32)
    backbone.sites("key+value")
    expected = backbone(x)
    with compiled_blocks(backbone, 4):
        teacher = copy.deepcopy(backbone)
        with torch.no_grad():
            for weight in backbone.parameters():
                weight.mul_(1.5)
        assert torch.equal(teacher(x), expected)
        assert not torch.equal(backbone(x), expected)
    assert torch.equal(teacher(x), expected)


def test_blocks_are_found_in_the_innermost_sequences() -> None:
    assert [type(b).__name__ for b in repeated_blocks(tiny_backbone())] == ["Block"] * 6
    convnext = load_backbone("convnext_atto", weights="random")
    assert {type(b).__name__ for b in repeated_blocks(convnext)} == {"ConvNeXtBlock"}
    assert list(repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))) == []


def test_a_network_of_many_shapes_is_compiled_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(compilation, "BACKEND", counting(calls))
    backbone = load_backbone("resnet50", weights="random", size=32)
    x = torch.randn(2, 3, 32, 32)
    with compiled_blocks(backbone, 2):
        backbone(x)  # eight shapes of blocks
        with torch.no_grad():
            backbone(x)
        calls.clear()
        backbone(x)
    assert len(calls) == len(list(repeated_blocks(backbone))) == 16


def test_what_cannot_be_compiled_is_told() -> None:
    with pytest.raises(ValueError, match=r"fit\.compile: the network has no sequence of equal blocks"):
        with compiled_blocks(nn.Linear(2, 2), 4):
            pass


def test_a_missing_compiler_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise FileNotFoundError("no g++\nhere")

    monkeypatch.setattr(compilation, "BACKEND", broken)
    backbone = tiny_backbone()
    with pytest.raises(RuntimeError, match=r"fit\.compile: the blocks cannot .* here .*; leave it out") as told:
        with compiled_blocks(backbone, 4):
            backbone(torch.randn(4, 3, 32, 32))
    assert "\n" not in str(told.value)


def test_a_run_that_cannot_compile_takes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise FileNotFoundError("no g++")

    monkeypatch.setattr(compilation, "BACKEND", broken)
    settings = ["backbone.weights=random", "method.name=nearest-mean", "fit.device=cpu"]
    with pytest.raises(RuntimeError, match="the blocks cannot be compiled here"):
        run(load_config("digits", [*settings, "fit.compile=true"]), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "config.toml").exists()
    run(load_config("digits", settings), tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "results.json").exists()


def test_it_is_a_setting_of_the_loop_and_older_models_have_none(tmp_path: Path) -> None:
    learner = Learner.create(backbone={"name": "test_vit", "weights": "random", "size": 32}, fit={"compile": True})
    assert learner.fit().compile is True
    del learner.config["fit"]["compile"]  # as in a model from before the option
    learner.save(tmp_path)
    assert Learner.load(tmp_path).fit().compile is False
