"""Methods of one's own: a class of a file, or of an installed package; where they are named, and what never runs."""

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from PIL import Image
from streams import stream

from lamella import Learner, Method, load_config
from lamella.experiments.bench.streams import short_method
from lamella.experiments.run import run
from lamella.learner.config import own_files, registry
from lamella.learner.config.document import complete, method_name, readout_names, to_toml
from lamella.learner.config.wanted import Wanted
from lamella.learner.store.versions import load_manifest, load_model
from lamella.methods.nearest_mean import NearestMean
from lamella.testing import check_method
from lamella.testing.trial import Killed
from lamella.training.checkpoints import Checkpoints

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_method.py"
EMA = f"{EXAMPLE}:EMALoRA"
TINY = {"name": "test_vit", "weights": "random", "size": 32}
TASKS = stream(4, 2, per_class=4)
OWN = '''"""Class means of frozen features."""
from pathlib import Path

from lamella import Backbone, Fit, Method, Task
from lamella.memory.gaussians import ClassGaussians

Path(__file__).with_suffix(".ran").touch()


class Means(Method):
    """Nearest class mean.

    Args:
        backbone: it stays as it is.
        seed: no use.
        sharpness: of the logits.
    """

    def __init__(self, backbone: Backbone, *, seed: int = 0, sharpness: float = 1.0) -> None:
        super().__init__()
        self.backbone, self.seed, self.sharpness = backbone, seed, sharpness
        self.statistics = ClassGaussians(backbone.width)

    @property
    def classes(self):
        return self.statistics.classes

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        self.statistics.add(fit.features(task.train, self.features), task.train.labels, task.classes)

    def classify(self, features):
        return self.sharpness * (features @ self.statistics.means.float().T)


class Half(Method):
    """Lacks learn."""


class Loose:
    """No method."""


NUMBER = 3
'''


@pytest.fixture(autouse=True)
def a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file was named yet."""
    forget_what_was_named()
    monkeypatch.delenv("LAMELLA_METHODS", raising=False)


def forget_what_was_named() -> None:
    own_files._run.clear()
    own_files._moved.clear()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a method, in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def ran(file: Path) -> bool:
    """Whether a file was run since it was last asked."""
    mark = file.with_suffix(".ran")
    there = mark.exists()
    mark.unlink(missing_ok=True)
    return there


def learned(name: str, tasks: int = 1) -> Learner:
    learner = Learner.create(backbone=TINY, method=name)
    for i in range(tasks):
        learner.learn(TASKS[i])
    return learner


def logits(learner: Learner) -> torch.Tensor:
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return learner.model.logits(x)


@pytest.fixture
def stored(own: Path) -> Path:
    """A model with a method of `own`, whose process has ended."""
    learned("own.py:Means").save("model")
    forget_what_was_named()
    ran(own)
    return own.parent / "model"


# where a file may be named --------------------------------------------------------------------------------------------


def test_a_file_is_found_from_the_current_folder_and_kept_with_its_whole_path(own: Path) -> None:
    config = load_config("digits", ["method.name=own.py:Means", "method.sharpness=2"])
    assert config["method"] == {"name": f"{own}:Means", "sharpness": 2.0}
    assert Learner.create(backbone=TINY, method="./own.py:Means").config["method"]["name"] == f"{own}:Means"
    table = Learner.create(backbone=TINY, method={"name": "own.py:Means", "sharpness": 3.0}).config["method"]
    assert table == {"name": f"{own}:Means", "sharpness": 3.0}
    assert Wanted(method="own.py:Means", settings=("method.sharpness=2",)).config()["method"]["sharpness"] == 2.0
    assert short_method("own.py:Means+align", batch=4) == {"name": f"{own}:Means", "align": {}}


def test_a_toml_file_names_it_from_its_own_folder(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other.py").write_text(OWN)
    text = '[scenario]\nsource = "digits"\ntasks = 5\n[backbone]\nname = "test_vit"\n[method]\nname = "NAME"\n'
    toml = tmp_path / "my.toml"
    toml.write_text(text.replace("NAME", "own.py:Means+align"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config(toml)["method"]["name"] == f"{own}:Means"
    assert method_name(load_config(toml)) == "own.py:Means+align"
    changed = load_config(toml, ["method.name=other.py:Means"])
    assert changed["method"]["name"] == f"{tmp_path}/elsewhere/other.py:Means"
    assert changed["run"]["overrides"] == ["method.name=other.py:Means"]
    toml.write_text(to_toml(load_config(toml)))
    assert load_config(toml)["method"]["name"] == f"{own}:Means", "as it is written, with the whole path"


def test_parts_and_bases_are_spelled_as_with_any_name(own: Path) -> None:
    config = complete({"backbone": TINY, "method": {"name": named(own, "Means") + "+calibrate+align"}})
    assert readout_names(config) == ["own.py:Means+calibrate+align", "own.py:Means+calibrate", "own.py:Means"]
    on_top = load_config("mnist-5-scratch", ["method.name=dlc(own.py:Means)+align"])
    assert on_top["method"]["base"]["name"] == f"{own}:Means"
    assert method_name(on_top) == "dlc(own.py:Means)+align"
    assert on_top == load_config("mnist-5-scratch", ["method.name=dlc+align", "method.base.name=own.py:Means"]) | {
        "run": on_top["run"]
    }


def named(file: Path, method: str) -> str:
    return own_files.name_file(f"{file}:{method}", Path.cwd())


def test_folders_may_have_signs_that_names_of_methods_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a+b (c)"
    folder.mkdir()
    (folder / "own.py").write_text(OWN)
    config = load_config("digits", [f"method.name={folder}/own.py:Means+align"])
    assert (config["method"]["name"], method_name(config)) == (f"{folder}/own.py:Means", "own.py:Means+align")


def test_a_file_that_was_changed_is_run_anew_when_it_is_named_again(own: Path) -> None:
    assert load_config("digits", ["method.name=own.py:Means"])["method"]["sharpness"] == 1.0
    assert ran(own)
    load_config("digits", ["method.name=own.py:Means"])
    assert not ran(own), "the same content is run once"
    own.write_text(OWN.replace("sharpness: float = 1.0", "sharpness: float = 7.0"))
    assert load_config("digits", ["method.name=own.py:Means"])["method"]["sharpness"] == 7.0


# mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.py:Means", OWN, "there is no file '.*none.py' for the method 'none.py:Means'; relative paths start at"),
        ("own.py:Maens", OWN, "has no class 'Maens'; did you mean 'Means'"),
        ("own.py:Ridge", OWN, "has no class 'Ridge'; its classes are Means, Half, Loose"),
        ("own.py:Loose", OWN, "'Loose' in '.*own.py' is not a subclass of lamella.Method; derive it"),
        ("own.py:NUMBER", OWN, "'NUMBER' in '.*own.py' is not a subclass of lamella.Method"),
        ("own.py:Half", OWN, "'Half' in '.*own.py' does not write learn, which a method must"),
        ("own.py:Means", "import nothing_such", r"cannot be run: ModuleNotFoundError: No module named .* \(line 1\)"),
        ("own.py:Means", "x = 1\ny = x.z\n", r"cannot be run: AttributeError: .* \(line 2\)"),
        ("own.py:Means", "x = 1\nclass Means\n", r"cannot be run: SyntaxError: .* \(line 2\)"),
        ("own.py:Means", "raise SystemExit(3)", r"cannot be run: SystemExit: 3 \(line 1\)"),
        ("own.py:Means+algin", OWN, "has the unknown part 'algin'; did you mean 'align'"),
        ("own.py:Means(wa)", OWN, r"learns on no other method; leave \(wa\) out"),
    ],
)
def test_mistakes_are_one_clear_line(name: str, text: str, message: str, own: Path, lamella: Run) -> None:
    own.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_config("digits", [f"method.name={name}"])
    code, _, err = lamella("show", "digits", f"method.name={name}")
    assert (code, err.count("\n")) == (2, 1)


def test_a_wrong_hyper_parameter_is_told_as_with_any_method(own: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown key 'method.sharpnes'; did you mean 'sharpness'"):
        load_config("digits", ["method.name=own.py:Means", "method.sharpnes=2"])
    with pytest.raises(ValueError, match=r"method.sharpness = 'much' should be a number"):
        load_config("digits", ["method.name=own.py:Means", "method.sharpness=much"])


# packages -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(own: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives entry points, as installed packages would."""

    def give(**entries: str | list[str]) -> None:
        found = [
            EntryPoint(name, value, registry.GROUP)
            for name, values in entries.items()
            for value in ([values] if isinstance(values, str) else values)
        ]
        monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "lamella.methods" else [])
        registry._packaged.cache_clear()

    monkeypatch.syspath_prepend(str(own.parent))
    yield give
    monkeypatch.undo()
    registry._packaged.cache_clear()


def test_a_package_gives_methods_by_entry_points(package: Any, tmp_path: Path, lamella: Run) -> None:
    package(means="own:Means")
    learner = learned("means+align")
    learner.save(tmp_path / "model")
    forget_what_was_named()
    assert torch.equal(logits(Learner.load(tmp_path / "model")), logits(learner)), "it is installed, so it may run"
    assert load_config("digits", ["method.name=means"])["method"] == {"name": "means", "sharpness": 1.0}
    _, out, _ = lamella("list", "methods")
    assert ["means", "Nearest", "class", "mean."] in [line.split() for line in out.splitlines()]
    with pytest.raises(ValueError, match="unknown method 'maens'; did you mean 'means'"):
        load_config("digits", ["method.name=maens"])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"inflora": "own:Means"}, "the method name 'inflora' is given by Lamella and by the package 'own'"),
        ({"inflora": ["own:Means", "own:Half"]}, "by the package 'own' and by the package 'own'"),
        ({"mine": "own:Loose"}, "is not a subclass of lamella.Method"),
        ({"mine": "nothing_such:X"}, "'mine' of the package 'nothing_such' .* cannot be imported: ModuleNotFoundError"),
        ({"mine": "own:Nothing"}, r"'mine' of the package 'own' \(own:Nothing\) cannot be imported: AttributeError"),
    ],
)
def test_mistakes_of_a_package_are_one_clear_line(
    package: Any, entries: Mapping[str, Any], message: str, lamella: Run
) -> None:
    package(**entries)
    name = next(iter(entries))
    with pytest.raises(ValueError, match=message) as caught:
        load_config("digits", [f"method.name={name}"])
    assert "\n" not in str(caught.value)
    code, out, _ = lamella("list", "methods")
    assert code == 0
    assert f"  {name}" in out
    assert "Cannot be used: " in out


# what runs when a model is loaded -------------------------------------------------------------------------------------


def test_a_model_does_not_run_a_file_that_nobody_named(stored: Path, own: Path, lamella: Run) -> None:
    with pytest.raises(ValueError, match=r"loading this runs the method 'Means' of the file '.*own.py'; if you trust"):
        Learner.load(stored)
    Image.new("RGB", (32, 32)).save("image.png")
    for words in (["predict", stored, "image.png"], ["inspect", stored], ["learn", stored, "photos"]):
        code, _, err = lamella(*words)
        assert (code, err.count("\n")) == (2, 1)
    assert not ran(own)


@pytest.mark.parametrize("name", ["inside.py:Means", "./inside.py:Means", "MODEL/inside.py:Means"])
def test_a_file_that_comes_with_a_model_is_not_run(stored: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = stored / "inside.py"
    inside.write_text(OWN)
    forge(stored, name.replace("MODEL", str(stored)), inside)
    monkeypatch.chdir(stored)
    with pytest.raises(ValueError, match="'Means'"):
        Learner.load(stored)
    assert not ran(inside)


def forge(model: Path, name: str, file: Path) -> None:
    """Let the current version say that its method is another one, with the right checksums everywhere."""
    from hashlib import sha256

    version = model / "versions" / "1.json"
    manifest = json.loads(version.read_text())
    manifest["config"]["method"]["name"] = name
    manifest["method_files"] = {name: sha256(file.read_bytes()).hexdigest()}
    version.write_text(json.dumps(manifest))
    pointer = json.loads((model / "lamella.json").read_text())
    pointer["versions"]["1"] = sha256(version.read_bytes()).hexdigest()
    (model / "lamella.json").write_text(json.dumps(pointer))


def test_it_loads_where_the_file_is_named_in_python(stored: Path, own: Path) -> None:
    learner = Learner.load(stored, method="own.py:Means")
    assert ran(own)
    assert torch.equal(logits(learner), logits(learned("own.py:Means")))
    assert logits(Learner.load(stored)).shape == (3, 2), "it was named in this process"
    with pytest.raises(ValueError, match=r"another model than was asked for: method.name is 'own.py:Means', not"):
        Learner.load(stored, method="nearest-mean")


def test_it_loads_where_the_environment_lists_the_file(
    stored: Path, own: Path, monkeypatch: pytest.MonkeyPatch, lamella: Run
) -> None:
    monkeypatch.setenv("LAMELLA_METHODS", f"nothing.py:{own.name}")
    Image.new("RGB", (32, 32)).save("image.png")
    code, out, err = lamella("predict", stored, "image.png")
    assert (code, err.count("\n")) == (0, 1)
    assert "no images held back" in err, "and nothing else, since the file is found"
    assert "image.png" in out
    assert ran(own)


def test_a_file_that_moved_is_known_by_its_content(stored: Path, own: Path, tmp_path: Path) -> None:
    moved = tmp_path / "new" / "renamed.py"
    moved.parent.mkdir()
    own.rename(moved)
    with pytest.raises(ValueError, match=r"is in the file '.*own.py', which is not there, and no file"):
        Learner.load(stored)
    learner = Learner.load(stored, method="new/renamed.py:Means")
    assert learner.config["method"]["name"] == f"{own}:Means", "the model stays what it is"
    learner.learn(TASKS[1])
    learner.save(stored)
    assert load_manifest(stored)["method_files"].keys() == {f"{own}:Means"}
    own.write_text(OWN.replace("sharpness: float = 1.0", "sharpness: float = 7.0"))
    assert load_config("digits", ["method.name=own.py:Means"])["method"]["sharpness"] == 7.0, "what is there counts"
    own.unlink()
    forget_what_was_named()
    moved.write_text(OWN + "\n# another content\n")
    with pytest.raises(ValueError, match="which is not there, and no file"):
        Learner.load(stored, method="new/renamed.py:Means")


def test_a_file_that_changed_is_used_with_a_warning(stored: Path, own: Path, lamella: Run) -> None:
    own.write_text(OWN.replace("self.sharpness * (", "2 * self.sharpness * ("))
    with pytest.warns(registry.MethodFileChanged, match="own.py' has changed since this model was stored"):
        learner = Learner.load(stored, method="own.py:Means")
    learner.save(stored)
    Learner.load(stored)  # no warning: it was stored with the file as it is now


def test_another_file_of_the_same_name_is_another_method(stored: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy("own.py", "other/own.py")
    Path("other/own.py").write_text(OWN + "# other\n")
    Learner.load(stored, method="own.py:Means")
    with pytest.raises(ValueError, match=r"another model than was asked for: method.name is"):
        Learner.load(stored, method="other/own.py:Means")


@pytest.fixture
def photos(own: Path) -> Path:
    """Two folders of two classes."""
    for folder, levels in {"first": (20, 230), "second": (90, 150)}.items():
        for level in levels:
            (own.parent / folder / str(level)).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (16, 16), (level, level, 20 * i)).save(own.parent / folder / str(level) / f"{i}.png")
    return own.parent


TINY_WORDS = ("--backbone", "test_vit", "backbone.weights=random", "backbone.size=32")


def test_lamella_learn_makes_a_model_and_goes_on_with_it(photos: Path, lamella: Run) -> None:
    assert lamella("learn", "my", "first", "--method", "own.py:Means", *TINY_WORDS)[0] == 0
    forget_what_was_named()
    code, _, err = lamella("learn", "my", "second")
    assert code == 2
    assert "--method" in err
    assert "LAMELLA_METHODS" in err
    code, out, _ = lamella("learn", "my", "second", "--method", "own.py:Means")
    assert code == 0
    assert "own.py:Means on test_vit learns it as task 2" in out
    assert len(Learner.load("my").tasks) == 2


def test_an_interrupted_learning_is_given_up_when_the_file_has_changed(
    photos: Path, own: Path, lamella: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--method", "own.py:EMALoRA", "fit.checkpoint_seconds=0", "method.batch_size=2", *TINY_WORDS)
    shutil.copy(EXAMPLE, own)
    with ending_after(3, monkeypatch):
        lamella("learn", "my", "first", *words)
    own.write_text(EXAMPLE.read_text() + "\n# changed\n")
    forget_what_was_named()
    code, out, err = lamella("learn", "my", "first", *words)
    assert code == 0
    assert "the file of its method has changed" in out + err


@contextmanager
def ending_after(saves: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends the stand-in of a process once so many checkpoints are written."""
    save, written = Checkpoints.save, 0

    def counted(self: Checkpoints, *given: Any) -> None:
        nonlocal written
        save(self, *given)
        written += 1
        if written == saves:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):  # noqa: PT012
        patch.setattr(Checkpoints, "save", counted)
        yield


# the example ----------------------------------------------------------------------------------------------------------

SHORT = [
    "backbone.name=test_vit", "backbone.weights=random", "backbone.size=32", "scenario.per_class=6", "scenario.tasks=2",
    "scenario.classes=[0, 1, 2, 3]", "method.epochs=2", "method.batch_size=8", "fit.checkpoint_seconds=0",
]  # fmt: skip


def test_the_example_runs_from_the_command_line(tmp_path: Path, lamella: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLE.parents[1])
    words = ["method.name=examples/own_method.py:EMALoRA+align", *SHORT]
    code, out, _ = lamella("run", "digits", *words, "--out", tmp_path / "run", "--quiet")
    assert code == 0
    assert "own_method.py:EMALoRA+align" in out
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (result["method"], result["config"]["method"]["name"]) == ("own_method.py:EMALoRA+align", EMA)
    base = json.loads((tmp_path / "run" / "results-own_method.py-EMALoRA.json").read_text())
    assert (base["method"], base["base_of"]) == ("own_method.py:EMALoRA", "own_method.py:EMALoRA+align")
    assert lamella("report", tmp_path / "run")[0] == 0


def test_the_example_passes_the_checks() -> None:
    check_method(own_files.class_of(own_files.name_file(EMA, Path.cwd())))  # type: ignore[arg-type]


def test_the_average_answers_and_lags_behind() -> None:
    learner = Learner.create(backbone=TINY, method={"name": EMA, "epochs": 1, "batch_size": 4})
    learner.learn(TASKS[0])
    factors: Any = learner.method
    fast, slow = factors._factors("fast"), factors._factors("slow")
    still: Any = Learner.create(backbone=TINY, method=EMA).method
    trained = [factors[1::2] for factors in (fast, slow, still._factors("slow"))]  # B, which the first step moves
    for now, lagging, before in zip(*trained, strict=True):
        assert (lagging - before).norm() < 0.5 * (now - before).norm()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        first = learner.method.eval().predict(x)
        for factor in fast:
            factor.zero_()
        assert torch.equal(learner.method.predict(x), first), "the trained adapter has no say"
        slow[1].add_(1.0)
        assert not torch.equal(learner.method.predict(x), first)


def test_the_example_survives_a_kill_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def config() -> dict[str, Any]:
        forget_what_was_named()  # each is a process of its own
        return load_config("digits", [f"method.name={EMA}", *SHORT])

    whole = run(config(), tmp_path / "whole", quiet=True)
    for kill in (2, 4):
        with ending_after(kill, monkeypatch):
            run(config(), tmp_path / "killed", resume=True, quiet=True)
    resumed = run(config(), tmp_path / "killed", resume=True, quiet=True)
    bits = [load_manifest(out / "model")["state"]["sha256"] for out in (whole, resumed)]
    assert bits[0] == bits[1]
    results = [json.loads((out / "results.json").read_text()) for out in (whole, resumed)]
    assert results[0]["matrix"] == results[1]["matrix"]


def test_the_example_learns_on_after_loading(tmp_path: Path) -> None:
    learner = learned(EMA)
    learner.save(tmp_path / "model")
    forget_what_was_named()
    again = Learner.load(tmp_path / "model", method=EMA)
    assert torch.equal(logits(again), logits(learner))
    for each in (learner, again):
        each.learn(TASKS[1])
    assert torch.equal(logits(again), logits(learner))
    again.save(tmp_path / "model")
    state = load_model(tmp_path / "model")[0]
    assert any(".slow." in name for name in state)


def test_a_run_does_not_go_on_with_a_changed_file(own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copy(EXAMPLE, own)
    settings = ["method.name=own.py:EMALoRA", *SHORT]
    with ending_after(2, monkeypatch):
        run(load_config("digits", settings), tmp_path / "run", quiet=True)
    own.write_text(EXAMPLE.read_text() + "\n# changed\n")
    with pytest.raises(ValueError, match=r"the file of the method .*own.py:EMALoRA has changed since .*run' was start"):
        run(load_config("digits", settings), tmp_path / "run", resume=True, quiet=True)
    shutil.copy(EXAMPLE, own)
    run(load_config("digits", settings), tmp_path / "run", resume=True, quiet=True)


def test_a_configuration_that_the_caller_hands_over_names_its_file(own: Path, tmp_path: Path) -> None:
    config = copy.deepcopy(load_config("digits", ["method.name=own.py:Means", *SHORT[:6]]))
    forget_what_was_named()  # as in a process that was given the configuration
    run(config, tmp_path / "run", quiet=True)
    forget_what_was_named()
    assert isinstance(Learner({**config, "scenario": {}}).method, Method)


def test_a_name_in_this_process_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from lamella import METHODS

    class Mine(NearestMean):
        """Under a name of its own."""

    monkeypatch.setitem(METHODS, "mine", Mine)
    assert isinstance(Learner.create(backbone=TINY, method="mine+align").method.base, Mine)
