"""`lamella reproduce`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lamella.cli.output import say

if TYPE_CHECKING:
    from lamella.experiments.reproduce.registry import Cell, Paper

__all__ = ["reproduce"]


def reproduce(
    paper: Annotated[
        str | None,
        typer.Argument(
            help="A paper of the registry; all are listed without it. With --against, a method.", show_default=False
        ),
    ] = None,
    cell: Annotated[str | None, typer.Argument(help="A cell of the paper's table.", show_default=False)] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE...", help="Changes, such as fit.device=cuda.", show_default=False),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Run seeds 0 to N-1.", show_default="the paper's number of runs, or 1", metavar="N"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the runs.", show_default="runs/PAPER-CELL")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the configuration, and run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list, or the comparison, as JSON.")] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            help="A folder with code of others, such as the authors': run functions of it and ours on the same "
            "tensors. They run with your rights, so name only code that you trust.",
            metavar="CHECKOUT",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run what a paper reports, and compare.

    Without arguments it lists the papers and the cells of their tables; with a paper alone, what is known and unknown
    of each of its cells. With a cell it runs its configuration as `lamella run` does, and writes the reported and the
    reproduced values, and their difference.

    With --against and a method, it compares what our functions compute with what those of the authors' code do, and the
    exit status is 1 where they differ by more than rounding.
    """
    if against is not None:
        given = {"--seeds": seeds, "--out": out, "--resume": resume, "--quiet": quiet, "--dry-run": dry_run}
        if paper is None or cell or any(given.values()):
            raise ValueError("--against CHECKOUT needs a METHOD, and nothing else; see lamella reproduce --help")
        _compare(against, paper, as_json)
        return
    from lamella.experiments.reproduce.registry import find_cell, find_paper, papers

    if paper is None or cell is None:
        given = {"--seeds": seeds, "--out": out, "--resume": resume, "--quiet": quiet, "--dry-run": dry_run}
        if of_runs := [name for name, value in given.items() if value]:
            raise ValueError(
                f"{', '.join(of_runs)}: of the run of a cell, and none is named; give PAPER CELL, or no option"
            )
        shown = papers() if paper is None else {paper: find_paper(paper)}
        if as_json:
            rows = [asdict(each) for known in shown.values() for each in known.cells.values()]
            typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        else:
            for known in shown.values():
                _list(known, details=paper is not None)
        return
    found = find_cell(paper, cell)
    if as_json:
        raise ValueError("--json prints the list of cells and runs none; leave out the cell, or --json")
    if dry_run:
        _print_config(found, overrides or [])
    else:
        _run(found, overrides or [], seeds or found.runs or 1, out or _folder(found), resume, quiet)


def _compare(checkout: Path, method: str, as_json: bool) -> None:
    """Compare a method with the code in a checkout, and print the table."""
    from lamella.common.plain_table import plain_table
    from lamella.experiments.against.run import check_checkout, compare_with, known_method

    known = known_method(method)
    check_checkout(checkout, known)
    say(
        f"runs functions of '{checkout}' (wanted: {known.home}) in a process of its own, with your rights; "
        "nobody here has checked this code",
        err=True,
    )
    found = compare_with(checkout, method)
    differs = [row for row in found.rows if not row.equal]
    if as_json:
        typer.echo(json.dumps({**asdict(found), "equal": not differs}, indent=2, ensure_ascii=False))
    else:
        at = f"commit {found.commit[:7]}" if found.commit else "no commit known"
        say(f"{method} against '{checkout}', {at}; its names were read at {known.commit} of {known.home}")
        cells = [
            (r.quantity, r.on, f"{r.difference:.1e}", f"{r.allowed:.1e}", "" if r.equal else "differs")
            for r in found.rows
        ]
        typer.echo(plain_table(("quantity", "on", "largest difference", "allowed", ""), cells), nl=False)
    if differs:
        raise typer.Exit(1)


def _folder(cell: "Cell") -> Path:
    """Where the runs of a cell are by default."""
    return Path("runs") / f"{cell.paper}-{cell.name}"


def _list(paper: "Paper", *, details: bool) -> None:
    at = f", arXiv {paper.arxiv}" if paper.arxiv else ""
    say(f"{paper.name}: {paper.title} ({paper.cite}{at})")
    for cell in paper.cells.values():
        say(f"  {cell.name}: {_values(cell)}, {cell.source}; {_state(cell)}")
        if details:
            for key, text in facts(cell):
                say(f"      {key}: {text}")


def _values(cell: "Cell") -> str:
    from lamella.experiments.reproduce.compare import percents

    return ", ".join(f"{name} {percents(value)}" for name, value in cell.reported.items())


def _state(cell: "Cell") -> str:
    """What the runs in the usual folder say."""
    from lamella.common.words import many, number
    from lamella.experiments.reproduce.compare import read_comparison

    done = read_comparison(_folder(cell))
    if done is None:
        return "never run here"
    last = done.values["last"]
    difference, seeds = number(last.difference, signed=True), many(len(done.seeds), "seed")
    told = f"reproduced {number(last.reproduced)} ({difference}, {seeds})"
    return f"{told}, with changes" if done.changes else told


def facts(cell: "Cell") -> list[tuple[str, str]]:
    """What is known and unknown of a cell, each with its name."""
    return [
        ("method", cell.method),
        ("configuration", cell.config + (", changed" if cell.settings else "")),
        ("protocol", cell.protocol),
        ("checkpoint", cell.checkpoint),
        ("split", cell.split),
        ("class order", cell.order),
        ("seeds", cell.seeds),
        ("runs", "not read" if cell.runs is None else str(cell.runs)),
        ("read in", f"{cell.read} ({cell.source})"),
        *(("left unsaid", text) for text in cell.unsaid),
        *(("departure", text) for text in cell.departures),
    ]


def _print_config(cell: "Cell", overrides: list[str]) -> None:
    from lamella.experiments.reproduce.registry import cell_config
    from lamella.learner.config.document import to_toml

    head = [f"{cell.paper} {cell.name}: reported {_values(cell)}", *(f"{key}: {text}" for key, text in facts(cell))]
    typer.echo("\n".join(f"# {line}" for line in head) + "\n")
    typer.echo(to_toml(cell_config(cell, overrides)), nl=False)


def _run(cell: "Cell", overrides: list[str], seeds: int, folder: Path, resume: bool, quiet: bool) -> None:
    from lamella.cli.run import run_all
    from lamella.experiments.report import load_results
    from lamella.experiments.reproduce.compare import compare, comparison_line, write_comparison
    from lamella.experiments.reproduce.registry import cell_config

    planned: list[tuple[Path, dict[str, Any]]] = [
        (folder / f"seed-{seed}", cell_config(cell, [*overrides, f"run.seed={seed}"])) for seed in range(seeds)
    ]
    run_all(planned, folder, resume=resume, quiet=quiet)
    comparison = compare(cell, load_results([path / "results.json" for path, _ in planned]))
    for name, value in comparison.values.items():
        say(f"{cell.paper} {cell.name}, {name}: {comparison_line(value)}")
    if comparison.changes:
        say(f"not the published setting, changed: {', '.join(comparison.changes)}")
    say(f"written: {write_comparison(comparison, folder)}")
