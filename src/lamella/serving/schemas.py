"""What the server says, as its OpenAPI description has it."""

from typing import Any

from pydantic import BaseModel, Field

from lamella.learner.confidence import UNKNOWN
from lamella.learner.learner import Learner, Prediction

__all__ = [
    "ELSEWHERE", "FAULTS", "FOREIGN", "ClassRow", "Guess", "Health", "Predicted", "Predictions", "Problem", "TaskRow",
]  # fmt: skip


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str = Field(description="one line: what was given, what is allowed, what to do next")


ELSEWHERE: dict[int | str, dict[str, Any]] = {
    421: {"model": Problem, "description": "the server does not go by that name"},
}
FOREIGN: dict[int | str, dict[str, Any]] = {
    403: {"model": Problem, "description": "a page of another site sent it"},
}
FAULTS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "the request cannot be read"},
    **FOREIGN,
    408: {"model": Problem, "description": "it took too long to arrive"},
    413: {"model": Problem, "description": "too many bytes, files or pixels"},
    415: {"model": Problem, "description": "not an image, or not a zip"},
    422: {"model": Problem, "description": "damaged, or not what is expected"},
    503: {"model": Problem, "description": "too much to do, or nothing learned yet; try again later"},
}


class Guess(BaseModel):
    """A class that an image may show."""

    name: str
    confidence: float = Field(description="0..1, over all classes 1 in sum; calibrated on images held back")


class Predicted(BaseModel):
    """What an image looks like."""

    name: str = Field(description="of the file, as sent")
    classes: list[Guess] = Field(description="best first")
    task: str = Field(description="that taught the first class")
    familiarity: float | None = Field(description="0..1, the share of held-back images that looked as strange")
    unknown: bool | None = Field(
        description=f"whether familiarity is below {UNKNOWN}; null where nothing was held back"
    )

    @classmethod
    def of(cls, name: str, prediction: Prediction) -> "Predicted":
        """A prediction for the file called `name`."""
        pairs = zip(prediction.classes, prediction.confidences, strict=True)
        familiarity = prediction.familiarity
        return cls(
            name=name, classes=[Guess(name=n, confidence=c) for n, c in pairs], task=prediction.task,
            familiarity=familiarity, unknown=None if familiarity is None else familiarity < UNKNOWN,
        )  # fmt: skip


class Predictions(BaseModel):
    """An answer to images, in their order."""

    version: int = Field(description="of the model")
    predictions: list[Predicted]


class ClassRow(BaseModel):
    """A class that the model knows."""

    id: int
    name: str
    tasks: list[str] = Field(description="that had images of it")

    @classmethod
    def all_of(cls, learner: Learner) -> "list[ClassRow]":
        return [
            cls(id=i, name=name, tasks=[t.name for t in learner.tasks if i in t.classes])
            for i, name in learner.class_names.items()
        ]


class TaskRow(BaseModel):
    """A task that the model has learned."""

    name: str
    classes: list[str]
    images: int = Field(description="learned from")
    seconds: float
    held_back: int = Field(description="images not learned from")
    right: int = Field(description="of those, named rightly just after the task was learned")

    @classmethod
    def all_of(cls, learner: Learner) -> "list[TaskRow]":
        rows: list[TaskRow] = []
        for task in learner.tasks:
            held = task.held_back
            rows.append(
                cls(
                    name=task.name,
                    classes=[learner.class_names[i] for i in task.classes],
                    images=task.images,
                    seconds=task.seconds["total"],
                    held_back=held.images if held else 0,
                    right=held.right if held else 0,
                )
            )
        return rows


class Health(BaseModel):
    """How the server is."""

    status: str = Field(description='"ok", or why the newest version of the model cannot be used')
    version: int = Field(description="of the model in use")
    classes: int
    tasks: int
    method: str
    backbone: str
    learning: int | None = Field(description="id of the learning that is under way")
    waiting: int = Field(description="images whose prediction is awaited")
