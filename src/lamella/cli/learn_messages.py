"""The messages of `lamella learn`: the data and the expected costs before training, and the result afterwards."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lamella.cli.output import say
from lamella.common.words import many

if TYPE_CHECKING:
    from lamella.learner.confidence import HeldBackScore
    from lamella.learner.expected_costs import Expected
    from lamella.learner.model import Model
    from lamella.learner.prepared import Learning
    from lamella.learner.records import TaskRecord
    from lamella.learner.reference import Beside

__all__ = ["say_expected", "say_found", "say_known", "say_resumed", "say_took"]

SHOWN = 5  # the largest number of unreadable files in a list
THIN = 5  # a class with fewer samples is named
NAMES = 8  # the largest number of classes in a line


def say_found(learning: "Learning") -> None:
    """Print the samples, the classes and the unreadable files, and how the method treats known classes."""
    from lamella.learner.config.precision import precision_line
    from lamella.learner.store.versions import holds_model

    model, task = learning.model, learning.task
    is_new = not holds_model(learning.folder)
    if is_new and "measured" in model.config["fit"]:
        say(precision_line(model.config))
    if is_new:
        say(f"new model: {model.name} on {_backbone(model)}")
    counted = f"{many(len(task.train), task.train.noun)} to learn from, {len(learning.held_back)} held back"
    if not task.classes:
        say(f"{task.name}: {counted}")
        _say_how_read(learning)
        _say_unreadable(learning)
        return
    known = set(model.class_names.values())
    new = [name for name in task.class_names if name not in known]
    again = [name for name in task.class_names if name in known]
    say(f"{task.name}: {counted}; {many(len(new), 'new class', 'es')}")
    if new:
        say(f"  new: {_few(new)}")
    if again:
        say(f"  more of: {_few(again)}; {model.method.what_more_images_do()}")
    if len(known | set(task.class_names)) == 1:
        say("  with a single class every answer is right; teach it another one before you judge it")
    if thin := _thin(learning):
        say(f"  few {task.train.noun}s: {_few(thin)}; such classes are recognised less often")
    _say_how_read(learning)
    for name, count in learning.otherwise.items():
        were = "was" if count == 1 else "were"
        say(f"  {count} of these {task.train.noun}s {were} learned before as '{name}'; check which class is right")
    _say_unreadable(learning)


def _say_how_read(learning: "Learning") -> None:
    """Print how the data were read, and what is left out of them but for what cannot be read."""
    for line in learning.data.whole.told:
        say(f"  {line}")
    _say_left_out(learning)


def _say_unreadable(learning: "Learning") -> None:
    """Print which samples cannot be read."""
    unreadable = learning.data.unreadable
    if unreadable:
        say(f"  left out, cannot be read: {many(len(unreadable), learning.task.train.noun)}")
        for file in unreadable[:SHOWN]:
            say(f"    {file.key}: {file.reason}")
        if len(unreadable) > SHOWN:
            say(f"    and {len(unreadable) - SHOWN} more")


def _say_left_out(learning: "Learning") -> None:
    """Print how many samples are not learned, and why."""
    left_out, noun = learning.left_out, learning.task.train.noun
    if left_out.known:
        say(f"  left out, learned before: {many(left_out.known, noun)}; --again learns them once more")
    if left_out.held_back:
        say(f"  left out, held back before, so not learned: {many(left_out.held_back, noun)}")
    if left_out.copies:
        say(f"  left out, copies of others: {many(left_out.copies, noun)}")
    if left_out.tests:
        say(f"  left out of the test part, trained on before or in this task: {many(left_out.tests, noun)}")


def _thin(learning: "Learning") -> list[str]:
    """Name the classes with few samples, with their number."""
    train, known = learning.task.train, set(learning.model.class_names.values())
    pairs = zip(learning.task.classes, learning.task.class_names, strict=True)
    counts = [(name, int((train.labels == label).sum())) for label, name in pairs if name not in known]
    return [f"{name} ({count})" for name, count in counts if count < THIN]


def _backbone(model: "Model") -> str:
    from lamella.backbones.bundled import NAME

    bundled = ", which is bundled: for digits and other small images, not for photographs"
    size = model.backbone.transform.describe().get("size")
    at = f" at {size} pixels" if size else ""
    adapter = model.config["backbone"].get("adapter")
    lora = f"+{adapter}" if adapter else ""
    return f"{model.backbone.name}{lora}{at}{bundled if model.backbone.name == NAME else ''}"


def say_resumed(learning: "Learning") -> None:
    """Print whether an interrupted learning is resumed or discarded."""
    name, resumed = learning.task.name, learning.resumed
    if learning.stored:
        say(f"{name} had been learned and stored already when its learning was interrupted")
    if resumed.given_up:
        say(f"discards the interrupted learning of {resumed.given_up.replace(': ', ' and starts again: ', 1)}")
    if resumed.goes_on:
        say(f"resumes the interrupted learning of {name}")


def say_expected(learning: "Learning") -> "Expected":
    """Measure and print the expected time and memory of learning on this machine."""
    from lamella.common.words import size
    from lamella.learner.expected_costs import expect_costs

    model = learning.model
    say(f"  {model.name} on {model.backbone.name} learns it as task {len(model.tasks) + 1}", nl=False)
    try:
        expected = expect_costs(learning.copied(), learning.task, len(learning.held_back))
    except Exception:
        say("")  # the error has a line of its own
        raise
    memory = f" and {size(expected.bytes)} of memory" if expected.bytes else ""
    say(f"; expected: {_about(expected.seconds)}{memory}")
    return expected


def _about(seconds: float) -> str:
    """Format an expected duration.

    >>> _about(0.02), _about(4.26)
    ('under a second', 'about 4.3 s')
    """
    from lamella.common.words import duration

    return f"about {duration(seconds)}" if seconds >= 1 else "under a second"


def say_took(learning: "Learning", seconds: float, expected: "Expected | None") -> None:
    """Print what was learned, with its time and memory next to the expected ones."""
    from lamella.common.words import duration, size
    from lamella.training.footprint import peak_bytes

    task = learning.task
    record = learning.model.tasks[-1]
    counted = many(record.images, task.train.noun)
    if task.classes:
        counted = f"{many(len(task.classes), 'class', 'es')} from {counted}: {', '.join(task.class_names)}"
    say(f"{learning.folder} learned {counted}")
    for line in record.told or ():
        say(f"  {line}")
    if too_long := len(task.train) - record.images:
        say(
            f"  left out, too long for this model: {many(too_long, task.train.noun)}; give a larger backbone.max_length"
        )
    peak = peak_bytes(learning.model.fit().device)
    memory = f" and {size(peak)} of memory" if peak else ""
    beside = f" (expected: {_about(expected.seconds)})" if expected else ""
    say(f"took {duration(seconds)}{memory}{beside}")


def say_known(learning: "Learning") -> None:
    """Print the accuracy on held-back samples of the new task, and the earlier accuracies of old tasks."""
    *old, new = learning.model.tasks
    noun = learning.task.train.noun
    if new.held_back_costs:
        _say_costs(old, new)
    if new.held_back:
        say(f"right on held-back {noun}s of these classes: {_right(new.held_back)}, all classes competing")
    if new.beside:
        _say_beside(new.beside, noun)
    measured = [(task.name, task.held_back) for task in old if task.held_back]
    if measured:
        say(f"old tasks, each when it was learned (no {noun} is kept of them, so they are not measured again):")
        for name, held in measured:
            say(f"  {name}: {_right(held)}")


def _say_costs(old: "Sequence[TaskRecord]", new: "TaskRecord") -> None:
    """Print what held-back answers cost before and after the task, and the same of earlier tasks."""
    say(f"held-back answers, nats a token (perplexity): {_costs(new)}")
    measured = [task for task in old if task.held_back_costs]
    if measured:
        say("old tasks, each when it was learned (no answer is kept of them; lamella evaluate measures them again):")
        for task in measured:
            say(f"  {task.name}: {_costs(task)}")


def _costs(task: "TaskRecord") -> str:
    from math import exp

    held = task.held_back_costs
    assert held is not None
    before, after = (f"{loss:.3f} ({exp(min(loss, 700.0)):.3g})" for loss in (held.before, held.after))
    return f"{before} before, {after} after, of {held.answers}"


def _say_beside(beside: "Beside", noun: str) -> None:
    """Print how the model compares with what trains nothing, and whether training has paid."""
    learned, means, discriminant = (
        f"{count / beside.images:.1%}" for count in (beside.learned, beside.class_means, beside.discriminant)
    )
    say(
        f"right on the {many(beside.images, f'held-back {noun}')} of all tasks so far: {learned}; without training: "
        f"class means {means}, linear discriminant {discriminant}"
    )
    if not beside.pays:
        say(
            "training has not paid so far: a new model with --no-train, which only keeps statistics, is as good on "
            f"these {noun}s and learns faster"
        )


def _right(held: "HeldBackScore") -> str:
    return f"{held.accuracy:.1%} of {held.images}"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return ", ".join(names[:NAMES]) + more
