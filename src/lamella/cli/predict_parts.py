"""`lamella predict --out FOLDER`: the classes of very many images, part by part.

OUT/parts.json          what the parts are made of: which model, which files, how many in a part
OUT/part-00000.csv      a line for each image of the first part; or .jsonl

A part is written whole or not at all, so that the same command goes on after a stop. Only the images of one part are in
memory. Several processes, each with its own `--share`, fill one folder together.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lamella.cli.predict_rows import as_csv, row_of
from lamella.common.files import json_to_bytes, read_json, write_atomic, write_json
from lamella.common.progress import Progress, silent
from lamella.data.keeping import keep_readable
from lamella.data.sources.far_files import FarFiles, list_files
from lamella.learner.store.state import state_digest

if TYPE_CHECKING:
    from lamella.learner.learner import Learner

__all__ = ["PART", "Engine", "Form", "Made", "Part", "Parts", "check_model", "make_part", "read_share", "write_parts"]

PART = 1000
"""Images of a part."""
MANIFEST = "parts.json"
WHAT = {"model": "models", "files": "files", "images": "files"}
"""What is said to be another one where a key of the manifest differs; options where it is any other key."""


@dataclass(frozen=True)
class Parts:
    """What was done.

    Attributes:
        written: how many parts were written now.
        there: how many were there before.
        images: how many images have a class in the parts that were written now.
        broken: how many of their files cannot be read.
    """

    written: int = 0
    there: int = 0
    images: int = 0
    broken: int = 0


class Form(NamedTuple):
    """What a part says of an image.

    Attributes:
        top: how many classes a line of JSON names.
        unknown: whether images that look stranger than most known ones are called unknown.
        lines: whether a part has lines of JSON, and not of CSV.
    """

    top: int = 5
    unknown: bool = False
    lines: bool = False


BEST = Form()


class Part(NamedTuple):
    """A part that is to be written.

    Attributes:
        number: from 0.
        place: the number of the place that has its images.
        names: of its images.
        file: what is written.
    """

    number: int
    place: int
    names: tuple[str, ...]
    file: Path


class Made(NamedTuple):
    """A part that was written.

    Attributes:
        number: from 0.
        images: how many images have a class.
        broken: how many files cannot be read.
    """

    number: int
    images: int
    broken: int


Engine = Callable[[Sequence[Part], Sequence[FarFiles], Form], Iterable[Made]]
"""Writes parts in any order, and gives each when it is written; the files are those of the places."""


def read_share(text: str | None) -> tuple[int, int]:
    """Read which parts are this process's: "0/4" is the first of four shares; None is all of them.

    >>> read_share("2/4"), read_share(None)
    ((2, 4), (0, 1))

    Raises:
        ValueError: it is written otherwise, or there is no such share.
    """
    if text is None:
        return 0, 1
    number, sign, count = text.partition("/")
    if not (sign and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"--share {text!r} should be NUMBER/COUNT, where numbers begin at 0, such as 0/4 to 3/4")
    return int(number), int(count)


def write_parts(
    learner: "Learner",
    places: Sequence[str],
    out: Path,
    *,
    form: Form = BEST,
    size: int = PART,
    share: tuple[int, int] = (0, 1),
    engine: Engine | None = None,
    progress: Progress = silent,
) -> Parts:
    """Predict the images of some places, and write a file for each part of them that is not there yet.

    Args:
        learner: a model of images.
        places: folders, files and URLs.
        out: the folder of the parts, which is made where there is none.
        form: what a part says of an image.
        size: how many images a part has.
        share: the number of this process, from 0, and how many there are; part k belongs to
            the process whose number is k modulo that.
        engine: what writes the parts; this process one after another if left out.
        progress: opens a progress bar.

    Raises:
        FileNotFoundError: a place is not there.
        ValueError: a place has no images, or the folder has parts of another model, of files with other names, or of
            another kind.
    """
    found = [list_files(place) for place in places]
    sizes = [range(0, len(files.names), size) for files in found]
    parts = [
        Part(number, place, found[place].names[i : i + size], out / f"part-{number:05}.{_ending(form)}")
        for number, (place, i) in enumerate((place, i) for place, starts in enumerate(sizes) for i in starts)
    ]
    _claim(learner, found, out, {"size": size, "unknown": form.unknown, "top": _top(form), "lines": form.lines})
    own = parts[share[0] :: share[1]]
    missing = [part for part in own if not part.file.exists()]
    made = list[Made]()
    with progress("predict", len(own)) as advance:
        advance(len(own) - len(missing), "")
        for one in _here(learner, missing, found, form) if engine is None else engine(missing, found, form):
            made.append(one)
            advance(1, f"{one.number + 1} of {len(parts)} parts")
    broken = sum(one.broken for one in made)
    return Parts(len(made), len(own) - len(missing), sum(one.images for one in made), broken)


def _here(learner: "Learner", parts: Sequence[Part], found: Sequence[FarFiles], form: Form) -> Iterable[Made]:
    return (make_part(learner, part, found[part.place], form) for part in parts)


def make_part(learner: "Learner", part: Part, files: FarFiles, form: Form) -> Made:
    """Predict the images of a part, and write it.

    Args:
        learner: a model of images.
        part: the part.
        files: the place that has its images.
        form: what it says of an image.
    """
    found = keep_readable(files.some(part.names))
    predictions = learner.predict(found.data, top=_top(form)) if len(found.data) else []
    read = [{"path": part.names[int(key)]} for key in found.data.keys]
    rows = [row_of(named, prediction, form.unknown) for named, prediction in zip(read, predictions, strict=True)]
    broken = [{"path": part.names[int(file.key)], "error": file.reason} for file in found.unreadable]
    write_atomic(part.file, _content(rows, broken, form.lines))
    return Made(part.number, len(rows), len(broken))


def _top(form: Form) -> int:
    return form.top if form.lines else 1


def _ending(form: Form) -> str:
    return "jsonl" if form.lines else "csv"


def _claim(learner: "Learner", found: Sequence[FarFiles], out: Path, options: dict[str, Any]) -> None:
    """Note what the parts are made of, or make sure that those that are there are made of the same."""
    names = sha256()
    for files in found:
        names.update("\0".join([*files.names, ""]).encode("utf-8", "surrogateescape"))
    told = {
        "model": _digest(learner),
        "files": names.hexdigest(),
        "images": sum(len(files.names) for files in found),
        **options,
    }
    place = out / MANIFEST
    # Looked at before the note: another process may begin to fill the folder between these lines.
    has_files = out.exists() and any(not path.name.startswith(".") for path in out.iterdir())
    if place.exists():
        before = read_json(place)
        if differ := [key for key, value in told.items() if before.get(key) != value]:
            raise ValueError(
                f"'{out}' has parts of other {WHAT.get(differ[0], 'options')} than these; choose another folder for "
                "--out, or go on with what they were made of"
            )
        return
    if has_files:
        raise ValueError(f"'{out}' is a folder with other files; choose a new one for --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(place, told)


def check_model(learner: "Learner", out: Path) -> None:
    """Make sure that a process elsewhere sees the folder of the parts, and has the model that they are made of.

    Raises:
        FileNotFoundError: it does not see the folder.
        ValueError: it has another model.
    """
    if not (out / MANIFEST).exists():
        raise FileNotFoundError(f"'{out}' is not to be seen there")
    if read_json(out / MANIFEST)["model"] != _digest(learner):
        raise ValueError("the model there is another one")


def _digest(learner: "Learner") -> str:
    """A digest of all that a prediction depends on: what was learned, the network, and what confidences are made of."""
    settings = {key: learner.config[key] for key in ("method", "backbone")}
    names = [learner.class_names[label] for label in learner.method.classes]
    network, sure = learner.backbone.weights_sha256, learner.confidence
    told = [settings, names, network, state_digest(learner.method), sure.temperature, sure.images]
    return sha256(json_to_bytes(told)).hexdigest()


def _content(rows: Sequence[dict[str, Any]], broken: Sequence[dict[str, str]], lines: bool) -> bytes:
    text = "".join(f"{json.dumps(row)}\n" for row in (*rows, *broken)) if lines else as_csv(rows, "image", broken)
    return text.encode(errors="surrogateescape")
