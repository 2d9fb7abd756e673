"""All routers on one training: how often each names the right task, and what that is worth.

    LAMELLA_DATA=DIR python benchmarks/routers.py color --out runs/routers/color
    LAMELLA_DATA=DIR python benchmarks/routers.py duallora method.tokens=class \\
        "method.sites=['query', 'out', 'mlp']" --out runs/routers/duallora
    LAMELLA_DATA=DIR python benchmarks/routers.py dlc --config mnist-5-scratch --test fit.precision=float32 \\
        --out runs/routers/mnist
    LAMELLA_DATA=DIR python benchmarks/routers.py dlc --config tiny-imagenet32-5-scratch --test fit.precision=float32 \\
        --out runs/routers/tiny

A router does not touch the training of its method, so each needs no training of its own: what every task trained is
stored below --out, once. A router that has its result there is not computed again, so that an interrupted call goes on
where it was. "Given the task" is what a router that is always right would reach. DLC trains its plugins with its gates,
so that of its training only that of the base is stored, which knows nothing of the gates; "given the task" is what the
gates of an oracle reach there, with which the plugin of the right task acts alone, all classes competing.

The settings are those of benchmarks/sweeps/accuracy.toml, on validation images; --test reads the test images instead,
and takes the validation images into training.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from dlc_gates import right
from forms.trained import learned, learned_on_base
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lamella.common.files import read_json, write_json
from lamella.data.loading import Examples
from lamella.experiments.sweep.plan import read_sweep
from lamella.learner.config.document import load_config
from lamella.learner.costs import passes
from lamella.learner.learner import Learner
from lamella.methods.dlc.dlc import DLC

SETTINGS = Path(__file__).with_name("sweeps") / "accuracy.toml"
ROUTERS = {
    "color": {
        "nearest": [],
        "gaussian": ["method.router=gaussian"],
        "least-squares": ["method.router=least-squares"],
        "arrow": ["method.router=arrow"],
        "entropy": ["method.router=entropy"],
        "gaussian, soft": ["method.router=gaussian", "method.choice=soft"],
        "gaussian, best two": ["method.router=gaussian", "method.choice=soft", "method.top=2"],
        "least-squares, soft": ["method.router=least-squares", "method.choice=soft"],
    },
    "duallora": {
        "none": ["method.calibration=0"],
        "signature": [],
        "nearest": ["method.router=nearest"],
        "gaussian": ["method.router=gaussian"],
        "least-squares": ["method.router=least-squares"],
    },
    "dlc": {
        "unit": [],
        "no gates": ["method.gate=fixed"],
        "nearest": ["method.router=nearest"],
        "gaussian": ["method.router=gaussian"],
        "least-squares": ["method.router=least-squares"],
        "least-squares, best": ["method.router=least-squares", "method.top=1"],
    },
}
MEASURED = ("right task", "right class", "given the task", "passes", "router MB")


def main(
    method: Annotated[str, typer.Argument(help=f"One of: {', '.join(ROUTERS)}.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...")] = None,
    config: Annotated[str | None, typer.Option(help="Instead of the one in accuracy.toml, with its changes.")] = None,
    router: Annotated[list[str] | None, typer.Option(help="One of them; repeatable. All, if left out.")] = None,
    seed: int = 0,
    test: bool = False,
    out: Path = Path("runs/routers"),
) -> None:
    """Train once, and read with every router."""
    page = Table("router", *MEASURED, title=f"{method}, seed {seed}")
    for name, changes in ROUTERS[method].items():
        if router and name not in router:
            continue
        path = out / f"{name.replace(', ', '-').replace(' ', '-')}.json"
        if not path.exists():
            document = configured(config, method, [*(settings or []), *changes], seed, test)
            write_json(path, measured(document, out / "trained"))
        row = read_json(path)
        page.add_row(name, *(f"{row[what]:.2f}" if what in MEASURED[3:] else f"{row[what]:.1f}" for what in MEASURED))
        print(f"{name}: " + ", ".join(f"{what} {row[what]:.2f}" for what in MEASURED), flush=True)
    Console(width=100).print(page)


def configured(config: str | None, method: str, changes: list[str], seed: int, test: bool) -> dict[str, Any]:
    """Return the configuration of a router, without alignment."""
    sweep = read_sweep(SETTINGS)
    common = [c for c in sweep.changes if not c.startswith("method.align.")]
    common = common if config is None else ["scenario.validation=0.25", "run.evaluate_on=validation"]
    theirs = ["scenario.validation=0", "run.evaluate_on=test"] if test else []
    base = [*common, f"method.name={method}", f"run.seed={seed}"]
    return load_config(config or str(sweep.config), [*base, *changes, *theirs])


def measured(config: dict[str, Any], store: Path) -> dict[str, float]:
    """Learn all tasks, by what is stored of their training, and return what is right at the end, in per cent."""
    on_base = config["method"]["name"] == "dlc"
    learner, scenario = learned_on_base(config, store) if on_base else learned(config, store)
    counts = {"right task": 0, "right class": 0, "given the task": 0}
    images = 0
    for i in range(len(scenario)):
        part = scenario.test(i) if config["run"]["evaluate_on"] == "test" else scenario[i].validation
        assert part is not None, "the settings leave no validation part"
        found = gated(learner, part, i) if on_base else scored(learner, part, scenario[i].classes)
        images += len(part)
        counts = {what: counts[what] + n for what, n in zip(counts, found, strict=True)}
    percent = {what: 100 * n / images for what, n in counts.items()}
    return percent | {"passes": passes(learner.method) or float("nan"), "router MB": router_bytes(learner) / 1e6}


def scored(learner: Learner, part: Examples, classes: Sequence[int]) -> tuple[int, int, int]:
    """Return of how many samples of a task its right task, its right class, and that among its own, are found."""
    score = learner.evaluate(part, classes)[""]
    return score.right_task, score.right, score.right_given_task


def gated(learner: Learner, part: Examples, task: int) -> tuple[int, int, int]:
    """Return of how many samples of a task its largest gate, its class, and that by an oracle's gates, are right."""
    method, fit = learner.method, learner.fit()
    assert isinstance(method, DLC)
    found: list[Tensor] = []
    fit.begin(f"gates-{task}")
    method.eval()
    fit.scan(part, lambda x, y: found.append(right(method, x, y, task)), name="gates")
    own, chosen, oracle = torch.cat(found).sum(0).tolist()
    return chosen, own, oracle


def router_bytes(learner: Learner) -> int:
    """Return the bytes of what the router keeps."""
    holders = [getattr(learner.method, name, None) for name in ("keys", "router", "signatures", "unit")]
    tensors = [t for holder in holders if holder is not None for t in holder.state_dict().values()]
    return sum(t.numel() * t.element_size() for t in tensors if hasattr(t, "numel"))


if __name__ == "__main__":
    typer.run(main)
