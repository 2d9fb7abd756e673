"""The command line: exit codes, one-line errors, and small real runs of every command."""

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from streams import colours_config

from lamella.cli import app, main


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Two tasks of two classes: dark, bright, red and green images, told apart without training."""
    return colours_config(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of class folders with five small images each."""
    from PIL import Image

    rng = np.random.default_rng(1)
    for name, colour in {"dark": 20, "bright": 230}.items():
        for i in range(5):
            path = tmp_path / "photos" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(colour + rng.normal(0, 8, (16, 16, 3)), 0, 255).astype(np.uint8)).save(path)
    return tmp_path / "photos"


def commands() -> list[str]:
    """Every command as it is typed, those of a group after the group's name."""
    own = [str(command.name) for command in app.registered_commands]
    groups = [(group.name, group.typer_instance) for group in app.registered_groups]
    return own + [f"{name} {command.name}" for name, group in groups if group for command in group.registered_commands]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['lamella', '--help']\n"
        "from lamella.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'timm', 'matplotlib', 'sklearn') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert all(f"  {name.split()[0]} " in done.stdout for name in commands())


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help_with_an_example(lamella: Run, name: str) -> None:
    code, out, _ = lamella(*name.split(), "--help")
    assert code == 0
    assert f"\n    lamella {name} " in out or f"\n    lamella {name}\n" in out


@pytest.mark.parametrize(("group", "shown"), [([], "lamella demo"), (["bench"], "lamella bench [OPTIONS] COMMAND")])
def test_without_arguments_it_shows_its_help(lamella: Run, group: list[str], shown: str) -> None:
    code, out, _ = lamella(*group)
    assert code == 0
    assert shown in out


def test_version(lamella: Run) -> None:
    from lamella import __version__

    assert lamella("--version")[:2] == (0, f"lamella {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "No such command 'rnu'"),
        (["run"], "Missing argument"),
        (["run", "digits", "--sedes", "3"], "No such option"),
        (["run", "digits", "--seeds", "0"], "'--seeds'"),
        (["run", "digts"], "did you mean 'digits'"),
        (["run", "digits", "method.rnak=3"], "did you mean 'rank'"),
        (["show", "digits", "method.name=inflroa"], "did you mean 'inflora'"),
        (["report", "nowhere"], "'nowhere'"),
        (["layers", "test_vti"], "did you mean"),
        (["list", "method"], "method"),
        (["predict", "nowhere", "nothing.png"], "no file or folder 'nothing.png'"),
        (["learn", "nowhere", "no-data/"], "no-data/"),
        (["show", "digits", "run.seed=-1"], "0 or more"),
        (["list", "foo"], "'foo' is not one of"),
        (["layers", "resnet18"], "can have branches"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    lamella: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = lamella(*arguments)
    assert code == 2
    assert err.startswith("lamella: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_name_is_told_as_it_is(lamella: Run) -> None:
    assert "'two  spaces'" in lamella("inspect", "two  spaces")[2]


def test_a_traceback_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["lamella", "show", "digts"])
    with pytest.raises(FileNotFoundError):
        main()


def replace_run(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(importlib.import_module("lamella.experiments.run"), "run", fail)


def test_a_full_disk_is_one_line(lamella: Run, monkeypatch: pytest.MonkeyPatch, config: Path, tmp_path: Path) -> None:
    replace_run(monkeypatch, OSError(28, "No space left on device", "some/file"))
    code, _, err = lamella("run", config, "--out", tmp_path / "out")
    assert (code, err) == (2, "lamella: some/file: No space left on device\n")


def test_an_interrupted_run_says_how_it_goes_on(
    lamella: Run, monkeypatch: pytest.MonkeyPatch, config: Path, tmp_path: Path
) -> None:
    replace_run(monkeypatch, KeyboardInterrupt())
    code, _, err = lamella("run", config, "--out", tmp_path / "out")
    assert code == 130
    assert err == f"lamella: interrupted; resume with: lamella run {config} --out {tmp_path / 'out'} --resume\n"


def test_list(lamella: Run) -> None:
    from lamella.learner.config.document import shipped_configs
    from lamella.methods import ALIASES, METHODS

    methods = [*METHODS, *ALIASES]
    code, out, _ = lamella("list", "--json")
    known = json.loads(out)
    assert code == 0
    assert [entry["name"] for entry in known["methods"]] == methods
    assert [entry["name"] for entry in known["configs"]] == list(shipped_configs())
    assert all(entry["description"] for entries in known.values() for entry in entries)
    code, out, _ = lamella("list", "methods")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == methods


def test_layers(lamella: Run) -> None:
    code, out, _ = lamella("layers", "test_vit", "--json")
    rows = json.loads(out)
    assert code == 0
    assert rows[0]["roles"] == ["query", "key", "value"]
    code, out, _ = lamella("layers", "test_vit")
    assert len(out.splitlines()) == len(rows) + 1
    assert "query: 0-63, key: 64-127, value: 128-191" in out


def test_show_is_what_a_run_records(lamella: Run, config: Path, tmp_path: Path) -> None:
    code, shown, _ = lamella("show", config, "run.seed=2")
    assert code == 0
    assert lamella("run", config, "run.seed=2", "--out", tmp_path / "out", "--quiet")[0] == 0
    assert (tmp_path / "out" / "config.toml").read_text() == shown


def test_each_seed_has_a_class_order_of_its_own(lamella: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    few = ["method.name=nearest-mean", "method.align=", "scenario.per_class=5"]
    code, shown, _ = lamella("run", "digits", *few, "--orders", 2, "--out", out, "--quiet")
    assert code == 0
    results = [json.loads((out / f"seed-{seed}" / "results.json").read_text()) for seed in range(2)]
    assert len({result["split_sha256"] for result in results}) == 2
    assert len([line for line in shown.splitlines() if line.startswith("│ nearest-mean")]) == 1, "one row for all"
    code, listed, _ = lamella("sweep", config, "--orders", 2, "--out", tmp_path / "sweep", "--dry-run")
    assert (code, len(listed.splitlines())) == (0, 2)


@pytest.mark.parametrize("more", [["--seeds", "2"], ["scenario.order=label"]])
def test_orders_beside_what_says_otherwise_are_refused(
    lamella: Run, config: Path, tmp_path: Path, more: list[str]
) -> None:
    for command in ("run", "sweep"):
        code, _, err = lamella(command, config, "--orders", 2, *more, "--out", tmp_path / "out")
        assert (code, err.count("\n")) == (2, 1)
        assert f"--orders 2 runs the seeds 0 to 1, each with a class order of its own; leave out {more[0][:2]}" in (
            err.replace("'", "")
        )
        assert not (tmp_path / "out").exists()


def test_run_seeds_resume_and_report(lamella: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    code, shown, _ = lamella("run", config, "--seeds", 2, "--out", out, "--quiet")
    assert code == 0
    assert "nearest-mean" in shown
    results = [json.loads((out / f"seed-{seed}" / "results.json").read_text()) for seed in (0, 1)]
    assert [result["seed"] for result in results] == [0, 1]
    assert all(result["final_accuracy"] >= 0.5 for result in results)  # four colours: chance is 0.25

    code, _, err = lamella("run", config, "--seeds", 2, "--out", out)
    assert code == 2
    assert "holds a finished run" in err
    before = (out / "seed-0" / "results.json").read_bytes()
    code, _, err = lamella("run", config, "--seeds", 3, "--out", out, "--quiet", "--resume")
    assert code == 0
    assert err.count("finished already") == 2
    assert (out / "seed-0" / "results.json").read_bytes() == before
    assert (out / "seed-2" / "results.json").exists()
    code, _, err = lamella("run", config, "run.selection=other", "--seeds", 2, "--out", out, "--resume", "--quiet")
    assert code == 2
    assert "another configuration" in err

    page = tmp_path / "report.html"
    code, table, _ = lamella("report", out, "--format", "csv", "--html", page)
    assert code == 0
    assert "nearest-mean" in table
    assert "<html" in page.read_text()


def test_run_tells_what_another_method_leaves_out(lamella: Run, config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text().replace('name = "nearest-mean"', 'name = "inflora"\nrank = 2'))
    code, _, err = lamella("run", config, "method.name=nearest-mean", "--out", tmp_path / "out", "--quiet")
    assert code == 0
    assert "method.rank" in err


def test_run_refuses_a_folder_of_something_else(lamella: Run, config: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    code, _, err = lamella("run", config, "--out", tmp_path / "mine")
    assert code == 2
    assert "is not empty" in err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_learn_twice_and_predict(lamella: Run, photos: Path, tmp_path: Path) -> None:
    from PIL import Image

    model = tmp_path / "model"
    code, out, err = lamella("learn", model, photos, "--method", "nearest-mean", "--backbone", "test_vit_random")
    assert code == 2, "an unknown backbone creates nothing"
    assert not model.exists()
    code, out, err = lamella("learn", model, photos, "--method", "nearest-mean")
    assert code == 0, err
    assert "learned 2 classes" in out
    more = tmp_path / "more" / "red"
    more.mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", (16, 16), (200 + i, 10, 10)).save(more / f"{i}.png")
    code, out, err = lamella("learn", model, more.parent)
    assert code == 0, err
    code, out, _ = lamella("predict", model, photos / "dark" / "0.png", more / "0.png", "--top", 2, "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["classes"][0]["name"] for row in rows] == ["dark", "red"]
    assert [row["task"] for row in rows] == ["photos", "more"]
    assert all(len(row["classes"]) == 2 for row in rows)
    assert all(0 <= row["familiarity"] <= 1 for row in rows)
    code, out, _ = lamella("predict", model, photos, "--csv", "--unknown")
    assert code == 0
    assert out.splitlines()[0] == "path,class,confidence,task,familiarity,unknown"
    assert [line.split(",")[1] for line in out.splitlines()[1:]] == ["bright"] * 5 + ["dark"] * 5
    code, out, _ = lamella("predict", model, more, "--top", 1)
    assert (code, out.count(": red "), out.count("(task: more)")) == (0, 5, 5)
    for wrong, text in ((("--json", "--csv"), "choose one"), ((tmp_path / "gone",), "no file or folder")):
        code, _, err = lamella("predict", model, more, *wrong)
        assert (code, err.count("\n")) == (2, 1)
        assert text in err
    code, _, err = lamella("learn", model, photos, "--method", "seq-lora")
    assert code == 2
    assert "its backbone, method and seed are fixed, and so are their settings" in err


def test_predict_takes_and_gives_file_names_of_any_bytes(
    lamella: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, odd = tmp_path / "model", tmp_path / os.fsdecode(b"caf\xe9\tau.png")
    assert lamella("learn", model, photos, "--method", "nearest-mean")[0] == 0
    try:
        shutil.copy(photos / "dark" / "0.png", odd)
    except OSError:
        pytest.skip("this file system has only UTF-8 names")

    def printed(*options: str) -> bytes:
        page = io.TextIOWrapper(io.BytesIO(), "utf-8")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(odd) + b"\n"), "utf-8"))
        monkeypatch.setattr(sys, "stdout", page)
        assert lamella("predict", model, "-", *options)[0] == 0
        page.flush()
        return page.buffer.getvalue()  # type: ignore[attr-defined]

    assert printed().startswith(f"{tmp_path}/caf\\udce9\\tau.png: dark ".encode())
    assert printed("--csv").splitlines()[1].startswith(os.fsencode(odd) + b",dark,")
    assert json.loads(printed("--json"))[0]["path"] == str(odd)


def test_versions_of_a_model_are_listed_and_taken_back(lamella: Run, photos: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    for i, folder in enumerate(sorted(p for p in photos.rglob("*") if p.is_dir() and any(p.glob("*.*")))):
        folder.rename(tmp_path / ("first" if i % 2 else "second") / f"{folder.name}-{i}")
    for data in ("first", "second"):
        assert lamella("learn", str(model), str(tmp_path / data))[0] == 0
    code, out, _ = lamella("history", str(model), "--json")
    versions = json.loads(out)
    assert code == 0
    assert [(v["number"], v["current"], v["what"], len(v["tasks"])) for v in versions] == [
        (1, False, "learned first", 1),
        (2, True, "learned second", 2),
    ]
    assert "learned second" in lamella("history", str(model))[1]
    code, out, _ = lamella("rollback", str(model))
    assert (code, out) == (0, f"{model} is version 1 again, with 1 task: first\n")
    code, _, err = lamella("rollback", str(model))
    assert code == 2
    assert "there is none before it; name one with --to" in err
    code, _, err = lamella("rollback", str(model), "--to", "9")
    assert (code, err.count("\n")) == (2, 1)
    assert "has no version 9; it has 1, 2" in err
    assert lamella("rollback", str(model), "--to", "2")[0] == 0
    for name, text in (("first", "second was learned on top of it"), ("third", "has learned no task")):
        code, _, err = lamella("forget", str(model), name)
        assert (code, err.count("\n")) == (2, 1)
        assert text in err
    code, out, _ = lamella("forget", str(model), "second", "--purge")
    assert (code, out) == (0, f"{model} has forgotten second: it is as it was in version 1; versions removed: 2\n")
    left = json.loads(lamella("history", str(model), "--json")[1])
    assert [(v["number"], v["tasks"]) for v in left] == [(1, ["first"]), (3, ["first"])]


def test_an_interrupted_learning_goes_on_to_the_same_model(
    lamella: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from lamella.learner.store.versions import load_model
    from lamella.training.calls import TrainingCall
    from lamella.training.checkpoints import Checkpoints

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert lamella("learn", whole, photos, "--method", "seq-lora")[0] == 0
    advance, calls = TrainingCall.advance, 0

    def stop_at_the_fifth(self: Any, *values: Any) -> None:
        nonlocal calls
        advance(self, *values)
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingCall, "advance", stop_at_the_fifth)
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    code, _, err = lamella("learn", cut, photos, "--method", "seq-lora")
    assert code == 130
    assert "the same command resumes" in err
    assert not (cut / "lamella.json").exists()
    noted = cut / "learning" / "what.json"
    what = json.loads(noted.read_text())
    assert what["config"]["fit"].pop("compile") is False
    noted.write_text(json.dumps(what))  # as a version without that option would have left it
    code, out, _ = lamella("learn", cut, photos, "--method", "seq-lora")
    assert code == 0
    assert "resumes the interrupted learning of photos" in out
    assert calls > 5
    first, second = load_model(whole)[0], load_model(cut)[0]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not (cut / "learning").exists()


def test_what_was_stored_before_a_kill_is_not_learned_twice_and_other_images_start_anew(
    lamella: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamella.training.checkpoints import Checkpoints

    model = tmp_path / "model"
    with monkeypatch.context() as killed:
        killed.setattr(Checkpoints, "clear", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        assert lamella("learn", model, photos, "--method", "nearest-mean")[0] == 130
    code, out, _ = lamella("learn", model, photos)
    assert code == 0
    assert "stored already" in out
    assert len(json.loads(lamella("history", model, "--json")[1])) == 1
    with monkeypatch.context() as killed:
        killed.setattr("lamella.learner.prepared.save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert lamella("learn", model, photos, "--again")[0] == 130
    (photos / "dark" / "0.png").rename(photos / "dark" / "other.png")
    code, out, _ = lamella("learn", model, photos, "--again")
    assert code == 0
    assert "discards the interrupted learning of photos 2" in out
    assert len(json.loads(lamella("history", model, "--json")[1])) == 2
