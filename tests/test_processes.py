"""Several processes learn together: the same numbers as one, nothing hangs, and what cannot be shared is refused."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from crew import Ended, command, crew
from streams import batch, build, build_shallow, colours_config, fit_for, learn_all, stream
from torch import Tensor, nn

from lamella.learner.store.versions import load_model
from lamella.methods import METHODS
from lamella.training import processes
from lamella.training.calls import TrainingCall
from lamella.training.launching import launched

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kill -9 and fork are POSIX")
METHOD = ["method.name=seq-lora+align", "method.rank=2", "method.blocks=1", "method.batch_size=5", "method.epochs=2"]
QUICK = [*METHOD, "fit.checkpoint_seconds=0", "--quiet"]
TIMES = ("seconds", "phase_seconds", "processes")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colours_config(tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def pair(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two processes."""
    place = tmp_path_factory.mktemp("pair")
    ended = crew(place, 2, command, ["run", config, *QUICK, "--out", place / "run"])
    assert [one.code for one in ended] == [0, 0], [one.err for one in ended]
    return place / "run"


def results(out: Path) -> dict[str, Any]:
    found = {path.name: json.loads(path.read_text()) for path in sorted(out.glob("results*.json"))}
    return {name: {key: value for key, value in one.items() if key not in TIMES} for name, one in found.items()}


def state(out: Path) -> dict[str, Tensor]:
    return load_model(out / "model" if (out / "model").exists() else out)[0]


def same_bits(first: Path, second: Path) -> bool:
    one, other = state(first), state(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Each tensor within a share of its largest number; of bases, which may be turned, what they span."""
    assert first.keys() == second.keys()
    for name, a in first.items():
        b = second[name]
        assert a.shape == b.shape, name
        if name.endswith("vectors") and a.numel():
            a, b = a @ a.T, b @ b.T
        if a.is_floating_point() and a.numel():
            scale = float(a.abs().max().clamp_min(1e-6))
            assert float((a.double() - b.double()).abs().max()) <= tolerance * scale, name
        else:
            assert torch.equal(a, b), name


# the mathematics -----------------------------------------------------------------------------------------------------


def trained(options: dict[str, Any]) -> dict[str, Any]:
    """What some steps make of a small network, and what passes over eleven samples find; all of it by a few names."""
    with processes.joined():
        data = stream(classes=4, tasks=1, per_class=3)[0].train.subset(range(11))
        method = build_shallow("seq-lora", rank=2).eval()
        fit = fit_for(method, scan_batch_size=4)
        found: dict[str, Any] = {}
        layer = nn.Linear(method.backbone.width, 4)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
        method.layer, idle = layer, nn.Parameter(torch.ones(2))

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return nn.functional.cross_entropy(layer(method.backbone(x)), y)

        count = (lambda x, y: 2 * len(y)) if options.pop("counted", False) else None
        found["losses"] = torch.tensor(
            fit(data, loss, [layer.weight, layer.bias], epochs=2, lr=0.1, optimizer="sgd", count=count, **options)
        )
        found["weight"] = layer.weight.detach().clone()
        try:
            fit(data, loss, [layer.weight, idle], epochs=1, name="idle")
        except RuntimeError as error:
            found["idle"] = str(error)
        try:
            fit(data, lambda x, y: len(y) * loss(x, y), [layer.weight], name="coupled")
        except ValueError as error:
            found["coupled"] = str(error)
        for adds in (True, False):
            total = Sums(adds)
            fit.scan(data, lambda x, y, total=total: total.see(x), keep={"sums": total}, augment=True)
            found[f"sums {adds}"], found[f"seen {adds}"] = total.total.clone(), total.seen
        found["features"] = fit.features(data, method.backbone)
        found["rows"] = fit.outputs(data, lambda x: {"mean": x.mean((1, 2, 3)), "dark": x.mean((1, 2, 3)) < 0})
        few = data.subset([0])
        found["one"] = fit.features(few, method.backbone)
        return found


class Sums(nn.Module):
    """A sum over samples that may be divided, or says nothing of it."""

    total: Tensor

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.register_buffer("total", torch.full((3,), 0.5, dtype=torch.float64))  # begun before
        self.adds, self.seen = adds, 0

    def see(self, x: Tensor) -> None:
        self.total += x.double().sum((0, 2, 3))
        self.seen += len(x)


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (3, {"batch_size": 9, "clip": 0.1}),  # its last batch has two samples, so that one process has none
        pytest.param(3, {"batch_size": 4, "accumulate": 2, "counted": True}, marks=pytest.mark.slow),
        pytest.param(2, {"batch_size": 4}, marks=pytest.mark.slow),
    ],
)
def test_steps_sums_and_rows_are_those_of_one_process(tmp_path: Path, count: int, options: dict[str, Any]) -> None:
    alone = trained(dict(options))
    ended = crew(tmp_path, count, trained, options)
    assert [one.code for one in ended] == [0] * count, [one.err for one in ended]
    assert "1 of 2 trained tensors got no gradient" in alone["idle"]
    assert "coupled" not in alone
    for one in ended:
        found = one.result
        assert found["idle"] == alone["idle"]
        assert "is no mean over the samples of a batch" in found["coupled"]
        for name in ("losses", "weight", "features", "one", "sums True", "sums False"):
            torch.testing.assert_close(found[name], alone[name], rtol=1e-5, atol=1e-6, msg=name)
        torch.testing.assert_close(found["rows"]["mean"], alone["rows"]["mean"])
        assert torch.equal(found["rows"]["dark"], alone["rows"]["dark"])
    assert sum(one.result["seen True"] for one in ended) == 11, "shared out"
    assert [one.result["seen False"] for one in ended] == [11] * count, "each by itself"
    assert all(torch.equal(one.result["weight"], ended[0].result["weight"]) for one in ended), "to the bit"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shares_are_the_whole_and_differ_by_one(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    order, sizes = torch.arange(20, 33), [4, 4, 5]
    monkeypatch.setattr(processes, "count", lambda: count)
    parts = []
    for number in range(count):
        monkeypatch.setattr(processes, "number", lambda number=number: number)
        own, counts = processes.shares(order, sizes)
        assert len(own) == sum(counts)
        parts.append(own.split(counts))
    for i, size in enumerate(sizes):
        assert torch.equal(torch.cat([part[i] for part in parts]), order.split(sizes)[i])
        assert {len(part[i]) for part in parts} <= {size // count, size // count + 1}


# runs ----------------------------------------------------------------------------------------------------------------


def test_a_run_of_two_is_that_of_one(lamella: Run, config: Path, pair: Path, tmp_path: Path) -> None:
    assert lamella("run", config, *QUICK, "--out", tmp_path / "one")[0] == 0
    assert results(tmp_path / "one") | {} == results(pair) | {}
    assert_close(state(tmp_path / "one"), state(pair))
    assert json.loads((pair / "results.json").read_text())["processes"] == [2, 2]
    assert "processes" not in json.loads((tmp_path / "one" / "results.json").read_text())
    assert {path.name for path in pair.iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    lines = [json.loads(line)["event"] for line in (pair / "log.jsonl").read_text().splitlines()]
    assert lines.count("start") == lines.count("finished") == 1, "one process writes"


def at_step(number: int, step: int, what: Any) -> None:
    """In one process, do something at a step of training, counted over all tasks."""
    advance, steps = TrainingCall.advance, 0

    def counting(self: TrainingCall, loss: Any, n: int) -> None:
        nonlocal steps
        steps += 1
        if steps == step and os.environ["RANK"] == str(number):
            what()
        advance(self, loss, n)

    TrainingCall.advance = counting  # type: ignore[method-assign]


def die(number: int, step: int) -> None:
    at_step(number, step, lambda: os.kill(os.getpid(), signal.SIGKILL))


def fail_1() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device", "somewhere")

    at_step(1, 4, fail)


def differ_1() -> None:
    """Process 1 computes something else, as another kind of machine might."""
    advance = TrainingCall.finish

    def finish(self: TrainingCall) -> float:
        if os.environ["RANK"] == "1":
            self.tensors[0].data[0] += 1e-6
        return advance(self)

    TrainingCall.finish = finish  # type: ignore[method-assign]


@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_run_of_which_a_process_is_killed_goes_on_to_the_same_bits(
    config: Path, pair: Path, tmp_path: Path, number: int
) -> None:
    words = ["run", config, *QUICK, "--out", tmp_path / "run"]
    ended = crew(tmp_path, 2, command, words, partial(die, number, 9))
    assert ended[number].code == -9
    other = ended[1 - number]
    assert other.code == 2
    assert "was killed or lost; start all processes again with --resume" in other.err.splitlines()[-1]
    assert not (tmp_path / "run" / "results.json").exists()
    ended = crew(tmp_path, 2, command, [*words, "--resume"])
    assert [one.code for one in ended] == [0, 0], [one.err for one in ended]
    assert "results: " in ended[0].out
    assert (ended[1].out, ended[1].err) == ("", ""), "process 0 speaks"
    assert same_bits(pair, tmp_path / "run")
    assert results(pair) == results(tmp_path / "run")


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(lamella: Run, config: Path, pair: Path, tmp_path: Path) -> None:
    words = ["run", config, *QUICK, "--out", tmp_path / "run"]
    crew(tmp_path, 2, command, words, partial(die, 1, 9))
    assert lamella(*words, "--resume")[0] == 0
    assert_close(state(pair), state(tmp_path / "run"))
    assert results(pair) == results(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["processes"] == [2, 1]


def lines(ended: Sequence[Ended]) -> str:
    """What all processes say as they end with an error."""
    assert [one.code for one in ended] == [2] * len(ended), [(one.code, one.err) for one in ended]
    return "".join(one.err for one in ended)


def test_an_error_in_one_process_ends_all_with_its_line(config: Path, tmp_path: Path) -> None:
    said = lines(crew(tmp_path, 2, command, ["run", config, *QUICK, "--out", tmp_path / "run"], fail_1))
    assert said == "lamella: process 1: somewhere: No space left on device\n"


@pytest.mark.slow
def test_an_error_in_all_processes_is_said_once(config: Path, pair: Path, tmp_path: Path) -> None:
    said = lines(crew(tmp_path, 2, command, ["run", config, *QUICK, "--out", pair]))
    assert said == f"lamella: '{pair}' holds a finished run; choose another --out, or remove it first\n"
    said = lines(crew(tmp_path, 2, command, ["run", config, "method.name=unheard-of", "--out", tmp_path / "run"]))
    assert said.count("\n") == 1
    assert "unheard-of" in said


@pytest.mark.slow
def test_states_that_differ_are_an_error(config: Path, tmp_path: Path) -> None:
    said = lines(crew(tmp_path, 2, command, ["run", config, *QUICK, "--out", tmp_path / "run"], differ_1))
    assert said.count("\n") == 1
    assert "process 1 has another learned state after task" in said
    assert not (tmp_path / "run" / "model").exists(), "nothing of it is stored"


def other_words(config: Path, out: Path) -> None:
    command(["run", config, *QUICK, f"method.rank={2 + int(os.environ['RANK'])}", "--out", out])


def other_folder(config: Path, out: Path) -> None:
    """As on two machines with folders of one name."""
    processes.SEEN = 0.2
    (out / os.environ["RANK"]).mkdir()
    os.chdir(out / os.environ["RANK"])
    command(["run", config, *QUICK, "--out", "run"])


@pytest.mark.slow
def test_other_words_or_folders_in_one_process_are_refused(config: Path, tmp_path: Path) -> None:
    said = lines(crew(tmp_path, 2, other_words, config, tmp_path / "run"))
    assert "process 1 has another command than process 0" in said
    said = lines(crew(tmp_path, 2, other_folder, config, tmp_path))
    assert "process 1 does not see what process 0 writes to" in said
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        pytest.param(
            ["run", "CONFIG", "federated.clients=2", "method.name=nearest-mean"],
            "clients are played in one process",
            marks=pytest.mark.slow,
        ),
        (["serve", "model"], "2 processes were started with `lamella serve`, and only `lamella run` and"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_in_one_line(
    config: Path, tmp_path: Path, words: list[str], reason: str
) -> None:
    words = [str(config) if word == "CONFIG" else word for word in words]
    words += ["--out", str(tmp_path / "run")] if words[0] == "run" else []
    said = lines(crew(tmp_path, 2, command, words))
    assert said.count("\n") == 1
    assert reason in said


def batch_norm() -> str:
    with processes.joined():
        method = build("replay", backbone=build("memo").backbone)
        with pytest.raises(ValueError, match="trains batch norm") as refused:
            method.learn(stream(classes=2, tasks=1)[0], fit_for(method))
        return str(refused.value)


def test_batch_norm_in_training_is_refused_on_cpus(tmp_path: Path) -> None:
    ended = crew(tmp_path, 2, batch_norm)
    assert all("learn in one process, or on GPUs" in one.result for one in ended), [one.err for one in ended]


@pytest.mark.parametrize("smallest", [1, 2])
def test_batch_norm_on_gpus_is_synchronised_for_a_call(smallest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from lamella.training.batch_norm import norms_of_whole_batches

    monkeypatch.setattr(processes, "count", lambda: 2)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(4)))
    network[2].eval()
    layers, gpu = list(network), torch.device("cuda")
    if smallest < 2:
        with (
            pytest.raises(ValueError, match="a batch of 1 has no sample"),
            norms_of_whole_batches(network, gpu, smallest),
        ):
            pass
        return
    with norms_of_whole_batches(network, gpu, smallest):
        assert isinstance(network[1], nn.SyncBatchNorm)
        assert network[1].weight is layers[1].weight
        assert network[1].running_mean is layers[1].running_mean
        assert type(network[2][0]) is nn.BatchNorm1d, "its statistics stay"
    assert list(network) == layers


def test_each_process_draws_dropout_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.own_seed(3) == 3
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "number", lambda: 1)
    assert processes.own_seed(3) != 3


# learn ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_folder_is_taught_by_two_and_a_kill_loses_nothing(lamella: Run, config: Path, tmp_path: Path) -> None:
    archive = config.with_suffix(".npz")
    words = [archive, "--backbone", "test_vit", "backbone.weights=random", "backbone.size=32", "--method", "seq-lora",
             "method.epochs=2", "method.batch_size=8", "method.rank=2", "fit.checkpoint_seconds=0"]  # fmt: skip
    assert lamella("learn", tmp_path / "one", *words)[0] == 0
    ended = crew(tmp_path, 2, command, ["learn", tmp_path / "two", *words])
    assert [one.code for one in ended] == [0, 0], [one.err for one in ended]
    assert "learned 4 classes" in ended[0].out
    assert ended[1].out == ""
    assert_close(state(tmp_path / "one"), state(tmp_path / "two"))
    ended = crew(tmp_path, 2, command, ["learn", tmp_path / "killed", *words], partial(die, 1, 5))
    assert [one.code for one in ended] == [2, -9]
    ended = crew(tmp_path, 2, command, ["learn", tmp_path / "killed", *words])
    assert [one.code for one in ended] == [0, 0]
    assert "resumes the interrupted learning" in ended[0].out
    assert same_bits(tmp_path / "two", tmp_path / "killed")
    left = [sorted(path.name.split("-")[0] for path in (tmp_path / out).iterdir()) for out in ("killed", "one")]
    assert left[0] == left[1]


# launchers -----------------------------------------------------------------------------------------------------------


def test_who_a_process_is_says_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")  # as in a batch script, outside of srun
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert launched() == (0, 1, 0)
    for name, value in {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == (3, 4, 1)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == (1, 2, 1)


def srun(env: dict[str, str]) -> tuple[int, int]:
    """As srun would have started it, which says no address."""
    number = os.environ["RANK"]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    os.environ.update({**env, "SLURM_PROCID": number, "SLURM_LOCALID": number})
    with processes.joined():
        total = torch.tensor(processes.number() + 1)
        processes.summed([total])
        return int(total), processes.from_first(processes.count)


@pytest.mark.slow
def test_processes_of_slurm_find_each_other(tmp_path: Path) -> None:
    env = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(os.getpid()),
           "SLURM_STEP_ID": "0"}  # fmt: skip
    assert [one.result for one in crew(tmp_path, 2, srun, env)] == [(3, 1), (3, 1)]


# long ----------------------------------------------------------------------------------------------------------------


def all_of_it(name: str) -> tuple[dict[str, Tensor], Tensor] | str:
    """What a method has learned of three tasks, and what it says of test samples; or why it is refused."""
    with processes.joined():
        method, scenario = build_shallow(name), stream()
        try:
            learn_all(method, scenario, fit_for(method))
        except ValueError as error:
            return str(error)
        said = [method.eval().predict(batch(method, scenario.test(i))) for i in range(3)]
        return method.state_dict(), torch.cat(said).detach()


REFUSED = {"lora-sub": "no mean over the samples", "memo": "batch norm", "dlc": "batch norm"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_learns_the_same_with_two_or_is_refused(name: str, tmp_path: Path) -> None:
    ended = crew(tmp_path, 2, all_of_it, name)
    assert [one.code for one in ended] == [0, 0], [one.err for one in ended]
    first, second = (one.result for one in ended)
    if isinstance(first, str):
        assert REFUSED[name] in first
        assert first == second
        return
    assert name not in REFUSED
    assert all(torch.equal(first[0][key], second[0][key]) for key in first[0]), "to the bit"
    # Not the tensors: Adam makes steps of their own of gradients that are zero but for rounding.
    alone = all_of_it(name)[1]
    # `loda` inverts moments that are nearly singular, by which rounding grows.
    assert float((alone - first[1]).abs().max()) < (1e-2 if name == "loda" else 1e-3) * float(alone.abs().max())


@pytest.mark.slow
def test_digits_by_torchrun_are_those_of_one_process(tmp_path: Path) -> None:
    for count, out in ((1, "one"), (2, "two"), (2, "again"), (3, "three")):
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)] if count > 1 else []
        words = [*launch, "-m", "lamella", "run", "digits", "--quiet", "--out", str(tmp_path / out)]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for out in ("two", "three"):
        assert results(tmp_path / "one") == results(tmp_path / out)
        assert_close(state(tmp_path / "one"), state(tmp_path / out))
    assert same_bits(tmp_path / "two", tmp_path / "again")
