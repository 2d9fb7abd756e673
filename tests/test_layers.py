"""Imports only go down: the layers of docs/architecture.md, checked on the import statements themselves."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lamella"
FILES = sorted(SOURCE.rglob("*.py"))
HEAVY = {"datasets", "jinja2", "matplotlib", "rich", "sklearn", "timm", "torchvision", "typer"}


def documented_layers() -> dict[str, int]:
    """Top-level module or package -> its layer, from the listing in docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text().split("## Layers")[1].split("```")[1]
    layers: dict[str, int] = {}
    for number, body in re.findall(r"^layer (\d)(.*?)(?=^layer|\Z)", text, re.MULTILINE | re.DOTALL):
        for name in re.findall(r"\b(\w+)(?:\.py\b|/)", body):
            layers.setdefault(name, int(number))
    return layers


LAYERS = documented_layers()


def imports(path: Path) -> list[tuple[str, int, bool]]:
    """(module, line, whether it is imported with the file) of every import statement; relative ones are refused."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    found: list[tuple[str, int, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import in full"
            base = node.module or ""
            names = [base] if base != "lamella" else [f"lamella.{alias.name}" for alias in node.names]
            # `from lamella.backbones import bundled` depends on the module as well as on the package
            names += [f"{base}.{a.name}" for a in node.names if base != "lamella" and is_module(f"{base}.{a.name}")]
            found += [(name, node.lineno, id(node) in top) for name in names]
    return found


def is_module(name: str) -> bool:
    place = SOURCE.parent.joinpath(*name.split("."))
    return name.startswith("lamella.") and (place.with_suffix(".py").exists() or (place / "__init__.py").exists())


def room(path: Path) -> str:
    """The top-level module or package that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def own(path: Path) -> list[tuple[str, int]]:
    return [(m, line) for m, line, _ in imports(path) if m.startswith("lamella.") and m != "lamella.__version__"]


def test_every_module_has_a_layer() -> None:
    missing = {room(path) for path in FILES} - set(LAYERS) - {"__init__"}
    assert not missing, f"put {sorted(missing)} into a layer of docs/architecture.md"


def test_the_listing_names_only_what_is_there() -> None:
    there = {path.stem for path in SOURCE.rglob("*")}
    assert LAYERS.keys() <= there


@pytest.mark.parametrize("path", [f for f in FILES if room(f) in LAYERS], ids=lambda f: str(f.relative_to(SOURCE)))
def test_imports_go_down(path: Path) -> None:
    layer = LAYERS[room(path)]
    upward = [f"line {line}: {m}" for m, line in own(path) if LAYERS.get(m.split(".")[1], layer) > layer]
    assert not upward, f"{path.name} (layer {layer}) imports from above: {upward}"


@pytest.mark.parametrize("path", [f for f in FILES if LAYERS.get(room(f)) == 0], ids=lambda f: f.name)
def test_the_mathematics_knows_only_torch_and_numpy(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "torch", "numpy", "lamella"}
    assert {module.split(".")[0] for module, _, top in imports(path) if top} <= allowed


def test_methods_neither_compose_nor_import_each_other() -> None:
    from lamella.methods import METHODS

    homes = {build.__module__ for build in METHODS.values()}
    assert homes, "no method found"
    for home in homes:
        path = SOURCE.parent / (home.replace(".", "/") + ".py")
        strange = [m for m, _ in own(path) if m.startswith("lamella.compose") or (m in homes and m != home)]
        assert not strange, f"{path.name} imports {strange}; only config builds methods out of methods"


def test_parts_name_no_method() -> None:
    from lamella.methods import METHODS

    homes = {build.__module__ for build in METHODS.values()}
    for path in (SOURCE / "compose").glob("*.py"):
        assert not [m for m, _ in own(path) if m in homes], f"{path.name} should work with any method"


@pytest.mark.parametrize("path", [f for f in FILES if room(f) != "cli"], ids=lambda f: str(f.relative_to(SOURCE)))
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    heavy = [m for m, _, top in imports(path) if top and m.split(".")[0] in HEAVY]
    assert not heavy, f"{path.name} imports {heavy} at its top; `import lamella` and the command line must stay quick"


def test_import_of_the_package_is_cheap() -> None:
    code = "import sys, lamella; print([m for m in ('torch', 'numpy', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_there() -> None:
    import lamella

    for name in lamella.__all__:
        assert getattr(lamella, name) is not None
    assert set(lamella.__all__) <= set(dir(lamella))
    with pytest.raises(AttributeError, match="no attribute 'Lerner'"):
        _ = lamella.Lerner  # pyright: ignore[reportAttributeAccessIssue]
