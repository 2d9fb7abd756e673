"""Comparing with the authors' code: the same functions are equal, others are told, and nothing else of theirs runs."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import Run
from standin_checkout import FILES, write_checkout

from lamella.experiments.against.checkout import Checkout, commit_of
from lamella.experiments.against.known import KNOWN
from lamella.experiments.against.rows import Row
from lamella.experiments.against.run import Against, compare_with
from lamella.experiments.against.worker import compared
from lamella.methods import METHODS

ROOT = Path(__file__).parent.parent


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker changes in its process is as before after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(torch.Tensor, "cuda", torch.Tensor.cuda)
    monkeypatch.setattr(torch.Tensor, "to", torch.Tensor.to)
    monkeypatch.setattr(torch.nn.Module, "cuda", torch.nn.Module.cuda)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("method", KNOWN)
def test_the_same_functions_in_other_words_are_equal(method: str, tmp_path: Path) -> None:
    found = compared(method, write_checkout(tmp_path))
    assert "error" not in found, found
    rows = [Row(**row) for row in found["rows"]]
    assert rows
    assert [row for row in rows if not row.equal] == []
    assert not [file for file in tmp_path.rglob("*") if "pycache" in file.name]


WRONG: dict[str, tuple[str, str, str]] = {
    "inflora": (
        "while (whole - missing) / whole < share:",
        "while (whole - missing) / whole < share - 0.02:",
        "dimens",
    ),
    "olora": ("shared.abs().sum()", "shared.square().sum()", "penalty"),
    "sdlora": ("/ A.norm() / B.norm()", "/ A.norm()", "output of a layer"),
    "ranpac": ("range(-8, 9)", "range(-8, 2)", "lambdas that differ"),
    "icarl": ("x.mean(0) - (x + x[chosen].sum(0)) / k", "x.mean(0) - x", "exemplars that differ"),
    "wa": ("lengths[:-increment].mean() / lengths", "lengths.mean() / lengths", "aligned rows"),
    "lwf": ("(pred / T).log_softmax(1)", "pred.log_softmax(1)", "distillation loss"),
    "replay": ("(x + x[chosen].sum(0)) / k", "(x + x[chosen].sum(0)) / (k + 1)", "exemplars that differ"),
    "nearest-mean": ("/ (y == number).sum()", "/ (1 + (y == number).sum())", "class means"),
    "coda-prompt": ("x_querry[:, None] * attention", "x_querry[:, None] + attention", "features, with a query"),
    "slca": ("0.9 + 0.1 * (number // size + 1)", "0.8 + 0.2 * (number // size + 1)", "samples of the alignment"),
    "gainlora": ("torch.tanh(2 * cosine)", "torch.tanh(cosine)", "gates"),
    "splitlora": ("self.alpha * free", "2 * self.alpha * free", "protected directions"),
    "lora-sub": ("sign, count = (-1, task)", "sign, count = (1, task)", "subtracted network"),
    "ewc-lora": ("self.ewc_weight / 2", "self.ewc_weight", "penalty"),
    "e2lora": ("t * R // (t + 1)", "t * R // (t + 2)", "keep other ranks"),
    "loda": ("gamma * of_new / (of_old", "gamma * of_new / (2 * of_old", "weights after merging"),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("e2lora", "slca"))) for name in KNOWN]
)
def test_a_function_that_computes_something_else_is_told(method: str, tmp_path: Path) -> None:
    old, new, quantity = WRONG[method]
    assert sum(old in content for content in FILES.values()), "the stand-in has this text"
    found = compared(method, write_checkout(tmp_path, **{old: new}))
    differ = [row["quantity"] for row in found["rows"] if not Row(**row).equal]
    assert any(quantity in name for name in differ), found


def test_the_command_prints_the_table_and_its_status_says_whether_all_is_equal(
    lamella: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write_checkout(tmp_path / "good")
    code, out, err = lamella("reproduce", "--against", good, "lwf")
    assert code == 0
    assert f"runs functions of '{good}' (wanted: github.com/G-U-N/PyCIL) in a process of its own, with your" in err
    assert f"lwf against '{good}', commit 0123456; its names were read at f3509b8 of" in out
    assert "its gradient" in out
    assert "differs" not in out
    others = Against("olora", "there", "", (Row("penalty", "rows", 0.5, 1e-6), Row("gradients", "rows", 0.0, 1e-6)))
    monkeypatch.setattr("lamella.experiments.against.run.compare_with", lambda *_: others)
    code, out, _ = lamella("reproduce", "--against", good, "olora")
    assert (code, out.count("differs"), "no commit known" in out) == (1, 1, True)
    code, out, _ = lamella("reproduce", "--against", good, "olora", "--json")
    told = json.loads(out)
    assert (code, told["equal"], len(told["rows"])) == (1, False, 2)


def test_bad_calls_are_told_in_one_line(lamella: Run, tmp_path: Path) -> None:
    checkout = write_checkout(tmp_path / "some")
    for words, said in (
        ((checkout, "inflorra"), "nothing is compared for method 'inflorra'; did you mean"),
        ((checkout,), "--against CHECKOUT needs a METHOD, and nothing else"),
        ((checkout, "ranpac", "cell"), "--against CHECKOUT needs a METHOD, and nothing else"),
        ((tmp_path / "none", "ranpac"), "none'; give a checkout of github.com/RanPAC/RanPAC"),
    ):
        code, _, err = lamella("reproduce", "--against", *words)
        assert (code, said in err.splitlines()[-1]) == (2, True), err


@pytest.mark.usefixtures("alone")
def test_what_a_checkout_lacks_or_breaks_is_named(tmp_path: Path) -> None:
    checkout = write_checkout(
        tmp_path, **{"def optimise_ridge_parameter": "def choose", "lengths[:-increment]": "nobody"}
    )
    (checkout / "models" / "lwf.py").unlink()
    for method, said in (
        (
            "ranpac",
            f"'{checkout / 'RanPAC.py'}' has no Learner.optimise_ridge_parameter; give a checkout of github.com/R",
        ),
        ("lwf", f"'{checkout}' has no models/lwf.py; give a checkout of github.com/G-U-N/PyCIL, or of a commit whose"),
        ("wa", f"NameError in {checkout / 'utils' / 'inc_net.py'}, line "),
    ):
        found = compared(method, checkout)
        assert found.keys() == {"error"}
        assert said in found["error"]
        assert "\n" not in found["error"]


def test_a_comparison_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    checkout = write_checkout(tmp_path, **{"return -((soft": "import time; time.sleep(60); return -((soft"})
    with pytest.raises(ValueError, match=r"did not end within 0\.1 s, so nothing is compared"):
        compare_with(checkout, "lwf", seconds=0.1)


def test_only_what_is_named_runs(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "import nowhere\nLEVEL = 3\nmath = 4\nOTHER = open('x', 'w')\nclass A(Nobody):\n"
        "    def f(self, x: Strange) -> Stranger:\n        return LEVEL * x * math.pi\n"
    )
    assert Checkout(tmp_path, "there").take("a.py", "A.f")(None, 2) == pytest.approx(18.8496, abs=1e-3)
    assert not (tmp_path / "x").exists()
    assert commit_of(tmp_path) == ""
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (tmp_path / ".git" / "packed-refs").write_text(f"# pack\n{'ab' * 20} refs/heads/main\n")
    assert commit_of(tmp_path) == "ab" * 20


def test_a_difference_that_is_no_number_is_none_that_is_allowed() -> None:
    assert not Row("x", "y", float("nan"), 1.0).equal
    assert Row("x", "y", 0.0, 0.0).equal


def test_each_method_of_the_comparison_is_one_and_the_page_tells_of_it() -> None:
    assert KNOWN.keys() <= METHODS.keys()
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    for method, known in KNOWN.items():
        assert f"`{method}`" in page
        assert known.commit in page


def test_a_folder_that_is_not_there_is_one_line_and_nothing_is_said_to_run(lamella: Run, tmp_path: Path) -> None:
    code, out, err = lamella("reproduce", "--against", tmp_path / "none", "inflora")
    assert (code, out) == (2, "")
    assert err == f"lamella: no folder '{tmp_path / 'none'}'; give a checkout of github.com/liangyanshuo/InfLoRA\n"
