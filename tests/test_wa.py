"""What weight aligning promises: rows of equal length, the paper's weights of both losses, and exemplars."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import Spy, build, learn, stream
from torch import Tensor

from lamella.common.randomness import generator
from lamella.data.transform import plain_view
from lamella.methods.shared.classifier import align_new_rows
from lamella.methods.shared.distillation import frozen_copy
from lamella.methods.shared.heads import Heads


def heads_of(*sizes: int, width: int = 6, seed: int = 0) -> Heads:
    heads, start = Heads(width), 0
    for i, size in enumerate(sizes):
        heads.grow(range(start, start + size), generator(seed, "head", i))
        heads[i].weight.data *= 1 + i  # later rows are longer
        start += size
    return heads


# the rule ------------------------------------------------------------------------------------------------------------


def test_alignment_by_hand() -> None:
    heads = Heads(2)
    heads.grow((0, 1)).weight.data = torch.tensor([[3.0, 4.0], [0.0, 1.0]])  # lengths 5 and 1, mean 3
    heads.grow((2, 3)).weight.data = torch.tensor([[0.0, 8.0], [4.0, 0.0]])  # lengths 8 and 4, mean 6
    heads[1].bias.data.fill_(7)
    assert align_new_rows(heads) == pytest.approx(0.5)
    assert heads[1].weight.tolist() == [[0.0, 4.0], [2.0, 0.0]]
    assert heads[1].bias.tolist() == [7.0, 7.0]
    assert heads[0].weight.tolist() == [[3.0, 4.0], [0.0, 1.0]]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.integers(0, 99))
def test_mean_lengths_become_equal_and_directions_stay(sizes: list[int], seed: int) -> None:
    heads = heads_of(*sizes, seed=seed)
    before = [head.weight.clone() for head in heads.heads]
    align_new_rows(heads)
    old = torch.cat([head.weight for head in heads.heads[:-1]]).norm(dim=1).mean()
    assert float(heads[-1].weight.norm(dim=1).mean()) == pytest.approx(float(old), rel=1e-5)
    assert torch.allclose(F.normalize(heads[-1].weight, dim=1), F.normalize(before[-1], dim=1), atol=1e-5)
    assert all(torch.equal(head.weight, b) for head, b in zip(heads.heads[:-1], before[:-1], strict=True))
    assert align_new_rows(heads) == pytest.approx(1, rel=1e-5)  # once is enough


def test_rows_of_classes_that_came_back_count_as_new_ones() -> None:
    heads = Heads(1)
    heads.grow((0, 1)).weight.data = torch.tensor([[2.0], [100.0]])
    heads.grow((1, 2)).weight.data = torch.tensor([[1.0], [7.0]])  # class 1 again: its first row is not in use
    assert align_new_rows(heads) == pytest.approx(2 / 4)


def test_without_older_classes_nothing_is_scaled() -> None:
    heads = heads_of(3)
    heads.grow(range(3), generator(0, "again"))
    before = heads[1].weight.clone()
    assert align_new_rows(heads) == 1
    assert torch.equal(heads[1].weight, before)


# the method ----------------------------------------------------------------------------------------------------------


def mean_length(*heads: Any) -> float:
    return float(torch.cat([head.weight for head in heads]).norm(dim=1).mean())


def test_learning_ends_with_rows_of_equal_mean_length() -> None:
    method = build("wa")
    for i in range(3):
        learn(method, i, stream()[i])
        if i:
            assert mean_length(method.heads[i]) == pytest.approx(mean_length(*method.heads.heads[:i]), rel=1e-5)


def losses(method: Any, number: int, classes_again: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """What the method's loss, cross-entropy and distillation by independent formulas are in the task's first batch."""
    before, found = frozen_copy(method), []

    @torch.no_grad()
    def look(loss: Any, data: Any, params: Any) -> None:
        for weight in method.backbone.model.parameters():  # away from where the teacher is
            weight += 0.02 * torch.randn(weight.shape, generator=generator(0, "noise"))
        index = torch.arange(0, len(data), 3)
        x, y = data.batch(index, plain_view(method.backbone.transform)), data.labels[index]
        logits, old = method.predict(x).double(), before.predict(x).double()
        known = old.shape[1]
        target = torch.tensor([method.classes.index(c) for c in y.tolist()])
        soft = (old / 2).softmax(1)
        distilled = -(soft * (logits[:, :known] / 2).log_softmax(1)).sum(1).mean()
        found.extend([loss(x, y), F.cross_entropy(logits, target), distilled])

    learn(method, number, stream()[0 if classes_again else number], Spy(method, look))
    return found[0], found[1], found[2]


def test_distillation_weighs_as_much_as_the_share_of_older_classes() -> None:
    method = build("wa", epochs=1)
    learn(method, 0, stream()[0])
    for number, share in ((1, 2 / 4), (2, 4 / 6)):
        loss, right, distilled = losses(method, number)
        assert float(loss) == pytest.approx(float((1 - share) * right + share * distilled), rel=1e-4)


def test_a_fixed_strength_adds_distillation_to_cross_entropy() -> None:
    method = learn(build("wa", epochs=1, strength=2.0), 0, stream()[0])
    loss, right, distilled = losses(method, 1)
    assert float(loss) == pytest.approx(float(right + 2 * distilled), rel=1e-4)


def test_where_all_classes_come_back_their_labels_alone_count() -> None:
    method = learn(build("wa", epochs=1), 0, stream()[0])
    loss, right, _ = losses(method, 1, classes_again=True)
    assert float(loss) == pytest.approx(float(right), rel=1e-4)


def test_training_sees_the_task_and_the_exemplars() -> None:
    method = build("wa", memory=8, epochs=1)
    learn(method, 0, stream()[0])
    assert list(method.exemplars.counts().values()) == [4, 4]
    trained: list[str] = []
    learn(method, 1, stream()[1], Spy(method, lambda loss, data, params: trained.extend(data.keys)))
    assert len([key for key in trained if key.startswith("exemplar/")]) == 8
    assert set(trained) >= set(stream()[1].train.keys)
    assert list(method.exemplars.counts().values()) == [2, 2, 2, 2]


def test_without_a_memory_it_learns_too() -> None:
    method = build("wa", memory=0, epochs=1)
    for i in range(2):
        learn(method, i, stream()[i])
    assert len(method.exemplars) == 0
    assert len(method.classes) == 4


def test_a_memory_too_small_is_refused_before_training() -> None:
    method = build("wa", memory=1)
    with pytest.raises(ValueError, match="cannot hold one of each of 2 classes"):
        learn(method, 0, stream()[0], Spy(method, lambda *_: pytest.fail("it began to train")))


def test_weights_are_kept_from_falling_below_zero_where_asked() -> None:
    free, positive = (build("wa", positive_weights=p) for p in (False, True))
    for i in range(2):
        learn(free, i, stream()[i])
        learn(positive, i, stream()[i])
    assert min(float(head.weight.min()) for head in free.heads.heads) < 0
    assert min(float(head.weight.min()) for head in positive.heads.heads) == 0


def test_a_strength_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="strength -1 is below 0"):
        build("wa", strength=-1)
