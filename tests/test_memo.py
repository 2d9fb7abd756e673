"""What MEMO promises: one trunk for all tasks, one tail for each that stays to the bit, and the numbers this takes."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from streams import Spy, build, learn, stream, tiny_backbone, tiny_residual_backbone
from torch import Tensor, nn

from lamella.backbones import load_backbone
from lamella.backbones.resnets import split
from lamella.common.randomness import generator
from lamella.data.transform import plain_view
from lamella.learner.store.state import learned_state, restore_state

D = 16  # the tiny residual network's width


def inputs(method: Any) -> Tensor:
    test = stream().test(0)
    return test.batch(torch.arange(len(test)), plain_view(method.backbone.transform))


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, batch-norm statistics among them."""
    return {key: value.clone() for key, value in module.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    assert before.keys() == after.keys()
    return [key for key in before if not torch.equal(before[key], after[key])]


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def tails(method: Any) -> list[nn.Module]:
    return [split(method.backbone.model, method.cut)[1], *method.tails]


@pytest.fixture(scope="module")
def taught() -> tuple[Any, list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """MEMO after three tasks: each tail as its task left it, and the trunk after each task."""
    method, left, trunks = build("memo"), [], []
    for i in range(3):
        learn(method, i, stream()[i])
        left.append(snapshot(tails(method)[-1]))
        trunks.append(snapshot(split(method.backbone.model, "stage3")[0]))
    return method, left, trunks


def test_old_tails_stay_to_the_bit_with_their_batch_norm_statistics(taught: Any) -> None:
    method, left, _ = taught
    assert len(tails(method)) == 3
    for tail, as_learned in zip(tails(method), left, strict=True):
        assert any("running_mean" in key for key in as_learned)
        assert moved(as_learned, snapshot(tail)) == []
    assert moved(left[0], left[1]) == list(left[0])  # each task trained all of its own


def test_the_trunk_is_trained_on(taught: Any) -> None:
    _, _, trunks = taught
    for before, after in pairwise(trunks):
        assert moved(before, after) == list(before)


def test_features_are_those_of_all_tails_on_one_trunk(taught: Any) -> None:
    method, _, _ = taught
    model, x = method.backbone.model, inputs(method)
    with torch.no_grad():
        z = model.stage2(model.stage1(model.act1(model.bn1(model.conv1(x)))))
        first = model.stage3(z).mean((2, 3))
        others = [tail[0](z).mean((2, 3)) for tail in method.tails]
        features = method.features(x)
    assert features.shape == (len(x), 3 * D)
    assert torch.allclose(features, torch.cat([first, *others], 1), atol=1e-6)
    assert torch.equal(features[:, :D], model(x))


def test_what_is_stored_is_one_trunk_and_a_tail_for_each_task(taught: Any) -> None:
    method, _, _ = taught
    state, t, c = learned_state(method), 3, 6
    trunk, tail = (sum(v.numel() for v in m.state_dict().values()) for m in split(method.backbone.model, "stage3"))
    kinds = {key.split(".")[0] for key in state}
    numbers = {kind: sum(v.numel() for k, v in state.items() if k.startswith(kind)) for kind in kinds}
    assert kinds == {"backbone", "tails", "heads", "exemplars"}  # the auxiliary classifier is thrown away
    assert numbers["backbone"] + numbers["tails"] == trunk + t * tail
    assert numbers["heads"] == c * (t * D + 1) + c  # the classifier, and the ids of its rows
    assert state["exemplars.images"].numel() == method.exemplars.bytes == len(method.exemplars) * 3 * 16 * 16


def test_parameters_of_resnet32_by_hand() -> None:
    """Stage 3: ten 3 x 3 convolutions, the first from 32 channels, and ten batch-norms of 2 x 64 numbers."""
    model = load_backbone("resnet32", weights="random").model
    trunk, tail = split(model, "stage3")
    assert count(tail) == 9 * 64 * (32 + 9 * 64) + 10 * 2 * 64 == 351_488
    assert count(model) == 463_504
    assert count(trunk) + 10 * count(tail) == 3_626_896  # ten tasks; ten whole extractors are 4,635,040


def test_a_new_tail_starts_as_a_copy_of_the_last_and_old_ones_do_not_train() -> None:
    method = build("memo")
    for i in range(2):
        learn(method, i, stream()[i])
    trunk, first = split(method.backbone.model, "stage3")
    last = snapshot(method.tails[0])
    assert moved(last, snapshot(first)) == list(last)
    seen: list[int] = []

    def look(loss: Any, data: Any, params: list[Tensor]) -> None:
        seen.append(sum(p.numel() for p in params))
        assert moved(last, snapshot(method.tails[1])) == []
        assert [m.training for m in (trunk[0], first[0], *method.tails)] == [True, False, False, True]

    learn(method, 2, stream()[2], Spy(method, look))
    classifier, auxiliary = 6 * (3 * D + 1), 3 * (D + 1)
    assert seen == [count(first) + classifier + auxiliary + count(trunk)]


def test_the_loss_is_of_all_classes_and_of_new_against_old_on_the_newest_tail() -> None:
    method = learn(build("memo", auxiliary_weight=0.5), 0, stream()[0])
    seen: list[tuple[float, float]] = []

    @torch.no_grad()
    def look(loss: Any, data: Any, params: list[Tensor]) -> None:
        method.eval()  # or else batch-norm would answer to the batch
        for value in method.tails[0].parameters():  # away from the first, of which it is a copy
            value += 0.1 * torch.randn(value.shape, generator=generator(0, "noise"))
        x = data.batch(torch.arange(len(data)), plain_view(method.backbone.transform))
        weight, bias = params[-2:]
        order, new = list(method.classes), list(stream()[1].classes)
        every = F.cross_entropy(method.predict(x), torch.tensor([order.index(c) for c in data.labels.tolist()]))
        targets = torch.tensor([new.index(c) + 1 if c in new else 0 for c in data.labels.tolist()])
        own = F.cross_entropy(method.features(x)[:, D:] @ weight.T + bias, targets)
        assert 0 < int((targets == 0).sum()) < len(targets)  # exemplars and new images
        seen.append((float(loss(x, data.labels)), float(every + 0.5 * own)))

    learn(method, 1, stream()[1], Spy(method, look))
    assert seen[0][0] == pytest.approx(seen[0][1], rel=1e-4)


def test_new_rows_are_aligned_unless_asked_not_to() -> None:
    for align in (True, False):
        method = build("memo", align=align)
        for i in range(2):
            learn(method, i, stream()[i])
        old, new = (float(head.weight.norm(dim=1).mean()) for head in method.heads.heads)
        assert (new == pytest.approx(old, rel=1e-5)) is align


def test_a_tail_may_begin_at_any_block_and_comes_back_from_a_file() -> None:
    method = build("memo", cut="stage2.0")
    for i in range(2):
        learn(method, i, stream()[i])
    assert count(method.tails[0]) == count(method.backbone.model.stage2, method.backbone.model.stage3)
    again = build("memo", cut="stage2.0")
    restore_state(again, learned_state(method))
    with torch.no_grad():
        assert torch.equal(again.eval().predict(inputs(method)), method.predict(inputs(method)))


def test_a_network_of_timm_can_be_cut() -> None:
    backbone = load_backbone("test_resnet", weights="random", size=64)
    method = build("memo", backbone=backbone, epochs=1)
    for i in range(2):
        learn(method, i, stream()[i])
    assert method.cut == "layer4"
    assert count(method.tails) == count(backbone.model.layer4)
    test = stream().test(0)
    x = test.batch(torch.arange(2), plain_view(backbone.transform))
    with torch.no_grad():
        assert method.features(x).shape == (2, 2 * backbone.width)
        assert torch.allclose(method.features(x)[:, : backbone.width], backbone(x), atol=1e-6)


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="has no stages of convolutions to cut between; use a residual network"):
        build("memo", backbone=tiny_backbone())
    with pytest.raises(ValueError, match="there is no stage or block 'stage9'"):
        build("memo", backbone=tiny_residual_backbone(), cut="stage9")
    with pytest.raises(ValueError, match="auxiliary_weight -1 is below 0"):
        build("memo", auxiliary_weight=-1)
