"""The text that `lamella inspect` and `lamella evaluate` print."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

from lamella.common import words
from lamella.common.plain_table import WIDEST, plain_table
from lamella.common.printable import printable

if TYPE_CHECKING:
    from lamella.learner.inspection.directions import Overlap
    from lamella.learner.inspection.evaluation import Evaluation
    from lamella.learner.inspection.facts import Inspection, LearnedTask

__all__ = [
    "evaluation_text",
    "explain_no_overlap",
    "facts",
    "format_forecast",
    "format_images",
    "has_classes",
    "inspection_text",
    "learned_in_all",
]

MOST_TASKS = 12
"""The largest number of tasks whose overlap is printed as a full table. The page always shows all."""
WIDTH = 80
"""Columns of a terminal that needs no widening."""
RELIABLE = 0.75
"""The least area under the ROC curve at which calling samples unknown is useful."""
OF_CLASSES = ("classes", "right, held back", "held back")
"""The heads of columns that only models of classes have."""
OF_ANSWERS = "nats a token, held back"
"""The head of the column that only models of answers have, where some were held back."""
MOST_CLASSES = 30
"""How many classes are listed, those with the lowest accuracy. The page and JSON have all of them."""


def facts(of: Any) -> Any:
    """Convert dataclasses to JSON values, including their properties, such as an accuracy."""
    if isinstance(of, tuple):
        return [facts(entry) for entry in of]
    if not is_dataclass(of):
        return of
    names = [field.name for field in fields(of)]
    names += [name for name, value in vars(type(of)).items() if isinstance(value, property)]
    return {name: facts(getattr(of, name)) for name in names}


def has_classes(noun: str) -> bool:
    """Whether a model whose samples are called by this noun has learned classes, and not answers."""
    return noun != "answer"


def inspection_text(model: "Inspection", noun: str = "image", *, verbose: bool = False) -> str:
    """Format what a model has learned, and how many tasks still fit, in 80 columns.

    Args:
        model: the facts of a model.
        noun: what one of its samples is called.
        verbose: add the sizes, the protected directions of each layer, and the overlap of tasks, in wider tables.
    """
    head = (
        f"{model.method} on {printable(model.backbone)}\n"
        f"{words.many(len(model.tasks), 'task')}, {learned_in_all(model, noun)}\n"
    )
    if not verbose:
        return "\n".join([head, _tasks(model, noun), _folded(format_forecast(model, noun))])
    confidences = f"logits are divided by {model.temperature:.3g} for confidences (the temperature)\n"
    parameters = ", ".join(f"{part} {words.count(n)}" for part, n in model.parameters.items())
    head += (
        f"weights of the backbone (SHA-256): {model.weights_sha256[:12]}\n"
        f"{confidences if has_classes(noun) else ''}"
        f"numbers that a prediction needs: {parameters}\n"
        + _folded("settings of the method: " + ", ".join(f"{key} {value}" for key, value in model.settings.items()))
    )
    parts = [head, _ledger(model, noun)]
    if model.spaces:
        parts.append(_spaces(model))
    parts.append(_folded(format_forecast(model, noun)))
    parts.append(_overlap(model, model.overlap) if model.overlap else explain_no_overlap(model) + "\n")
    return "\n".join(parts)


def learned_in_all(model: "Inspection", noun: str = "image") -> str:
    """Format how many classes a model has learned, or how many answers."""
    if has_classes(noun):
        return words.many(len(model.classes), "class", "es")
    return words.many(sum(task.images for task in model.tasks), noun)


def format_forecast(model: "Inspection", noun: str = "image") -> str:
    """Format the number of tasks that still fit, how it was estimated, what happens then, and what to do."""
    found = model.forecast
    if model.most_tasks is not None:
        left = max(model.most_tasks - len(model.tasks), 0)
        return f"Room for more tasks: {left}. This method can learn {words.many(model.most_tasks, 'task')} in all."
    if not model.spaces:
        return "Room for more tasks: this method has no limit, because it protects no inputs of its layers."
    if not model.tasks:
        return "Room for more tasks: not known before something has been learned."
    if found is None:
        known = all(space.grown for space in model.spaces)
        why = "new tasks may also use what old ones protect" if known else "what each task took was not recorded"
        return f"Room for more tasks: not known, because {why}."
    several, one = found.last > 1, "the last task" if len(model.tasks) > 1 else "the only task"
    measured = f"the last {found.last} tasks" if several else one
    if found.tasks is None:
        return f"Room for more tasks: no limit in sight, because {measured} took no direction of any layer."
    free = next(space.free for space in model.spaces if space.layer == found.layer)
    width = next(space.width for space in model.spaces if space.layer == found.layer)
    then = (
        f"new tasks change layer {found.layer} in fewer directions than a full branch ({found.rank}), so they are "
        "learned less well there; what was learned before stays as it is. A new model with a smaller method.energy or "
        f"method.rank has more room{', and one made with --no-train has no limit' if has_classes(noun) else ''}."
    )
    if not found.tasks:
        is_free = f"{free} of {width} directions {'is' if free == 1 else 'are'} free in that layer"
        return f"Room for more tasks: no full one. From now on {then} ({is_free}.)"
    guess = ", a guess from one task (of several that are alike, the first takes the most)"
    count = f"about {found.tasks}{guess if len(model.tasks) == 1 else ''}"
    return (
        f"Room for more tasks: {count}. After that {then} (A straight line from what {measured} took: "
        f"{found.pace:.1f} directions of that layer{' each' if several else ''}, of which {free} of {width} "
        f"{'is' if free == 1 else 'are'} free.)"
    )


def explain_no_overlap(model: "Inspection") -> str:
    """Say why there is no overlap of tasks."""
    if len(model.tasks) < 2:
        return "The overlap of tasks needs at least two tasks."
    return "The overlap of tasks is not known: this method keeps no branches of single tasks."


def evaluation_text(measured: "Evaluation", data: str, noun: str = "image") -> str:
    """Format accuracy, calibration and unknown samples, by task and by class.

    Args:
        measured: an evaluation.
        data: what was measured on.
        noun: what one of its samples is called.
    """
    balanced = f"; {words.number(measured.balanced_accuracy)} % if every class counts the same"
    lines = [
        f"{words.number(measured.accuracy)} % right of {words.many(measured.images, noun)} ({printable(data)})"
        f"{balanced if _uneven(measured) else ''}",
        f"mean confidence {words.number(measured.confidence)} %, "
        f"expected calibration error {words.number(measured.calibration_error)} points ({len(measured.bins)} bins)",
    ]
    if measured.unknown_below is None:
        lines.append(f"unknown {noun}s: not known, because no {noun}s were held back when this model learned")
    else:
        share = words.number(measured.unknown / measured.images)
        lines.append(f"called unknown (familiarity below {measured.unknown_below}): {share} %")
    if measured.separation is not None:
        lines.append(_separated(measured.separation, noun))
    explained = "right task: the answer is a class of the same task as the true class\n"
    parts = ["\n".join(lines) + "\n", _counted(measured, noun, "task"), explained]
    worst = sorted(measured.classes, key=lambda line: line.accuracy)[:MOST_CLASSES]
    hidden = len(measured.classes) - len(worst)
    parts.append(_counted(measured, noun, "class", {line.name for line in worst}))
    if hidden:
        parts.append(f"the {len(worst)} worst of {len(measured.classes)} classes; --html and --json have all\n")
    if measured.strangers:
        parts.append(_strangers(measured, noun))
    return "\n".join(parts)


def _uneven(measured: "Evaluation") -> bool:
    """Whether some class has more than twice as many samples as another."""
    counts = [line.images for line in measured.classes]
    return max(counts) > 2 * min(counts)


def _separated(area: float, noun: str) -> str:
    """Say how well familiarity tells learned classes from others, and whether to rely on it."""
    verdict = f"; this is too little to rely on 'unknown' for such {noun}s" if area < RELIABLE else ""
    return f"familiarity tells learned classes from others in {words.number(area)} % of pairs of {noun}s{verdict}"


def format_images(task: "LearnedTask") -> str:
    """Format how many images a task was learned from, and how many files could not be read."""
    return words.count(task.images) + (f" ({words.count(task.unreadable)} unreadable)" if task.unreadable else "")


def _folded(text: str) -> str:
    return fill(text, WIDTH, break_on_hyphens=False, break_long_words=False) + "\n"


def _tasks(model: "Inspection", noun: str) -> str:
    columns: dict[str, Callable[[LearnedTask], str]] = {
        "task": lambda task: task.name,
        "classes": lambda task: _named(task.classes),
        f"{noun}s": format_images,
        "right, held back": _right,
        OF_ANSWERS: format_costs,
        "learned": lambda task: words.NOTHING if task.origin is None else task.origin.made[:10],
    }
    return _table(model, columns, noun, WIDTH)


def format_costs(task: "LearnedTask") -> str:
    """Format what held-back answers cost before a task was learned and after it."""
    if task.loss_before is None or task.loss_after is None:
        return words.NOTHING
    return f"{task.loss_before:.3f} before, {task.loss_after:.3f} after, of {task.held_back}"


def _right(task: "LearnedTask") -> str:
    return words.NOTHING if task.accuracy is None else f"{words.number(task.accuracy)} % of {task.held_back}"


def _ledger(model: "Inspection", noun: str) -> str:
    columns: dict[str, Callable[[LearnedTask], str]] = {
        "task": lambda task: task.name,
        "learned": lambda task: words.NOTHING if task.origin is None else task.origin.made.replace("T", " "),
        "version": lambda task: words.NOTHING if task.origin is None else str(task.origin.version),
        "classes": lambda task: _named(task.classes),
        f"{noun}s": format_images,
        "time": lambda task: words.duration(task.seconds),
        "stored": lambda task: words.size(None if task.origin is None else task.origin.bytes),
        "data": lambda task: (task.data_sha256 or words.NOTHING)[:12],
        "held back": _right,
        OF_ANSWERS: format_costs,
    }
    return _table(model, columns, noun)


def _table(
    model: "Inspection", columns: "Mapping[str, Callable[[LearnedTask], str]]", noun: str, width: int = WIDEST
) -> str:
    """Format a row for each task; columns on classes are left out where there are none."""
    costs = any(task.loss_after is not None for task in model.tasks)
    own = [head for head in columns if head != OF_ANSWERS or costs]
    heads = [head for head in own if has_classes(noun) or head not in OF_CLASSES]
    return plain_table(heads, [[columns[head](task) for head in heads] for task in model.tasks], width)


def _spaces(model: "Inspection") -> str:
    rows = [
        (s.layer, str(s.used), str(s.free), str(s.width), " ".join(map(str, s.grown)) or words.NOTHING)
        for s in model.spaces
    ]
    return plain_table(("layer", "protected", "free", "of", "by task"), rows)


def _overlap(model: "Inspection", overlap: "Overlap") -> str:
    """Format the overlap of all pairs of tasks, or of those that overlap most."""
    names = [model.tasks[task].name for task in overlap.tasks]
    chance = words.number(overlap.chance)
    if len(names) > MOST_TASKS:
        pairs = [(i, j) for i in range(len(names)) for j in range(i)]
        most = sorted(pairs, key=lambda p: -overlap.values[p[0]][p[1]])[:MOST_TASKS]
        rows = [(names[j], names[i], words.number(overlap.values[i][j])) for i, j in most]
        return plain_table(("overlap of tasks", "", f"% (chance: {chance})"), rows)
    rows = [(name, *(f"{100 * value:.0f}" for value in row)) for name, row in zip(names, overlap.values, strict=True)]
    return plain_table((f"overlap, % (chance: {chance})", *names), rows)


def _counted(measured: "Evaluation", noun: str, what: str, shown: set[str] | None = None) -> str:
    rows: list[Sequence[str]] = []
    for line in measured.tasks if what == "task" else measured.classes:
        if shown is None or line.name in shown:
            shares = [words.number(n / line.images) for n in (line.right, line.right_task)]
            flagged = words.NOTHING if measured.unknown_below is None else words.number(line.unknown / line.images)
            rows.append((line.name, str(line.images), *shares, flagged))
    return plain_table((what, f"{noun}s", "right %", "right task %", "called unknown %"), rows)


def _strangers(measured: "Evaluation", noun: str) -> str:
    rows: list[Sequence[str]] = []
    for line in measured.strangers:
        flagged = words.NOTHING if measured.unknown_below is None else words.number(line.unknown / line.images)
        rows.append((line.name, str(line.images), flagged, line.taken_for))
    return plain_table(("never learned", f"{noun}s", "called unknown %", "mostly taken for"), rows)


def _named(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:3]) if len(classes) <= 3 else f"{classes[0]} … {classes[-1]}"
    return f"{len(classes)}: {shown}"
