"""Documentation that cannot rot: what it shows runs, what it names exists, and what exists is named."""

import ast
import dataclasses
import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from test_house import FLOORS

from lamella.cli.app import app
from lamella.common.options import options_of
from lamella.data.scenario import Source
from lamella.data.sources.load import SOURCES, load_source
from lamella.experiments.reproduce.registry import find_cell
from lamella.learner.config.document import load_config, method_name, shipped_configs
from lamella.methods import METHODS
from lamella.methods.parts import PARTS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md"))]
PAGES += [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
EVERYTHING = "\n".join(TEXTS.values())


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every `lamella ...` of the shell blocks, without comments and variables before it."""
    shell = [block.replace("\\\n", " ") for text in TEXTS.values() for block in blocks(text, "bash")]
    lines = [line for block in shell for line in block.splitlines()]
    found = [re.sub(r"^(?:.*/bin/|[A-Z_]+=\S+ )?(?=lamella )", "", line.split("&&")[-1].strip()) for line in lines]
    return [shlex.split(line, comments=True)[1:] for line in found if line.startswith("lamella ")]


def section(text: str, title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section '{title}'"
    return found[1]


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def code_lines(file: Path) -> int:
    """Lines of code: neither blank, nor comment, nor docstring."""
    source = file.read_text(encoding="utf-8")
    documented = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    strings = [n.body[0] for n in documented if ast.get_docstring(n)]
    skipped = {i for s in strings for i in range(s.lineno, (s.end_lineno or s.lineno) + 1)}
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") and i not in skipped for i, line in lines)


PACKAGE = ROOT / "src" / "lamella"


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_a_file_is_short(file: Path) -> None:
    assert code_lines(file) <= (150 if file.is_relative_to(PACKAGE / "methods") else 250)


Script = Callable[[str], str]


@pytest.fixture
def run_on_few(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Script:
    """Run an example in a folder of its own, on a quarter of the digits that it learns; returns what it prints."""

    def few(name: str) -> Source:
        whole = load_source(name)
        return dataclasses.replace(whole, train=whole.train.subset(range(0, len(whole.train), 4)))

    def run(name: str) -> str:
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    monkeypatch.setattr("lamella.load_source", few)
    monkeypatch.chdir(tmp_path)
    return run


def test_the_readme_shows_the_quickstart_and_it_runs(run_on_few: Script, tmp_path: Path) -> None:
    source = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
    after_docstring = source.split('"""\n\n', 1)[1]
    assert blocks(TEXTS["README.md"], "python") == [after_docstring]
    right, of = map(int, re.findall(r"(\d+) of (\d+) right", run_on_few("quickstart.py"))[0])
    assert right > 0.7 * of, "ten classes, so chance is a tenth; 0.93 of all digits when this was written"
    assert (tmp_path / "digits-model" / "lamella.json").is_file()


def test_the_method_of_ones_own_runs_and_is_short(run_on_few: Script) -> None:
    accuracy = re.findall(r"^own: ([\d.]+)%", run_on_few("own_method.py"))
    assert float(accuracy[0]) > 40, "ten classes, so chance is a tenth; 61 of all digits when this was written"
    assert code_lines(ROOT / "examples" / "own_method.py") < 70


def run_example(name: str, folder: Path) -> str:
    """In a process of its own, as a reader starts it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_of_texts_runs(tmp_path: Path) -> None:
    told = run_example("tickets.py", tmp_path)
    assert "october: 8 labels, 8 in all" in told
    right, of = map(int, re.findall(r"(\d+) of (\d+) right", told)[0])
    assert right > 0.9 * of, "fifteen labels, so chance is a fifteenth; all were right when this was written"


def test_the_guide_quotes_the_example() -> None:
    example = (ROOT / "examples" / "own_method.py").read_text(encoding="utf-8")
    quoted = [block for block in blocks(TEXTS["docs/add-a-method.md"], "python") if block.startswith("    def")]
    assert quoted
    assert all(block in example for block in quoted)


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 150


def test_every_command_is_in_the_table_of_the_readme() -> None:
    known = {command.name for command in (*app.registered_commands, *app.registered_groups)}
    table = section(TEXTS["README.md"], "What you can do")
    assert known - set(re.findall(r"`lamella (\w+)", table)) == set()
    assert {words[0] for words in commands() if words} <= known


@pytest.mark.parametrize("words", [w for w in commands() if w and w[0] in ("run", "show")], ids=" ".join)
def test_every_run_shown_has_a_valid_configuration(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [word for word in words[2:] if re.match(r"[a-z]+\.[a-z_.]+=", word)]
    if words[1] == "CONFIG" or words[1].endswith(".toml"):
        pytest.skip("a pattern or a file of the reader's, not a shipped configuration")
    wanted = [o for o in overrides if o != "method.name=NAME" and "my_file.py" not in o]
    monkeypatch.chdir(ROOT)
    config = load_config(words[1], wanted)
    names = [o.partition("=")[2] for o in wanted if o.startswith("method.name=")]
    assert re.split(r"[+(]", method_name(config))[0] in [re.split(r"[+(]", Path(n).name)[0] for n in names or METHODS]


def test_every_cell_shown_is_in_the_registry() -> None:
    shown = [words[1:3] for words in commands() if words[:1] == ["reproduce"] and len(words) > 2]
    assert shown
    # Neither PAPER and CELL, nor the option --against.
    assert all(find_cell(paper, cell) for paper, cell in shown if paper.islower() and not paper.startswith("-"))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_is_in_both_tables_of_the_methods(name: str) -> None:
    for title in ("What each does, and its paper", "Side by side"):
        assert f"| [`{name}`](methods/{name}.md) |" in section(TEXTS["docs/methods.md"], title)


def test_the_page_on_choosing_names_every_method_and_every_part() -> None:
    page = TEXTS["docs/choosing.md"]
    assert [name for name in (*METHODS, *PARTS) if f"`{name}" not in page] == []


def test_method_pages_are_what_the_docstrings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    wanted = importlib.import_module("method_pages").pages()
    there = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "methods").glob("*.md")}
    assert there == wanted, "run python tools/method_pages.py"


@pytest.mark.parametrize(("name", "build"), sorted([*METHODS.items(), *PARTS.items()]))
def test_every_key_has_its_meaning(name: str, build: Callable[..., object]) -> None:
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", page, re.MULTILINE))
    assert [key for key in options_of(build, without={"seed"}) if not rows.get(key)] == []


@pytest.mark.parametrize("name", sorted(PARTS))
def test_every_part_is_named_with_its_table(name: str) -> None:
    assert f"`[method.{name}]`" in TEXTS["docs/methods.md"]
    assert f"`[method.{name}]`" in TEXTS["README.md"]


def test_every_data_set_is_named() -> None:
    assert [name for name in SOURCES if f"`{name}`" not in TEXTS["docs/data.md"]] == []


@pytest.fixture
def site_texts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("site_texts")


def test_every_generated_part_of_a_page_can_be_made(site_texts: ModuleType) -> None:
    parts = re.findall(r"^```\{generated\} (.+)\n```$", EVERYTHING, re.MULTILINE)
    assert {part.split()[0] for part in parts} == set(site_texts.PARTS)
    assert [part for part in parts if not site_texts.generated(part).strip()] == []


def test_the_pages_made_from_the_code_leave_nothing_out(site_texts: ModuleType) -> None:
    shown = site_texts.generated("commands")
    groups = [(group.name, group.typer_instance) for group in app.registered_groups]
    grouped = [f"{name} {c.name}" for name, group in groups if group for c in group.registered_commands]
    names = [*(command.name for command in app.registered_commands), *grouped]
    assert [name for name in names if f"## lamella {name}\n" not in shown] == []
    assert [name for name in shipped_configs() if f"## {name}\n" not in site_texts.generated("configurations")] == []
    rooms = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    as_tested, as_shown = ([rooms.intersection(names) for names in floors] for floors in (FLOORS, site_texts.FLOORS))
    assert as_shown == as_tested
    assert [room for room in rooms if f"**`{room}/`**" not in site_texts.generated("rooms")] == []


def as_rst(docstring: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    return importlib.import_module("docstrings").as_rst(docstring.splitlines())


@pytest.mark.parametrize(
    ("docstring", "wanted"),
    [
        ("Use `A @ B`, not A*.", ["Use ``A @ B``, not A\\*."]),
        ("Takes:\n- one\n- two\nand ends.", ["Takes:", "", "- one", "- two", "", "and ends."]),
        ("Formula:\n    a * b\nwith a.", ["Formula:", "", "::", "", "    a * b", "", "with a."]),
        ("Args:\n    rank: of a branch.", ["Args:", "    rank: of a branch."]),
    ],
)
def test_a_docstring_becomes_what_sphinx_reads(
    docstring: str, wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert as_rst(docstring, monkeypatch) == wanted


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_resolves(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", TEXTS[page.relative_to(ROOT).as_posix()])
    broken = []
    for link in links:
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


def test_every_path_in_prose_exists() -> None:
    named = set(re.findall(r"`((?:src|tests|tools|docs|examples)/[\w./-]*)`", EVERYTHING))
    assert named
    assert [path for path in sorted(named) if not re.search("NAME|_build", path) and not (ROOT / path).exists()] == []


def test_every_extra_named_is_one_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py")]
    named = re.findall(r"(?:lamella|\.)\[([a-z]+)\]'", "\n".join([EVERYTHING, *sources]))
    assert set(named) <= set(extras)
