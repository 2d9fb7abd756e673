"""Forgetting a task that shares nothing: what is left is the same whatever was forgotten."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from streams import images, source, stream
from torch import Tensor

from lamella import Learner
from lamella.data.images import ImageSet
from lamella.data.scenario import Source, Task
from lamella.learner.next_task import as_next_task
from lamella.learner.store.state import learned_state
from lamella.learner.store.versions import history

ALONE = [
    {"name": "color", "rank": 2, "epochs": 1, "batch_size": 8},
    {"name": "color", "rank": 2, "epochs": 1, "batch_size": 8, "choice": "soft", "key_features": "first_task"},
    {"name": "linear-probe", "epochs": 3},
]


def fresh(method: dict[str, Any]) -> Learner:
    backbone = {"name": "test_vit", "weights": "random", "size": 32, "crop": 1.0}
    return Learner.create(backbone=backbone, method=method, fit={"device": "cpu"})


def tasks() -> list[Task]:
    return [stream(6, 3, 6)[i] for i in range(3)]


def another() -> Task:
    """Other images, more of them, of other classes."""
    data = images(3, 7, "others")
    shifted = ImageSet(data.storage, data.labels + 90, data.keys)
    return Task(1, "another", (90, 91, 92), ("x", "y", "z"), shifted)


def taught(method: dict[str, Any], given: list[Task]) -> Learner:
    learner = fresh(method)
    for task in given:
        learner.learn(task, held_back=task.train)
    return learner


def inputs(count: int = 5) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", ALONE, ids=lambda method: f"{method['name']} {method.get('choice', '')}")
def test_what_is_left_is_the_same_whatever_was_forgotten(method: dict[str, Any], tmp_path: Path) -> None:
    first, middle, last = tasks()
    learner, other = taught(method, [first, middle, last]), taught(method, [first, another(), last])
    known = [i for i, c in enumerate(learner.method.classes) if c in last.classes]
    before = learner.logits(inputs(), task=2)[:, known]
    learner.forget(middle.name)
    other.forget("another")
    left, expected = learned_state(learner.method), learned_state(other.method)
    assert left.keys() == expected.keys()
    assert all(torch.equal(left[key], expected[key]) for key in left)
    assert learner.class_names == other.class_names
    assert [r.name for r in learner.tasks] == [r.name for r in other.tasks] == [first.name, last.name]
    assert learner.tasks[0].held_back == other.tasks[0].held_back
    assert learner.tasks[1].held_back is None, "the forgotten classes competed when it was measured"
    own = [i for i, c in enumerate(learner.method.classes) if c in last.classes]
    torch.testing.assert_close(learner.logits(inputs(), task=1)[:, own], before)
    learner.save(tmp_path)
    again = Learner.load(tmp_path)
    assert torch.equal(again.logits(inputs()), learner.logits(inputs()))
    assert not {name for p in again.predict(first.train) for name in p.classes} & set(middle.class_names)


def test_what_comes_next_takes_the_id_of_no_class_that_stayed() -> None:
    first, middle, last = tasks()
    learner = taught(ALONE[2], [first, middle, last])
    learner.forget(middle.name)
    more = source(2)
    task, _ = as_next_task(Source("more", more.train, more.test, ("new", last.class_names[0])), learner.model)
    assert task.classes == (max(learner.class_names) + 1, last.classes[0])
    learner.learn(task)
    assert set(learner.class_names.values()) == {*first.class_names, *last.class_names, "new"}
    assert len(learner.method.classes) == 5


def test_two_classes_of_one_name_are_not_learned() -> None:
    learner, task = fresh(ALONE[2]), another()
    with pytest.raises(ValueError, match="two classes of task 'another' are called 'x'; class names must differ"):
        learner.learn(replace(task, class_names=("x", "y", "x")))
    learner.learn(task)


def test_a_task_has_samples_and_all_of_them_are_of_its_classes() -> None:
    learner, task = fresh(ALONE[2]), another()
    nothing = task.train.subset([])
    wrong = (
        (replace(task, classes=(90, 91), class_names=("x", "y")), r"has label 92, and its classes are \[90, 91\]; add"),
        (replace(task, train=task.train.relabelled(task.train.labels - 91)), "has label -1, and its classes are"),
        (replace(task, train=nothing), "class 'x' of task 'another' has no training image"),
        (replace(task, classes=(), class_names=(), train=nothing), "task 'another' has no training image; add some"),
    )
    for given, message in wrong:
        with pytest.raises(ValueError, match=message):
            learner.learn(given)
    assert not learner.tasks


def test_what_others_hold_traces_of_is_refused_with_the_reason() -> None:
    first, middle, last = tasks()
    learner = taught({"name": "seq-lora", "epochs": 1, "batch_size": 8}, [first, middle])
    with pytest.raises(
        ValueError, match=f"seq-lora cannot forget '{first.name}': {middle.name} was learned on top of it"
    ):
        learner.forget(first.name)
    with pytest.raises(
        ValueError, match=f"cannot forget '{middle.name}': shared weights or statistics contain it; return"
    ):
        learner.forget(middle.name)
    learner.learn(last)
    with pytest.raises(ValueError, match=f"{middle.name}, {last.name} were learned on top of it"):
        learner.forget(first.name)
    learner = taught({"name": "seq-lora", "epochs": 1, "batch_size": 8}, [first, middle])
    with pytest.raises(ValueError, match=f"no task 'none' was learned; there are {first.name}, {middle.name}"):
        learner.forget("none")
    keyed = taught(ALONE[1], [first, middle])
    with pytest.raises(ValueError, match="makes the keys of all others"):
        keyed.forget(first.name)
    assert len(keyed.tasks) == 2
    assert keyed.logits(inputs()).shape == (5, 4)
    aligned = Learner.create(
        backbone=keyed.config["backbone"],
        method={"name": "linear-probe+align", "epochs": 1},
        fit={"device": "cpu"},
    )
    aligned.learn(first)
    with pytest.raises(ValueError, match=f"'{first.name}' is the only task; delete the model's folder"):
        aligned.forget(first.name)
    aligned.learn(last)
    with pytest.raises(ValueError, match=r"linear-probe\+align cannot forget"):
        aligned.forget(last.name)


def test_the_command_drops_a_middle_task_and_purges_it(lamella: Any, tmp_path: Path) -> None:
    first, middle, last = tasks()
    learner, model = fresh(ALONE[2]), tmp_path / "model"
    for task in (first, middle, last):
        learner.learn(task)
        learner.save(model)
    code, out, _ = lamella("forget", model, middle.name)
    assert code == 0
    assert out == (
        f"{model} has forgotten {middle.name}: the other tasks are as they were; versions that still have it, "
        "--purge removes them: 2, 3\n"
    )
    assert [r.name for r in Learner.load(model).tasks] == [first.name, last.name]
    assert lamella("rollback", model, "--to", 3)[0] == 0
    assert lamella("forget", model, middle.name, "--purge")[1].endswith("versions removed: 2, 3\n")
    assert [v.tasks for v in history(model)] == [
        (first.name,), (first.name, last.name), (first.name, last.name),
    ]  # fmt: skip
