"""What lamella 0.1.0 left on disk goes on; tests/first_version/make.py made it with the code of that version.

The floats of another machine differ in their last digits, so logits are compared up to a thousandth.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from streams import build, learn_all, stream

from lamella import METHODS, Learner, load_source
from lamella.learner.store.state import learned_state
from lamella.methods.parts import PARTS

FILES = Path(__file__).parent / "first_version"
EXPECTED: dict[str, Any] = json.loads((FILES / "expected.json").read_text())
STATES: dict[str, dict[str, list[int]]] = json.loads((FILES / "states.json").read_text())


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FILES, tmp_path / "files"))


def logits(model: Path, archive: Path) -> torch.Tensor:
    learner, test = Learner.load(model), load_source(str(archive)).test
    rows: list[torch.Tensor] = []
    learner.method.eval()
    learner.fit().scan(test, lambda x, y: rows.append(learner.method.predict(x)))
    return torch.cat(rows)


def test_a_model_predicts_as_it_did(files: Path) -> None:
    expected = torch.tensor(EXPECTED["model"])
    torch.testing.assert_close(logits(files / "model", files / "first.npz"), expected, rtol=1e-3, atol=1e-3)


def test_an_interrupted_learning_goes_on_to_what_it_would_have_come_to(
    files: Path, lamella: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, _ = lamella("learn", files / "model", files / "second.npz")
    assert code == 0
    assert "resumes the interrupted learning of second" in out
    expected = torch.tensor(EXPECTED["learned on"])
    torch.testing.assert_close(logits(files / "model", files / "second.npz"), expected, rtol=1e-3, atol=1e-3)


def test_an_interrupted_run_goes_on_to_what_it_would_have_come_to(
    files: Path, lamella: Callable[..., tuple[int, str, str]]
) -> None:
    make = (FILES / "make.py").read_text()
    options = re.findall(r'"([a-z]+\.[a-z_]+=\w+)"', make.partition("RUN = [")[2].partition("]")[0])
    assert len(options) == 8
    code, out, err = lamella("run", "digits", *options, "--out", files / "run", "--resume")
    assert (code, err) == (0, "")
    assert "2/2 tasks" in out
    assert "1/2 tasks" not in out, "the first task was learned already"
    results = json.loads((files / "run" / "results.json").read_text())
    for name, value in EXPECTED["run"].items():
        assert results[name] == pytest.approx(value, abs=0.03) if isinstance(value, float) else len(value) == 2


@pytest.mark.parametrize("name", STATES)
def test_what_a_method_keeps_has_its_names_and_shapes(name: str) -> None:
    plain, *parts = name.split("+")
    method = build(plain, 0, **({"projections": 2000} if plain == "ranpac" else {}))
    for part in parts:
        method = PARTS[part](method, seed=0)
    learn_all(method, stream(4, 2))
    # The first version kept each changed weight whole, and never the factors of what was merged into it.
    whole = dict.fromkeys(key.partition(".merged.")[0] for key in learned_state(method))
    tensors = learned_state(method) | method.state_dict()
    shapes = {key: list(tensors[key].shape) for key in whole}
    assert shapes.keys() == STATES[name].keys()
    # How many directions a method keeps, and how long a packed image is, may differ by rounding and by versions of
    # libraries: so may the sizes that the sets of such numbers have.
    assert [len(shape) for shape in shapes.values()] == [len(STATES[name][key]) for key in shapes]
    fixed = [key for key in shapes if not re.search(r"\.vectors$|residual-|exemplars\.sources$", key)]
    assert {key: shapes[key] for key in fixed} == {key: STATES[name][key] for key in fixed}


def test_every_method_of_then_is_there() -> None:
    assert {name.partition("+")[0] for name in STATES} <= METHODS.keys()
