"""The answers of the server, as its OpenAPI description lists them."""

from typing import Any

from pydantic import BaseModel, Field

from lamella.learner.confidence import UNKNOWN
from lamella.learner.learner import Learner, Prediction
from lamella.learner.store.versions import Version
from lamella.serving.drift import Drift

__all__ = [
    "DISK",
    "ELSEWHERE",
    "FAULTS",
    "FOREIGN",
    "ClassRow",
    "Guess",
    "Health",
    "Predicted",
    "Predictions",
    "Problem",
    "TaskRow",
    "VersionRow",
]


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str = Field(description="one line: what was given, what is allowed, what to do next")


ELSEWHERE: dict[int | str, dict[str, Any]] = {
    421: {"model": Problem, "description": "the server does not answer to that host name"},
}
FOREIGN: dict[int | str, dict[str, Any]] = {
    403: {"model": Problem, "description": "a page of another site sent the request"},
}
FAULTS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "the request cannot be read"},
    **FOREIGN,
    408: {"model": Problem, "description": "the request took too long to arrive"},
    413: {"model": Problem, "description": "too many bytes, files, pixels, texts or characters"},
    415: {"model": Problem, "description": "samples of another kind than the model takes, or no zip"},
    422: {"model": Problem, "description": "damaged, or not what is expected"},
    503: {"model": Problem, "description": "too many requests, or nothing learned yet; try again later"},
}


DISK: dict[int | str, dict[str, Any]] = {
    507: {"model": Problem, "description": "the disk is full, or cannot be written"},
}


class Guess(BaseModel):
    """A class that a sample may belong to."""

    name: str
    confidence: float = Field(
        description="0..1, the sum over all classes is 1; calibrated on held-back samples. Without any, familiarity is "
        "null, and confidences are mostly far too high"
    )


class Predicted(BaseModel):
    """The prediction for one sample."""

    name: str = Field(description="the name of an image's file, as sent; of a text its place in the request, from 0 on")
    classes: list[Guess] = Field(description="best first")
    task: str = Field(description="the task that taught the first class")
    familiarity: float | None = Field(
        description="0..1, the share of held-back samples that looked at least as strange; null if none were held back"
    )
    unknown: bool | None = Field(
        description=f"whether familiarity is below {UNKNOWN}; null if no samples were held back"
    )

    @classmethod
    def of(cls, name: str, prediction: Prediction) -> "Predicted":
        """Convert the prediction for one sample.

        Args:
            name: what it is called.
            prediction: the prediction for it.
        """
        pairs = zip(prediction.classes, prediction.confidences, strict=True)
        familiarity = prediction.familiarity
        return cls(
            name=name,
            classes=[Guess(name=n, confidence=c) for n, c in pairs],
            task=prediction.task,
            familiarity=familiarity,
            unknown=None if familiarity is None else familiarity < UNKNOWN,
        )


class Predictions(BaseModel):
    """The predictions for the samples of a request, in their order."""

    version: int = Field(description="the version of the model that predicted")
    predictions: list[Predicted]


class ClassRow(BaseModel):
    """A class that the model knows."""

    id: int
    name: str
    tasks: list[str] = Field(description="the tasks that had samples of this class")

    @classmethod
    def all_of(cls, learner: Learner) -> "list[ClassRow]":
        """Describe every class of a model, in the order of their ids."""
        return [
            cls(id=i, name=name, tasks=[t.name for t in learner.tasks if i in t.classes])
            for i, name in learner.class_names.items()
        ]


class TaskRow(BaseModel):
    """A task that the model has learned."""

    name: str
    classes: list[str]
    images: int = Field(description="how many samples were learned from: images, texts or answers")
    seconds: float
    held_back: int = Field(description="how many samples were held back, that is, not learned from")
    right: int = Field(
        description="how many held-back samples were classified correctly just after the task was learned; 0 of answers"
    )

    @classmethod
    def all_of(cls, learner: Learner) -> "list[TaskRow]":
        """Describe every task of a model, oldest first."""
        rows: list[TaskRow] = []
        for task in learner.tasks:
            held, costs = task.held_back, task.held_back_costs
            rows.append(
                cls(
                    name=task.name,
                    classes=[learner.class_names[i] for i in task.classes],
                    images=task.images,
                    seconds=task.seconds["total"],
                    held_back=held.images if held else costs.answers if costs else 0,
                    right=held.right if held else 0,
                )
            )
        return rows


class VersionRow(BaseModel):
    """A version of the model."""

    number: int
    current: bool = Field(description="whether it is the current one")
    made: str = Field(description="when it was made, as YYYY-MM-DDTHH:MM:SS in the local time of its maker")
    what: str = Field(description="what made it, such as the task that was learned")
    tasks: list[str] = Field(description="the tasks that it has learned, oldest first")
    parent: int | None = Field(description="the version that it was made from; null for the first")

    @classmethod
    def of(cls, version: Version) -> "VersionRow":
        """Describe a version."""
        return cls(
            number=version.number,
            current=version.current,
            made=version.made,
            what=version.what,
            tasks=list(version.tasks),
            parent=version.parent,
        )


class Health(BaseModel):
    """The state of the server."""

    status: str = Field(description='"ok", or why the newest version of the model cannot be used')
    version: int = Field(description="the version of the model in use")
    classes: int
    tasks: int
    method: str
    backbone: str
    learning: int | None = Field(description="the id of the running job; null if there is none")
    waiting: int = Field(description="how many samples wait for their prediction")
    samples: str = Field(description='what the model takes: "image", "text" or "answer"')
    drift: Drift | None = Field(
        description="whether what was predicted looks unlike what was learned; null where that is not known"
    )
