"""A memory of images: which are chosen, how many fit, and that they come back from a file as they were."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import images
from torch import Tensor

from lamella.common.files import read_tensors, tensors_to_bytes, write_atomic
from lamella.common.randomness import generator
from lamella.data.images import ImageSet, PixelArray, TensorSet
from lamella.data.texts import TextSet
from lamella.data.tokens import TokenTransform
from lamella.data.transform import InputTransform, plain_view
from lamella.learner.store.state import restore_state
from lamella.memory.exemplars import Exemplars, herding
from lamella.testing.texts import byte_tokenizer

SIZE = 16


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(0, name, *shape), dtype=torch.float64)


def data(*classes: int, per_class: int = 8, part: str = "train") -> ImageSet:
    every = images(12, per_class, part, SIZE)
    return every.subset(torch.isin(every.labels, torch.tensor(classes)).nonzero()[:, 0])


def pixels(every: ImageSet) -> dict[str, Tensor]:
    return dict(zip(every.keys, every.pixels(range(len(every))), strict=True))


def features(every: ImageSet, d: int = 5) -> Tensor:
    """A feature for each image that depends on its key alone."""
    return torch.stack([draw(d, name=key) for key in every.keys])


def filled(memory: Exemplars, *tasks: tuple[int, ...]) -> Exemplars:
    for classes in tasks:
        train = data(*classes)
        memory.select(train, features(train), classes)
    return memory


# herding -------------------------------------------------------------------------------------------------------------


def gap(x: Tensor, chosen: list[int]) -> float:
    return float((x.mean(0) - x[chosen].mean(0)).norm())


@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 9), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_each_step_of_herding_is_the_best_one_left(n: int, d: int, count: int, seed: int) -> None:
    x = torch.randn(n, d, generator=generator(seed, "herding"), dtype=torch.float64)
    chosen = herding(x, count).tolist()
    assert len(chosen) == len(set(chosen)) == min(n, count)
    for k in range(1, len(chosen) + 1):
        best = min(gap(x, [*chosen[: k - 1], i]) for i in range(n) if i not in chosen[: k - 1])
        assert math.isclose(gap(x, chosen[:k]), best, abs_tol=1e-12)


def test_herding_by_hand() -> None:
    """The mean is 3: first 2 (the nearest), then 5 (their mean is 3.5), then 0 or 5 ..."""
    x = torch.tensor([[0.0], [2.0], [5.0], [5.0]])
    assert herding(x, 4).tolist() == [1, 2, 0, 3]
    assert herding(x, 2).tolist() == [1, 2]
    assert herding(x, 0).tolist() == herding(x[:0], 3).tolist() == []


def test_the_mean_of_herded_features_is_nearer_than_that_of_random_ones() -> None:
    x = torch.nn.functional.normalize(draw(200, 8) + 1, dim=1)
    order = herding(x, 64).tolist()
    for k, times in ((4, 1.5), (16, 2), (64, 4)):  # about 1 / k against 1 / sqrt k
        shuffles = [torch.randperm(200, generator=generator(s, "random"))[:k].tolist() for s in range(20)]
        assert times * gap(x, order[:k]) < sum(gap(x, s) for s in shuffles) / 20
    assert gap(x, order[:64]) < gap(x, order[:16]) / 2 < gap(x, order[:4]) / 4


# how many fit --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 60))
def test_a_total_is_shared_evenly_and_never_exceeded(total: int, classes: int) -> None:
    memory = Exemplars(InputTransform(SIZE), total=total)
    if total < classes:
        with pytest.raises(ValueError, match=f"{total} images cannot hold one of each of {classes} classes"):
            memory.quota(classes)
    else:
        quota = memory.quota(classes)
        assert quota >= 1
        assert quota * classes <= total < (quota + 1) * classes


@given(st.integers(0, 50), st.integers(1, 60))
def test_a_limit_for_each_class_does_not_depend_on_their_number(per_class: int, classes: int) -> None:
    assert Exemplars(InputTransform(SIZE), per_class=per_class).quota(classes) == per_class
    assert Exemplars(InputTransform(SIZE), total=0).quota(classes) == 0


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(12, 40))
@settings(max_examples=15, deadline=None)
def test_every_class_keeps_its_quota_whatever_the_tasks(sizes: list[int], total: int) -> None:
    memory, first, before = Exemplars(InputTransform(4), total=total), 0, {}
    for size in sizes:
        classes = tuple(range(first, first + size))
        train = images(12, 8, "train", 4)
        memory.select(train, features(train), classes)
        first += size
        assert memory.counts() == {c: min(total // first, 8) for c in range(first)}
        assert memory.bytes == len(memory) * 3 * 4 * 4
        for label, kept in before.items():  # what stays of an old class is what was chosen first
            now = [k for k, y in zip(memory.keys, memory.labels.tolist(), strict=True) if y == label]
            assert now == kept[: len(now)]
        before = {c: [k for k, y in zip(memory.keys, memory.labels, strict=True) if y == c] for c in memory.classes}


def test_the_chosen_are_those_that_herding_of_unit_features_names() -> None:
    train = data(0, 1)
    x = features(train) * torch.linspace(0.1, 9, len(train))[:, None]  # lengths do not count
    memory = Exemplars(InputTransform(SIZE), total=6)
    memory.select(train, x, (1, 0))
    unit = x / x.norm(dim=1, keepdim=True)
    expected = [train.keys[8 * c + i] for c in (1, 0) for i in herding(unit[train.labels == c], 3).tolist()]
    assert list(memory.keys) == expected
    assert memory.labels.tolist() == [1, 1, 1, 0, 0, 0]


# what is kept --------------------------------------------------------------------------------------------------------


def test_images_keep_their_pixels_labels_and_origin() -> None:
    memory = filled(Exemplars(InputTransform(SIZE), total=12), (0, 1), (2,))
    every = pixels(data(0, 1, 2))
    labels = dict(zip(data(0, 1, 2).keys, data(0, 1, 2).labels.tolist(), strict=True))
    held = memory.as_set()
    assert len(held) == 12
    for i, key in enumerate(memory.keys):
        assert held.keys[i] == f"exemplar/{i}/{key}"
        assert torch.equal(held.pixels([i])[0], every[key])
        assert int(held.labels[i]) == labels[key]


def test_a_memory_survives_a_file(tmp_path: object) -> None:
    memory = Exemplars(InputTransform(SIZE), total=10, choose="reservoir")
    odd = data(0, 1)
    odd = ImageSet(odd.storage, odd.labels, [f'{k}\n"ü\udc80' for k in odd.keys], odd.positions)
    memory.select(odd, None, (0, 1))
    path = tmp_path / "memory.safetensors"  # type: ignore[operator]
    write_atomic(path, tensors_to_bytes(memory.state_dict()))
    again = Exemplars(InputTransform(SIZE), total=10, choose="reservoir")
    restore_state(again, read_tensors(path)[0])
    assert again.keys == memory.keys
    assert all(key in odd.keys for key in again.keys)
    assert torch.equal(again.images, memory.images)
    assert torch.equal(again.labels, memory.labels)
    assert (int(again.seen), again.classes, again.bytes) == (16, memory.classes, 10 * 3 * SIZE * SIZE)
    assert json.loads(bytes(again.sources.tolist())) == list(memory.keys)


def test_texts_are_kept_as_they_are_and_survive_a_file(tmp_path: Path) -> None:
    written = ["a ticket", "Ünïcode ✓ \U0001f600", 'quotes " and \\ and \n', ""] * 2
    train = TextSet(written, torch.arange(2).repeat_interleave(4), [f"row {i}" for i in range(8)])
    memory = Exemplars(text_transform(), total=6, choose="random")
    memory.select(train, None, (0, 1))
    write_atomic(tmp_path / "memory.safetensors", tensors_to_bytes(memory.state_dict()))
    again = Exemplars(text_transform(), total=6, choose="random")
    restore_state(again, read_tensors(tmp_path / "memory.safetensors")[0])
    assert again.counts() == {0: 3, 1: 3}
    held = again.as_set()
    assert isinstance(held, TextSet)
    assert held.texts == tuple(train.texts[train.keys.index(key)] for key in again.keys)
    assert again.bytes == len(json.dumps(list(held.texts), ensure_ascii=False).encode()), "what is stored is counted"
    again.shrink(1)
    assert again.as_set().texts == (held.texts[0], held.texts[3])
    assert len(again.join(train)) == 8 + 2


def test_a_memory_of_texts_takes_no_images() -> None:
    with pytest.raises(ValueError, match="a memory keeps texts, and these are images; set it to 0"):
        Exemplars(text_transform(), total=6, choose="random").select(data(0), None, (0,))


def text_transform() -> TokenTransform:
    return TokenTransform(byte_tokenizer(), max_length=32)


def test_large_images_are_kept_at_the_backbones_size() -> None:
    wide = torch.randint(0, 256, (4, 3, 24, 40), dtype=torch.uint8, generator=generator(0, "wide"))
    train = ImageSet(PixelArray(wide), torch.zeros(4), list("abcd"))
    memory = Exemplars(InputTransform(SIZE), total=4, choose="random")
    memory.select(train, None, (0,))
    assert memory.images.shape == (4, 3, SIZE, SIZE)
    view = plain_view(InputTransform(SIZE, (0.0,) * 3, (1.0,) * 3))
    for key, kept in zip(memory.keys, memory.images, strict=True):
        i = "abcd".index(key)
        exact = 255 * view([wide[i]], torch.tensor([i]))[0]
        assert float((kept - exact).abs().max()) <= 0.5 + 1e-4


def test_a_class_that_comes_back_is_chosen_anew_from_new_and_kept_images() -> None:
    memory = filled(Exemplars(InputTransform(SIZE), total=6), (0, 1))
    kept = memory.keys
    new = data(0, part="again")
    joined = memory.join(new)
    assert isinstance(joined, ImageSet)
    x = features(ImageSet(joined.storage, joined.labels, [k.split("/", 2)[-1] for k in joined.keys], joined.positions))
    memory.select(joined, x, (0,))
    assert memory.counts() == {1: 3, 0: 3}
    assert memory.keys[:3] == kept[3:]  # the other class is left alone
    mine = (joined.labels == 0).nonzero()[:, 0]
    unit = x[mine] / x[mine].norm(dim=1, keepdim=True)
    names = [joined.keys[i] for i in mine[herding(unit, 3)].tolist()]
    assert list(memory.keys[3:]) == [n.split("/", 2)[-1] if n.startswith("exemplar/") else n for n in names]


def test_the_same_image_is_not_kept_twice() -> None:
    memory = filled(Exemplars(InputTransform(SIZE), total=40), (0, 1))
    for _ in range(2):
        joined = memory.join(data(0, 1))
        assert isinstance(joined, ImageSet)
        memory.select(joined, features(joined), (0, 1))
        assert sorted(memory.keys) == sorted(data(0, 1).keys)


def test_an_empty_memory_changes_nothing() -> None:
    memory, train = Exemplars(InputTransform(SIZE), total=0), data(0, 1)
    assert memory.join(train) is train
    memory.select(train, None, (0, 1))
    assert (len(memory), memory.classes, memory.bytes, memory.keys) == (0, (), 0, ())
    tensors = TensorSet(torch.zeros(2, 4), torch.tensor([0, 1]))
    assert memory.join(tensors) is tensors
    with pytest.raises(ValueError, match="keeps images"):
        Exemplars(InputTransform(SIZE)).select(tensors, torch.zeros(2, 4), (0, 1))


def test_random_choices_follow_the_seed_and_not_the_features() -> None:
    train = data(0, 1)
    keys = []
    for seed, x in ((0, None), (0, features(train)), (1, None)):
        memory = Exemplars(InputTransform(SIZE), total=8, choose="random", seed=seed)
        memory.select(train, x, (0, 1))
        keys.append(memory.keys)
    assert keys[0] == keys[1] != keys[2]


def test_a_reservoir_keeps_every_image_ever_offered_with_the_same_probability() -> None:
    """40 images in five tasks, 10 places, 300 seeds: each image stays in a quarter of them, 5 standard deviations."""
    tasks = [images(5, 8, "train", 1).subset(range(8 * i, 8 * i + 8)) for i in range(5)]
    counts = dict.fromkeys((key for task in tasks for key in task.keys), 0)
    for seed in range(300):
        memory = Exemplars(InputTransform(1), total=10, choose="reservoir", seed=seed)
        for i, task in enumerate(tasks):
            joined = memory.join(task)
            assert isinstance(joined, ImageSet)
            memory.select(joined, None, (i,))
            assert len(memory) == min(10, 8 * (i + 1))
        for key in memory.keys:
            counts[key] += 1
    deviation = (300 * 0.25 * 0.75) ** 0.5
    assert sum(counts.values()) == 3000
    assert all(abs(count - 75) < 5 * deviation for count in counts.values())


def test_bad_wishes_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="choose 'best' is unknown; use one of herding, random, reservoir"):
        Exemplars(InputTransform(SIZE), choose="best")
    with pytest.raises(ValueError, match="a memory of -1 images"):
        Exemplars(InputTransform(SIZE), total=-1)
    with pytest.raises(ValueError, match="a memory of None images"):
        Exemplars(InputTransform(SIZE), total=None)
    with pytest.raises(ValueError, match="a reservoir knows no classes"):
        Exemplars(InputTransform(SIZE), per_class=5, choose="reservoir")
    with pytest.raises(ValueError, match="3 images cannot hold one of each of 10 classes; raise it to 10 or more"):
        Exemplars(InputTransform(SIZE), total=3).select(data(*range(10)), None, tuple(range(10)))
    with pytest.raises(ValueError, match="herding needs a feature"):
        Exemplars(InputTransform(SIZE)).select(data(0), None, (0,))
