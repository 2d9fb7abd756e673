"""Growing heads: columns in the order classes were first learned, each scored by the head that learned it last."""

import pytest
import torch
from torch import Tensor

from lamella.common.randomness import generator
from lamella.methods.shared.heads import OTHER_TASK_PENALTY, Heads, cosine_scores, only_columns


def grown(*tasks: tuple[int, ...], width: int = 5) -> Heads:
    heads = Heads(width)
    for i, classes in enumerate(tasks):
        heads.grow(classes, generator(0, "head", i))
    return heads


def features(n: int = 4, width: int = 5) -> Tensor:
    return torch.randn(n, width, generator=generator(0, "features"))


def test_heads_of_any_size_stand_side_by_side() -> None:
    heads, f = grown((4, 2), (7,), (0, 9, 1)), features()
    assert heads.classes == (4, 2, 7, 0, 9, 1)
    assert len(heads) == 3
    expected = torch.cat([f @ heads[i].weight.T + heads[i].bias for i in range(3)], dim=1)
    assert torch.allclose(heads(f), expected, atol=1e-6)


def test_a_class_that_comes_back_keeps_its_column_and_gets_its_last_head() -> None:
    heads, f = grown((4, 2), (7, 4), (2, 5)), features()
    assert heads.classes == (4, 2, 7, 5)
    expected = torch.stack([heads[1](f)[:, 1], heads[2](f)[:, 0], heads[1](f)[:, 0], heads[2](f)[:, 1]], dim=1)
    assert torch.equal(heads(f), expected)


def test_a_head_starts_as_torchs_linear_layer_and_by_name() -> None:
    head = Heads(400).grow(tuple(range(50)), generator(0, "a"))
    assert 0.99 * 400**-0.5 < float(head.weight.abs().max()) <= 400**-0.5
    assert float(head.bias.abs().max()) <= 400**-0.5
    assert abs(float(head.weight.std()) - (1200**-0.5)) < 1e-3
    assert torch.equal(grown((0, 1))[0].weight, grown((0, 1))[0].weight)
    assert not torch.equal(grown((0, 1), (2, 3))[0].weight, grown((0, 1), (2, 3))[1].weight)
    assert not any(p.requires_grad for p in head.parameters())


def test_columns_of_labels_in_any_order_and_strangers_are_refused() -> None:
    head = grown((8, 3, 5))[0]
    assert head.columns(torch.tensor([5, 8, 3, 3])).tolist() == [2, 0, 1, 1]
    with pytest.raises(ValueError, match=r"labels \[1, 4\] are not among this head's classes \[8, 3, 5\]"):
        head.columns(torch.tensor([8, 4, 1, 4]))


@pytest.mark.parametrize("classes", [(), (1, 2, 1)])
def test_a_head_needs_distinct_classes(classes: tuple[int, ...]) -> None:
    heads = Heads(5)
    with pytest.raises(ValueError, match="distinct classes"):
        heads.grow(classes)
    assert len(heads) == 0


def test_heads_rebuild_themselves_from_a_state_dict() -> None:
    tasks = [
        tuple(range(9 * i, 10 * i + 1)) for i in range(11)
    ]  # more than ten, so that the order of numbers is not that of texts
    heads = grown(*tasks, (3, 50))
    fresh = grown((99,))
    fresh.load_state_dict(dict(sorted(heads.state_dict().items())))
    assert fresh.classes == heads.classes
    assert torch.equal(fresh(features()), heads(features()))
    fresh.load_state_dict(Heads(5).state_dict())
    assert len(fresh) == 0


def test_classes_that_are_ruled_out_fall_below_all_others_and_keep_their_order() -> None:
    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0], [0.0, 9.0, -1.0, 7.0]])
    only = only_columns(logits, (10, 11, 12, 13), (13, 12, 99))
    assert torch.equal(only[:, 2:], logits[:, 2:])
    assert only.isfinite().all()
    assert only.argsort(1, descending=True).tolist() == [[2, 3, 0, 1], [3, 2, 1, 0]]
    assert float((only[:, 2:].amin(1) - only[:, :2].amax(1)).min()) >= OTHER_TASK_PENALTY - 1
    assert only_columns(logits, (10, 11, 12, 13), None) is logits


def test_even_huge_scores_are_ruled_out_without_a_look_at_the_rest_of_the_batch() -> None:
    logits = torch.tensor([[1e6, -1e6], [1.0, 0.0]], dtype=torch.float64)
    only = only_columns(logits, (0, 1), (1,))
    assert only.argmax(1).tolist() == [1, 1]
    assert torch.equal(only[1:], only_columns(logits[1:], (0, 1), (1,)))


def test_cosine_scores() -> None:
    f, means = torch.tensor([[3.0, 4.0]]), torch.tensor([[30.0, 40.0], [-4.0, 3.0], [0.0, -2.0]])
    assert torch.allclose(cosine_scores(f, means), torch.tensor([[1.0, 0.0, -0.8]]), atol=1e-6)


def test_cosines_keep_their_precision_under_autocast() -> None:
    features, means = torch.rand(5, 64) + 1, torch.rand(3, 64) + 1
    with torch.autocast("cpu", torch.bfloat16):
        narrow = cosine_scores(features.bfloat16(), means)
        scores = cosine_scores(features, means)
    assert narrow.dtype == torch.float32
    assert torch.allclose(scores, torch.cosine_similarity(features[:, None], means[None], dim=2), atol=1e-6)


def test_heads_start_as_they_are_told() -> None:
    uniform, zero = Heads(16, "uniform", seed=3), Heads(16)
    first, second = uniform.grow((0, 1)), uniform.grow((2, 3))
    assert float(zero.grow((0, 1)).weight.abs().max()) == 0
    assert 0 < float(first.weight.abs().max()) <= 16**-0.5
    assert not torch.equal(first.weight, second.weight)
    assert torch.equal(Heads(16, "uniform", seed=3).grow((5, 6)).weight, first.weight)  # by seed and number
    assert not torch.equal(Heads(16, "uniform", seed=4).grow((0, 1)).weight, first.weight)
    with pytest.raises(ValueError, match="head_start 'normal' is unknown; use one of uniform, kaiming, zero"):
        Heads(16, "normal")


def test_the_kaiming_start_is_that_of_torchs_initialiser_with_biases_of_zero() -> None:
    """PyCIL and SD-LoRA start their classifiers so; `nn.init` draws it in its own way, so the distribution is compared.

    U(-b, b) with b = sqrt(3 / d) has the standard deviation 1 / sqrt(d).
    """
    head = Heads(400, "kaiming", seed=1).grow(tuple(range(50)))
    theirs = torch.nn.init.kaiming_uniform_(
        torch.empty(50, 400), nonlinearity="linear", generator=generator(0, "theirs")
    )
    bound = (3 / 400) ** 0.5
    for weight in (head.weight, theirs):
        assert 0.999 * bound < float(weight.abs().max()) <= bound
        assert abs(float(weight.std()) - 400**-0.5) < 5e-4
        assert abs(float(weight.mean())) < 2e-3
    assert not head.bias.any()
    assert torch.equal(Heads(400, "kaiming", seed=1).grow(tuple(range(50))).weight, head.weight)  # by seed and number
    assert torch.allclose(head.weight, Heads(400, "uniform", seed=1).grow(tuple(range(50))).weight * 3**0.5)


@pytest.mark.filterwarnings("ignore:for heads")  # nothing can be copied to "meta"; only the device is looked at
def test_heads_are_made_and_restored_on_the_device_of_the_method() -> None:
    heads = Heads(4)
    heads.grow((0, 1))
    elsewhere = Heads(4).to("meta")
    elsewhere.load_state_dict(heads.state_dict())
    assert elsewhere[0].weight.device.type == "meta"
    assert elsewhere.grow((2,)).weight.device.type == "meta"
    assert set(heads.state_dict()) == {"heads.0.weight", "heads.0.bias", "heads.0.ids"}
