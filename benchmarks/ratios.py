"""Forms of the same computation that take turns in one process: how long each takes, as a ratio to one of them.

    OMP_NUM_THREADS=1 python benchmarks/ratios.py training-step --backbone vit_tiny_patch16_224 --size 128
    python benchmarks/ratios.py --help                 # all comparisons; each one's own --help says what it compares
    python benchmarks/ratios.py branch-forms --tiny    # a few seconds, to see whether it works

A ratio is the median over the rounds of the ratio within a round, with the middle half of them: other work on the
machine slows all forms of a round alike. The figures are printed, and written with all the times to a JSON file.
"""

import inspect
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from forms.answers import answer_costs
from forms.case import Case, Seconds
from forms.choices import choices
from forms.inputs import input_cost
from forms.layer import branch_forms
from forms.mixed import mixed
from forms.moments import second_moments
from forms.network import compilation, memory_layout, precision, recomputation
from forms.prediction import dlc_tails, duallora_inference
from forms.readouts import own_covariances
from forms.steps import training_step
from forms.storage import storage
from forms.testing import evaluation_cost
from forms.texts import text_costs
from rich.console import Console
from rich.table import Table

from lamella.common.files import write_json
from lamella.common.timing import ratio_text


@dataclass(frozen=True)
class Comparison:
    """One comparison.

    Attributes:
        cases: builds its cases one after the other; its keywords are options, its docstring is the help.
        rounds: how often all forms take a turn.
        tiny: options under which it takes seconds.
    """

    cases: Callable[..., Iterable[Case]]
    rounds: int
    tiny: Mapping[str, Any] = field(default_factory=dict)


SMALL = {"backbone": "test_vit", "size": 32, "batch": 4}
COMPARISONS = {
    "training-step": Comparison(training_step, 9, SMALL | {"tasks": 2, "images": 4}),
    "branch-forms": Comparison(branch_forms, 25, {"small": True}),
    "second-moments": Comparison(second_moments, 9, SMALL),
    "precision": Comparison(precision, 7, SMALL),
    "storage": Comparison(storage, 9, SMALL),
    "memory-layout": Comparison(memory_layout, 7, {"large": False}),
    "compilation": Comparison(compilation, 15, SMALL | {"backend": "eager"}),
    "recomputation": Comparison(recomputation, 9, SMALL),
    "duallora-inference": Comparison(duallora_inference, 25, SMALL | {"tasks": 2}),
    "mixed": Comparison(mixed, 9, SMALL | {"held": [1, 10]}),
    "dlc-tails": Comparison(dlc_tails, 15, {"plugins": [2], "batch": [4], "small": True}),
    "own-covariances": Comparison(own_covariances, 25, SMALL | {"classes": 10}),
    "evaluation-cost": Comparison(evaluation_cost, 5, {"methods": "nearest-mean,inflora", "tasks": 2, "images": 8}),
    "text-costs": Comparison(text_costs, 15),
    "answer-costs": Comparison(answer_costs, 15, {"batch": 2, "words": 3, "answer": 2}),
    "choices": Comparison(choices, 7, {"answers": [2], "prompts": 2, "words": 3}),
    "input-cost": Comparison(input_cost, 7, {"images": 2, "photos": False}),
}

app = typer.Typer(add_completion=False, help=str(__doc__).partition("\n")[0], rich_markup_mode=None)


def compare(name: str, cases: Iterable[Case], rounds: int, setting: Mapping[str, Any], out: Path) -> None:
    """Time all cases, print one table, and write everything to the file `out`."""
    measured: list[tuple[Case, Seconds, Mapping[str, Mapping[str, str]]]] = []
    for case in cases:  # while a case is measured, what it was built with is there
        seconds = case.measure(rounds)
        measured.append((case, seconds, case.notes(seconds)))
    columns = dict.fromkeys(column for _, _, notes in measured for row in notes.values() for column in row)
    told = ", ".join(f"{key} {value}" for key, value in setting.items() if value not in (None, False))
    table = Table("", "form", "ratio", "ms a sample", *columns, title=f"{name}: {told}")
    for case, seconds, notes in measured:
        table.add_section()
        for i, (form, own) in enumerate((f, own) for f, own in seconds.items() if f not in case.aside):
            milliseconds = 1000 * statistics.median(own) / case.images
            cells = [notes.get(form, {}).get(column, "") for column in columns]
            table.add_row(
                "" if i else case.name, form, ratio_text(own, seconds[case.unit]), f"{milliseconds:.3g}", *cells
            )
    Console(width=160).print(table)
    for case, seconds, _ in measured:
        if remark := case.remark(seconds):
            print(remark)
    found = [{"case": case.name, "unit": case.unit, "seconds": s, "notes": notes} for case, s, notes in measured]
    write_json(out, {"setting": setting, "cases": found})
    print(f"written to {out}")


def _shared(
    *,
    repeats: Annotated[int, typer.Option(min=2, help="Rounds.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", show_default="runs/benchmarks/<name>.json")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="The smallest sizes, three rounds.")] = False,
) -> None:
    """The options of every comparison."""


def _command(name: str, comparison: Comparison) -> Callable[..., None]:
    """A command whose options are the keywords of the comparison, and the shared ones."""

    def run(*, repeats: int, out: Path | None, tiny: bool, **options: Any) -> None:
        options |= comparison.tiny if tiny else {}
        setting = options | {"threads": torch.get_num_threads(), "torch": torch.__version__}
        file = out or Path("runs/benchmarks") / f"{name}.json"
        compare(name, comparison.cases(**options), 3 if tiny else repeats, setting, file)

    own, (rounds, *shared) = (list(inspect.signature(f).parameters.values()) for f in (comparison.cases, _shared))
    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    parameters = [*keywords, rounds.replace(default=comparison.rounds), *shared]
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__ = comparison.cases.__doc__
    return run


for each, comparison in COMPARISONS.items():
    app.command(each)(_command(each, comparison))

if __name__ == "__main__":
    app()
