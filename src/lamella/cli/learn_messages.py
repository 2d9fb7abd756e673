"""What `lamella learn` says: before it trains what it found and what that will take, and afterwards what came of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lamella.cli.output import say

if TYPE_CHECKING:
    from lamella.data.keeping import Unreadable
    from lamella.data.scenario import Task
    from lamella.learner.learner import Learner
    from lamella.learner.rehearsal import Expected

__all__ = ["say_expected", "say_found", "say_known", "say_took"]

SHOWN = 5  # unreadable files named
NAMES = 8  # classes named in a line


def say_found(learner: "Learner", task: "Task", held_back: int, unreadable: Sequence["Unreadable"]) -> None:
    """The images, classes and unreadable files; what the method will do with them."""
    known = set(learner.class_names.values())
    new = [name for name in task.class_names if name not in known]
    again = [name for name in task.class_names if name in known]
    say(f"{task.name}: {len(task.train)} images to learn from, {held_back} held back; {len(new)} new classes")
    if new:
        say(f"  new: {_few(new)}")
    if again:
        say(f"  more of: {_few(again)}; {learner.method.what_more_images_do()}")
    if unreadable:
        counted = "1 file" if len(unreadable) == 1 else f"{len(unreadable)} files"
        say(f"  left out, cannot be read: {counted}")
        for file in unreadable[:SHOWN]:
            say(f"    {file.key}: {file.reason}")
        if len(unreadable) > SHOWN:
            say(f"    and {len(unreadable) - SHOWN} more")


def say_expected(rehearsing: "Learner", task: "Task", held_back: int) -> "Expected":
    """What learning will take on this machine.

    Args:
        rehearsing: is of no use afterwards.
    """
    from lamella.experiments.report.words import duration, size
    from lamella.learner.rehearsal import rehearse

    number = len(rehearsing.tasks) + 1
    say(f"  {rehearsing.name} on {rehearsing.backbone.name} learns it as task {number}", nl=False)
    expected = rehearse(rehearsing, task, held_back)
    memory = f" and {size(expected.bytes)} of memory" if expected.bytes else ""
    say(f"; expected: about {duration(expected.seconds)}{memory}")
    return expected


def say_took(learner: "Learner", seconds: float, expected: "Expected | None") -> None:
    """What it took, beside what was expected."""
    from lamella.experiments.report.words import duration, size
    from lamella.training.footprint import peak_bytes

    peak = peak_bytes(learner.fit().device)
    memory = f" and {size(peak)} of memory" if peak else ""
    beside = f" (expected: about {duration(expected.seconds)})" if expected else ""
    say(f"took {duration(seconds)}{memory}{beside}")


def say_known(learner: "Learner") -> None:
    """How good it is: on images held back of the new task, and what was measured of old ones in their time."""
    *old, new = learner.tasks
    if "held_back" in new:
        say(f"right on held-back images of these classes: {_right(new)}, all classes competing")
    told = [task for task in old if "held_back" in task]
    if told:
        say("old tasks, each when it was learned (no image is kept of them, so they are not measured again):")
        for task in told:
            say(f"  {task['name']}: {_right(task)}")


def _right(task: dict[str, Any]) -> str:
    right, images = task["held_back"]["right"], task["held_back"]["images"]
    return f"{right / images:.1%} of {images}"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return ", ".join(names[:NAMES]) + more
