"""The same classes in other domains: data sets that are made of changes, joined ones, and several means a class."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import build, images, learn_all, stream

from lamella.common.randomness import generator
from lamella.data.images import ImageSet, PixelArray
from lamella.data.scenario import Source, domain_incremental
from lamella.data.sources.changes import CHANGES, change_domains
from lamella.data.sources.load import load_source
from lamella.data.sources.parts import as_domains, keep_per_class
from lamella.data.transform import plain_view
from lamella.memory.gaussians import ClassGaussians
from lamella.memory.mixtures import ClassMixtures
from lamella.methods.parts import Aligned


def pictures(count: int = 24, classes: int = 3) -> Source:
    pixels = torch.randint(0, 256, (count, 3, 24, 20), dtype=torch.uint8, generator=generator(1, "pictures"))
    labels = torch.arange(count) % classes
    both = [ImageSet(PixelArray(pixels), labels, [f"{part} {i}" for i in range(count)]) for part in ("train", "test")]
    return Source("pictures", both[0], both[1], tuple("abc"[:classes]))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(sorted(CHANGES)), min_size=2, unique=True), st.integers(2, 40), st.integers(1, 3))
def test_every_picture_is_in_one_domain_and_every_class_is_dealt_out_evenly(
    names: list[str], count: int, classes: int
) -> None:
    source = pictures(count * classes, classes)
    found = change_domains(source, names)
    assert found.domain_names == tuple(names)
    assert found.train.keys == source.train.keys
    assert found.train_domains is not None
    for label in range(classes):
        per_domain = found.train_domains[found.train.labels == label].bincount(minlength=len(names))
        assert int(per_domain.max() - per_domain.min()) <= 1


def test_each_change_does_what_its_name_says() -> None:
    source = pictures(30)
    found = change_domains(source, list(CHANGES))
    scenario = domain_incremental(found)
    assert [scenario[i].name for i in range(len(scenario))] == list(CHANGES)
    for i, name in enumerate(CHANGES):
        task = scenario[i]
        at = [source.train.keys.index(key) for key in task.train.keys]
        before, after = (
            torch.stack(part).float() for part in (source.train.pixels(at), task.train.pixels(range(len(at))))
        )
        assert before.shape == after.shape
        if name == "as-is":
            assert torch.equal(before, after)
        elif name == "negative":
            assert torch.equal(before, 255 - after)
        elif name == "dark":
            assert float(after.mean()) < 0.3 * float(before.mean())
        elif name == "blurred":
            assert float(after.std()) < 0.5 * float(before.std())
        else:
            assert torch.equal(after[:, 0], after[:, 2])
    grey = PixelArray(torch.full((4, 3, 9, 9), 90, dtype=torch.uint8))
    parts = [ImageSet(grey, torch.zeros(4), [f"{part}{i}" for i in range(4)]) for part in ("train", "test")]
    flat = Source("flat", parts[0], parts[1], ("a",))
    drawn = change_domains(flat, ["drawn", "as-is"])
    assert drawn.train_domains is not None
    assert int(drawn.train.pixels((drawn.train_domains == 0).nonzero()[:, 0])[0].min()) == 255, "no edge, white paper"


def test_the_same_picture_in_another_domain_is_another_one() -> None:
    source = pictures()
    one, other = (change_domains(source, names) for names in (["dark", "as-is"], ["blurred", "as-is"]))
    dark = int((one.train_domains == 0).nonzero()[0]) if one.train_domains is not None else 0
    assert one.train.identity(dark) != other.train.identity(dark) != source.train.identity(dark)
    assert one.train.storage.content(dark) != other.train.storage.content(dark)
    plain = int((one.train_domains == 1).nonzero()[0]) if one.train_domains is not None else 0
    assert one.train.storage.content(plain) == source.train.storage.content(plain), "unchanged, it is the same image"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["dark"], r"changes = \['dark'\] makes no domains; name two or more"),
        (["dark", "dark"], "each once"),
        (["dark", "blured"], "no change is called 'blured'; did you mean 'blurred'"),
    ],
)
def test_changes_that_make_no_domains_are_refused(names: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        change_domains(pictures(), names)


def test_domains_are_not_changed_again_and_digits_have_names() -> None:
    source = load_source("digits", per_class=4, changes=["as-is", "negative"])
    assert [len(domain_incremental(source)[i].train) for i in (0, 1)] == [20, 20]
    with pytest.raises(ValueError, match="has domains of its own"):
        change_domains(source, ["as-is", "dark"])


def test_data_sets_of_the_same_classes_become_domains_of_one() -> None:
    one = pictures()
    two = change_domains(pictures(30), ["as-is", "dark"])
    assert isinstance(two.train, ImageSet)
    assert isinstance(two.test, ImageSet)
    parts = [
        ImageSet(part.storage, part.labels, [f"second {key}" for key in part.keys]) for part in (two.train, two.test)
    ]
    both = as_domains("both", {"first": one, "second": Source("x", parts[0], parts[1], two.class_names)})
    assert both.domain_names == ("first", "second")
    assert both.train_domains is not None
    assert both.train_domains.bincount().tolist() == [24, 30]
    few = keep_per_class(both, 3)
    assert few.train_domains is not None
    assert (few.train.labels * 2 + few.train_domains).bincount().tolist() == [3] * 6, "of each class in each domain"
    with pytest.raises(ValueError, match="other classes"):
        as_domains("both", {"first": one, "second": pictures(8, 2)})


def apart(draws: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two classes in two domains, (200, 8): within the second domain their sides are exchanged."""
    labels, domain = torch.arange(200) % 2, (torch.arange(200) >= 100).long()
    x = torch.randn(200, 8, generator=draws)
    x[:, 0] += 6 * (2 * (labels ^ domain) - 1)
    x[:, 1] += 12 * domain
    return x, labels, domain


def test_a_mean_for_each_domain_keeps_apart_what_one_mean_cannot() -> None:
    x, labels, domain = apart(generator(2, "domains"))
    right = {}
    for kind in (ClassGaussians, ClassMixtures):
        statistics = kind(8)
        for d in (0, 1):
            statistics.add(x[domain == d], labels[domain == d], [0, 1])
        scores = statistics.linear_discriminant(x, 0.1)
        assert scores.shape == (200, 2)
        right[kind.__name__] = float((scores.argmax(1) == labels).double().mean())
    assert right["ClassMixtures"] > 0.99
    assert right["ClassGaussians"] < 0.7


def test_k_means_finds_the_kinds_of_a_class_within_one_task() -> None:
    x, labels, _ = apart(generator(3, "domains"))
    one, two = ClassMixtures(8, means=1), ClassMixtures(8, means=2)
    for statistics in (one, two):
        statistics.add(x, labels, [0, 1])
    assert (len(one.ids), len(two.ids), two.classes) == (2, 4, (0, 1))
    assert int(two.counts.sum()) == 200
    assert float((two.linear_discriminant(x, 0.1).argmax(1) == labels).double().mean()) > 0.99
    again = ClassMixtures(8, means=2)
    again.add(x, labels, [0, 1])
    assert torch.equal(again.means, two.means)
    few = ClassMixtures(8, means=5)
    few.add(x[:3], torch.tensor([0, 0, 1]), [0, 1])
    assert few.counts.tolist() == [1, 1, 1], "fewer images than means"


def test_classes_with_one_arrival_and_one_mean_are_as_without_mixtures() -> None:
    x, labels, _ = apart(generator(4, "domains"))
    plain, mixed = ClassGaussians(8, per_class=True), ClassMixtures(8, per_class=True)
    for statistics in (plain, mixed):
        statistics.add(x, labels, [0, 1])
        statistics.move(0.1 * torch.eye(8), x.mean(0), torch.ones(8))
    assert torch.equal(plain.linear_discriminant(x, 0.1), mixed.linear_discriminant(x, 0.1))
    assert torch.equal(plain.quadratic_discriminant(x, 0.1, 0.5), mixed.quadratic_discriminant(x, 0.1, 0.5))


def test_merged_and_dropped_classes_take_all_their_means_with_them() -> None:
    x, labels, domain = apart(generator(5, "domains"))
    statistics = ClassMixtures(8, per_class=True)
    for d in (0, 1):
        statistics.add(x[domain == d], labels[domain == d], [0, 1])
    statistics.merge(1, 0)
    assert (statistics.classes, statistics.ids.tolist()) == ((0,), [0, 0, 0, 0])
    statistics.add(x, labels + 2, [2, 3])
    statistics.drop(0)
    assert (statistics.classes, len(statistics.scatters)) == ((2, 3), 2)


def test_alignment_keeps_a_mean_for_each_task_and_loads_it_again() -> None:
    tasks = stream(2, 1)
    method = learn_all(Aligned(build("nearest-mean"), means=1), [tasks[0], tasks[0]])
    assert isinstance(method.statistics, ClassMixtures)
    assert len(method.statistics.ids) == 2 * len(method.classes)
    again = Aligned(build("nearest-mean"), means=1)
    again.load_state_dict(method.state_dict())
    x = images(2, 2, "test")
    with pytest.raises(ValueError, match="several means, which no linear layer holds"):
        again.linear_classifier()
    assert again.classes == method.classes
    batch = x.batch(torch.arange(4), plain_view(method.backbone.transform))
    assert torch.equal(again.eval().predict(batch), method.eval().predict(batch))
    with pytest.raises(ValueError, match="means 2 must be a whole number from 0, and 0 for head 'refit'"):
        Aligned(build("nearest-mean"), means=2, head="refit")
