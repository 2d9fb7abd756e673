"""What replay promises: with a few images of old classes they are not forgotten, and nothing but those is kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from streams import Spy, build, fit_for, learn, learn_all, stream, tiny_residual_backbone
from torch import Tensor

from lamella.data.images import ImageSet
from lamella.data.transform import InputTransform, plain_view
from lamella.learner.store.state import learned_state, restore_state
from lamella.memory.exemplars import Exemplars
from lamella.training.checkpoints import Checkpoints
from lamella.training.schedules import milestone_schedule

TRAINED: dict[str, Any] = {"epochs": 12, "batch_size": 8, "optimizer": "adam", "lr": 3e-3}


def make(name: str = "replay", **options: Any) -> Any:
    return build(name, backbone=tiny_residual_backbone(), **options)


def accuracy(method: Any, scenario: Any, i: int) -> float:
    """Of task i's test images, over all classes seen."""
    test = scenario.test(i)
    x = test.batch(range(len(test)), plain_view(method.backbone.transform))
    with torch.no_grad():
        guess = method.predict(x).argmax(1)
    return float((torch.tensor(method.classes)[guess] == test.labels).float().mean())


def test_a_few_images_prevent_what_fine_tuning_forgets() -> None:
    """Three tasks of two classes, at the end, over all six: 4 images a class keep what is lost without."""
    scenario = stream(6, 3)
    kept = learn_all(make(memory=24, **TRAINED), scenario)
    without = learn_all(make(memory=0, **TRAINED), scenario)
    tuned = learn_all(make("seq-finetune", **TRAINED), scenario)
    old = {m: sum(accuracy(m, scenario, i) for i in range(2)) / 2 for m in (kept, without, tuned)}
    assert accuracy(without, scenario, 2) > 0.7  # it does learn, and forgets
    assert old[kept] > 0.8
    assert old[without] < 0.3
    assert old[tuned] < 0.5


def test_a_task_is_trained_on_its_images_and_the_memory_as_one_set_over_all_classes() -> None:
    scenario, seen = stream(6, 3), []
    method = make(memory=6)

    def look(loss: Any, data: ImageSet, params: list[Any]) -> None:
        held = method.exemplars.as_set().keys
        seen.append((len(data), data.keys == scenario[len(seen)].train.keys + held, method.training))
        method.eval()
        x = data.batch(range(len(data)), plain_view(method.backbone.transform))
        columns = torch.tensor([method.classes.index(y) for y in data.labels.tolist()])
        expected = F.cross_entropy(method.heads(method.features(x)), columns)
        assert float(loss(x, data.labels)) == pytest.approx(float(expected), rel=1e-6)
        method.train()

    for i in range(3):
        learn(method, i, scenario[i], Spy(method, look))
    assert seen == [(16, True, True), (16 + 6, True, True), (16 + 4, True, True)]
    assert method.exemplars.counts() == dict.fromkeys(scenario.class_order, 1)
    assert not method.training


def test_every_weight_is_trained_and_batch_statistics_follow() -> None:
    method = make()
    before = {k: v.clone() for k, v in method.backbone.model.state_dict().items()}
    learn(method, 0, stream()[0])
    after = method.backbone.model.state_dict()
    assert [key for key in before if torch.equal(before[key], after[key])] == []
    assert set(learned_state(method)) == set(method.state_dict())


def test_the_first_task_may_have_epochs_of_its_own() -> None:
    method, losses = make(epochs=2, first_epochs=3), []

    class Counting(Spy):
        def __call__(self, *args: Any, **options: Any) -> list[float]:
            losses.append(self.fit(*args, **options))
            return losses[-1]

    for i in range(3):
        learn(method, i, stream()[i], Counting(method, lambda *_: None))
    assert [len(epochs) for epochs in losses] == [3, 2, 2]


def test_a_memory_too_small_is_refused_before_anything_is_trained() -> None:
    scenario = stream(6, 3)
    method = make(memory=3)
    learn(method, 0, scenario[0])
    trained: list[int] = []
    with pytest.raises(ValueError, match="a memory of 3 images cannot hold one of each of 4 classes"):
        learn(method, 1, scenario[1], Spy(method, lambda *_: trained.append(1)))
    assert not trained
    assert method.classes == scenario[0].classes  # and nothing has grown


@pytest.mark.parametrize(("choose", "scans"), [("herding", True), ("random", False), ("reservoir", False)])
def test_only_herding_looks_at_features(choose: str, scans: bool) -> None:
    method, fit = make(choose=choose, memory=7), None
    for i in range(3):
        fit = fit_for(method)
        learn(method, i, stream()[i], fit)
        assert ("herding" in fit.seconds) == scans
    assert len(method.exemplars) == (7 if choose == "reservoir" else 6)


def test_herding_stands_on_the_features_of_the_trained_model() -> None:
    method, task = make(memory=4), stream()[0]
    learn(method, 0, task)
    x = fit_for(method).features(task.train, method.features)
    expected = Exemplars(InputTransform(16), total=4)
    expected.select(task.train, x, task.classes)
    assert method.exemplars.keys == expected.keys


def test_milestones_are_shares_of_the_epochs() -> None:
    schedule = milestone_schedule((0.47, 0.705))
    assert [schedule(e, 170) for e in (0, 79)] == [1, 1]
    assert [round(schedule(e, 170), 4) for e in (79, 80, 119, 120)] == [1.0, 0.1, 0.1, 0.01]
    assert [milestone_schedule(())(e, 3) for e in range(3)] == [1, 1, 1]
    for bad in (0.0, 1.5, -0.2):
        with pytest.raises(ValueError, match=r"outside \(0, 1\]; it is a share of the epochs"):
            make(milestones=(0.5, bad))


def test_columns_of_all_heads_follow_the_classes_also_when_one_comes_back() -> None:
    heads = make().heads
    for classes in ((5, 2), (7,), (2, 9)):
        heads.grow(classes)
    assert heads.classes == (5, 2, 7, 9)
    assert heads.columns(torch.tensor([9, 2, 5, 7, 2])).tolist() == [3, 1, 0, 2, 1]
    with pytest.raises(ValueError, match=r"labels \[4\] are not among the classes of these heads, \[5, 2, 7, 9\]"):
        heads.columns(torch.tensor([2, 4]))


# killed and resumed --------------------------------------------------------------------------------------------------


class Cut(Exception):
    pass


@pytest.mark.parametrize("name", ["replay", "icarl"])
@pytest.mark.parametrize("cut_at", [1, 4, 7])
def test_a_task_cut_off_goes_on_to_the_same_bits(name: str, cut_at: int, tmp_path: Path) -> None:
    """The state before the task, the exemplars in it, and the position within the task are all that is needed."""
    scenario, options = stream(4, 2), {"epochs": 3, "batch_size": 8, "optimizer": "sgd", "lr": 0.05}
    whole = make(name, memory=6, **options)
    learn(whole, 0, scenario[0])
    before = {k: v.clone() for k, v in learned_state(whole).items()}
    learn(whole, 1, scenario[1])

    def resumed(stop_at: int | None) -> Any:
        method = make(name, memory=6, **options)
        restore_state(method, before)

        @contextmanager
        def progress(title: str, total: int) -> Iterator[Any]:
            steps: list[int] = []

            def advance(n: int, note: str) -> None:
                steps.append(n)
                if "train" in title and sum(steps) == stop_at:
                    raise Cut

            yield advance

        return learn(method, 1, scenario[1], fit_for(method, checkpoints=Checkpoints(tmp_path, 0.0), progress=progress))

    with pytest.raises(Cut):
        resumed(cut_at)
    again = resumed(None)
    expected: dict[str, Tensor] = whole.state_dict()
    assert [key for key, value in again.state_dict().items() if not torch.equal(value, expected[key])] == []
    assert again.exemplars.keys == whole.exemplars.keys
