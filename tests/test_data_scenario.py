"""How a data set becomes tasks, and what is promised about its splits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.data.images import ImageSet, PixelArray
from lamella.data.scenario import Source, as_task, class_incremental, domain_incremental, task_incremental
from lamella.data.sources.parts import divide, keep_domains
from lamella.data.splits import stratified_split

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")


def images(labels: list[int], prefix: str) -> ImageSet:
    pixels = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    return ImageSet(PixelArray(pixels), torch.tensor(labels), [f"{prefix}/{i}" for i in range(len(labels))])


def source(per_class: int = 5, domains: int = 0) -> Source:
    labels = [label for label in range(6) for _ in range(per_class)]
    if not domains:
        return Source("zoo", images(labels, "train"), images(labels, "test"), NAMES)
    place = torch.arange(domains).repeat_interleave(len(labels))
    many = labels * domains
    styles = tuple(f"style {i}" for i in range(domains))
    return Source("zoo", images(many, "train"), images(many, "test"), NAMES, styles, place, place)


def test_equal_and_unequal_tasks_hold_their_classes_only() -> None:
    scenario = class_incremental(source(), tasks=3)
    assert len(scenario) == 3
    assert [task.classes for task in (scenario[0], scenario[1], scenario[2])] == [(0, 1), (2, 3), (4, 5)]
    assert scenario[1].class_names == ("cat", "dog")
    assert set(scenario[1].train.labels.tolist()) == {2, 3}
    assert set(scenario.test(2).labels.tolist()) == {4, 5}
    assert [task.id for task in scenario] == [0, 1, 2]
    uneven = class_incremental(source(), sizes=[1, 3, 2])
    assert [len(task.classes) for task in uneven] == [1, 3, 2]
    assert uneven.class_order == (0, 1, 2, 3, 4, 5)


def test_a_task_has_no_way_to_test_data() -> None:
    task = class_incremental(source(), tasks=2)[0]
    assert not [name for name in dir(task) if "test" in name]
    assert all(key.startswith("train/") for key in task.train.keys)


def test_class_orders() -> None:
    seeded = [class_incremental(source(), tasks=2, order="seeded", seed=seed).class_order for seed in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2]
    assert sorted(seeded[0]) == list(range(6))
    named = class_incremental(source(), tasks=2, order=["fox", 0, "cat", "bee", 3, "eel"])
    assert named.class_order == (5, 0, 2, 1, 3, 4)
    assert named[0].class_names == ("fox", "ant", "cat")
    assert named.class_names == NAMES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": 4}, r"tasks=3 or 6, or sizes=\[2, 2, 1, 1\]"),
        ({"tasks": 7}, "between 1 and the number of classes"),
        ({"tasks": 0}, "between 1"),
        ({"sizes": [1, 2]}, "add up to 6"),
        ({"sizes": [0, 6]}, "above 0"),
        ({}, "either tasks"),
        ({"tasks": 2, "sizes": [3, 3]}, "either tasks"),
        ({"tasks": 2, "order": "random"}, "'label', 'seeded'"),
        ({"tasks": 2, "order": ["foxx", 0]}, "did you mean 'fox'"),
        ({"tasks": 2, "order": [0, 1]}, "'cat' and 3 more is missing"),
        ({"tasks": 2, "order": [0, 0]}, "'ant' comes twice"),
        ({"tasks": 2, "order": [9]}, "count from 0 to 5"),
        ({"tasks": 2, "validation": 1.0}, r"\[0, 1\)"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_advice(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_incremental(source(), **options)


def test_validation_is_stratified_and_deterministic_and_leaves_train_something() -> None:
    labels = [0] * 10 + [1] * 3 + [2] * 2 + [3]
    rare = Source("rare", images(labels, "train"), images([0, 1, 2, 3], "test"), NAMES[:4])
    task = class_incremental(rare, tasks=1, validation=0.3)[0]
    assert torch.bincount(task.validation.labels, minlength=4).tolist() == [3, 1, 1, 0]
    assert torch.bincount(task.train.labels).tolist() == [7, 2, 1, 1]
    assert not set(task.train.keys) & set(task.validation.keys)
    again = class_incremental(rare, tasks=1, validation=0.3)
    assert again[0].validation.keys == task.validation.keys
    assert class_incremental(rare, tasks=1, validation=0.3, seed=1)[0].validation.keys != task.validation.keys
    assert class_incremental(rare, tasks=1)[0].validation is None


def test_the_split_hash_tells_splits_apart_and_nothing_else() -> None:
    plain = class_incremental(source(), tasks=3).split_sha256
    assert plain == class_incremental(source(), sizes=[2, 2, 2], seed=7).split_sha256
    others = [
        class_incremental(source(), tasks=2),
        class_incremental(source(), tasks=3, validation=0.2),
        class_incremental(source(), tasks=3, validation=0.2, seed=1),
        class_incremental(source(), tasks=3, order=[5, 4, 3, 2, 1, 0]),
        class_incremental(source(6), tasks=3),
        class_incremental(source(), tasks=3).joined(),
    ]
    assert len({plain, *(other.split_sha256 for other in others)}) == 7
    shuffled = source()
    order = torch.randperm(len(shuffled.train))
    moved = Source("zoo", shuffled.train.subset(order), shuffled.test, NAMES)
    assert class_incremental(moved, tasks=3, validation=0.2).split_sha256 == others[1].split_sha256


def test_joined_is_one_task_with_all() -> None:
    joined = class_incremental(source(), tasks=3, order="seeded", seed=4, validation=0.2).joined()
    assert len(joined) == 1
    assert len(joined[0].train) + len(joined[0].validation) == 30
    assert len(joined.test(0)) == 30
    assert joined[0].classes == joined.class_order
    assert joined[0].class_names == tuple(NAMES[label] for label in joined.class_order)


def test_domains_bring_the_same_classes_again() -> None:
    scenario = domain_incremental(source(3, domains=2), order=["style 1", "style 0"], validation=0.3)
    assert [task.name for task in scenario] == ["style 1", "style 0"]
    assert scenario[0].classes == scenario[1].classes == (0, 1, 2, 3, 4, 5)
    assert scenario.class_order == (0, 1, 2, 3, 4, 5)
    assert len(scenario[0].train) == 12
    assert len(scenario.test(1)) == 18
    assert not set(scenario[0].train.keys) & set(scenario[1].train.keys)
    assert domain_incremental(source(3, domains=4), order="seeded", seed=1)[0].name.startswith("style")
    with pytest.raises(ValueError, match="has no domains"):
        domain_incremental(source())
    with pytest.raises(ValueError, match="did you mean"):
        domain_incremental(source(3, domains=2), order=["stile 1", "style 0"])


def test_a_domain_without_a_class_is_refused_and_can_be_left_out() -> None:
    full = source(2, domains=3)
    keep = torch.arange(len(full.train)) > 1  # the first domain loses its ants
    lacking = Source(
        "zoo", full.train.subset(keep.nonzero()[:, 0]), full.test, NAMES, full.domain_names,
        full.train_domains[keep], full.test_domains,
    )  # fmt: skip
    with pytest.raises(ValueError, match="'style 0' of zoo has no training image of class 'ant'"):
        domain_incremental(lacking)
    fewer = domain_incremental(keep_domains(lacking, ["style 2", "style 1"]))
    assert [task.name for task in fewer] == ["style 2", "style 1"]
    with pytest.raises(ValueError, match="did you mean"):
        keep_domains(lacking, ["style9"])


def test_task_incremental_says_so() -> None:
    scenario = task_incremental(source(), tasks=2)
    assert scenario.kind == "task-incremental"
    assert scenario.split_sha256 == class_incremental(source(), tasks=2).split_sha256


def test_sources_refuse_what_does_not_fit() -> None:
    train, test = images([0, 1], "train"), images([0, 1], "test")
    with pytest.raises(ValueError, match="called 'ant'"):
        Source("zoo", train, test, ("ant", "ant"))
    with pytest.raises(ValueError, match="label 1, but there are 1 classes"):
        Source("zoo", train, test, ("ant",))
    with pytest.raises(ValueError, match="both a training and a test image"):
        Source("zoo", train, train, ("ant", "bee"))
    with pytest.raises(ValueError, match="class 'cat' of zoo has no training image"):
        class_incremental(Source("zoo", train, test, NAMES[:3]), tasks=3)
    with pytest.raises(ValueError, match=r"task 1 \(bee\) has no test image"):
        class_incremental(Source("zoo", train, images([0], "test"), NAMES[:2]), tasks=2)


def test_a_made_test_part_works_from_two_images_a_class() -> None:
    made = divide("few", images([0, 0, 0, 1, 1], ""), ("ant", "bee"))
    assert torch.bincount(made.test.labels).tolist() == [1, 1]
    assert torch.bincount(made.train.labels).tolist() == [2, 1]
    with pytest.raises(ValueError, match="class 'bee' of few has a single image"):
        divide("few", images([0, 0, 1], ""), ("ant", "bee"))
    with pytest.raises(ValueError, match="class 'bee' of few has no image"):
        divide("few", images([0, 0], ""), ("ant", "bee"))
    with pytest.raises(ValueError, match="few has no images"):
        divide("few", images([], ""), ())
    with pytest.raises(ValueError, match="test_fraction"):
        divide("few", images([0, 0], ""), ("ant",), test_fraction=1.0)


def test_data_can_be_learned_without_a_test_part() -> None:
    task = as_task(divide("few", images([0, 2, 2], ""), NAMES[:3], test_fraction=0))
    assert task.classes == (0, 2)
    assert task.class_names == ("ant", "cat")
    assert len(task.train) == 3


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_carving_never_empties_a_side_and_ignores_order(labels: list[int], fraction: float, seed: int) -> None:
    groups = torch.tensor(labels)
    keys = [f"image {i}" for i in range(len(labels))]
    kept, held = stratified_split(groups, keys, fraction=fraction, seed=seed, name="test")
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    for group in set(labels):
        count = labels.count(group)
        assert (groups[kept] == group).any()
        assert bool((groups[held] == group).any()) == (count > 1)
    turned = stratified_split(groups.flip(0), keys[::-1], fraction=fraction, seed=seed, name="test")[1]
    assert {keys[i] for i in held} == {keys[::-1][i] for i in turned}
