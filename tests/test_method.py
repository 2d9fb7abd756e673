"""The defaults of the abstract class Method, and what a method that overrides one of them gets for the others."""

import copy
import inspect
import textwrap
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from streams import build, build_shallow, images, learn_all, often, stream, tiny_backbone
from torch import Tensor, nn

from lamella import METHODS, Backbone, Fit, Learner, Method, Task
from lamella.data.images import TensorSet
from lamella.data.transform import plain_view
from lamella.learner.costs import costs_of_base
from lamella.learner.records import TaskRecord
from lamella.methods.on_base import MethodOnBase
from lamella.methods.parts import PARTS, Aligned, Calibrated
from lamella.methods.shared.heads import Head, Heads

BUILT = [*METHODS, "inflora+align", "replay+align", "seq-lora+calibrate", "inflora+align+calibrate"]
NOT_LINEAR = [
    "nearest-mean",
    "lora-sub",
    "ranpac",
    "color",
    "duallora",
    "icarl",
    "der",
    "memo",
    "dlc",
    "coda-prompt",
    "loda",
]
NOT_LINEAR += ["seq-lora+calibrate", "inflora+align+calibrate"]


class Still(Method):
    """Learns nothing."""

    def __init__(self, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.backbone, self.seed = backbone or tiny_backbone(), 0

    def learn(self, task: Task, fit: Fit) -> None: ...


class Summed(Still):
    """Classifies in its own way, by features."""

    classes = (5, 3)

    def classify(self, features: Tensor) -> Tensor:
        return torch.stack([features.sum(1), -features.sum(1)], 1)


class Brightness(Still):
    """Classifies in its own way, by the images themselves."""

    classes = (5, 3)

    def predict(self, x: Tensor, task: tuple[int, ...] | None = None) -> Tensor:
        return torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1)


class Doubled(MethodOnBase):
    """Twice the base's logits."""

    own_calls = ("double",)

    def learn(self, task: Task, fit: Fit) -> None:
        self.base.learn(task, fit)

    def classify(self, features: Tensor) -> Tensor:
        return 2 * self.base.classify(features)


def make(name: str) -> Any:
    base, *parts = name.split("+")
    method = build_shallow(base)
    for part in parts:
        method = PARTS[part](method)
    return method


def pixels(method: Method, n: int = 6) -> Tensor:
    return images(6, 4, "test").batch(torch.arange(n), plain_view(method.backbone.transform))


def example() -> type[Method]:
    """The class in the docstring of Method."""
    lines = (inspect.getdoc(Method) or "").split("\n")
    start = lines.index("    class OwnHeads(Method):")
    end = next(i for i, line in enumerate(lines[start:], start) if line and not line.startswith("    "))
    names: dict[str, Any] = {
        "Method": Method, "Backbone": Backbone, "Heads": Heads, "Task": Task, "Fit": Fit, "F": F
    }  # fmt: skip
    exec(textwrap.dedent("\n".join(lines[start:end])), names)
    return names["OwnHeads"]


def test_the_example_in_the_contract_is_a_whole_method() -> None:
    method = example()(tiny_backbone(), epochs=20)  # type: ignore[call-arg]
    learn_all(method, stream(4, 2, per_class=16))
    x = images(4, 8, "test")
    with torch.no_grad():
        found = method.predict(x.batch(torch.arange(32), plain_view(method.backbone.transform)), (0, 1, 2, 3))
    right = torch.tensor([method.classes[i] for i in found.argmax(1)]) == x.labels
    assert right.float().mean() > 0.4, "four classes, so chance is a quarter"
    assert method.can_forget is False
    assert isinstance(method.linear_classifier(), nn.Linear)


def test_a_method_without_learn_cannot_be_built() -> None:
    class Half(Method):
        pass

    with pytest.raises(TypeError, match=r"abstract method '?learn"):
        Half()  # pyright: ignore[reportAbstractUsage]


def test_what_a_default_needs_is_named_where_it_is_missing() -> None:
    method = Still()
    with pytest.raises(
        NotImplementedError, match=r"Still has no Heads in `self.heads`, which the default of `classify`"
    ):
        method.predict(pixels(method))
    with pytest.raises(NotImplementedError, match=r"keep heads there, or write `classes` in the class"):
        _ = method.classes


@pytest.mark.parametrize("kind", [Summed, Brightness])
def test_one_way_to_classify_is_enough_for_all_that_is_asked(kind: type[Still]) -> None:
    method = kind()
    x = pixels(method)
    with torch.no_grad():
        logits = method.predict(x)
        features, both = method.features_and_logits(x)
        again, readouts = method.features_and_readouts(x)
        certain, typicality = method.logits_and_typicality(x)
        assert torch.equal(features, method.backbone(x))
    assert torch.equal(features, again)
    assert all(torch.equal(logits, other) for other in (both, readouts[""], certain, method.readouts(x)[""]))
    torch.testing.assert_close(typicality, logits.exp().sum(1).log())
    with pytest.raises(ValueError, match="does not classify by one linear layer"):
        method.linear_classifier()


def test_a_given_task_rules_other_classes_out_by_default() -> None:
    method = Summed()
    x = pixels(method)
    with torch.no_grad():
        assert set(method.predict(x, (3,)).argmax(1).tolist()) == {1}
        assert torch.equal(method.predict(x, (3,))[:, 1], method.predict(x)[:, 1])


def test_heads_are_one_layer_in_which_the_last_head_of_a_class_counts() -> None:
    heads = Heads(3)
    for number, classes in enumerate([(4, 1), (7, 4)]):
        head = heads.grow(classes)
        head.weight.data += torch.arange(6.0).reshape(2, 3) + 10 * number
        head.bias.data += torch.arange(2.0) - number
    x = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 3.0]])
    layer = heads.as_linear()
    assert heads.classes == (4, 1, 7)
    torch.testing.assert_close(layer(x), heads(x))
    assert torch.equal(layer.weight[0], heads[1].weight[1])


@pytest.mark.parametrize("name", [name for name in BUILT if name not in NOT_LINEAR])
def test_a_linear_classifier_is_the_prediction(name: str) -> None:
    method = learn_all(make(name), stream(4, 2)).eval()
    x = pixels(method)
    with torch.no_grad():
        expected = method.predict(x)
        scale = float(expected.abs().max())
        found = method.linear_classifier()(method.features(x))
    torch.testing.assert_close(found / scale, expected / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_what_classifies_otherwise_has_no_linear_classifier(name: str) -> None:
    method = learn_all(make(name), stream(4, 2)).eval()
    with pytest.raises(ValueError, match="does not classify by one linear layer on the features of one network"):
        method.linear_classifier()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nearest-mean", {}),
        ("icarl", {}),
        ("loda", {}),
        ("lora-sub", {}),
        ("ranpac", {}),
        ("ranpac", {"unit": True, "adapt": "none", "ridge": 0.1}),
    ],
)
def test_a_plain_classifier_is_the_prediction(name: str, options: dict[str, Any]) -> None:
    quick = {} if name == "nearest-mean" else {"epochs": 1}
    method = learn_all(build(name, **quick, **options), stream(4, 2)).eval()
    x = pixels(method)
    with torch.no_grad():
        expected = method.predict(x)
        classifier = method.plain_classifier()
        found = classifier(method.features(x))
        assert found.dtype == expected.dtype
        scale = float(expected.abs().max())
        torch.testing.assert_close(found / scale, expected / scale, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="more than one linear layer"):
        classifier.as_linear()


@pytest.mark.parametrize(("name", "options"), [("icarl", {"memory": 0}), ("duallora", {"calibration": 0.0})])
def test_what_classifies_by_its_heads_after_all_says_so(name: str, options: dict[str, Any]) -> None:
    method = learn_all(build(name, epochs=1, **options), stream(4, 2)).eval()
    with torch.no_grad():
        x = pixels(method)
        torch.testing.assert_close(method.linear_classifier()(method.features(x)), method.predict(x))


@pytest.mark.parametrize("name", often(BUILT))
def test_one_pass_gives_the_same_features_logits_and_readouts(name: str) -> None:
    method = learn_all(make(name), stream(4, 2)).eval()
    x = pixels(method)
    with torch.no_grad():
        features, logits = method.features_and_logits(x)
        again, readouts = method.features_and_readouts(x)
        assert torch.equal(features, method.features(x))
        assert torch.equal(features, again)
        assert torch.equal(logits, method.predict(x))
        alone = method.readouts(x)
    assert list(alone) == list(readouts)
    assert all(torch.equal(alone[key], readouts[key]) for key in alone)


def test_a_method_alone_has_no_base_and_a_part_says_what_its_base_says() -> None:
    base = build("color")
    assert base.base is None
    part = Calibrated(base)
    assert part.base is base
    assert part.backbone is base.backbone
    assert (part.routed, part.widens, part.merges, part.changes_backbone) == (True, False, False, False)
    assert part.sites is base.sites
    assert part.adapters_of(2) == ("task2",)
    outer = Aligned(build("inflora", rank=3))
    assert (outer.merges, outer.free_rank, list(outer.protected())) == (True, 3, list(outer.base.protected()))
    assert not outer.can_forget


def test_the_keys_of_what_is_stored_are_the_names_of_the_attributes() -> None:
    keys = {key.split(".")[0] for key in learn_all(build("replay"), stream(4, 2)).state_dict()}
    assert keys == {"backbone", "heads", "exemplars"}
    assert {key.split(".")[0] for key in Aligned(build("seq-lora")).state_dict()} == {"base", "statistics"}


def test_a_stranger_on_a_base_gets_readouts_and_costs() -> None:
    method = learn_all(Doubled(build("linear-probe"), seed=0), stream(4, 2)).eval()
    x = pixels(method)
    with torch.no_grad():
        readouts = method.readouts(x)
        assert torch.equal(readouts["base"], method.base.predict(x))
        assert torch.equal(readouts[""], method.predict(x))
    assert torch.equal(readouts[""], 2 * readouts["base"])
    records = [TaskRecord("first", (0, 1), 16, {"double": 1.0, "train": 2.0, "total": 4.0}, 9)]
    assert costs_of_base(method, records, 1)["seconds"]["learn"] == [3.0]
    with pytest.raises(ValueError, match="LinearProbe is built on no other method; depth 2 is too large"):
        costs_of_base(method, records, 2)


def test_forgetting_is_refused_where_the_method_has_no_rule_for_it() -> None:
    method = Summed()
    with pytest.raises(ValueError, match="Summed cannot forget task 1: weights or statistics that tasks share hold it"):
        method.forget(1)
    assert {name for name in METHODS if build(name).can_forget} == {"color", "linear-probe"}


def test_images_that_are_kept_are_joined_to_new_ones() -> None:
    data = stream(4, 2)[1].train
    assert build("lwf").with_exemplars(data) is data
    method = learn_all(build("replay", memory=8), stream(4, 2))
    joined = method.with_exemplars(data)
    assert len(joined) == len(data) + 8
    assert not isinstance(joined, TensorSet)


@pytest.mark.parametrize(
    ("name", "text"),
    [("lwf", "images alone"), ("icarl", "the memory has"), ("ranpac", "beside the old ones"), ("dlc", "memory has")],
)
def test_what_becomes_of_classes_that_come_back_goes_by_what_is_kept(name: str, text: str) -> None:
    assert text in build(name).what_more_images_do()


def test_heads_of_single_tasks_are_given_where_they_read_the_backbone() -> None:
    method = learn_all(build("linear-probe"), stream(4, 2))
    assert isinstance(method.head_of(1), Head)
    assert method.head_of(1).classes == stream(4, 2)[1].classes
    with pytest.raises(ValueError, match="NearestMean has no linear head for each task"):
        build("nearest-mean").head_of(0)
    wide = learn_all(build("der", epochs=1), stream(4, 2))
    with pytest.raises(ValueError, match="DER has no linear head for each task on the features of one network"):
        wide.head_of(0)


def test_what_does_not_derive_from_method_is_refused_where_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loose(nn.Module):
        def __init__(self, backbone: Backbone, *, seed: int = 0) -> None:
            super().__init__()

    monkeypatch.setitem(METHODS, "loose", Loose)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"method 'loose' is a Loose; derive its class from lamella.Method"):
        Learner.create(backbone={"name": "test_vit", "weights": "random", "size": 32}, method="loose")


def test_a_copy_of_a_part_has_a_base_of_its_own() -> None:
    method = learn_all(make("inflora+align"), stream(4, 2)).eval()
    again = copy.deepcopy(method)
    assert again.base is not method.base
    with torch.no_grad():
        assert torch.equal(again.predict(pixels(again)), method.predict(pixels(method)))
