"""`lamella sweep`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lamella.cli.arguments import Address, Resource
from lamella.cli.output import say
from lamella.cli.run import Orders, of_orders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamella.experiments.sweep.plan import Sweep, Trial
    from lamella.experiments.sweep.sweep import Engine

__all__ = ["sweep"]


def sweep(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A sweep file, a configuration file, or a shipped configuration.")
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE,VALUE...", help="Changes; each value of a list is tried.", show_default=False
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Run each with the seeds 0 to N-1.", metavar="N")] = None,
    orders: Orders = None,
    only: Annotated[str, typer.Option(help="Variants of the sweep file, separated by commas.", metavar="NAMES")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run directories.", show_default="runs/<configuration>-sweep")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time, each in its own process.", metavar="N")] = 1,
    on: Annotated[
        str, typer.Option("--engine", help="Where they run: local (this machine), ray or slurm.", metavar="NAME")
    ] = "local",
    address: Address = None,
    resource: Resource = None,
    retries: Annotated[int, typer.Option(min=0, help="How often a run that failed is tried again.", metavar="N")] = 2,
    best: Annotated[
        str | None, typer.Option(help="Choose by a metric, such as final_accuracy, on validation.", metavar="METRIC")
    ] = None,
    select_on_first: Annotated[
        int | None,
        typer.Option(min=1, help="Learn only the first K tasks, and choose on their validation part.", metavar="K"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs, and start none.")] = False,
) -> None:
    """Run a grid of settings, or named variants, with several seeds.

    Each combination gets an ordinary run directory, which `lamella report` reads. A mistake in any of the settings is
    told before the first run starts. The same command again skips what is finished, goes on with what was interrupted,
    and tries again what failed. A run that fails does not stop the others: it is tried again after them, and where it
    still fails, it is named and the exit code is 1.
    """
    if select_on_first is not None:
        changes = [*(changes or []), *_on_first(select_on_first, changes or [])]
        best = best or "final_accuracy"
    changes, seeds = of_orders(orders, changes or [], seeds)
    plan, trials = _plan(config, changes, seeds, only)
    folder = out or Path("runs") / f"{Path(config).stem}-sweep"
    from lamella.experiments.sweep.best import check_choice
    from lamella.experiments.sweep.engines import engine
    from lamella.experiments.sweep.plan import check_folders, finished

    if best is not None:
        check_choice(trials, best)
    place = engine(on, processes, address, resource or ())
    check_folders(trials, folder)
    _tell_dropped(trials)
    done = [trial for trial in trials if finished(trial, folder)]
    if dry_run:
        for trial in trials:
            say(f"{folder / trial.name}{': finished already' if trial in done else ''}")
        say(f"{_runs(len(trials))}, {len(done)} of them finished already", err=True)
        return
    if done:
        say(f"{len(done)} of {_runs(len(trials))} finished already", err=True)
    failures = _run_all(trials, folder, place, retries, len(done))
    _show_results(trials, folder, across_splits=orders is not None)
    if failures:
        for name, why in failures.items():
            say(f"lamella: {name} failed: {why} ({folder / name / 'output.log'})", err=True)
        say(f"lamella: {len(failures)} of {_runs(len(trials))} failed; the same command tries them again", err=True)
        raise typer.Exit(1)
    if best is not None:
        _show_best(plan, trials, folder, best)


def _on_first(tasks: int, changes: list[str]) -> list[str]:
    """The changes of `--select-on-first`.

    Raises:
        ValueError: other changes have given one of their keys another value.
    """
    wanted = {"scenario.first_tasks": str(tasks), "run.evaluate_on": "validation"}
    for text in changes:
        key, _, value = text.partition("=")
        if wanted.get(key.strip(), value.strip()) != value.strip():
            raise ValueError(f"--select-on-first {tasks} sets {key.strip()}={wanted[key.strip()]}; leave out '{text}'")
    return [f"{key}={value}" for key, value in wanted.items()]


def _plan(config: str, changes: list[str], seeds: int | None, only: str) -> "tuple[Sweep, list[Trial]]":
    from dataclasses import replace

    from lamella.experiments.sweep.plan import read_sweep

    plan = read_sweep(config)
    plan = replace(plan, overrides=changes, seeds=seeds or plan.seeds)
    plan = plan.only(name.strip() for name in only.split(",")) if only else plan
    return plan, plan.trials()


def _tell_dropped(trials: "Sequence[Trial]") -> None:
    """Say once for each method which keys of the configuration it does not know."""
    from lamella.learner.config.document import method_name

    told = {(method_name(t.config), *t.config["run"].get("dropped", [])): None for t in trials}
    for name, *dropped in told:
        if dropped:
            say(f"{name}: left out, where they belong to another method: {', '.join(dropped)}", err=True)


def _run_all(trials: "Sequence[Trial]", folder: Path, on: "Engine", retries: int, done: int) -> dict[str, str]:
    from lamella.experiments.sweep.sweep import sweep as run_sweep

    count = done

    def ended(trial: "Trial", failure: str) -> None:
        nonlocal count
        count += 1
        say(f"{count}/{len(trials)} {trial.name}: {f'failed, {failure}' if failure else 'finished'}")

    def again(trial: "Trial", failure: str) -> None:
        say(f"{trial.name}: failed, {failure}; it will be tried again")

    try:
        return run_sweep(trials, folder, on, ended, retries=retries, again=again)
    except KeyboardInterrupt as error:
        say(f"lamella: interrupted; this goes on: {shlex.join(['lamella', *sys.argv[1:]])}", err=True)
        raise typer.Exit(130) from error


def _show_results(trials: "Sequence[Trial]", folder: Path, *, across_splits: bool) -> None:
    from lamella.experiments.report import load_results, render_table
    from lamella.experiments.sweep.plan import finished

    if done := [folder / trial.name for trial in trials if finished(trial, folder)]:
        typer.echo(render_table(load_results(done), "table", across_splits=across_splits))
    say(f"results: {folder}")


def _show_best(plan: "Sweep", trials: "Sequence[Trial]", folder: Path, metric: str) -> None:
    """Say which setting is best, and write it as a configuration for runs on test images."""
    from lamella.common.files import write_atomic
    from lamella.experiments.metrics import METRICS
    from lamella.experiments.sweep.best import best
    from lamella.learner.config.document import load_config, to_toml

    found = best(trials, folder, metric)
    is_share = next(each.is_share for each in METRICS if each.name == metric)
    value = f"{100 * found.value.mean:.1f} %" if is_share else f"{found.value.mean:.3f}"
    say(f"best {metric} of {found.settings} settings: {value}, {found.group or 'the only one'}")
    chosen = folder / "chosen.toml"
    write_atomic(chosen, to_toml(load_config(plan.config, found.changes)).encode())
    words = ["lamella", "run", str(chosen), "--seeds", str(found.value.n), "--out", str(folder / "chosen")]
    say(f"on test images: {shlex.join(words)}")


def _runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"
