"""Evaluation: counts by hand, the calibration error by another formula, and which images are measured."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from streams import images

from lamella import Learner
from lamella.data.images import data_sha256
from lamella.learner.inspection import evaluation
from lamella.learner.inspection.evaluation import evaluate, images_to_measure
from lamella.learner.learner import Prediction
from lamella.learner.records import TaskRecord
from lamella.learner.seen import Seen


def learner(*guesses: Prediction) -> Any:
    """It learned "a" and "b", then "c" and more of "b", and predicts what it was given."""
    return SimpleNamespace(
        class_names={0: "a", 1: "b", 2: "c"},
        tasks=[
            TaskRecord("first", (0, 1), 2, {"total": 1.0}, trainable_parameters=0),
            TaskRecord("second", (2, 1), 2, {"total": 1.0}, trainable_parameters=0),
        ],
        predict=lambda images, top: list(guesses),
    )


@pytest.fixture(autouse=True)
def _given_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in predicts by itself."""
    monkeypatch.setattr(evaluation, "predict", lambda model, images, **options: model.predict(images, **options))


def guess(name: str, confidence: float = 0.9, familiarity: float | None = 0.5) -> Prediction:
    return Prediction((name,), (confidence,), "", familiarity)


def labelled(*labels: int) -> Any:
    found = images(1, len(labels), "test")
    found.labels = torch.tensor(labels)
    return found


def test_counts_by_hand() -> None:
    data = labelled(0, 0, 1, 2, 3, 3, 3)
    found = evaluate(
        learner(guess("a"), guess("b", familiarity=0.01), guess("c"), guess("a"), guess("c", familiarity=0.0),
                guess("c", familiarity=0.04), guess("a")),
        data, ["a", "b", "c", "zebra"],
    )  # fmt: skip
    assert (found.images, found.right, found.unknown, found.accuracy) == (4, 1, 1, 0.25)
    assert [(c.name, c.images, c.right, c.right_task, c.unknown) for c in found.classes] == [
        ("a", 2, 1, 2, 1),
        ("b", 1, 0, 1, 0),  # c is of a task that has b too
        ("c", 1, 0, 0, 0),
    ]
    assert [(t.name, t.images, t.right, t.right_task, t.unknown) for t in found.tasks] == [
        ("first", 3, 1, 2, 1),
        ("second", 2, 0, 1, 0),
    ]
    assert found.confusion == (("a", "a", 1), ("a", "b", 1), ("b", "c", 1), ("c", "a", 1))
    (zebra,) = found.strangers
    assert (zebra.name, zebra.images, zebra.unknown, zebra.taken_for) == ("zebra", 3, 2, "c")


def test_the_calibration_error_is_that_of_another_formula() -> None:
    draws = np.random.default_rng(0)
    sure = draws.uniform(0, 1, 400)
    right = draws.uniform(0, 1, 400) < sure**2
    sure[:3] = 1 / 15, 1.0, 0.0
    found = evaluate(
        learner(*(guess("a" if ok else "b", float(c)) for ok, c in zip(right, sure, strict=True))),
        labelled(*[0] * 400), ["a", "b", "c"],
    )  # fmt: skip
    place = np.clip(np.digitize(sure, np.arange(16) / 15, right=True), 1, 15)
    error = sum(abs(right[place == i].sum() - sure[place == i].sum()) for i in range(1, 16)) / 400
    assert found.calibration_error == pytest.approx(error)
    assert found.confidence == pytest.approx(sure.mean())
    assert [b.images for b in found.bins] == [int((place == i).sum()) for i in range(1, 16)]
    assert evaluate(learner(guess("a", 1.0)), labelled(0), ["a"]).calibration_error == 0


def test_a_model_without_held_back_images_calls_nothing_unknown() -> None:
    found = evaluate(learner(guess("a", familiarity=None)), labelled(0), ["a"])
    assert (found.unknown, found.unknown_below) == (0, None)


def test_data_without_a_learned_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"none of the classes in the data was learned.*: zebra; this model knows a"):
        evaluate(learner(guess("a")), labelled(0), ["zebra"])


def photos(folder: Path, *classes: str, count: int = 5) -> Path:
    from PIL import Image

    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (40 * i, 9, 90 * place)).save(folder / name / f"{i}.png")
    return folder


def test_what_was_learned_from_is_not_measured(tmp_path: Path) -> None:
    from lamella.data.sources.load import load_source

    folder = photos(tmp_path / "birds", "crow", "owl")
    split = load_source(folder)
    learner = Learner.create(method="nearest-mean")
    found = images_to_measure(str(folder), learner.model)
    assert (len(found.images), found.part, found.class_names) == (10, "all of it", ("crow", "owl"))
    learner.learn_from(folder)
    found = images_to_measure(str(folder), learner.model)
    told = "all of it, without 8 images that the model was trained on"
    assert (set(found.images.keys), found.part) == (set(split.test.keys), told)
    learner.model.seen = Seen()  # as in a model of an older version, which kept names only
    found = images_to_measure(str(folder), learner.model)
    assert (set(found.images.keys), found.part) == (set(split.test.keys), "its held-back part")
    assert len(images_to_measure(str(photos(tmp_path / "few", "crow", "owl", count=1)), learner.model).images) == 2


def test_a_test_part_of_its_own_is_what_is_measured(tmp_path: Path) -> None:
    photos(tmp_path / "set" / "train", "crow", "owl")
    photos(tmp_path / "set" / "test", "crow", "owl", count=2)
    found = images_to_measure(str(tmp_path / "set"), Learner.create(method="nearest-mean").model)
    assert (len(found.images), found.part) == (4, "its test part")


def test_the_hash_is_of_names_and_classes_in_any_order() -> None:
    data = images(2, 2, "train")
    digest = data_sha256(data, {0: "crow", 1: "owl"})
    assert data_sha256(data.subset([3, 1, 0, 2]), {0: "crow", 1: "owl"}) == digest
    relabelled = data.subset([0, 1, 2, 3])
    relabelled.labels = 1 - data.labels
    assert data_sha256(relabelled, {1: "crow", 0: "owl"}) == digest, "numbers of classes do not matter"
    assert data_sha256(data, {0: "crow", 1: "barn owl"}) != digest
    assert data_sha256(data.subset([0, 1, 2]), {0: "crow", 1: "owl"}) != digest
