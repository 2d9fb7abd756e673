"""Each sample has one class: how data that are labelled otherwise are told, and what would serve instead.

Several labels a sample, boxes around objects and masks of pixels need other losses, heads and measures than classes.
"""

import ast
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["BOXES", "MASKS", "check_one_label", "check_single_labels", "columns_hint", "several_labels"]

BOXES = (
    "Lamella names whole images and finds no objects in them: cut out what the boxes hold, save each as CLASS/NAME.jpg "
    "and learn these (a detector of another library finds boxes, and Lamella names what is in them)"
)
MASKS = (
    "Lamella names whole images and no pixels: cut out what the masks cover, save each as CLASS/NAME.jpg and learn "
    "these, or use a library for segmentation"
)
SEPARATORS = "|;"
"""What stands between several labels in a cell."""
BOX_COLUMNS = frozenset({"bbox", "bboxes", "boxes", "objects", "xmin", "x_min", "xmax", "x_max", "x_center"})
MASK_COLUMNS = frozenset({"rle", "encodedpixels", "segmentation", "mask"})
YES_OR_NO = frozenset({"0", "1", "0.0", "1.0", "True", "False"})


def several_labels(noun: str) -> str:
    """Return what would serve where samples have several labels.

    Args:
        noun: what a sample is, such as "image".
    """
    return (
        f"Lamella learns one class a {noun}: give each its main label, or teach a model for each label, of the two "
        "classes LABEL and not-LABEL"
    )


def check_one_label(labels: Tensor, noun: str) -> None:
    """Make sure that samples have one label each.

    Args:
        labels: (n,) is right; (n, classes) are several labels each.
        noun: what a sample is.

    Raises:
        ValueError: they have more.
    """
    if labels.ndim != 1:
        raise ValueError(
            f"labels are {tuple(labels.shape)}, and should be (n,), a class id each; {several_labels(noun)}"
        )


def check_single_labels(cells: Iterable[tuple[str, Any]], column: str, noun: str) -> None:
    """Make sure that no cell of a column of labels holds several labels.

    A list is told by its brackets. Labels with a sign between them are told by a part that stands at several places: in
    "cat", "dog" and "cat|dog" the dog is first and second. A part of "animal|cat" and "animal|dog" never is, so these
    are names of single classes.

    Args:
        cells: the place and the value of each cell.
        column: the name of the column.
        noun: what a sample is, such as "image".

    Raises:
        ValueError: a cell holds several labels; the message names it.
    """
    held: dict[str, dict[str, set[int]]] = {sign: defaultdict(set) for sign in SEPARATORS}
    first: dict[str, tuple[str, str]] = {}
    for place, value in cells:
        if isinstance(value, list | tuple | dict) or (isinstance(value, str) and _is_list(value)):
            raise ValueError(f"{place}: the label {str(value)[:40]!r} is a list of labels; {several_labels(noun)}")
        for sign, places in held.items():
            parts = [part.strip() for part in str(value).split(sign)]
            for i, part in enumerate(parts):
                places[part].add(i)
            if len(parts) > 1:
                first.setdefault(sign, (place, str(value)))
    for sign, places in held.items():
        if sign in first and any(part and len(at) > 1 for part, at in places.items()):
            place, value = first[sign]
            raise ValueError(
                f"{place}: the label {value[:40]!r} in the column {column!r} is several labels, as others with these "
                f"parts show; {several_labels(noun)}. Where it is one name, write it without {sign!r}"
            )


def columns_hint(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], noun: str) -> str:
    """Return what would serve where a table has no column of labels, as the end of a message; "" where it is not known.

    Args:
        columns: the names of the columns.
        rows: some of the rows, by column.
        noun: what a sample is, such as "image".
    """
    small = {column.lower() for column in columns}
    for own, what, said in ((BOX_COLUMNS, "boxes", BOXES), (MASK_COLUMNS, "masks", MASKS)):
        if small & own:
            return f"; {', '.join(sorted(small & own))} are columns of {what}: {said}"
    flags = [c for c in columns if rows and {str(row.get(c)) for row in rows} <= YES_OR_NO]
    if len(flags) < 2:
        return ""
    return f"; {', '.join(flags[:5])} are columns of 0 and 1, a label each: {several_labels(noun)}"


def _is_list(value: str) -> bool:
    """Whether a cell is a written list, such as '["cat", "dog"]'."""
    if not (value.startswith("[") and value.endswith("]")):
        return False
    for parse in (json.loads, ast.literal_eval):
        try:
            return isinstance(parse(value), list)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return False
