"""The floor plan of the package, checked on the import statements themselves.

Every import counts: at the top of a file, inside a function, or for the type checker alone.
"""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))
site_texts = importlib.import_module("site_texts")
SOURCE = ROOT / "src" / "lamella"
FILES = sorted(SOURCE.rglob("*.py"))
FLOORS: tuple[tuple[str, ...], ...] = site_texts.FLOORS
"""The rooms from the lowest floor to the highest; an import goes to a lower floor or stays in its room."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
OUTSIDE_ROOMS = ("__init__.py", "__main__.py")
MATHEMATICS = ("adapters", "memory", "common/randomness.py")
WITH_DATA = ("memory/exemplars.py",)
"""Within the mathematics, what reads images."""
HEAVY = {
    "datasets",
    "jinja2",
    "matplotlib",
    "rich",
    "sklearn",
    "timm",
    "tokenizers",
    "torchvision",
    "transformers",
    "typer",
}


def name_of(path: Path) -> str:
    """ "lamella.data.images" of a file."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(module, line, whether it is imported with the file) of every import statement; relative ones are refused."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import in full"
            base = node.module or ""
            inner = [f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in MODULES]
            yield from ((name, node.lineno, id(node) in top) for name in inner)
            if len(inner) < len(node.names):
                yield base, node.lineno, id(node) in top


def own_imports(path: Path) -> list[tuple[str, int]]:
    return [(module, line) for module, line, _ in imports(path) if module.split(".")[0] == "lamella"]


def room(module: str) -> str:
    """The folder in the package's root that a module is in, "" for the package itself."""
    return [*module.split("."), ""][1]


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of modules that reach each other: strongly connected components of more than one (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(edges[node]):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(edges):
        if node not in order:
            visit(node)
    return found


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "d"}}) == [["b", "c"]]


def test_the_root_holds_rooms_and_nothing_else() -> None:
    there = {path.name for path in SOURCE.iterdir()} - {"__pycache__"}
    assert there == {*FLOOR, *OUTSIDE_ROOMS, "py.typed", "configs", "papers"}


@pytest.mark.parametrize("path", [f for f in FILES if room(name_of(f)) in FLOOR], ids=name_of)
def test_imports_go_down_or_stay_in_their_room(path: Path) -> None:
    here = room(name_of(path))
    wrong = [
        f"line {line}: {module}"
        for module, line in own_imports(path)
        if room(module) != here and not FLOOR.get(room(module), len(FLOORS)) < FLOOR[here]
    ]
    assert not wrong, f"{here} is on floor {FLOOR[here]}, but {path.name} imports {wrong}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    edges = {name: {m for m, _ in own_imports(path) if m in MODULES and m != name} for name, path in MODULES.items()}
    assert circles(edges) == []


def files_of(*places: str) -> list[Path]:
    return [f for f in FILES if any(f.relative_to(SOURCE).as_posix().startswith(place) for place in places)]


@pytest.mark.parametrize("path", [f for f in files_of(*MATHEMATICS) if f not in files_of(*WITH_DATA)], ids=name_of)
def test_the_mathematics_knows_only_torch_and_numpy(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "torch", "numpy", "lamella"}
    assert {module.split(".")[0] for module, _, _ in imports(path)} <= allowed


def homes_of_methods() -> set[str]:
    from lamella.methods import METHODS

    return {build.__module__ for build in METHODS.values()}


@pytest.mark.parametrize("path", [f for f in FILES if room(name_of(f)) != "methods"], ids=name_of)
def test_nothing_outside_the_methods_names_one(path: Path) -> None:
    allowed = ("lamella.methods", "lamella.methods.method", "lamella.methods.on_base", "lamella.methods.parts")
    named = [
        f"line {line}: {module}"
        for module, line in own_imports(path)
        if room(module) == "methods" and module not in allowed and not module.startswith("lamella.methods.shared")
    ]
    assert not named, f"{path.name} should work with any method, but imports {named}"


@pytest.mark.parametrize("home", sorted(homes_of_methods()))
def test_methods_import_neither_each_other_nor_parts(home: str) -> None:
    strange = [
        module
        for module, _ in own_imports(MODULES[home])
        if module.startswith("lamella.methods.parts") or module in homes_of_methods() - {home}
    ]
    assert not strange, f"{home} imports {strange}; only a configuration builds methods out of methods"


@pytest.mark.parametrize("path", files_of("methods/parts", "methods/shared"), ids=name_of)
def test_parts_and_what_methods_share_name_no_method(path: Path) -> None:
    assert not [module for module, _ in own_imports(path) if module in homes_of_methods()]


def contract_names() -> set[str]:
    """What a method may offer beyond what every module has."""
    from torch import nn

    from lamella.methods import Method

    return {name for name in dir(Method) if not name.startswith("_")} - set(dir(nn.Module))


@pytest.mark.parametrize("path", [f for f in FILES if f != SOURCE / "methods" / "method.py"], ids=name_of)
def test_no_method_is_probed_for_what_its_contract_says(path: Path) -> None:
    probes = [
        f"line {node.lineno}: {node.func.id}(.., '{node.args[1].value}')"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr")
        if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) and node.args[1].value in contract_names()
    ]
    assert not probes, "the class Method has a default for each of them"


@pytest.mark.parametrize("path", [f for f in FILES if room(name_of(f)) != "cli"], ids=name_of)
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    heavy = [m for m, _, top in imports(path) if top and m.split(".")[0] in HEAVY]
    assert not heavy, f"{path.name} imports {heavy} at its top; `import lamella` and the command line must stay quick"


def test_the_package_and_its_command_line_are_quick_to_import() -> None:
    code = "import sys, lamella; print([m for m in ('torch', 'numpy', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    code = "import sys, lamella.cli; print([m for m in ('torch', 'timm', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", [f for f in FILES if "experiments/bench" not in f.as_posix()], ids=name_of)
def test_only_the_command_line_uses_the_benchmarks(path: Path) -> None:
    used = [m for m, _ in own_imports(path) if m.startswith("lamella.experiments.bench")]
    assert not used or room(name_of(path)) == "cli"


@pytest.mark.parametrize("folder", sorted({f.parent for f in FILES} - {SOURCE}), ids=lambda f: f.name)
def test_every_room_says_in_one_line_what_it_holds(folder: Path) -> None:
    first = (ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or "").split("\n")[0]
    assert first.endswith(".")
    assert len(first) > 20


def test_public_names_are_there() -> None:
    import lamella

    for name in lamella.__all__:
        assert getattr(lamella, name) is not None
    assert set(lamella.__all__) <= set(dir(lamella))
    with pytest.raises(AttributeError, match="no attribute 'Lerner'"):
        _ = lamella.Lerner  # pyright: ignore[reportAttributeAccessIssue]
