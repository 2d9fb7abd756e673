"""One model as a page of its own: what `lamella inspect` and `lamella evaluate` say, with pictures."""

from typing import TYPE_CHECKING

from lamella.common import words
from lamella.common.page import render
from lamella.learner.inspection.text import forecast_told, images_told, no_overlap_told

if TYPE_CHECKING:
    from lamella.learner.inspection.evaluation import Evaluation
    from lamella.learner.inspection.facts import Inspection

ROOM = "lamella.learner.inspection"
"""Where the templates are."""

__all__ = ["evaluation_page", "inspection_page"]


def inspection_page(inspection: "Inspection", title: str) -> str:
    """The page of a model's facts; every name in it is escaped."""
    from markupsafe import Markup

    from lamella.learner.inspection.figures import draw_overlap, draw_spaces

    names = [task.name for task in inspection.tasks]
    rank = None if inspection.forecast is None else inspection.forecast.rank
    # Markup: matplotlib has escaped the names inside its SVG already.
    return render(
        ROOM, "inspection.html.j2", title=title, model=inspection, words=words, forecast=forecast_told(inspection),
        spaces=Markup(draw_spaces(inspection.spaces, rank, "spaces")) if inspection.spaces else None,
        overlap=Markup(draw_overlap(inspection.overlap, names, "overlap")) if inspection.overlap else None,
        no_overlap=no_overlap_told(inspection), images_told=images_told,
    )  # fmt: skip


def evaluation_page(evaluation: "Evaluation", title: str, data: str) -> str:
    """The page of what was measured; every name in it is escaped."""
    from markupsafe import Markup

    from lamella.learner.inspection.figures import MOST_CELLS, draw_calibration, draw_confusion

    mistakes = sorted((c for c in evaluation.confusion if c[0] != c[1]), key=lambda c: -c[2])
    return render(
        ROOM, "evaluation.html.j2", title=title, data=data, measured=evaluation, words=words, mistakes=mistakes[:10],
        named=len(evaluation.columns) <= MOST_CELLS,
        confusion=Markup(draw_confusion(evaluation, "confusion")),
        calibration=Markup(draw_calibration(evaluation, "calibration")),
    )  # fmt: skip
