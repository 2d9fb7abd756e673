"""`lamella run` and `lamella show`."""

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["Config", "Orders", "Overrides", "check_free", "of_orders", "plan_runs", "run", "run_all", "show"]

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="A TOML file, or the name of a shipped configuration.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE...", help="Changes to it, such as method.rank=8.", show_default=False),
]
Orders = Annotated[
    int | None,
    typer.Option(min=1, help="Run seeds 0 to N-1, each with a class order of its own.", metavar="N"),
]


def run(
    config: Config,
    overrides: Overrides = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Run seeds 0 to N-1, each in its own folder seed-0, seed-1 ...", metavar="N"),
    ] = None,
    orders: Orders = None,
    out: Annotated[Path | None, typer.Option(help="Run directory.", show_default="runs/<configuration>")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Run a method over a stream of tasks.

    The run directory receives the resolved configuration, the results, a log, and the model. A run that was interrupted
    in any way and at any moment resumes with --resume and gives the same results.
    """
    folder = out or Path("runs") / Path(config).stem
    overrides, seeds = of_orders(orders, overrides or [], seeds)
    planned = plan_runs(config, overrides, seeds, folder)
    run_all(planned, folder, resume=resume, quiet=quiet, across_splits=orders is not None)


def of_orders(orders: int | None, changes: list[str], seeds: int | None) -> tuple[list[str], int | None]:
    """Return the changes and the number of seeds of a command that may have `--orders`.

    Raises:
        ValueError: other options say otherwise.
    """
    if orders is None:
        return changes, seeds
    told = f"--orders {orders} runs the seeds 0 to {orders - 1}, each with a class order of its own"
    if seeds is not None:
        raise ValueError(f"{told}; leave out --seeds {seeds}")
    if wrong := [text for text in changes if text.partition("=")[0].strip() == "scenario.order"]:
        raise ValueError(f"{told}; leave out '{wrong[0]}'")
    return [*changes, "scenario.order=seeded"], orders


def run_all(
    planned: list[tuple[Path, dict[str, Any]]],
    folder: Path,
    *,
    resume: bool,
    quiet: bool,
    across_splits: bool = False,
) -> None:
    """Run configurations one after the other, and print the table of their results.

    Args:
        planned: each run directory with its settings.
        folder: the folder of these directories, which the user named, or the only one.
        resume: whether to go on with what is there.
        quiet: whether to hide progress.
        across_splits: whether the table has one row for all splits; see `summarise`.

    Raises:
        ValueError: one of the run directories is not free.
    """
    from lamella.training import processes

    processes.same("command", lambda: str((planned, resume)))
    processes.from_first(lambda: [check_free(path, resume=resume) for path, _ in planned])
    from lamella.common.files import refuse_links
    from lamella.experiments.report import load_results, render_table
    from lamella.experiments.run import run as run_config
    from lamella.learner.config.precision import as_in_runs

    # With several seeds, the user named only the parent of their folders.
    refuse_links(*(path for path, _ in planned if path != folder))
    for path, settings in planned:
        if (path / "results.json").exists():
            typer.echo(f"{path}: finished already", err=True)
        # One precision for all seeds.
        settings = processes.from_first(partial(as_in_runs, settings, [each for each, _ in planned]))
        try:
            run_config(settings, path, resume=resume, quiet=quiet)
        except KeyboardInterrupt as error:
            command = shlex.join(["lamella", *(a for a in sys.argv[1:] if a != "--resume"), "--resume"])
            how = f"resume with: {command}" if processes.count() == 1 else "start all processes again with --resume"
            typer.echo(f"lamella: interrupted; {how}", err=True)
            raise typer.Exit(130) from error
    if processes.leads():
        typer.echo(render_table(load_results([path for path, _ in planned]), "table", across_splits=across_splits))
    typer.echo(f"results: {folder}")


def show(config: Config, overrides: Overrides = None) -> None:
    """Print a configuration with every default.

    The output is TOML, exactly as a run would use and record it.
    """
    from lamella.learner.config.document import load_config, to_toml

    typer.echo(to_toml(load_config(config, overrides or [])), nl=False)


def plan_runs(config: str, overrides: list[str], seeds: int | None, folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return each run directory with its settings. An error in any of them is raised before the first run starts."""
    from lamella.learner.config.document import load_config, method_name

    if seeds is None:
        planned = [(folder, load_config(config, overrides))]
    else:
        planned = [(folder / f"seed-{i}", load_config(config, [*overrides, f"run.seed={i}"])) for i in range(seeds)]
    if dropped := planned[0][1]["run"].get("dropped"):
        name = method_name(planned[0][1])
        typer.echo(f"{name}: left out of {config}, where they belong to another method: {', '.join(dropped)}", err=True)
    return planned


def check_free(path: Path, *, resume: bool, resumable: bool = True) -> None:
    """Raise ValueError where a run directory is not free for a run that begins, or goes on.

    Args:
        path: the run directory.
        resume: whether the run goes on with what is there.
        resumable: whether there could be such a run.
    """
    if resume or not path.exists() or (path.is_dir() and {p.name for p in path.iterdir()} <= {".lock"}):
        return
    if (path / "results.json").exists():
        raise ValueError(f"'{path}' holds a finished run; choose another --out, or remove it first")
    if path.is_dir():
        hint = "add --resume if it holds an interrupted run, or choose" if resumable else "choose"
        raise ValueError(f"'{path}' is not empty; {hint} another --out")
    raise ValueError(f"'{path}' is a file; choose another --out")
