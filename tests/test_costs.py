"""What a model costs: numbers by part against formulas, and the costs of a base against the base alone."""

from typing import Any

import pytest
from streams import RESIDUAL, build, learn_all, stream, tiny_backbone, tiny_residual_backbone

from lamella.adapters.adapter import Adapted
from lamella.backbones import Backbone
from lamella.learner.costs import costs_of_base, parameter_counts, passes
from lamella.learner.records import TaskRecord
from lamella.learner.store.state import stored_bytes
from lamella.methods import METHODS
from lamella.methods.parts import Aligned, Calibrated


def size(backbone: Backbone) -> int:
    return sum(p.numel() for p in backbone.model.parameters())


CLASSES, TASKS, WIDTH = 4, 2, 64  # of the small ViT
RESIDUAL_WIDTH = 16


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("replay", {"head": CLASSES * (WIDTH + 1)}),
        ("linear-probe", {"head": CLASSES * (WIDTH + 1)}),
        ("inflora", {"head": CLASSES * (WIDTH + 1)}),  # its branches are merged, its memory is for training
        ("icarl", {"head": CLASSES * (WIDTH + 1), "means": CLASSES * WIDTH}),
        ("nearest-mean", {"statistics": CLASSES * WIDTH + WIDTH**2}),
        ("der", {"extractors": 0, "head": CLASSES * (TASKS * WIDTH + 1)}),
    ],
)
def test_numbers_by_part(name: str, parts: dict[str, int]) -> None:
    backbone = tiny_backbone()
    own = size(backbone)
    if "extractors" in parts:
        parts = parts | {"extractors": (TASKS - 1) * own}
    options: dict[str, Any] = {} if name == "nearest-mean" else {"epochs": 1}
    method = learn_all(build(name, backbone=backbone, **options), stream(CLASSES, TASKS))
    assert parameter_counts(method) == {"backbone": own} | parts


def test_tails_of_memo_are_counted_without_the_trunk() -> None:
    method = learn_all(build("memo", epochs=1), stream(CLASSES, TASKS))
    stage = sum(p.numel() for p in method.backbone.model.stage3.parameters())
    assert parameter_counts(method) == {
        "backbone": size(tiny_residual_backbone()), "tails": stage, "head": CLASSES * (2 * RESIDUAL_WIDTH + 1),
    }  # fmt: skip
    assert stage == 9 * (12 * 16 + 16 * 16) + 4 * 16  # two convolutions and two batch norms


def test_adapters_are_told_from_the_backbone() -> None:
    method = learn_all(build("sdlora", rank=2, epochs=1), stream(CLASSES, TASKS))
    counts = parameter_counts(method)
    adapters = sum(p.numel() for n, p in method.backbone.model.named_parameters() if ".branches." in n)
    assert counts["adapters"] == adapters > 0
    assert counts["backbone"] == size(tiny_backbone())
    assert counts["alphas"] == sum(p.numel() for p in method.alphas)


def test_alignment_counts_its_statistics_in_place_of_the_heads() -> None:
    aligned = learn_all(Aligned(build("inflora", epochs=1)), stream(CLASSES, TASKS))
    statistics = CLASSES * WIDTH + WIDTH**2
    assert parameter_counts(aligned) == {"backbone": size(tiny_backbone()), "statistics": statistics}
    costs = costs_of_base(aligned, [], 1)
    assert costs["parameters"] == {"backbone": size(tiny_backbone()), "head": CLASSES * (WIDTH + 1)}


def test_what_each_method_beneath_stores_is_what_it_would_store_alone() -> None:
    alone = learn_all(build("inflora", epochs=1), stream(CLASSES, TASKS))
    calibrated = learn_all(Calibrated(build("inflora", epochs=1)), stream(CLASSES, TASKS))
    whole = learn_all(Aligned(Calibrated(build("inflora", epochs=1))), stream(CLASSES, TASKS))
    costs = [costs_of_base(whole, [], depth) for depth in (1, 2)]
    assert [c["stored_bytes"] for c in costs] == [stored_bytes(calibrated), stored_bytes(alone)]
    assert stored_bytes(alone) < stored_bytes(calibrated) < stored_bytes(whole)
    seconds = {"calibrate-before": 1.0, "align-after": 2.0, "train": 3.0, "train-1": 4.0, "total": 11.0}
    records = [TaskRecord("first", (0, 1), 16, seconds, trainable_parameters=1)]
    phases = [costs_of_base(whole, records, depth)["phase_seconds"] for depth in (1, 2)]
    assert phases == [{"calibrate-before": 1.0, "train": 3.0, "train-1": 4.0}, {"train": 3.0, "train-1": 4.0}]


@pytest.mark.parametrize("name", list(METHODS))
def test_the_numbers_of_the_backbone_are_its_own_whatever_the_method(name: str) -> None:
    method = build(name)
    counts = parameter_counts(method)
    assert counts.pop("backbone") == size(tiny_residual_backbone() if name in RESIDUAL else tiny_backbone())
    assert all(counts.values())


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("nearest-mean", {}, 1),
        ("inflora", {}, 1),
        ("coda-prompt", {}, 2),
        ("color", {}, 2),
        ("color", {"router": "arrow"}, 2),
        ("color", {"router": "entropy"}, 1 + TASKS),
        ("der", {}, TASKS),
    ],
)
def test_passes_of_a_prediction(name: str, options: dict[str, Any], expected: int) -> None:
    """Adapters, prompts and heads come on top: at these sizes less than a fifth of a pass for each."""
    options = options if name == "nearest-mean" else {"epochs": 1, **options}
    method = learn_all(build(name, **options), stream(CLASSES, TASKS)).eval()
    acting = [layer.acting for layer in method.backbone.model.modules() if isinstance(layer, Adapted)]
    found = passes(method)
    assert found is not None
    assert expected <= found < expected + 0.2 * expected
    assert acting == [layer.acting for layer in method.backbone.model.modules() if isinstance(layer, Adapted)]


def test_passes_of_a_base_are_those_of_the_base_alone() -> None:
    aligned = learn_all(Aligned(build("color", epochs=1)), stream(CLASSES, TASKS)).eval()
    assert costs_of_base(aligned, [], 1)["passes"] == passes(aligned.base)
