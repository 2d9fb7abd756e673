"""`lamella federate`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lamella.cli.run import Config, Overrides, check_free, plan_runs, run_all

__all__ = ["federate"]

ON_CPU = "fit.device=cpu"
"""Clients are forks of a process that has built a network, in which a GPU could not be used."""


def federate(
    config: Config,
    overrides: Overrides = None,
    clients: Annotated[int | None, typer.Option(min=1, help="Number of clients.", show_default="5")] = None,
    dirichlet: Annotated[
        float | None,
        typer.Option(
            help="Split each class by a Dirichlet distribution: 0.1 is very uneven, 100 nearly even.",
            metavar="ALPHA",
            show_default="samples are dealt out evenly",
        ),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of a task.", metavar="N", show_default="10")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of a client in a round.", metavar="N", show_default="1")
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="fedavg, ffa-lora, fedex-lora, flora or lorm.",
            metavar="NAME",
            show_default="fedavg",
        ),
    ] = None,
    lose: Annotated[
        list[str] | None,
        typer.Option(help="A client that is lost, as CLIENT@TASK or CLIENT@TASK.ROUND; repeatable.", metavar="4@3"),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Run seeds 0 to N-1, each in its own folder seed-0, seed-1 ...", metavar="N"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory.", show_default="runs/<configuration>-federated")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
    on: Annotated[
        str,
        typer.Option(
            "--engine",
            help="Where clients are: local (this process); of Flower, on this machine: simulation (actors of Ray) or "
            "superlink (a SuperNode each).",
            metavar="NAME",
        ),
    ] = "local",
    flower_app: Annotated[
        Path | None,
        typer.Option(help="Write the folder of an app for `flwr run` instead, and learn nothing.", metavar="FOLDER"),
    ] = None,
) -> None:
    """Run a method over a stream of tasks whose samples stay with several clients, all in this process or under Flower.

    The run directory is that of `lamella run`. The options are keys of the table [federated], which has some more, such
    as federated.clip=0.5; with that table in the configuration, `lamella run` does the same.
    """
    if flower_app is not None and (left_out := _contradictions(on, seeds, resume)):
        raise ValueError(f"--flower-app writes the folder of one app and learns nothing; leave out {left_out}")
    given = {"clients": clients, "dirichlet": dirichlet, "rounds": rounds, "epochs": epochs, "rule": rule}
    texts = [f"federated.{key}={value}" for key, value in given.items() if value is not None]
    texts += [f"federated.lose={json.dumps(lose, separators=(',', ':'))}"] if lose else []
    texts = [*(texts or ["federated.clients=5"]), *(overrides or [])]
    folder = out or Path("runs") / f"{Path(config).stem}-federated"
    from lamella.experiments.flower.loopback import check_installed

    check_installed(on)
    planned = plan_runs(config, texts, seeds, folder)
    if flower_app is not None:
        from lamella.experiments.flower.folder import write_app

        write_app(flower_app, config, texts, folder)
        typer.echo(f"app: {flower_app}, which `flwr run` takes; its server writes {folder}")
        return
    if on == "local":
        run_all(planned, folder, resume=resume, quiet=quiet)
        return
    if resume or seeds is not None:
        raise ValueError(f"engine '{on}' makes one run, and begins it anew; leave out --resume and --seeds")
    plan = planned[0][1]
    if (device := plan["fit"]["device"]) not in ("auto", "cpu"):
        raise ValueError(f"engine '{on}' computes on the CPU only; leave out fit.device={device}")
    check_free(folder, resume=False, resumable=False)
    from lamella.experiments.federated import federated_lines
    from lamella.experiments.flower.loopback import run_on_flower
    from lamella.experiments.report import load_results, render_table

    if not quiet:
        typer.echo(f"under Flower; {folder / 'log.jsonl'} says how far it is", err=True)
    try:
        run_on_flower(on, config, [*texts, ON_CPU], folder, int(plan["federated"]["clients"]))
    except KeyboardInterrupt as error:
        typer.echo("lamella: interrupted; begin the run anew, with another --out", err=True)
        raise typer.Exit(130) from error
    if not quiet:
        for line in federated_lines(json.loads((folder / "results.json").read_text())["federated"]):
            typer.echo(line)
    typer.echo(render_table(load_results([folder]), "table"))
    typer.echo(f"results: {folder}")


def _contradictions(engine: str, seeds: int | None, resume: bool) -> str:
    """The options that say that something is learned, as words for a message."""
    engines = [f"--engine {engine}"] if engine != "local" else []
    return ", ".join([*engines, *(["--seeds"] if seeds is not None else []), *(["--resume"] if resume else [])])
