"""The state of one training job."""

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Job"]


@dataclass
class Job:
    """One training job: its task, its progress, and its result.

    Attributes:
        id: the number of the job, counted from 1. A job that a later server resumes keeps it.
        name: the name of the task.
        images: how many samples the archive had: images or texts.
        ignored: the names of the files in the archive that are no samples.
        starts: how often the training process was started; more than once if it was killed and resumed.
        state: "learning", "done" or "failed".
        error: one line that says why the job failed; "" if it did not.
        unreadable: the samples that were left out, each with the reason why it cannot be read.
        classes: the names of the classes of the task; empty until they are known.
        new: the names of those classes that the model did not know before.
        step: the pass over the data that is running.
        steps: how many steps of this pass are done.
        of: how many steps this pass has.
        version: the number of the model's version that the job made; None until it is done.
        held_back: how many samples were held back, that is, not learned from.
        right: how many of the held-back samples the model classifies correctly.
        seconds: how long the job has been running in this server, or how long it took.
        expected_seconds: how large `seconds` is expected to be in the end, tried on a few of the samples; None
            until it is known, and where an interrupted learning resumes.
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
    expected_seconds: float | None = None

    def hear(self, said: dict[str, Any]) -> None:
        """Update the job from one message of the training process; see worker.py."""
        if "done" in said:
            held_back = said["done"].get("held_back", {})
            self.held_back, self.right = held_back.get("images", 0), held_back.get("right", 0)
        elif "still" in said:
            self.expected_seconds = self.seconds + said["still"]
        else:
            for key, value in said.items():
                setattr(self, key, value)
