"""What iCaRL's paper promises: the nearest mean of exemplars decides, and the model before is distilled."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from streams import Spy, build, fit_for, learn, learn_all, stream, tiny_residual_backbone
from torch import Tensor

from lamella.data.images import ImageSet
from lamella.data.transform import plain_view


def make(**options: Any) -> Any:
    return build("icarl", backbone=tiny_residual_backbone(), **options)


def inputs(method: Any, data: Any) -> Tensor:
    return data.batch(range(len(data)), plain_view(method.backbone.transform))


@pytest.fixture(scope="module")
def taught() -> Any:
    return learn_all(make(epochs=4, batch_size=8, lr=3e-3, memory=13), stream())


def test_the_nearest_mean_of_unit_exemplar_features_decides(taught: Any) -> None:
    """By distances: each class's mean is that of its exemplars' unit features, made a unit vector again."""
    held = taught.exemplars.as_set()
    assert taught.exemplars.counts() == dict.fromkeys(stream().class_order, 2)
    x = inputs(taught, stream().test(0))
    with torch.no_grad():
        kept = taught.features(inputs(taught, held)).double()
        features = taught.features(x).double()
        scores = taught.predict(x)
    kept, features = (f / f.norm(dim=1, keepdim=True) for f in (kept, features))
    means = torch.stack([kept[held.labels == c].sum(0) / 2 for c in taught.classes])
    means = means / means.norm(dim=1, keepdim=True)
    squared = (features[:, None] - means[None]).square().sum(2)
    assert torch.equal(scores.argmax(1), squared.argmin(1))
    assert torch.allclose(scores.double(), 1 - squared / 2, atol=1e-5)  # |f - m|^2 = 2 - 2 cos


def test_the_prediction_does_not_look_at_the_classifier(taught: Any) -> None:
    x = inputs(taught, stream().test(1))
    other = copy.deepcopy(taught)
    for p in other.heads.parameters():
        p.data.normal_(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(other.predict(x), taught.predict(x))


def test_means_of_old_classes_follow_the_features() -> None:
    method = make(memory=6)
    learn(method, 0, stream()[0])
    first = method.means.clone()
    learn(method, 1, stream()[1])
    assert method.means.shape == (4, 16)
    held = method.exemplars.as_set()
    old = F.normalize(fit_for(method).features(held, method.features), dim=1)
    for i, label in enumerate(stream().class_order[:4]):
        assert torch.allclose(method.means[i], old[held.labels == label].mean(0), atol=1e-6)
    assert not torch.allclose(method.means[:2], first, atol=1e-4)


@pytest.mark.parametrize("temperature", [2.0, 0.7])
def test_the_loss_is_cross_entropy_and_distillation_by_hand(temperature: float) -> None:
    scenario, losses = stream(), []
    method = make(memory=6, temperature=temperature)

    def look(loss: Any, data: ImageSet, params: list[Any]) -> None:
        method.eval()
        x = inputs(method, data)
        with torch.no_grad():
            logits = method.heads(method.features(x))
            columns = [method.classes.index(y) for y in data.labels.tolist()]
            expected = -logits.log_softmax(1)[range(len(data)), columns].mean()
            if losses:
                before = old.heads(old.features(x))
                assert before.shape[1] == logits.shape[1] - 2
                target = (before / temperature).exp() / (before / temperature).exp().sum(1, keepdim=True)
                softened = logits[:, : before.shape[1]] / temperature
                expected -= (target * (softened - softened.logsumexp(1, keepdim=True))).sum(1).mean()
            losses.append((float(loss(x, data.labels)), float(expected)))
        method.train()

    for i in range(3):
        old = copy.deepcopy(method)
        learn(method, i, scenario[i], Spy(method, look))
    assert len(losses) == 3
    for found, expected in losses:
        assert found == pytest.approx(expected, rel=1e-5)


def test_the_old_model_stays_as_it_was_while_the_new_one_moves() -> None:
    method, scenario = make(memory=6, epochs=3, batch_size=8), stream()
    learn(method, 0, scenario[0])
    old, kept = copy.deepcopy(method), []
    learn(method, 1, scenario[1], Spy(method, lambda loss, data, params: kept.append((loss, data))))
    loss, data = kept[0]
    x = inputs(method, data)
    with torch.no_grad():
        logits, before = method.heads(method.features(x)), old.heads(old.features(x))
        assert not torch.allclose(logits[:, :2], before, atol=1e-2)
        target = (before / 2).softmax(1)
        distilled = -(target * (logits[:, :2] / 2).log_softmax(1)).sum(1).mean()
        expected = F.cross_entropy(logits, method.heads.columns(data.labels)) + distilled
        assert float(loss(x, data.labels)) == pytest.approx(float(expected), rel=1e-5)


def test_no_second_model_is_stored(taught: Any) -> None:
    roots = {key.split(".")[0] for key in taught.state_dict()}
    assert roots == {"backbone", "heads", "exemplars", "means"}
    assert sum("stage3.0.conv1" in key for key in taught.state_dict()) == 1


def test_without_a_memory_the_classifier_predicts() -> None:
    method = learn_all(make(memory=0), stream(4, 2))
    x = inputs(method, stream(4, 2).test(0))
    with torch.no_grad():
        assert torch.equal(method.predict(x), method.heads(method.features(x)))
    assert (len(method.exemplars), len(method.means)) == (0, 0)


def test_a_class_that_comes_back_is_chosen_from_new_and_kept_images() -> None:
    method, scenario = make(memory=8), stream(4, 2)
    for number, i in enumerate((0, 1, 0)):
        learn(method, number, scenario[i])
    assert method.exemplars.counts() == dict.fromkeys(scenario.class_order[2:] + scenario.class_order[:2], 2)
    assert len(set(method.exemplars.keys)) == 8
    assert method.classes == scenario.class_order
    assert len(method.means) == 4


def test_a_reservoir_is_refused() -> None:
    with pytest.raises(ValueError, match="iCaRL needs exemplars of each class"):
        make(choose="reservoir")
