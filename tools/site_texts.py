"""The generated parts of the documentation site: commands, rooms, configurations, metrics and the API reference.

A page of the site names the part it wants in a block,

    ```{generated} commands
    ```

and docs/conf.py puts the text of `generated("commands")` there when the site is built. So these parts have no copy by
hand that could disagree with the code.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from textwrap import dedent
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "lamella"


def generated(words: str) -> str:
    """The Markdown of a generated part: its name, then its arguments.

    Raises:
        KeyError: no part has this name.
    """
    name, *arguments = words.split()
    return PARTS[name](*arguments)


# ---- commands


def commands(*wanted: str) -> str:
    """A section for each command of the command line: usage, arguments, options and examples."""
    import typer.main

    from lamella.cli.app import app

    root: Any = typer.main.get_command(app)
    return "\n".join(_command(f"lamella {' '.join(path)}", command) for path, command in _leaves(root))


def _leaves(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _leaves(command, (*path, name))
        else:
            yield (*path, name), command


def _command(title: str, command: Any) -> str:
    context = command.context_class(command)
    shown = [(p, *_help(p, context)) for p in command.params if not p.hidden]
    arguments = [(p, name, meaning) for p, name, meaning in shown if p.param_type_name == "argument"]
    options = [(name, meaning) for p, name, meaning in shown if p.param_type_name == "option"]
    words = [name if p.required else f"[{name}]" for p, name, _ in arguments]
    parts = [f"## {title}", _with_code(command.help or ""), f"```text\n{' '.join([title, '[OPTIONS]', *words])}\n```"]
    if arguments:
        parts.append(_table(("argument", "meaning"), [(f"`{name}`", meaning) for _, name, meaning in arguments]))
    if options:
        parts.append(_table(("option", "meaning"), [(f"`{name}`", meaning) for name, meaning in options]))
    return "\n\n".join([*parts, _examples(command.epilog or "")]) + "\n"


def _with_code(text: str) -> str:
    """Options that a sentence names, as code."""
    return re.sub(r"(?<![`\w-])--[a-z][a-z-]*", r"`\g<0>`", text)


def _help(parameter: Any, context: Any) -> tuple[str, str]:
    """Name and meaning as `--help` has them; without the type beside a name that says it already."""
    name, meaning = parameter.get_help_record(context)
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
    name = re.sub(r"<(\w+) range>", r"<\1>", name)
    meaning = re.sub(r"\[default: \((.*?)\)(?=[;\]])", r"[default: \1", meaning)
    return name, re.sub(r"[\[<]", r"\\\g<0>", meaning.replace("  [", " ["))


def _examples(epilog: str) -> str:
    lines = [line.strip() for line in epilog.splitlines() if line.startswith("  ")]
    return "```bash\n" + "\n".join(lines) + "\n```"


# ---- rooms of the package, configurations, metrics


FLOORS = (
    ("common",),
    ("adapters",),
    ("data",),
    ("backbones",),
    ("training",),
    ("memory",),
    ("federated",),
    ("methods",),
    ("learner",),
    ("experiments", "serving", "testing"),
    ("cli",),
)
"""The rooms from the lowest floor to the highest; tests/test_house.py checks that imports go down them."""


def rooms() -> str:
    """A table of the rooms from the lowest floor up: the first line of each, and of the folders in it."""
    there = {name for names in FLOORS for name in names if (PACKAGE / name / "__init__.py").is_file()}
    shown = [(floor, PACKAGE / name) for floor, names in enumerate(FLOORS) for name in names if name in there]
    return _table(("floor", "room", "what is in it"), [row for floor, room in shown for row in _rows(floor, room)])


def _rows(floor: int, room: Path) -> list[tuple[str, str, str]]:
    inner = sorted(file.parent for file in room.glob("*/__init__.py"))
    return [
        (str(floor), f"**`{room.name}/`**", _first_line(room)),
        *(("", f"`{_path(p)}/`", _first_line(p)) for p in inner),
    ]


def _path(folder: Path) -> str:
    return folder.relative_to(PACKAGE).as_posix()


def _first_line(folder: Path) -> str:
    doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    return doc.split("\n", 1)[0]


def configurations() -> str:
    """A table of all shipped configurations, and each with what its head says and what it sets."""
    from lamella.learner.config.document import describe_config, shipped_configs

    shipped = sorted(shipped_configs().items())
    rows = [(f"[`{name}`](#{name})", describe_config(path).rstrip(".")) for name, path in shipped]
    return "\n\n".join([_table(("name", "what"), rows), *(_configuration(name) for name, _ in shipped)])


def _configuration(name: str) -> str:
    text = (PACKAGE / "configs" / f"{name}.toml").read_text(encoding="utf-8")
    head = "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    said = re.sub(r"(?m)^# ?", "", head)
    said = re.sub(r"((?:^ {4}.*\n)+)", lambda m: f"```bash\n{dedent(m[0])}```\n", said, flags=re.MULTILINE)
    return f"## {name}\n\n{said}\n```toml\n{text.removeprefix(head).strip()}\n```\n"


def metrics() -> str:
    """Every metric of a result with its definition."""
    from lamella.experiments.metrics import METRICS

    return _table(("key", "name", "definition"), ((f"`{m.name}`", m.label, m.definition) for m in METRICS))


def logged() -> str:
    """A table of what loggers are told."""
    from lamella.experiments.logging.events import LOGGED

    return _table(("metric", "step", "what"), [(f"`{name}`", *told) for name, told in LOGGED.items()])


def papers() -> str:
    """A section for each paper of the registry: what is known of its table and what is not, and its cells."""
    from lamella.experiments.reproduce.registry import papers

    return "\n".join(_paper(paper) for paper in papers().values())


def _paper(paper: Any) -> str:
    from lamella.cli.reproduce import facts
    from lamella.experiments.reproduce.compare import percents

    cells = list(paper.cells.values())
    told = [dict.fromkeys(f"{key}: {text}" for key, text in facts(cell) if key not in IN_THE_TABLE) for cell in cells]
    common = [fact for fact in told[0] if all(fact in facts for facts in told)]
    rows = [
        (
            f"`{cell.name}`",
            f"`{cell.method}`",
            percents(cell.last),
            "—" if cell.average is None else percents(cell.average),
            "—" if cell.runs is None else str(cell.runs),
            f"`{cell.config}`",
        )
        for cell in cells
    ]
    link = f", [arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else ""
    table = _table(("cell", "method", "last", "average", "runs", "starts from"), rows)
    of_all = "\n".join(f"- {fact}" for fact in common)
    some = dict.fromkeys(fact for facts in told for fact in facts if fact not in common)
    having = {fact: [f"`{c.name}`" for c, facts in zip(cells, told, strict=True) if fact in facts] for fact in some}
    of_some = "\n".join(f"- {fact} ({', '.join(which)})" for fact, which in having.items())
    return f"## {paper.name}\n\n{paper.title}. {paper.cite}{link}.\n\n{of_all}\n\n{table}\n\n{of_some}\n"


IN_THE_TABLE = ("method", "configuration", "runs")
"""Facts of a cell that have a column of their own."""


def without_cell() -> str:
    """A table of the methods that no cell has, and why."""
    from lamella.experiments.reproduce.registry import without_cell

    return _table(("method", "why"), [(f"`{name}`", reason) for name, reason in without_cell().items()])


def variants() -> str:
    """A table of methods: which variants of branches they cannot have, and what of their needs each of these breaks."""
    from lamella.methods import METHODS, WHOLE_STREAM
    from lamella.training.variants import VARIANTS, broken

    kinds: dict[str, Any] = {name: kind for name, kind in METHODS.items() if name not in WHOLE_STREAM}
    able = {name: kind.needs for name, kind in kinds.items() if _has_branches(kind)}
    refused = {name: [(v, found) for v in VARIANTS if (found := broken(needs, v))] for name, needs in able.items()}
    rows = [
        (f"`{name}`", "; ".join(f"`{v.setting}` ({', '.join(found)})" for v, found in own) or "nothing")
        for name, own in refused.items()
    ]
    return _table(("method", "cannot have, and what it would break"), rows)


def variant_words() -> str:
    """Two tables: what each variant is, and what each need is."""
    from lamella.training.variants import NEEDS, VARIANTS

    what = [(f"`{v.setting}`", v.what, ", ".join(need for need in NEEDS if need in v.breaks) or "—") for v in VARIANTS]
    needs = [(need, meaning) for need, meaning in NEEDS.items()]
    return "\n\n".join([_table(("setting", "what", "breaks"), what), _table(("need", "meaning"), needs)])


def _has_branches(kind: Any) -> bool:
    from lamella.training.recipe import LoRA

    # By annotation: Sphinx puts objects of its own in the place of defaults while it builds the site.
    return any(p.annotation is LoRA for p in inspect.signature(kind, eval_str=True).parameters.values())


# ---- API reference


def public() -> str:
    """The public names of `lamella`, each with its members."""
    import lamella

    return "\n".join(_autodoc(lamella, name, "lamella") for name in sorted(lamella.__all__) if _is_own(lamella, name))


def _autodoc(module: Any, name: str, place: str) -> str:
    value = getattr(module, name)
    kind = "autoclass" if isinstance(value, type) else "autofunction"
    members = "   :members:\n" if kind == "autoclass" else ""
    return f"```{{eval-rst}}\n.. {kind}:: {place}.{name}\n{members}```\n"


def api(*places: str) -> str:
    """Reference of the modules named, such as `memory` (each module of that room) or `methods.method`, less `-NAME`."""
    left_out = {place[1:] for place in places if place.startswith("-")}
    names = [name for place in places if not place.startswith("-") for name in _modules(place)]
    return "\n".join(_module(name) for name in names if name.rpartition(".")[2] not in left_out)


def _modules(place: str) -> list[str]:
    path = PACKAGE.joinpath(*place.split("."))
    files = [file for file in sorted(path.glob("*.py")) if file.name != "__init__.py"]
    if not files:
        return [f"lamella.{place}"]
    return [".".join(("lamella", *file.relative_to(PACKAGE).with_suffix("").parts)) for file in files]


def _module(name: str) -> str:
    """What a module defines itself of its `__all__`, but for what `public` shows already."""
    import lamella

    module = importlib.import_module(name)
    top = {id(getattr(lamella, public)) for public in lamella.__all__}
    own = [n for n in getattr(module, "__all__", ()) if _is_own(module, n) and id(getattr(module, n)) not in top]
    if not own:
        return ""
    first = (module.__doc__ or "").split("\n", 1)[0]
    return "\n".join([f"## {name.removeprefix('lamella.')}\n", f"{first}\n", *(_autodoc(module, n, name) for n in own)])


def _is_own(module: Any, name: str) -> bool:
    """Whether a class or function is defined in the module, or below it."""
    value = getattr(module, name)
    return callable(value) and getattr(value, "__module__", "").startswith(module.__name__)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PARTS: dict[str, Callable[..., str]] = {
    "commands": commands,
    "rooms": rooms,
    "configurations": configurations,
    "metrics": metrics,
    "logged": logged,
    "papers": papers,
    "without_cell": without_cell,
    "variants": variants,
    "variant_words": variant_words,
    "public": public,
    "api": api,
}
