"""Task calibration around any method: it adds what the layers say of the task, and nothing else."""

from typing import Any

import pytest
import torch
from streams import build, fit_for, images, learn_all, stream, tiny_backbone
from torch import Tensor

from lamella.adapters.adapter import watch
from lamella.backbones import Backbone, load_backbone
from lamella.data.scenario import Task
from lamella.data.transform import plain_view
from lamella.learner.config.document import build_method, complete, method_name, readout_names
from lamella.learner.store.state import learned_state, restore_state
from lamella.memory.calibration import Calibration
from lamella.methods import Method
from lamella.methods.parts import Aligned, Calibrated


def pixels(method: Any, n: int = 8) -> Tensor:
    return images(6, 4, "test").batch(torch.arange(n), plain_view(method.backbone.transform))


def task(i: int, classes: tuple[int, ...]) -> Task:
    every = images(6, 6, "train")
    index = torch.isin(every.labels, torch.tensor(classes)).nonzero()[:, 0]
    return Task(i, f"task {i}", classes, tuple(map(str, classes)), every.subset(index))


def carried(name: str = "seq-lora", **options: Any) -> Calibrated:
    return Calibrated(build(name, rank=3, lr=0.01) if name == "seq-lora" else build(name), **options)


@pytest.fixture(scope="module")
def learned() -> Calibrated:
    return learn_all(carried(), stream())


def test_the_training_of_its_base_is_untouched(learned: Calibrated) -> None:
    plain = learn_all(build("seq-lora", rank=3, lr=0.01), stream())
    x = pixels(plain)
    with torch.no_grad():
        assert torch.equal(learned.base.predict(x), plain.predict(x))
        assert torch.equal(learned.readouts(x)["base"], plain.predict(x))
        assert torch.equal(learned.readouts(x)[""], learned.predict(x))
        assert torch.equal(learned.features(x), plain.features(x))
    assert learned.classes == plain.classes


def test_it_adds_the_term_of_the_layers_scores(learned: Calibrated) -> None:
    """Scores from class tokens that are watched here, levels and blocks as stored."""
    x = pixels(learned)
    seen: dict[str, Tensor] = {}
    names = {s.layer: s.name for s in learned.watched}
    with watch(learned.watched, lambda layer: lambda h: seen.update({names[layer]: h[:, 0]})), torch.no_grad():
        plain = learned.base.predict(x)
        calibrated = learned.predict(x)
    votes = []
    for name, h in seen.items():
        signature = learned.signatures[name]
        rho = torch.stack([(h @ signature.block(t)).norm(dim=1) for t in range(3)], 1) / h.norm(dim=1, keepdim=True)
        votes.append(torch.where(signature.level > 1e-4, rho / signature.level, torch.ones(())))
    term = Calibration(1.0, 0.1).term(torch.stack(votes).mean(0), [0, 0, 1, 1, 2, 2])
    torch.testing.assert_close(calibrated, plain + term, atol=1e-4, rtol=1e-4)
    assert float(term.abs().max()) > 1e-3


def test_strength_zero_is_exactly_the_base() -> None:
    off = learn_all(carried(strength=0), stream(4, 2))
    x = pixels(off)
    with torch.no_grad():
        assert torch.equal(off.predict(x), off.base.predict(x))
        assert torch.equal(off.readouts(x)[""], off.base.predict(x))


def test_signatures_are_those_of_the_finished_model_of_the_task() -> None:
    method = carried()
    seen: list[dict[str, Tensor]] = []
    extend = method.signatures.extend
    method.signatures.extend = lambda inputs, share: (  # type: ignore[method-assign]
        seen.append({k: v.class_tokens for k, v in inputs.items()}),
        extend(inputs, share),
    )[1]
    data = task(0, (0, 1))
    fit = fit_for(method)
    method.learn(data, fit)
    x = data.train.batch(torch.arange(len(data.train)), plain_view(method.backbone.transform))  # not augmented
    found: dict[str, Tensor] = {}
    names = {s.layer: s.name for s in method.watched}
    with watch(method.watched, lambda layer: lambda h: found.update({names[layer]: h[:, 0]})), torch.no_grad():
        method.features(x)
    for name, h in found.items():
        torch.testing.assert_close(seen[0][name], h, atol=1e-5, rtol=1e-5)


def test_one_forward_pass_gives_both_readouts(learned: Calibrated, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    forward = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, x: (calls.append(len(x)), forward(self, x))[1])
    with torch.no_grad():
        learned.predict(pixels(learned))
        learned.readouts(pixels(learned))
        learned.features_and_readouts(pixels(learned))
    assert calls == [8, 8, 8]


def test_around_alignment_every_readout_is_kept() -> None:
    both = learn_all(Calibrated(Aligned(build("seq-lora", rank=3, lr=0.01)), strength=50.0), stream())
    x = pixels(both)
    with torch.no_grad():
        readouts, aligned = both.readouts(x), both.base.readouts(x)
        assert list(readouts) == ["", "base", "base.base"]
        assert torch.equal(readouts["base"], aligned[""])
        assert torch.equal(readouts["base.base"], aligned["base"])
        assert torch.equal(readouts[""], both.predict(x))
        difference = readouts[""] - aligned[""]
    torch.testing.assert_close(difference[:, 0], difference[:, 1], atol=1e-3, rtol=0)  # one number a task
    assert float((difference[:, 0] - difference[:, 2]).abs().max()) > 0.05
    assert both.watched is both.base.base.sites


def test_within_alignment_it_stays_out_of_the_way() -> None:
    inside = learn_all(Aligned(carried()), stream())
    plain = learn_all(Aligned(build("seq-lora", rank=3, lr=0.01)), stream())
    x = pixels(inside)
    with torch.no_grad():
        assert torch.equal(inside.predict(x), plain.predict(x))
        readouts = inside.readouts(x)
        assert torch.equal(readouts[""], plain.predict(x))
        assert torch.equal(readouts["base"], inside.base.predict(x))
        assert torch.equal(readouts["base.base"], plain.readouts(x)["base"])
        assert not torch.equal(readouts["base"], readouts["base.base"])


def test_results_are_named_after_the_parts(tmp_path: Any) -> None:
    document = {"backbone": {"name": "test_vit"}, "method": {"name": "inflora", "align": {}, "calibrate": {}}}
    config = complete(document)
    assert method_name(config) == "inflora+align+calibrate"
    method = build_method(config, tiny_backbone())
    assert isinstance(method, Calibrated)
    assert isinstance(method.base, Aligned)
    turned = complete({"backbone": {"name": "test_vit"}, "method": {"name": "inflora", "calibrate": {}, "align": {}}})
    assert readout_names(turned) == ["inflora+calibrate+align", "inflora+calibrate", "inflora"]


def test_a_frozen_method_is_read_at_its_backbones_key_and_value_layers() -> None:
    for name in ("nearest-mean", "streaming-lda"):
        method = carried(name)
        assert [s.name for s in method.watched] == [s.name for s in tiny_backbone().sites("key+value")]
        learn_all(method, stream())
        x = pixels(method)
        with torch.no_grad():
            assert method.predict(x).shape == (8, 6)
            assert method.choose_task(x).shape == (8,)


def test_a_class_that_comes_back_belongs_to_its_last_task() -> None:
    method = carried()
    fit = fit_for(method)
    for i, classes in enumerate([(0, 1), (2, 0), (3,)]):
        fit.begin(str(i))
        method.learn(task(i, classes), fit)
    assert dict(method.taught.tolist()) == {0: 1, 1: 0, 2: 1, 3: 2}
    x = pixels(method)
    with torch.no_grad():
        difference = method.predict(x) - method.base.predict(x)
    assert method.classes == (0, 1, 2, 3)
    torch.testing.assert_close(difference[:, 0], difference[:, 2], atol=1e-5, rtol=0)
    assert float((difference[:, 0] - difference[:, 1]).abs().max()) > 1e-3


def test_the_state_holds_everything_and_no_image(learned: Calibrated) -> None:
    again = carried()
    restore_state(again, {k: v.clone() for k, v in learned_state(learned).items()})
    x = pixels(learned)
    with torch.no_grad():
        assert torch.equal(again.predict(x), learned.predict(x))
        assert torch.equal(again.choose_task(x), learned.choose_task(x))
    more = learn_all(carried(), stream(per_class=3))
    own = [k for k in learned.state_dict() if k.startswith(("signatures", "taught"))]
    sizes = {k: learned.state_dict()[k].shape for k in own}
    widths = {k: v[0] for k, v in sizes.items() if k.endswith("basis")}
    assert widths
    assert set(widths.values()) == {64}
    assert set(more.state_dict()) == set(learned.state_dict())


# Gaussians -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gaussian() -> Calibrated:
    return learn_all(carried(score="gaussian", shrinkage=0.3, strength=1.0, temperature=2.0), stream())


def last_tokens(method: Calibrated, x: Tensor) -> Tensor:
    """(n, d) class tokens that enter the last block's attention."""
    seen: list[Tensor] = []
    layer: Any = method.backbone.model.get_submodule("blocks.5.attn.qkv")
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, 0]))
    with torch.no_grad():
        method.base.predict(x)
    hook.remove()
    return seen[0]


def test_gaussians_give_the_product_of_task_and_class_probabilities(gaussian: Calibrated) -> None:
    x = pixels(gaussian)
    scores = gaussian.statistics.linear_discriminant(last_tokens(gaussian, x), 0.3).double()
    # In float64 as differences of logarithms, because the plain probabilities underflow; temperature 2.
    weight = (scores - scores.amax(1, keepdim=True)).exp().unflatten(1, (3, 2)).sum(2) ** 0.5
    pi = weight / weight.sum(1, keepdim=True)
    top = pi.sort(1, descending=True).values
    with torch.no_grad():
        own = gaussian.base.predict(x).unflatten(1, (3, 2)).double().softmax(2)
        found = gaussian.predict(x).unflatten(1, (3, 2)).double()
        assert torch.equal(gaussian.choose_task(x), pi.argmax(1))
        assert torch.equal(gaussian.readouts(x)["base"], gaussian.base.predict(x))
        assert torch.equal(gaussian.readouts(x)[""], gaussian.predict(x))
    expected = own.log() + ((top[:, :1] - top[:, 1:2]) * pi.log())[:, :, None]
    normal = (pi > 1e-300)[:, :, None].expand_as(expected)
    assert int(normal.sum()) > 16  # more than the best task of each image
    torch.testing.assert_close(found[normal], expected[normal], atol=1e-2, rtol=1e-3)


def test_gaussians_follow_the_drift_as_alignment_does() -> None:
    """On a frozen backbone nothing drifts; a known affine drift of the tokens moves the means of old classes."""
    frozen = learn_all(carried("nearest-mean", score="gaussian"), stream(4, 2))
    tokens = last_tokens(frozen, pixels(frozen, 4))
    assert tokens.shape == (4, 64)
    train = stream(4, 2)[0].train
    x = train.batch(torch.arange(len(train)), plain_view(frozen.backbone.transform))
    torch.testing.assert_close(
        frozen.statistics.means[0], last_tokens(frozen, x)[train.labels == 0].double().mean(0), atol=1e-4, rtol=1e-4
    )
    moving = carried(score="gaussian", ridge=1e-6)
    scenario = stream(4, 2)
    fit = fit_for(moving)
    moving.learn(scenario[0], fit)
    new = scenario[1].train.batch(torch.arange(len(scenario[1].train)), plain_view(moving.backbone.transform))
    means, before = moving.statistics.means.clone(), last_tokens(moving, new).double()
    fit.begin("1")
    moving.learn(scenario[1], fit)
    after = last_tokens(moving, new).double()
    assert float((after - before).abs().max()) > 1e-2
    shift = moving.statistics.means[:2] - means
    map_ = torch.linalg.pinv(before - before.mean(0), rtol=1e-4) @ (after - before - (after - before).mean(0))
    expected = (after - before).mean(0) + (means - before.mean(0)) @ map_
    assert float((shift - expected).norm()) < 0.3 * float(expected.norm())


def test_the_state_brings_gaussians_back(gaussian: Calibrated) -> None:
    again = carried(score="gaussian", shrinkage=0.3, strength=1.0, temperature=2.0)
    restore_state(again, {k: v.clone() for k, v in learned_state(gaussian).items()})
    x = pixels(gaussian)
    with torch.no_grad():
        assert torch.equal(again.predict(x), gaussian.predict(x))
        given = gaussian.predict(x, (2, 3))
        assert set(given.argmax(1).tolist()) <= {2, 3}


def test_half_precision_gives_float32_logits_near_the_exact_ones(gaussian: Calibrated) -> None:
    x = pixels(gaussian)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = gaussian.predict(x)
    assert rough.dtype == torch.float32
    with torch.no_grad():
        exact = gaussian.predict(x)
    assert torch.isfinite(rough).all()
    assert float((rough - exact).norm()) < 0.2 * float(exact.norm())


def test_the_experts_of_a_routed_method_do_not_drift() -> None:
    method = carried("color", score="gaussian")
    scenario, fit = stream(4, 2), fit_for(method)
    means = []
    for i in range(2):
        fit.begin(str(i))
        method.learn(scenario[i], fit)
        means.append(method.statistics.means[:2].clone())
    assert method.routed
    assert torch.equal(*means)


class TwoCrops(Method):
    """A method that shows its backbone two crops of each image."""

    classes = (0, 1)

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def learn(self, task: Task, fit: Any) -> None:
        pass

    def predict(self, x: Tensor, task: Any = None) -> Tensor:
        return self.backbone(torch.cat([x, x.flip(3)]))[:, :2].reshape(2, len(x), 2).mean(0)


def test_a_method_that_asks_more_than_one_input_an_image_is_refused() -> None:
    method = Calibrated(TwoCrops(tiny_backbone()))
    with pytest.raises(RuntimeError, match="passed 24 inputs through its layers for 12 samples"):
        method.learn(task(0, (0, 1)), fit_for(method))


def test_what_it_cannot_read_is_refused_at_once() -> None:
    convolutions = build("nearest-mean", backbone=load_backbone("test_resnet", weights="random", size=32))
    with pytest.raises(ValueError, match="has no layer with the roles"):
        Calibrated(convolutions)
    for options, text in (
        ({"strength": -1.0}, "strength -1.0 must not be negative"),
        ({"temperature": 0.0}, "temperature 0.0 must be above 0"),
        ({"energy": 0.0}, "energy 0.0 is outside"),
        ({"score": "means"}, "score 'means' is unknown; use one of signature, gaussian"),
        ({"ridge": 0.0}, "ridge 0.0 must be above 0"),
        ({"shrinkage": 0.0}, "shrinkage 0.0 is outside"),
    ):
        with pytest.raises(ValueError, match=text):
            carried(**options)
