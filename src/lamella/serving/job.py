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
        images: how many samples the archive had: images, texts or answers.
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
        right: how many of the held-back samples the model classifies correctly; 0 of answers.
        nats_before: what a token of the held-back answers cost the model before it learned, in nats; None of classes.
        nats_after: the same after it.
        told: what became of answers, such as how many were cut, in lines.
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
    nats_before: float | None = None
    nats_after: float | None = None
    told: list[str] = field(default_factory=list)
    seconds: float = 0.0
    expected_seconds: float | None = None

    def hear(self, said: dict[str, Any]) -> None:
        """Update the job from one message of the training process; see worker.py."""
        if "done" in said:
            done = said["done"]
            held_back, costs = done.get("held_back", {}), done.get("held_back_costs", {})
            self.held_back = held_back.get("images", costs.get("answers", 0))
            self.right = held_back.get("right", 0)
            self.nats_before, self.nats_after = costs.get("before"), costs.get("after")
        elif "still" in said:
            self.expected_seconds = self.seconds + said["still"]
        else:
            for key, value in said.items():
                setattr(self, key, value)
