"""From labelled texts to a data set: what is no text left out, each text once, and none in both parts."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch

from lamella.common.printable import printable
from lamella.common.words import many
from lamella.data.scenario import Source
from lamella.data.sources.parts import divide
from lamella.data.tasks import Unreadable
from lamella.data.texts import TextSet, keys_of_texts, normal_text

__all__ = ["LabelledText", "texts_to_source"]

NAMED = 3
"""How many texts a line names."""
SHOWN = 40
"""How many characters of a text a line shows."""


class LabelledText(NamedTuple):
    """One text and what is known of it.

    Attributes:
        text: the text.
        class_name: the name of its class.
        place: where it stands, such as "tickets.csv, line 3".
        key: its identity in its data set; a digest of its content where left out.
        domain: the name of its domain, where there are domains.
        is_test: whether it is in the test part; None where no split is given.
        unreadable: why it cannot be read; "" if it can.
    """

    text: str
    class_name: str
    place: str
    key: str | None = None
    domain: str | None = None
    is_test: bool | None = None
    unreadable: str = ""


def texts_to_source(
    name: str,
    samples: Sequence[LabelledText],
    *,
    class_names: Sequence[str] | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    told: Sequence[str] = (),
) -> Source:
    """Make a Source of labelled texts, in their usual form.

    Empty texts, and those that cannot be read, are left out and listed in `unreadable`. A text that comes twice under
    one label (in one domain) counts once. One with two labels stays under both. One that is in both parts leaves the
    training part. What was done stands in `told`.

    Args:
        name: of the data set.
        samples: the texts.
        class_names: in the order of the class ids; sorted by name where left out.
        test_fraction: of each class to hold out for testing where no split is given.
        split_seed: of that split.
        told: how they were found, in lines for people.

    Raises:
        ValueError: there are no texts, no text of a class can be read, two texts have the same key, or a class is too
            small to be cut.
    """
    whole = [_in_usual_form(sample) for sample in samples]
    if not whole:
        raise ValueError(f"{name} has no texts")
    left_out = [sample for sample in whole if sample.unreadable]
    readable = [sample for sample in whole if not sample.unreadable]
    _check_classes(name, whole)
    kept, notes = _each_once(readable)
    names = sorted({sample.class_name for sample in whole}) if class_names is None else list(class_names)
    ids = {class_name: i for i, class_name in enumerate(names)}
    domain_names = sorted({sample.domain for sample in whole if sample.domain is not None})
    places = {domain: i for i, domain in enumerate(domain_names)}
    data = TextSet(
        [sample.text for sample in kept],
        torch.tensor([ids[sample.class_name] for sample in kept], dtype=torch.int64),
        _keys(kept),
    )
    return divide(
        name,
        data,
        names,
        is_test=None if whole[0].is_test is None else torch.tensor([bool(sample.is_test) for sample in kept]),
        domains=torch.tensor([places[s.domain] for s in kept if s.domain is not None]) if domain_names else None,
        domain_names=domain_names,
        test_fraction=test_fraction,
        split_seed=split_seed,
        told=(*told, *notes),
        unreadable=[Unreadable(sample.place, sample.unreadable) for sample in left_out],
    )


def _in_usual_form(sample: LabelledText) -> LabelledText:
    text = normal_text(sample.text)
    return sample._replace(text=text, unreadable=sample.unreadable or ("" if text else "the text is empty"))


def _check_classes(name: str, samples: Sequence[LabelledText]) -> None:
    """Raise ValueError where no training text of a class can be read."""
    train = [sample for sample in samples if not sample.is_test]
    had, has = Counter(s.class_name for s in train), {s.class_name for s in train if not s.unreadable}
    for sample in train:
        if sample.class_name not in has:
            raise ValueError(
                f"class {sample.class_name!r} of {name} has no text that can be read, of {had[sample.class_name]}: "
                f"replace them or remove the class ({sample.place}: {sample.unreadable})"
            )


def _each_once(samples: Sequence[LabelledText]) -> tuple[list[LabelledText], list[str]]:
    """Return each text once, without training texts that are test texts too, and say what was done."""
    kept: dict[tuple[object, ...], LabelledText] = {}
    for sample in samples:
        kept.setdefault((sample.text, sample.class_name, sample.domain, sample.is_test), sample)
    tests = {sample.text for sample in kept.values() if sample.is_test}
    both = [_short(s.text) for s in kept.values() if not s.is_test and s.text in tests]
    apart = [sample for sample in kept.values() if sample.is_test or sample.text not in tests]
    classes: dict[str, set[str]] = defaultdict(set)
    for sample in apart:
        classes[sample.text].add(sample.class_name)
    unsure = [
        f"{_short(text)} ({', '.join(map(printable, sorted(names)))})"
        for text, names in classes.items()
        if len(names) > 1
    ]
    notes: list[str] = []
    if repeated := len(samples) - len(kept):
        notes.append(f"counted once: {many(repeated, 'text')} that came again under the same label")
    if both:
        notes.append(f"left out of training, because the test part has them: {_some(list(dict.fromkeys(both)))}")
    if unsure:
        notes.append(f"under several labels, check which is right: {_some(unsure)}")
    return apart, notes


def _some(named: Sequence[str]) -> str:
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return f"{many(len(named), 'text')}, {', '.join(named[:NAMED])}{more}"


def _short(text: str) -> str:
    """Return the beginning of a text in one line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= SHOWN else line[: SHOWN - 1] + "…")


def _keys(samples: Sequence[LabelledText]) -> list[str]:
    """Return the key of each text; texts have keys of their own, or none has."""
    if not samples or samples[0].key is None:
        return keys_of_texts([sample.text for sample in samples])
    places: dict[str, str] = {}
    for sample in samples:
        key = sample.key or ""
        if key in places:
            raise ValueError(f"{sample.place}: the id {key!r} is already that of {places[key]}; ids must differ")
        places[key] = sample.place
    return list(places)
