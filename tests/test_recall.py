"""Features are recalled only where computing them anew would give the very same ones."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from streams import build_shallow, fit_for, images, often, stream, tiny_backbone, tiny_residual_backbone
from torch import Tensor, nn

from lamella.adapters.adapter import Site, grow, merge, using, watch
from lamella.backbones import Backbone
from lamella.backbones.feature_cache import FeatureCache
from lamella.common.checksums import checksums
from lamella.data.transform import plain_view
from lamella.experiments.run import run
from lamella.learner.config.document import load_config
from lamella.learner.scores import score_task
from lamella.methods import METHODS
from lamella.methods.parts import PARTS
from lamella.training.optimizers import OPTIMIZERS, build_optimizer, parameter_groups
from lamella.training.precision import computing

NAMES = [
    *METHODS,
    "color+align",
    "inflora+align",
    "inflora+mean_weights+align",
    "inflora+calibrate",
    "linear-probe+align",
    "ranpac+align",
]
TASKS = 4
PAIRS = TASKS * (TASKS + 1) // 2


class Never(FeatureCache):
    """Remembers nothing at all."""

    def features(self, backbone: nn.Module, compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return compute(x)


def counted(backbone: Backbone) -> list[int]:
    """Becomes longer with each real pass."""
    passes: list[int] = []
    compute = backbone._features

    def features(x: Tensor) -> Tensor:
        passes.append(len(x))
        return compute(x)

    backbone._features = features
    return passes


def make(name: str) -> Any:
    base, *parts = name.split("+")
    method = build_shallow(base)
    for part in parts:
        method = PARTS[part](method)
    return method


@torch.no_grad()
def read(method: Any, x: Tensor, recall: FeatureCache) -> dict[str, Tensor]:
    with recall.reading(method.backbone):
        recall.turn_to(x)
        return dict(method.eval().readouts(x))


@pytest.mark.parametrize("name", often(NAMES))
def test_the_whole_matrix_is_the_same_to_the_last_bit(name: str) -> None:
    method, scenario = make(name), stream()
    fit, recalls, first = fit_for(method), [FeatureCache() for _ in range(3)], FeatureCache()
    x = images(6, 4, "test").batch(torch.arange(8), plain_view(method.backbone.transform))
    for i in range(3):
        fit.begin(str(i))
        method.learn(scenario[i], fit)
        method.eval()
        for j in range(i + 1):
            setting: Any = {"shared_classes": False, "name": f"{i}, {j}"}
            recalled, anew = (
                score_task(method, fit, scenario.test(j), scenario[j].classes, recall=recall, **setting)
                for recall in (recalls[j], Never())
            )
            assert recalled == anew
        with_memory, without = read(method, x, first), read(method, x, Never())
        assert with_memory.keys() == without.keys()
        assert all(torch.equal(with_memory[key], without[key]) for key in without)
    width = method.backbone.width
    functions = 2 if "mean_weights" in name else 1  # the mean, and the newest weights
    assert all(recall.numbers in (0, functions * len(scenario.test(j)) * width) for j, recall in enumerate(recalls))


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("nearest-mean", TASKS), ("streaming-lda", TASKS), ("linear-probe", TASKS), ("linear-probe+align", TASKS),
        ("ranpac", TASKS), ("color", TASKS + 2 * PAIRS), ("color+align", TASKS + 2 * PAIRS), ("inflora", PAIRS),
        ("inflora+align", PAIRS), ("coda-prompt", TASKS + PAIRS),
    ],
)  # fmt: skip
def test_a_pass_is_made_only_where_the_function_is_new(name: str, passes: int) -> None:
    method, scenario = make(name), stream(8, TASKS)
    fit, recalls, made = fit_for(method), [FeatureCache() for _ in range(TASKS)], 0
    real = counted(method.backbone)
    for i in range(TASKS):
        fit.begin(str(i))
        method.learn(scenario[i], fit)
        method.eval()
        before = len(real)
        for j in range(i + 1):
            setting: Any = {"shared_classes": False, "name": f"{i}, {j}", "recall": recalls[j]}
            score_task(method, fit, scenario.test(j), scenario[j].classes, **setting)
        made += len(real) - before
    assert made == passes


def test_a_run_asks_a_frozen_backbone_once_for_each_test_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    compute = Backbone._features

    def features(self: Backbone, x: Tensor) -> Tensor:
        seen.append(len(x))
        return compute(self, x)

    monkeypatch.setattr(Backbone, "_features", features)
    monkeypatch.setattr("lamella.experiments.results.passes", lambda method: None)  # it has images of its own
    settings = ["method.name=nearest-mean", "backbone.weights=random", "scenario.tasks=5", "fit.device=cpu"]
    run(load_config("digits", settings), tmp_path, quiet=True)
    assert sum(seen) == 1797, "each image of digits, once to learn or once to test"


class Shifted(nn.Module):
    """Holds what is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.shift = 1.5, torch.zeros(64)

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x + self.shift


class Strange(Tensor):
    """May do anything."""


def half_learned() -> tuple[Backbone, tuple[Site, ...], Tensor]:
    """A backbone with an adapter that acts, and images."""
    backbone = tiny_backbone()
    backbone.model.norm = Shifted()
    sites = backbone.sites("key+value")
    for branch in grow(sites, "first", 2, generator=torch.Generator().manual_seed(0)):
        nn.init.normal_(branch.B, std=0.1, generator=torch.Generator().manual_seed(1))
    return backbone.eval(), sites, torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def turn(recall: FeatureCache, backbone: Backbone, x: Tensor) -> Tensor:
    with recall.reading(backbone):
        recall.turn_to(x)
        return backbone(x)


def add_to_a_weight(backbone: Backbone, sites: tuple[Site, ...]) -> None:
    with torch.no_grad():
        sites[0].layer.weight[3].add_(0.1)


def load(backbone: Backbone, sites: tuple[Site, ...]) -> None:
    backbone.load_state_dict({k: v * 1.1 if v.is_floating_point() else v for k, v in backbone.state_dict().items()})


def grow_another(backbone: Backbone, sites: tuple[Site, ...]) -> None:
    for branch in grow(sites, "second", 2, generator=torch.Generator().manual_seed(3)):
        nn.init.ones_(branch.B)
    backbone.eval()


def train_a_step(name: str) -> Callable[[Backbone, tuple[Site, ...]], None]:
    def step(backbone: Backbone, sites: tuple[Site, ...]) -> None:
        factors = [b.B.requires_grad_(True) for s in sites for b in s.layer.of("first")]
        engine = build_optimizer(name, parameter_groups(factors, 0.1), weight_decay=0.0, momentum=0.9)
        backbone(torch.ones(2, 3, 32, 32)).square().sum().backward()
        engine.step()
        for factor in factors:
            factor.requires_grad_(False).grad = None

    return step


def replace_a_norm(backbone: Backbone, sites: tuple[Site, ...]) -> None:
    backbone.model.norm = nn.Identity()


def replace_a_tensor(backbone: Backbone, sites: tuple[Site, ...]) -> None:
    sites[0].layer.weight.data = sites[0].layer.weight.data * 1.1


def there_and_back(backbone: Backbone, sites: tuple[Site, ...]) -> None:
    backbone.to(torch.bfloat16).to(torch.float32)


def change_a_setting(backbone: Backbone, sites: tuple[Site, ...]) -> None:
    norm: Any = backbone.model.norm
    norm.factor = 2.5


def change_a_plain_tensor(backbone: Backbone, sites: tuple[Site, ...]) -> None:
    norm: Any = backbone.model.norm
    norm.shift.add_(1)


def change_a_scale(backbone: Backbone, sites: tuple[Site, ...]) -> None:
    sites[0].layer.of("first")[0].scale = 3.0


def scale_data(backbone: Backbone, sites: tuple[Site, ...]) -> None:
    for parameter in backbone.model.parameters():
        parameter.data.mul_(0.5)


def permute_data(backbone: Backbone, sites: tuple[Site, ...]) -> None:
    weight = sites[0].layer.weight
    weight.data.copy_(weight.data.flip(0))


def average_data(backbone: Backbone, sites: tuple[Site, ...]) -> None:
    for branch in sites[0].layer.of("first"):
        branch.B.data.lerp_(torch.ones_like(branch.B), 0.01)


def write_a_statistic(backbone: Backbone, sites: tuple[Site, ...]) -> None:
    norm: Any = backbone.model.norm
    norm.shift.data[3] += 1


def fused_step(backbone: Backbone, sites: tuple[Site, ...]) -> None:
    weight = sites[0].layer.weight.requires_grad_(True)
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.1, fused=True).step()
    weight.requires_grad_(False).grad = None


CHANGES: dict[str, Callable[[Backbone, tuple[Site, ...]], Any]] = {
    "weight": add_to_a_weight,
    "merge": lambda backbone, sites: merge(sites, "first"),
    "grow": grow_another,
    "load": load,
    "module": replace_a_norm,
    "tensor": replace_a_tensor,
    "rounded": there_and_back,
    "setting": change_a_setting,
    "plain tensor": change_a_plain_tensor,
    "scale": change_a_scale,
    "data: scaled": scale_data,
    "data: permuted": permute_data,
    "data: averaged": average_data,
    "data: plain tensor": write_a_statistic,
    "fused": fused_step,
    **{name: train_a_step(name) for name in OPTIMIZERS},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_changes_the_function_is_noticed(change: Callable[[Backbone, tuple[Site, ...]], Any]) -> None:
    backbone, sites, x = half_learned()
    recall, real = FeatureCache(), counted(backbone)
    before = turn(recall, backbone, x)
    assert torch.equal(turn(recall, backbone, x), before)
    assert len(real) == 1
    change(backbone, sites)
    real.clear()
    after = turn(recall, backbone, x)
    assert len(real) == 1
    assert not torch.equal(before, after)
    assert torch.equal(after, turn(Never(), backbone, x))


def test_contents_are_read_once_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, _, x = half_learned()
    read: list[int] = []

    def counting(tensors: list[Tensor]) -> list[int]:
        read.extend(map(id, tensors))
        return checksums(tensors)

    monkeypatch.setattr("lamella.backbones.feature_cache.checksums", counting)
    turn(FeatureCache(lasting=False), backbone, x)
    assert read == []
    recall = FeatureCache()
    for passes in (1, 2):
        with torch.no_grad(), recall.reading(backbone):
            for part in x.split(2):
                recall.turn_to(part)
                backbone(part)
        assert len(read) == passes * len(set(read))


def test_statistics_of_batch_norm_are_noticed() -> None:
    backbone = tiny_residual_backbone().eval()
    x, recall = torch.randn(4, 3, 16, 16), FeatureCache()
    before = turn(recall, backbone, x)
    assert recall.numbers == before.numel()
    backbone.train()(x + 1)
    after = turn(recall, backbone.eval(), x)
    assert not torch.equal(before, after)
    assert torch.equal(after, turn(Never(), backbone, x))


KEEPS: dict[str, Callable[[Backbone, tuple[Site, ...]], Any]] = {
    "nothing": lambda backbone, sites: None,
    "modes": lambda backbone, sites: backbone.train().eval(),
    "device": lambda backbone, sites: backbone.to("cpu"),
    "another pass": lambda backbone, sites: backbone(torch.ones(1, 3, 32, 32)),
    "stored": lambda backbone, sites: backbone.state_dict(),
    "more sites": lambda backbone, sites: backbone.sites("key+value"),
}


@pytest.mark.parametrize("keep", KEEPS.values(), ids=KEEPS.keys())
def test_the_same_function_is_recalled(keep: Callable[[Backbone, tuple[Site, ...]], Any]) -> None:
    backbone, sites, x = half_learned()
    recall, real = FeatureCache(), counted(backbone)
    before = turn(recall, backbone, x)
    keep(backbone, sites)
    real.clear()
    assert torch.equal(turn(recall, backbone, x), before)
    assert real == []


def test_branches_that_do_not_act_change_nothing() -> None:
    backbone, sites, x = half_learned()
    recall, real = FeatureCache(), counted(backbone)
    with using(sites):
        plain = turn(recall, backbone, x)
    grow_another(backbone, sites)
    with using(sites):
        assert torch.equal(turn(recall, backbone, x), plain)
    assert len(real) == 1
    with using(sites, {"first": 1.0, "second": 0.5}):
        turn(recall, backbone, x)
    with using(sites, {"first": 1.0, "second": 0.25}):
        turn(recall, backbone, x)
    assert len(real) == 3


def gated(backbone: Backbone, sites: tuple[Site, ...]) -> None:
    sites[0].layer.of("first")[0].gate = lambda x: x.new_ones(len(x))


@pytest.mark.parametrize(
    "within",
    [
        lambda backbone, sites: using(sites, {"first": torch.ones(4)}),
        lambda backbone, sites: using(sites, {"first": lambda x: x.new_ones(len(x))}),
        lambda backbone, sites: watch(sites, lambda layer: lambda x: None),
        lambda backbone, sites: backbone.model.get_submodule("blocks.0").register_forward_hook(lambda *_: None),
        lambda backbone, sites: torch.enable_grad(),
    ],
    ids=["tensor", "function", "watcher", "hook", "gradients"],
)
def test_what_cannot_be_told_is_computed(within: Callable[..., AbstractContextManager[Any]]) -> None:
    backbone, sites, x = half_learned()
    recall, real = FeatureCache(), counted(backbone)
    with torch.no_grad(), recall.reading(backbone):
        recall.turn_to(x)
        for _ in range(2):
            with within(backbone, sites):
                backbone(x)
    assert (len(real), recall.numbers) == (2, 0)


def strange(backbone: Backbone, sites: tuple[Site, ...]) -> None:
    backbone.register_buffer("strange", torch.zeros(1).as_subclass(Strange))


def uncounted(backbone: Backbone, sites: tuple[Site, ...]) -> None:
    with torch.inference_mode():
        backbone.register_buffer("uncounted", torch.zeros(1))


@pytest.mark.parametrize("change", [gated, strange, uncounted, lambda backbone, sites: backbone.train()])
def test_gates_strange_tensors_and_training_mode_are_computed(
    change: Callable[[Backbone, tuple[Site, ...]], Any],
) -> None:
    backbone, sites, x = half_learned()
    recall, real = FeatureCache(), counted(backbone)
    change(backbone, sites)
    for _ in range(2):
        turn(recall, backbone, x)
    assert (len(real), recall.numbers) == (2, 0)


def test_images_that_do_not_count_their_changes_are_computed() -> None:
    backbone, _, _ = half_learned()
    recall, real = FeatureCache(), counted(backbone)
    with torch.inference_mode():
        x = torch.zeros(2, 3, 32, 32)
        for _ in range(2):
            turn(recall, backbone, x)
    assert (len(real), recall.numbers) == (2, 0)


def test_precision_is_a_part_of_the_function() -> None:
    backbone, _, x = half_learned()
    recall, real = FeatureCache(), counted(backbone)
    exact = turn(recall, backbone, x)
    with computing(x.device, "bf16"):
        assert not torch.equal(turn(recall, backbone, x), exact)
    assert len(real) == 2


@torch.no_grad()
def test_only_the_batch_at_hand_is_recalled_and_features_are_the_callers_own() -> None:
    backbone, _, x = half_learned()
    recall, real = FeatureCache(), counted(backbone)
    plain = turn(Never(), backbone, x)
    real.clear()
    with recall.reading(backbone):
        recall.turn_to(x)
        backbone(x).zero_()
        assert torch.equal(backbone(x), plain)
        assert torch.equal(backbone(x.flip(0)), plain.flip(0))
        assert len(real) == 2
        x.add_(1)
        assert not torch.equal(backbone(x), plain)
        recall.turn_to(x)
        backbone(x)
    assert len(real) == 4, "a second batch is none of the first"
    assert backbone.recall is None


@torch.no_grad()
def test_batches_of_other_sizes_are_other_batches() -> None:
    backbone, _, x = half_learned()
    recall = FeatureCache()
    for sizes in ([3, 1], [1, 1, 2], [2, 2]):
        with recall.reading(backbone):
            for part in x.split(sizes):
                recall.turn_to(part)
                assert torch.equal(backbone(part), backbone._features(part))


def test_what_no_pass_asks_for_is_dropped() -> None:
    backbone, sites, x = half_learned()
    recall = FeatureCache()
    for _ in range(5):
        turn(recall, backbone, x)
        add_to_a_weight(backbone, sites)
        assert recall.numbers == len(x) * backbone.width
    brief = FeatureCache(lasting=False)
    with torch.no_grad(), brief.reading(backbone):
        for _ in range(3):
            brief.turn_to(x)
            backbone(x)
            assert brief.numbers == len(x) * backbone.width
    assert brief.numbers == 0
