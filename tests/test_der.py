"""What DER promises: old extractors stay to the bit, features grow by d with each task, what is stored is counted."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from streams import Spy, build, fit_for, learn, stream, tiny_backbone, tiny_residual_backbone
from torch import Tensor

from lamella.backbones import load_backbone
from lamella.common.randomness import generator
from lamella.data.transform import plain_view
from lamella.learner.store.state import learned_state, restore_state
from lamella.methods.shared.classifier import new_or_old, widened
from lamella.methods.shared.heads import Heads
from lamella.training.checkpoints import Checkpoints

D = 16  # the tiny residual network's width


def der(**options: Any) -> Any:
    return build("der", backbone=tiny_residual_backbone(), **options)


def inputs(method: Any, number: int = 0) -> Tensor:
    test = stream().test(number)
    return test.batch(torch.arange(len(test)), plain_view(method.backbone.transform))


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, batch-norm statistics among them."""
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# the pieces ----------------------------------------------------------------------------------------------------------


def test_auxiliary_targets_by_hand() -> None:
    assert new_or_old(torch.tensor([7, 0, 4, 9, 4]), (4, 7)).tolist() == [2, 0, 1, 0, 1]


def test_a_widened_classifier_keeps_its_old_columns() -> None:
    heads = Heads(3)
    heads.grow((5, 2), generator(0, "first"))
    heads.grow((8,), generator(0, "second"))
    wide = widened(heads, 5, generator(0, "columns"))
    x = torch.randn(4, 3, generator=generator(0, "x"))
    assert wide.classes == (5, 2, 8)
    assert torch.allclose(wide(torch.cat([x, torch.zeros(4, 2)], 1)), heads(x), atol=1e-6)
    assert 0 < float(wide[0].weight[:, 3:].abs().min()) <= float(wide[0].weight[:, 3:].abs().max()) <= 5**-0.5
    assert float(widened(heads, 5)[1].weight[:, 3:].abs().max()) == 0


# the method ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught() -> tuple[Any, list[dict[str, Tensor]], list[Tensor]]:
    """DER after three tasks: each extractor as its task left it, and the features of one batch after each task."""
    method, left, features = der(), [], []
    for i in range(3):
        learn(method, i, stream()[i])
        left.append(snapshot([method.backbone.model, *method.extractors][-1]))
        with torch.no_grad():
            features.append(method.features(inputs(method)))
    return method, left, features


def test_old_extractors_stay_to_the_bit_with_their_batch_norm_statistics(taught: Any) -> None:
    method, left, _ = taught
    now = [snapshot(extractor) for extractor in (method.backbone.model, *method.extractors)]
    assert any("running_mean" in key for key in now[0])
    assert all(same(a, b) for a, b in zip(now, left, strict=True))
    moved = [key for key in now[1] if not torch.equal(now[0][key], now[1][key])]
    assert moved == list(now[1])  # each task trained all of its own


def test_features_grow_by_d_with_each_task_and_old_ones_stay(taught: Any) -> None:
    _, _, features = taught
    assert [f.shape[1] for f in features] == [D, 2 * D, 3 * D]
    assert torch.equal(features[2][:, : 2 * D], features[1])
    assert torch.equal(features[1][:, :D], features[0])
    assert not torch.allclose(features[2][:, 2 * D :], features[2][:, D : 2 * D])


def test_what_is_stored_is_counted_exactly(taught: Any) -> None:
    method, _, _ = taught
    state = learned_state(method)
    t, c = 3, 6
    extractor = sum(v.numel() for v in method.backbone.model.state_dict().values())
    numbers = {kind: sum(v.numel() for k, v in state.items() if k.startswith(kind)) for kind in kinds(state)}
    assert numbers["backbone"] + numbers["extractors"] == t * extractor
    assert numbers["heads"] == c * (t * D + 1) + c  # the classifier, and the ids of its rows
    assert state["exemplars.images"].numel() == method.exemplars.bytes == len(method.exemplars) * 3 * 16 * 16
    assert kinds(state) == {"backbone", "extractors", "heads", "exemplars"}  # the auxiliary classifier is thrown away


def kinds(state: dict[str, Tensor]) -> set[str]:
    return {key.split(".")[0] for key in state}


def test_a_new_extractor_starts_as_a_copy_of_the_last_and_trains_alone() -> None:
    method = der()
    for i in range(2):
        learn(method, i, stream()[i])
    extractor = sum(p.numel() for p in method.backbone.model.parameters())
    last = snapshot(method.extractors[0])
    assert not same(last, snapshot(method.backbone.model))
    seen: list[int] = []

    def look(loss: Any, data: Any, params: list[Tensor]) -> None:
        seen.append(sum(p.numel() for p in params))
        assert same(snapshot(method.extractors[1]), last)
        modes = [e.training for e in (method.backbone.model, *method.extractors)]
        assert modes == [False, False, True]

    learn(method, 2, stream()[2], Spy(method, look))
    classifier, auxiliary = 6 * (3 * D + 1), 3 * (D + 1)
    assert seen == [extractor + classifier + auxiliary]


def test_the_loss_is_of_all_classes_and_of_new_against_old_on_the_newest_features() -> None:
    method = learn(der(auxiliary_weight=0.5), 0, stream()[0])
    seen: list[tuple[float, float]] = []

    @torch.no_grad()
    def look(loss: Any, data: Any, params: list[Tensor]) -> None:
        method.eval()  # or else batch-norm would answer to the batch
        for value in method.extractors[0].parameters():  # away from the first, of which it is a copy
            value += 0.1 * torch.randn(value.shape, generator=generator(0, "noise"))
        x = data.batch(torch.arange(len(data)), plain_view(method.backbone.transform))
        weight, bias = params[-2:]
        features, order = method.features(x), list(method.classes)
        every = F.cross_entropy(method.predict(x), torch.tensor([order.index(c) for c in data.labels.tolist()]))
        new = list(stream()[1].classes)
        targets = torch.tensor([new.index(c) + 1 if c in new else 0 for c in data.labels.tolist()])
        own = F.cross_entropy(features[:, D:] @ weight.T + bias, targets)
        assert 0 < int((targets == 0).sum()) < len(targets)  # exemplars and new images
        seen.append((float(loss(x, data.labels)), float(every + 0.5 * own)))

    learn(method, 1, stream()[1], Spy(method, look))
    assert seen[0][0] == pytest.approx(seen[0][1], rel=1e-4)


def test_new_rows_are_aligned_unless_asked_not_to() -> None:
    for align in (True, False):
        method = der(align=align)
        for i in range(2):
            learn(method, i, stream()[i])
        old, new = (float(head.weight.norm(dim=1).mean()) for head in method.heads.heads)
        assert (new == pytest.approx(old, rel=1e-5)) is align


def test_a_stored_model_replaces_whatever_was_learned(taught: Any) -> None:
    method, _, features = taught
    other = learn(der(), 0, stream()[1])
    restore_state(other, learned_state(method))
    with torch.no_grad():
        assert torch.equal(other.features(inputs(method)), features[2])
        assert torch.equal(other.predict(inputs(method)), method.predict(inputs(method)))


class Killed(Exception):
    pass


class Dying(Checkpoints):
    """Checkpoints after every step, with which the process dies after five."""

    left = 5

    def save(self, *args: Any) -> None:
        super().save(*args)
        self.left -= 1
        if not self.left:
            raise Killed


def test_a_killed_task_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = learn(der(), 0, stream()[0])
    before = {key: value.clone() for key, value in learned_state(whole).items()}
    learn(whole, 1, stream()[1])
    killed, resumed = der(), der()
    for method in (killed, resumed):
        restore_state(method, before)
    with pytest.raises(Killed):
        learn(killed, 1, stream()[1], fit_for(killed, checkpoints=Dying(tmp_path, seconds=0)))
    learn(resumed, 1, stream()[1], fit_for(resumed, checkpoints=Checkpoints(tmp_path)))
    assert same(learned_state(resumed), learned_state(whole))


def test_a_backbone_that_joins_tokens_is_refused() -> None:
    joined = load_backbone("test_vit", weights="random", size=32, pool="class+mean")
    with pytest.raises(ValueError, match="use pool 'model'"):
        build("der", backbone=joined)
    with pytest.raises(ValueError, match="auxiliary_weight -1 is below 0"):
        build("der", backbone=tiny_backbone(), auxiliary_weight=-1)
