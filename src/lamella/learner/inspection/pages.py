"""HTML pages of one model: the output of `lamella inspect` and `lamella evaluate`, with figures."""

from typing import TYPE_CHECKING

from lamella.common import words
from lamella.common.page import render
from lamella.learner.inspection.text import (
    explain_no_overlap,
    format_forecast,
    format_images,
    has_classes,
    learned_in_all,
)

if TYPE_CHECKING:
    from lamella.learner.inspection.evaluation import Evaluation
    from lamella.learner.inspection.facts import Inspection

ROOM = "lamella.learner.inspection"
"""The package that holds the templates."""

__all__ = ["evaluation_page", "inspection_page"]


def inspection_page(inspection: "Inspection", title: str, noun: str = "image") -> str:
    """Render the facts of a model, whose samples are called by the noun. Every name on the page is escaped."""
    from markupsafe import Markup

    from lamella.learner.inspection.figures import draw_overlap, draw_spaces

    names = [task.name for task in inspection.tasks]
    rank = None if inspection.forecast is None else inspection.forecast.rank
    # Matplotlib has already escaped the names inside its SVG, so it is marked as safe.
    return render(
        ROOM,
        "inspection.html.j2",
        title=title,
        noun=noun,
        model=inspection,
        words=words,
        forecast=format_forecast(inspection, noun),
        has_classes=has_classes(noun),
        learned=learned_in_all(inspection, noun),
        spaces=Markup(draw_spaces(inspection.spaces, rank, "spaces")) if inspection.spaces else None,
        overlap=Markup(draw_overlap(inspection.overlap, names, "overlap")) if inspection.overlap else None,
        no_overlap=explain_no_overlap(inspection),
        format_images=format_images,
    )


def evaluation_page(evaluation: "Evaluation", title: str, data: str, noun: str = "image") -> str:
    """Render an evaluation of samples that are called by the noun. Every name on the page is escaped."""
    from markupsafe import Markup

    from lamella.learner.inspection.figures import MOST_CELLS, draw_calibration, draw_confusion

    mistakes = sorted((c for c in evaluation.confusion if c[0] != c[1]), key=lambda c: -c[2])
    return render(
        ROOM,
        "evaluation.html.j2",
        title=title,
        noun=noun,
        data=data,
        measured=evaluation,
        words=words,
        mistakes=mistakes[:10],
        named=len(evaluation.columns) <= MOST_CELLS,
        confusion=Markup(draw_confusion(evaluation, "confusion")),
        calibration=Markup(draw_calibration(evaluation, "calibration")),
    )
