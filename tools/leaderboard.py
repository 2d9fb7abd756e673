"""Write the tables of docs/leaderboard.md from the runs of benchmarks/sweeps/leaderboard.toml.

    python tools/leaderboard.py runs/leaderboard docs/leaderboard.md

A table for each folder of runs, between its two marks in the page; what stands around the tables stays as it is. A row
is a variant of the sweep: the method with all of its parts, and beside it the same training without any.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from lamella.common.words import size
from lamella.experiments.results_files import Result, load_results

COLUMNS = (
    *("row", "seeds", "final", "own heads", "average", "forgetting", "told the task", "trained", "kept"),
    *("learning, s", "passes"),
)


def tables(runs: Path, page: str) -> str:
    """The page with its tables made anew.

    Args:
        runs: a folder for each stream, with the runs of a sweep in it.
        page: the text, with `<!-- NAME -->` and `<!-- end NAME -->` around the table of the folder NAME.
    """
    for stream in sorted(path for path in runs.iterdir() if path.is_dir()):
        before, begin, rest = page.partition(f"<!-- {stream.name} -->\n")
        _, end, after = rest.partition(f"<!-- end {stream.name} -->")
        if not (begin and end):
            raise ValueError(f"the page has no marks '<!-- {stream.name} -->' and '<!-- end {stream.name} -->'")
        page = f"{before}{begin}\n{table(stream)}\n\n{end}{after}"
    return page


def table(stream: Path) -> str:
    """The table of one stream, best first; what learned all tasks at once comes last."""
    rows = [(variant.name, load_results([variant])) for variant in sorted(stream.iterdir()) if variant.is_dir()]
    carried = {name: [r for r in found if r.path.name == "results.json"] for name, found in rows}
    alone = {name: _innermost(found) for name, found in rows}
    order = sorted(carried, key=lambda name: (carried[name][0].at_once, -_mean(carried[name], "final_accuracy")))
    lines = [_row(name, carried[name], alone[name]) for name in order]
    header = [f"| {' | '.join(COLUMNS)} |", f"|---{'|---:' * (len(COLUMNS) - 1)}|"]
    return "\n".join([*header, *lines])


def _innermost(found: Sequence[Result]) -> list[Result]:
    """The results of the method alone, without any part; none where it carries none."""
    shortest = min({r.method for r in found}, key=len)
    return [r for r in found if r.method == shortest] if len({r.method for r in found}) > 1 else []


def _row(name: str, results: Sequence[Result], alone: Sequence[Result]) -> str:
    first = results[0]
    own = _percent(alone, "final_accuracy") if alone else ""
    others = [_percent(results, key) for key in ("average_accuracy", "forgetting", "task_aware_accuracy")]
    costs = [
        f"{first.trainable_parameters or 0:,}",
        size(first.stored_bytes),
        f"{mean(r.seconds.get('learn', 0.0) for r in results):.0f}",
        "" if first.passes is None else f"{first.passes:.2f}",
    ]
    told = f"{name}: `{first.method}`" + (", all at once" if first.at_once else "")
    cells = [told, str(len(results)), _percent(results, "final_accuracy"), own, *others, *costs]
    return f"| {' | '.join(cells)} |"


def _percent(results: Sequence[Result], key: str) -> str:
    values = [100 * value for r in results if (value := r.metrics.get(key)) is not None]
    if not values:
        return "—"
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _mean(results: Sequence[Result], key: str) -> float:
    return mean(value for r in results if (value := r.metrics.get(key)) is not None)


if __name__ == "__main__":
    place = Path(sys.argv[2])
    place.write_text(tables(Path(sys.argv[1]), place.read_text(encoding="utf-8")), encoding="utf-8")
