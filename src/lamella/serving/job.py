"""What is known of one learning."""

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Job"]


@dataclass
class Job:
    """A learning: what of, how far, and what came of it.

    Attributes:
        id: of the job, counted from 1. name: of the task. images: that were sent. ignored: files that are no images.
        starts: how often it was begun; more than once where it was killed and went on.
        state: what it is doing. error: why it failed, in one line, else "".
        unreadable: images that were left out, each with the reason why it cannot be read.
        classes: of the task, once they are known; new: those of them that the model did not know.
        step: the pass that is under way; steps: how many steps of it are done, `of` so many.
        version: of the model that it made. held_back, right: images that were not learned from, and how many of them
            the model gets right. seconds: since it began here, or that it took.
    """

    id: int
    name: str
    images: int
    ignored: list[str]
    starts: int = 0
    state: Literal["learning", "done", "failed"] = "learning"
    error: str = ""
    unreadable: dict[str, str] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    step: str = "starting"
    steps: int = 0
    of: int = 0
    version: int | None = None
    held_back: int = 0
    right: int = 0
    seconds: float = 0.0

    def hear(self, said: dict[str, Any]) -> None:
        """Note what the process said that learns; see teach.py."""
        if "done" in said:
            held_back = said["done"].get("held_back", {})
            self.held_back, self.right = held_back.get("images", 0), held_back.get("right", 0)
        else:
            for key, value in said.items():
                setattr(self, key, value)
