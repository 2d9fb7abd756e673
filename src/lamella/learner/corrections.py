"""Take samples out of a model, or correct the class that they were learned as, as if that had been done at first.

This is exact where a method keeps nothing of samples but sums over features that have not moved since: the shares of
some samples can be subtracted while the samples are at hand. Elsewhere it is refused, with what rebuilding would cost.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

import torch
from torch import Tensor

from lamella.common.words import all_of, duration, many
from lamella.data.sources.pointed import Corrections, Pointed
from lamella.learner.classes import relabel
from lamella.learner.model import Model

__all__ = ["Corrected", "correct", "remove"]

NEAR = 0.01
"""How far the features of a held-back sample may be from those that are kept of it, as a share of their length."""
OUT = -1
"""The label of a sample that is taken out."""


@dataclass(frozen=True)
class Corrected:
    """What was changed.

    Attributes:
        noun: what a sample is, such as "image".
        samples: how many samples were taken out or corrected.
        trained: of how many of these shares were in what was learned.
        held_back: how many of them were held back.
        left_out: how many of those that were given were never learned.
        gone: the names of the classes of which nothing is left.
    """

    noun: str
    samples: int
    trained: int
    held_back: int
    left_out: int
    gone: tuple[str, ...]


class _Share(NamedTuple):
    """One time that a sample was learned or held back.

    Attributes:
        row: its place in `Model.seen`.
        sample: the place of the sample among those that are given.
        label: the global id of the class that it is of; OUT to take it out.
    """

    row: int
    sample: int
    label: int = OUT


def remove(model: Model, given: Pointed, *, whole_classes: bool = False, known_only: bool = False) -> Corrected:
    """Take samples out, as if the model had never been given them, under whatever class and however often that was.

    Args:
        model: the model, which is changed in place.
        given: the samples.
        whole_classes: whether classes of which nothing is left end; else samples that a class needs are refused.
        known_only: whether samples that were never learned are left out; else they are refused.

    Raises:
        ValueError: some were never learned, a class needs them, or what they taught cannot be taken out exactly.
    """
    rows = _rows(model)
    known = [i for i, digest in enumerate(given.digests) if digest in rows]
    if not known or (len(known) < len(given.digests) and not known_only):
        raise ValueError(_never_learned(model, given, known))
    shares = [_Share(row, i) for i in known for row in rows[given.digests[i]]]
    return _change(model, given, shares, whole_classes, len(given.digests) - len(known))


def correct(model: Model, given: Corrections, *, whole_classes: bool = False) -> Corrected:
    """Make samples those of another class, as if they had been learned as that.

    Args:
        model: the model, which is changed in place.
        given: the samples, with the class that each was learned as, and the right one.
        whole_classes: whether classes of which nothing is left end; else samples that a class needs are refused.

    Raises:
        ValueError: one was not learned as that class, the right class is unknown, a class needs them, or what they
            taught cannot be corrected exactly.
    """
    rows, ids, seen = _rows(model), model.ids(), model.seen
    unknown = [i for i, digest in enumerate(given.samples.digests) if digest not in rows]
    if unknown:
        known = [i for i, digest in enumerate(given.samples.digests) if digest in rows]
        raise ValueError(_never_learned(model, given.samples, known))
    shares: list[_Share] = []
    for i, (digest, old, right) in enumerate(zip(given.samples.digests, given.labels, given.right, strict=True)):
        place = given.samples.places[i]
        if right not in ids:
            raise ValueError(
                f"{place}: no class is called '{right}'; there are {', '.join(model.class_names.values())}. For a new "
                "class take the sample out (lamella remove) and learn it as that"
            )
        own = {row: int(seen.labels[row]) for row in rows[digest]}
        if ids.get(old) not in own.values():
            names = ", ".join(f"'{model.class_names[label]}'" for label in dict.fromkeys(own.values()))
            raise ValueError(f"{place}: this was learned as {names}, not as '{old}'")
        if ids[old] == ids[right]:
            raise ValueError(f"{place}: '{old}' and '{right}' are one class; leave out what was right")
        # Where it was learned as the right class too, it would count twice.
        label = OUT if ids[right] in own.values() else ids[right]
        shares += [_Share(row, i, label) for row, was in own.items() if was == ids[old]]
    return _change(model, given.samples, shares, whole_classes, 0)


def _rows(model: Model) -> dict[int, list[int]]:
    """Return the places of each digest in `Model.seen`.

    Raises:
        ValueError: it is empty, or half of a task was learned.
    """
    model.check_whole()
    rows: dict[int, list[int]] = defaultdict(list)
    for row, digest in enumerate(model.seen.digests.tolist()):
        rows[digest].append(row)
    if not rows:
        raise ValueError(
            "this model has no record of what it was learned from (it learned nothing, or in Python by Learner.learn), "
            "so no sample can be found in it"
        )
    return rows


def _never_learned(model: Model, given: Pointed, known: Sequence[int]) -> str:
    noun = model.backbone.transform.noun
    first = next(i for i in range(len(given.digests)) if i not in set(known))
    missing = len(given.digests) - len(known)
    which = all_of(missing, noun) if not known else f"{missing:,} of {many(len(given.digests), noun)}"
    unsaid = [record.name for number, record in enumerate(model.tasks) if not _is_recorded(model, number)]
    far = f" (as far as is recorded; of {', '.join(unsaid)} it is not)" if unsaid else ""
    return (
        f"never learned by this model: {which}, first '{given.places[first]}'{far}; the content counts, so a changed "
        f"file is another {noun}" + ("; --known-only leaves such out" if known else "")
    )


def _is_recorded(model: Model, number: int) -> bool:
    """Whether it is known from which samples a task was learned."""
    return not model.tasks[number].images or bool((model.seen.trained & (model.seen.tasks == number)).any())


def _change(model: Model, given: Pointed, shares: Sequence[_Share], whole_classes: bool, left_out: int) -> Corrected:
    """Change what some samples were learned as, in everything that a model keeps of them."""
    seen, held, rows = model.seen, model.held_back, torch.tensor([share.row for share in shares])
    trained, tasks, old = seen.trained[rows], seen.tasks[rows], seen.labels[rows]
    new = torch.tensor([share.label for share in shares])
    labels = seen.labels.clone()
    labels[rows] = new
    gone = sorted(set(old[trained].tolist()) - set(labels[seen.trained].tolist()))
    _check_recorded(model, set(old[trained].tolist()))
    _check_undoable(model, tasks[trained].unique().tolist(), int(trained.sum()))
    _check_gone(model, gone, whole_classes)
    features = _features(model, given, [share.sample for share in shares])
    kept = _kept_rows(model, features[~trained], old[~trained], tasks[~trained])
    model.half_learned = "a correction"
    _take_out(model, features[trained], old[trained], new[trained], gone)
    model.half_learned = ""
    _note(model, rows, labels)
    for row, label in zip(kept, new[~trained].tolist(), strict=True):
        if row is not None:
            held.labels[row] = label
    seen.labels = labels
    for own in (held, seen):
        own.keep(own.labels != OUT)
    names = tuple(model.class_names[label] for label in gone)
    relabel(model, dict.fromkeys(gone))
    samples = len({share.sample for share in shares})
    noun = model.backbone.transform.noun
    return Corrected(noun, samples, int(trained.sum()), int((~trained).sum()), left_out, names)


def _check_recorded(model: Model, labels: Collection[int]) -> None:
    """Make sure that it is known which samples some classes were learned from."""
    for number, record in enumerate(model.tasks):
        unsure = [label for label in labels if label in record.classes]
        if unsure and not _is_recorded(model, number):
            raise ValueError(
                f"it is not recorded which samples task '{record.name}' was learned from, so it cannot be known what "
                f"would be left of '{model.class_names[unsure[0]]}'; learn the model anew with lamella learn"
            )


def _check_undoable(model: Model, numbers: Sequence[int], samples: int) -> None:
    """Make sure that what samples of some tasks have taught can be taken out exactly."""
    counts = [record.images for record in model.tasks]
    for number in numbers:
        if trace := model.method.traces_of(number, counts):
            noun, name = model.backbone.transform.noun, model.tasks[number].name
            which = f"this {noun}" if samples == 1 else f"these {samples:,} {noun}s"
            raise ValueError(
                f"{model.name} cannot undo what {which} taught it in task '{name}': {trace}; "
                f"{_rebuilding(model, min(numbers), numbers)}"
            )


def _rebuilding(model: Model, first: int, numbers: Sequence[int]) -> str:
    """Say how a model without some samples is learned, and what that costs by its records."""
    name = model.tasks[first].name
    if model.method.can_forget:
        again, how = [model.tasks[number] for number in numbers], f"forget '{name}' (`lamella forget`)"
    else:
        again = model.tasks[first:]
        how = f"go back to before '{name}' (`lamella rollback`)" if first else "begin a new model"
    cost = f"{many(sum(r.images for r in again), model.backbone.transform.noun)}, which took "
    cost += duration(sum(r.seconds["total"] for r in again))
    return f"to rebuild it, {how} and learn again, without them: {', '.join(r.name for r in again)} ({cost})"


def _check_gone(model: Model, gone: Sequence[int], whole_classes: bool) -> None:
    if not gone or (whole_classes and len(gone) < len(model.class_names)):
        return
    names, noun = ", ".join(f"'{model.class_names[label]}'" for label in gone), model.backbone.transform.noun
    if len(gone) == len(model.class_names):
        raise ValueError(f"these are all {noun}s of all classes ({names}); delete the model's folder instead")
    raise ValueError(
        f"{names}: learned from no other {noun}s, so the class would be gone: --whole-classes takes it out with "
        "them, and `lamella classes MODEL drop` does without any at hand, where the method can"
    )


def _features(model: Model, given: Pointed, samples: Sequence[int]) -> Tensor:
    """Return the features (n, d) of samples, which may come several times, as the method makes them."""
    method, fit = model.method.eval(), model.fit()
    unique = sorted(set(samples))
    found = fit.features(given.data.subset(unique), method.features, name="correction")
    place = {sample: i for i, sample in enumerate(unique)}
    return found[[place[sample] for sample in samples]]


def _take_out(model: Model, features: Tensor, old: Tensor, new: Tensor, gone: Sequence[int]) -> None:
    """Change the class of features (n, d) in what the method has learned; those that are OUT leave it."""
    moved, method = new != OUT, model.method
    for which, right in ((moved, new[moved]), (~moved, None)):
        if which.any():
            # A class may lose its last samples in the second round.
            later = () if right is None else old[~moved].tolist()
            ends = [label for label in gone if label not in later]
            own = which.to(features.device)
            method.take_out(features[own], old[which], right, ends)


def _kept_rows(model: Model, features: Tensor, labels: Tensor, tasks: Tensor) -> list[int | None]:
    """Return the rows of the kept features of held-back samples, found by the features; None where none are kept.

    Args:
        model: the model.
        features: (n, d), as the method computes them now.
        labels: (n,), the classes of the samples.
        tasks: (n,), the tasks that they were held back in.

    Raises:
        ValueError: they cannot be found, because features have moved since, or the method does not classify by them.
    """
    held, seen, method, found = model.held_back, model.seen, model.method, list[int | None]()

    def unknown(label: int, task: int) -> ValueError:
        why = "features have moved since" if method.by_features else "only what was measured on all of them is kept"
        return ValueError(
            f"what is kept of a sample of '{model.class_names[label]}' that was held back cannot be told from what "
            f"is kept of others, because {why}; {_rebuilding(model, task, [task])}"
        )

    if len(labels) and not (method.by_features and method.features_stay):
        raise unknown(int(labels[0]), int(tasks[0]))
    for f, label, task in zip(features.float().cpu(), labels.tolist(), tasks.tolist(), strict=True):
        every = ((held.labels == label) & (held.tasks == task)).nonzero()[:, 0]
        own = every[[row not in found for row in every.tolist()]]
        away = (held.features[own] - f).norm(dim=1) / f.norm().clamp_min(1e-12)
        if len(own) and float(away.min()) <= NEAR:
            found.append(int(own[away.argmin()]))
            continue
        recorded = int(((seen.labels == label) & (seen.tasks == task) & ~seen.trained).sum())
        if len(every) >= recorded:
            raise unknown(label, task)
        found.append(None)  # of a class with many, not all are kept
    return found


def _note(model: Model, rows: Tensor, labels: Tensor) -> None:
    """Bring the records of tasks up to date.

    Args:
        model: the model, with the labels that its samples had.
        rows: the places in `Model.seen` of the samples that change.
        labels: (n,) the new labels of all samples in `Model.seen`.
    """
    seen = model.seen
    for number in seen.tasks[rows].unique().tolist():
        record, own = model.tasks[number], rows[seen.tasks[rows] == number]
        left = labels[seen.trained & (seen.tasks == number)]
        present = set(left[left != OUT].tolist())
        known = [label for label in record.classes if label in present]
        record.classes = (*known, *sorted(present - set(known)))
        record.images -= int((seen.trained[own] & (labels[own] == OUT)).sum())
        if not seen.trained[own].all():
            record.held_back = None  # it was measured with what has left it, or changed its class
        changes = sorted(zip(seen.digests[own].tolist(), labels[own].tolist(), strict=True))
        record.data_sha256 = sha256(f"{record.data_sha256} {changes}".encode()).hexdigest()
