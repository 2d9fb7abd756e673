"""Samples of like lengths share a batch, and whoever asked gets what belongs to each sample."""

from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import build, images, tiny_backbone
from torch import Tensor

from lamella.common.randomness import generator
from lamella.data.images import TensorSet
from lamella.data.lengths import in_order, in_windows, lengths_of, longest_first, of_like_length
from lamella.data.loading import batch_sizes
from lamella.data.samples import Batch
from lamella.data.texts import TextSet
from lamella.data.tokens import MASK
from lamella.learner.scores import score_task
from lamella.memory.subspace import SecondMoment
from lamella.testing import tiny_bert
from lamella.testing.texts import pattern_texts
from lamella.testing.tiny import tiny_tasks
from lamella.testing.trial import Killed, KilledAfter, learn
from lamella.training.checkpoints import Checkpoints
from lamella.training.fit import Fit

TEXTS = pattern_texts(8, 12, "train")


def fit_for(method: Any, **options: Any) -> Fit:
    return Fit(method, method.backbone.transform, device="cpu", scan_batch_size=8, **options)


class Padding:
    """Counts the tokens of the batches that it sees."""

    def __init__(self) -> None:
        self.real = self.computed = 0
        self.labels: list[Tensor] = []

    def __call__(self, x: Batch, y: Tensor) -> None:
        self.real, self.computed = self.real + int(x[MASK].sum()), self.computed + x[MASK].numel()
        self.labels.append(y)


# lengths -------------------------------------------------------------------------------------------------------------


def test_the_lengths_of_texts_are_those_of_their_tokens() -> None:
    transform = tiny_bert().transform
    one_by_one = [int(TEXTS.batch([i], transform.view())[MASK].sum()) for i in range(len(TEXTS))]
    assert lengths_of(TEXTS, transform).tolist() == one_by_one
    assert lengths_of(TextSet(["x" * 400], torch.zeros(1)), transform).tolist() == [32], "longer ones are cut"


def test_images_and_inputs_have_no_lengths() -> None:
    assert lengths_of(images(2, 2, "train"), tiny_backbone().transform) is None
    assert lengths_of(TensorSet(torch.zeros(4, 3), torch.zeros(4)), tiny_bert().transform) is None


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), max_size=7),
    samples=st.integers(1, 4),
    size=st.integers(1, 60),
    pass_costs=st.integers(0, 40),
)
def test_batches_of_like_lengths_cost_as_little_as_any(
    lengths: list[int], samples: int, size: int, pass_costs: int
) -> None:
    found = of_like_length(lengths, samples=samples, size=size, pass_costs=pass_costs)
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    ordered = sorted(lengths)

    def cost(parts: list[list[int]]) -> int:
        return sum(len(part) * max(part) + pass_costs for part in parts)

    def allowed(part: list[int]) -> bool:
        return len(part) == 1 or (len(part) <= samples and len(part) * max(part) <= size)

    every = (
        [ordered[a:b] for a, b in pairwise([0, *cuts, len(ordered)])]
        for k in range(len(ordered))
        for cuts in combinations(range(1, len(ordered)), k)
    )
    mine = [[lengths[i] for i in batch] for batch in found]
    assert all(map(allowed, mine))
    assert cost(mine) == min((cost(parts) for parts in every if all(map(allowed, parts))), default=0)


# passes without training ---------------------------------------------------------------------------------------------


def test_a_pass_in_any_order_reads_every_sample_once_with_less_padding() -> None:
    fit = fit_for(build("nearest-mean", backbone=tiny_bert()))
    found = []
    for any_order in (False, True):
        seen = Padding()
        order = fit.scan(TEXTS, seen, any_order=any_order)
        assert sorted(order.tolist()) == list(range(len(TEXTS)))
        assert torch.equal(torch.cat(seen.labels), TEXTS.labels[order]), "it says in which order it read"
        found.append(seen)
    plain, sorted_ = found
    assert sorted_.real == plain.real
    assert sorted_.computed <= 1.1 * sorted_.real < plain.computed


def test_a_pass_over_images_is_in_their_order() -> None:
    data = images(4, 8, "train")
    fit = fit_for(build("nearest-mean"))
    assert torch.equal(fit.scan(data, lambda x, y: None, any_order=True), torch.arange(len(data)))


def test_features_are_in_the_order_of_the_set() -> None:
    method = build("nearest-mean", backbone=tiny_bert())
    found = fit_for(method).features(TEXTS, method.features)
    with torch.no_grad():
        alone = [method.features(TEXTS.batch([i], method.backbone.transform.view())) for i in range(len(TEXTS))]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_scores_count_each_text_by_its_own_label() -> None:
    method = learn(build("streaming-lda", backbone=tiny_bert()), 0, tiny_tasks([8], per_class=12, noun="text")[0])
    test = pattern_texts(8, 4, "test")
    fit = fit_for(method)
    classes = tuple(range(8))
    score = score_task(method, fit, test, classes, shared_classes=False, name="test")[""]
    with torch.no_grad():
        logits = method.predict(test.batch(torch.arange(len(test)), method.backbone.transform.view()))
    right = sum(method.classes[int(i)] == int(y) for i, y in zip(logits.argmax(1), test.labels, strict=True))
    assert score.right == right
    assert right > len(test) // 2


def test_a_pass_that_was_killed_goes_on_in_the_same_order(tmp_path: Path) -> None:
    moments, reads = [], []
    for left in (None, 3):
        folder = tmp_path / str(left)
        for checkpoints in (KilledAfter(folder, left), Checkpoints(folder, 0.0)):
            backbone = tiny_bert()
            method = build("nearest-mean", backbone=backbone)
            moment, seen = SecondMoment(32), list[int]()

            def observe(x: Batch, y: Tensor, moment: Any = moment, seen: Any = seen, backbone: Any = backbone) -> None:
                moment(backbone(x))
                seen += y.tolist()

            try:
                fit_for(method, checkpoints=checkpoints).scan(TEXTS, observe, keep={"moment": moment}, any_order=True)
            except Killed:
                continue
            moments.append(moment.total)
            reads.append(len(seen))
    whole, again, resumed = moments
    assert torch.equal(whole, again)
    assert torch.equal(whole, resumed)
    assert 0 < reads[2] < len(TEXTS), "only what was left is read again"


# training ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 9), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_windows_read_every_sample_once_in_batches_of_the_same_sizes(n: int, size: int, seed: int) -> None:
    draws = partial(generator, seed)
    order = torch.randperm(n, generator=draws("order"))
    lengths = torch.randint(1, 50, (n,), generator=draws("lengths"))
    found = in_windows(order, batch_sizes(n, size), lengths, draws("windows"))
    assert sorted(found.tolist()) == list(range(n))
    assert torch.equal(found, in_windows(order, batch_sizes(n, size), lengths, draws("windows")))
    first = 32 * size
    if n > first + size:  # no sample leaves its window
        assert set(found[:first].tolist()) == set(order[:first].tolist())


def test_batches_of_a_window_are_of_like_lengths_and_come_in_no_order_of_lengths() -> None:
    order, lengths = torch.randperm(64, generator=generator(0, "order")), torch.arange(64)
    batches = in_windows(order, [4] * 16, lengths, generator(0, "windows")).split(4)
    assert all(sorted(batch.tolist()) == list(range(min(batch), min(batch) + 4)) for batch in batches)
    longest = [int(batch.max()) for batch in batches]
    assert any(a < b for a, b in pairwise(longest))
    assert any(a > b for a, b in pairwise(longest))


def test_training_in_windows_reads_each_text_once_an_epoch_with_less_padding() -> None:
    found = []
    for like_sizes in (False, True):
        method = build("linear-probe", backbone=tiny_bert())
        seen, head = Padding(), method.heads.grow(tuple(range(8)))

        def loss(x: Batch, y: Tensor, seen: Padding = seen, head: Any = head, method: Any = method) -> Tensor:
            seen(x, y)
            return torch.nn.functional.cross_entropy(head(method.features(x)), head.columns(y))

        fit_for(method, like_sizes=like_sizes)(TEXTS, loss, head.parameters(), epochs=1, batch_size=4, augment=False)
        assert torch.cat(seen.labels).bincount().tolist() == [12] * 8
        found.append(seen)
    plain, windows = found
    assert windows.computed < 1.1 * windows.real < plain.computed


def test_samples_of_one_length_are_not_sorted_by_it() -> None:
    with pytest.raises(ValueError, match=r"fit.like_sizes is for samples of many lengths, and images have one; leave"):
        fit_for(build("nearest-mean"), like_sizes=True)


def test_values_are_put_back_into_the_order_of_their_set() -> None:
    lengths = torch.tensor([3, 9, 3, 5])
    order = longest_first(lengths)
    assert order.tolist() == [1, 3, 0, 2]
    assert torch.equal(in_order(lengths[order], order), lengths)
