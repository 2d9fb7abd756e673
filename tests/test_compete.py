"""Heads that compete with draws of old classes: one head over all classes; only new images move features."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streams import Spy, build, fit_for, images, learn, learn_all, stream, tiny_backbone
from torch import Tensor

from lamella import Learner
from lamella.data.transform import plain_view
from lamella.learner.export import export
from lamella.memory.gaussians import ClassGaussians, shrunk
from lamella.methods.parts import Aligned, Calibrated
from lamella.methods.shared.heads import Heads
from lamella.methods.shared.pseudo_replay import DRAWS, SCALE, PseudoReplay
from lamella.testing.checks import CHECKS
from lamella.testing.trial import Trial
from lamella.training.fit import Fit


def carried(name: str = "seq-lora", seed: int = 0, *, compete: bool = True, **options: Any) -> Any:
    return Aligned(build(name, seed, **options), seed=seed, compete=compete)


def test_all_heads_start_from_the_discriminant_on_the_features_before() -> None:
    method, tasks = carried(), stream()
    learn(method, 0, tasks[0])
    fit = fit_for(method)
    fit.begin("look")
    before = fit.features(tasks[1].train, method.features)
    together = ClassGaussians(method.backbone.width)
    together.load_state_dict(method.statistics.state_dict())
    together.add(before, tasks[1].train.labels, tasks[1].classes)
    S, mu = shrunk(together.covariance, 0.1).numpy(), together.means.numpy()
    W = np.linalg.solve(S, mu.T).T
    starts: list[Tensor] = []

    def look(loss: Any, data: Any, params: list[Tensor]) -> None:
        heads = method.base.heads.as_linear()
        starts.extend([heads.weight.detach().clone(), heads.bias.detach().clone()])
        assert {id(p) for p in method.base.heads.parameters()} <= {id(p) for p in params}

    learn(method, 1, tasks[1], Spy(method, look))
    np.testing.assert_allclose(starts[0].numpy(), SCALE * W, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(starts[1].numpy(), -SCALE * (W * mu).sum(1) / 2, rtol=1e-4, atol=1e-4)
    assert method.base.pseudo_replay is None, "nothing of old classes stays with the base"


def test_the_loss_is_cross_entropy_on_images_and_on_draws_where_every_class_weighs_alike() -> None:
    heads = Heads(5, "uniform")
    for classes in ((4, 1, 7), (2, 9)):
        heads.grow(classes)
    draws = torch.Generator().manual_seed(3)
    means, root = torch.randn(3, 5, generator=draws), torch.randn(5, 5, generator=draws).tril()
    pseudo_replay = PseudoReplay(torch.tensor([4, 1, 7]), means, root, {}, new=2)
    with pytest.raises(RuntimeError, match=r"train by fit\(\.\.\.\)"):
        pseudo_replay.loss(heads)
    pseudo_replay.generator = torch.Generator().manual_seed(0)
    found = float(pseudo_replay.loss(heads))
    again = torch.Generator().manual_seed(0)
    chosen = torch.randint(3, (DRAWS,), generator=again).numpy()
    noise = torch.randn(DRAWS, 5, generator=again).double().numpy()
    layer = heads.as_linear()
    f = means.double().numpy()[chosen] + noise @ root.double().numpy().T
    logits = f @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))  # columns 0, 1, 2 are the old classes
    assert found == pytest.approx(-3 / 2 * log_p[np.arange(DRAWS), chosen].mean(), rel=1e-5)


def test_draws_reach_the_heads_alone() -> None:
    method, task = carried(), stream()[1]
    learn(method, 0, stream()[0])
    gradients: list[bool] = []

    def look(loss: Any, data: Any, params: list[Tensor]) -> None:
        pseudo_replay = method.base.pseudo_replay
        pseudo_replay.generator = torch.Generator().manual_seed(0)
        for p in params:
            p.requires_grad_(True)
        own = {id(p) for p in method.base.heads.parameters()}
        found = torch.autograd.grad(pseudo_replay.loss(method.base.heads), params, allow_unused=True)
        gradients.extend(g is not None for g, p in zip(found, params, strict=True) if id(p) in own)
        assert all(g is None for g, p in zip(found, params, strict=True) if id(p) not in own)

    learn(method, 1, task, Spy(method, look))
    assert gradients == [True] * 4


def test_the_first_task_is_learned_as_without() -> None:
    one, other = (learn(carried(compete=compete), 0, stream()[0]) for compete in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def right(predict: Any, method: Any) -> float:
    test = images(6, 4, "test")
    x = test.batch(torch.arange(len(test)), plain_view(method.backbone.transform))
    columns = torch.tensor([method.classes.index(c) for c in test.labels.tolist()])
    with torch.no_grad():
        return float((predict(x).argmax(1) == columns).double().mean())


def test_its_one_head_is_far_above_heads_that_never_met() -> None:
    found = []
    for compete in (True, False):
        method = carried(compete=compete, epochs=10, lr=2e-3)
        learn_all(method, stream(per_class=16), Fit(method, method.backbone.transform, device="cpu")).eval()
        found.append(right(method.base.predict, method))
    assert found[0] > found[1] + 0.2, found


def test_the_exported_layer_is_the_prediction_of_the_heads(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import load_file

    backbone = {"name": "test_vit", "weights": "random", "size": 32, "crop": 1.0}
    table = {"name": "seq-lora", "epochs": 2, "batch_size": 8, "align": {"compete": True, "own_covariance": 0.2}}
    learner = Learner.create(backbone=backbone, method=table, fit={"device": "cpu"})
    for task in stream(classes=4, tasks=2, per_class=4):
        learner.learn(task)
    export(learner.model, "timm", tmp_path / "heads", readout="base")
    model = timm.create_model("test_vit", num_classes=4, img_size=32).eval()
    model.load_state_dict(load_file(tmp_path / "heads" / "model.safetensors"))
    x, base = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3)), learner.method.base
    assert base is not None
    with torch.no_grad():
        wanted = base.predict(x)
        torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


def test_it_needs_heads_on_the_features_that_alignment_sees() -> None:
    for refused in (build("nearest-mean"), build("color"), build("replay"), build("loda")):
        with pytest.raises(ValueError, match=r"compete needs means 0 and a method that trains a linear head"):
            Aligned(refused, compete=True)
    with pytest.raises(ValueError, match="compete needs means 0"):
        Aligned(build("seq-lora"), compete=True, means=1)
    below = build("inflora", backbone=tiny_backbone())
    learn_all(Aligned(Calibrated(below), compete=True), stream(4, 2))
    assert below.pseudo_replay is None


def test_classes_that_come_back_compete_too() -> None:
    tasks = stream(4, 2)
    method = carried()
    for number, task in enumerate([tasks[0], tasks[0], tasks[1]]):
        learn(method, number, task)
    assert len(method.base.classes) == 4


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial(lambda seed: carried("inflora", seed))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_the_contract(trial: Trial, check: Any) -> None:
    """Above all: a training that is interrupted draws what it would have drawn."""
    check(trial)
