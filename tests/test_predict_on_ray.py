"""`lamella predict --out --engine ray`: the same parts as those of one process."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from colours import picture, taught_model
from conftest import Run

from lamella.cli import predict_on_ray
from lamella.cli.predict_on_ray import Asked, Worker
from lamella.cli.predict_parts import Form, Part
from lamella.common.on_ray import check_resources
from lamella.common.on_ray import cluster as cluster_of
from lamella.data.sources.far_files import list_files

LOST = b"a-\xff.png"
"""A name that is no valid text, as names of files may be."""


def pictures(folder: Path, count: int = 7) -> Path:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:03}.png").write_bytes(picture("dark" if i % 3 else "bright", i))
    (folder / "nothing.png").write_bytes(b"nothing")
    if sys.platform == "linux":  # others refuse such a name
        Path(os.fsdecode(os.fsencode(folder) + b"/" + LOST)).write_bytes(picture("bright", 9))
    return folder


def contents(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.iterdir() if not file.name.startswith(".")}


class Pretended:
    """What `RayActors` uses of Ray, in this process."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.asked: dict[str, Any] = {}
        self.running = False
        self.machines = [
            {"Alive": True, "Resources": {"CPU": 4.0, "memory": 8e9, "node:here": 1.0}},
            {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 1.0}},
            {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
        ]
        self.exceptions = SimpleNamespace(RayError=ConnectionError)
        context = SimpleNamespace(enable_progress_bars=True)
        self.data = SimpleNamespace(
            from_items=self._from_items,
            ActorPoolStrategy=dict,
            DataContext=SimpleNamespace(get_current=lambda: context),
        )

    def remote(self, **resources: Any) -> Callable[[Any], Any]:
        if strange := resources.keys() - {"num_cpus", "num_gpus", "memory"}:
            raise ValueError(f"Invalid option keyword {strange}")
        return lambda what: what

    def init(self, **options: Any) -> None:
        self.running, self.options = True, options
        if place := options.get("_temp_dir"):
            (Path(place) / "session").mkdir()

    def nodes(self) -> list[dict[str, Any]]:
        assert self.running
        return self.machines

    def shutdown(self) -> None:
        self.running = False

    def _from_items(self, rows: Sequence[dict[str, Any]], *, override_num_blocks: int) -> "Pretended":
        assert self.running
        assert override_num_blocks == len(rows)
        self.rows = list(rows)
        return self

    def map(self, what: Any, *, fn_constructor_args: tuple[Any, ...], **asked: Any) -> "Pretended":
        self.worker, self.asked = what(*fn_constructor_args), asked
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        return map(self.worker, reversed(self.rows))  # no order is promised


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pretended:
    ray = Pretended()
    monkeypatch.setattr(predict_on_ray, "import_ray", lambda *modules: ray)
    monkeypatch.chdir(tmp_path)  # a worker goes to where the command was given
    return ray


def test_the_parts_are_those_of_one_process_and_those_that_are_there_stay(
    lamella: Run, taught: Path, pretended: Pretended, tmp_path: Path
) -> None:
    pictures(tmp_path / "p")
    for options in (("--unknown",), ("--json", "--top", 2)):
        near, far = tmp_path / f"near{len(options)}", tmp_path / f"far{len(options)}"
        command = ("predict", taught, "p", *options, "--part", 2, "--out")
        _, out, err = lamella(*command, near)
        on_ray = lamella(*command, far, "--engine", "ray", "--processes", 2)
        assert on_ray == (1, out.replace(str(near), str(far)), err)
        assert contents(far) == contents(near)
        assert len(pretended.rows) == 5
        assert pretended.asked["compute"] == {"min_size": 1, "max_size": 2}
        assert pretended.options["num_cpus"] == 2
        assert not pretended.running
        lost, *kept = sorted(far.glob("part-*"))
        lost.unlink()
        times = [file.stat().st_mtime_ns for file in kept]
        code, out, _ = lamella(*command, far, "--engine", "ray", "--address", "auto", "--resource", "num_gpus=0.5")
        assert (code, out) == (0, f"wrote 1 part to {far} (4 parts were there): 2 images\n")
        assert ([row["part"] for row in pretended.rows], pretended.options["address"]) == ([0], "auto")
        assert pretended.asked["num_gpus"] == 0.5
        assert contents(far) == contents(near)
        assert [file.stat().st_mtime_ns for file in kept] == times
        pretended.rows = []
        assert lamella(*command, far, "--engine", "ray")[0] == 0
        assert not pretended.rows, "where nothing is missing, no cluster is started"


def test_a_worker_that_has_another_model_or_sees_no_folder_says_so(
    lamella: Run, taught: Path, pretended: Pretended, tmp_path: Path
) -> None:
    folder, other = pictures(tmp_path / "p"), taught_model(tmp_path / "other", "streaming-lda")
    lamella("predict", taught, folder, "--out", tmp_path / "parts")
    files = list_files(str(folder))
    for model, out, message in (
        (other, tmp_path / "parts", "ValueError: the model there is another one"),
        (taught, tmp_path / "nowhere", f"FileNotFoundError: '{tmp_path / 'nowhere'}' is not to be seen there"),
        (tmp_path / "gone", tmp_path / "parts", "FileNotFoundError: "),
    ):
        worker = Worker(Asked(str(model), "cpu", True), [files], Form(), str(tmp_path), {})
        row = predict_on_ray._row(Part(3, 0, files.names[:2], out / "part-00003.csv"))
        made = worker(row)
        assert (made["part"], made["images"]) == (3, 0)
        assert message in made["failure"]
        assert not (out / "part-00003.csv").exists()


@pytest.mark.parametrize("url", [False, True])
def test_a_worker_that_sees_no_image_of_a_part_names_itself_and_writes_nothing(
    url: bool, lamella: Run, taught: Path, pretended: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, away = pictures(tmp_path / "p"), tmp_path / "away"
    names = sorted(file.name for file in photos.iterdir())
    command = ("predict", taught, photos.as_uri() if url else "p", "--part", 4, "--out", "parts", "--engine", "ray")
    listed = pretended._from_items

    def elsewhere(*arguments: Any, **options: Any) -> Pretended:
        photos.rename(away)  # the worker has another folder there, or none
        return listed(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(pretended.data, "from_items", elsewhere)
        code, _, err = lamella(*command)
    assert (code, err.count("\n"), pretended.running) == (2, 1, False)
    last = photos / names[8 if len(names) > 8 else 4]
    assert f"{socket.gethostname()}: FileNotFoundError: '{'file://' if url else ''}{last}' is not to be seen" in err
    assert not list(Path("parts").glob("part-*"))
    away.rename(photos)
    (photos / "000.png").unlink()  # one alone is told in the part, as by one process
    worker = Worker(Asked(str(taught), "cpu", True), [list_files(str(photos))], Form(), str(tmp_path), {})
    some = Part(0, 0, (str(photos / "000.png"), str(photos / "001.png")), Path("parts/part-00000.csv").absolute())
    assert worker(predict_on_ray._row(some)) == {"part": 0, "images": 1, "broken": 1, "failure": ""}


def test_a_failure_of_a_worker_and_of_ray_is_one_line(
    lamella: Run, taught: Path, pretended: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any) -> Any:
        raise OSError("no space\nleft")

    def lost() -> Iterator[Any]:
        raise ConnectionError("an actor died\n more")

    pictures(tmp_path / "p")
    command = ("predict", taught, "p", "--out", "parts", "--engine", "ray")
    with monkeypatch.context() as patched:
        patched.setattr(predict_on_ray, "make_part", failing)
        code, _, err = lamella(*command)
    assert (code, err.count("\n"), pretended.running) == (2, 1, False)
    assert "part 0 cannot be made: " in err
    assert "OSError: no space" in err
    with monkeypatch.context() as patched:
        patched.setattr(pretended, "iter_rows", lost)
        code, _, err = lamella(*command)
    assert (code, err.count("\n"), pretended.running) == (2, 1, False)
    assert "engine 'ray' has stopped: an actor died; the same command goes on" in err


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("num_gpus=2",), "num_cpus=1 num_gpus=2, and no machine of Ray has that: they have num_cpus=4 num_gpus=0 or "),
        (
            ("num_cpus=5",),
            "num_cpus=5, and no machine of Ray has that: they have num_cpus=4 or num_cpus=1; ask for less",
        ),
        (("num_cpus=2", "num_gpus=1"), "num_cpus=2 num_gpus=1, and no machine"),  # one has each, and none has both
        (("memory=9000000000",), "num_cpus=1 memory=9000000000, and no machine"),
    ],
)
def test_what_no_machine_has_is_told_and_not_waited_for(
    asked: Sequence[str], message: str, lamella: Run, taught: Path, pretended: Pretended, tmp_path: Path
) -> None:
    pictures(tmp_path / "p")
    options = [word for resource in asked for word in ("--resource", resource)]
    for where in ((), ("--address", "auto")):
        code, _, err = lamella("predict", taught, "p", "--out", "parts", "--engine", "ray", *where, *options)
        assert (code, err.count("\n"), pretended.running, pretended.rows) == (2, 1, False, [])
        assert message in err


@pytest.mark.parametrize("start", ["", "ray://"])
def test_an_address_where_nothing_answers_is_told_and_not_waited_for(start: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        address = f"{start}127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"--address {address}: no cluster answers there") as told:
            cluster_of(ray := Pretended(), address, check_resources({}), None).__enter__()
        assert not ray.running
        assert "\n" not in str(told.value)
    with socket.create_server(("127.0.0.1", 0)) as one:
        answered = f"{start}127.0.0.1:{one.getsockname()[1]}"
        for address in (answered, "local", "somewhere://else"):
            with cluster_of(ray, address, check_resources({}), None):
                assert ray.options["address"] == address


@pytest.mark.parametrize("address", ["head", ":6379", "head:", "head:port", "head:70000", "ray://head"])
def test_what_is_no_address_of_ray_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=f"--address {address} is no address of Ray; give auto, HOST:PORT or"):
        cluster_of(Pretended(), address, check_resources({}), None).__enter__()


@pytest.mark.parametrize(
    ("number", "share", "cores"), [(1, 0.5, 1), (3, 0.5, 2), (2, 2, 4), (1, 0, 1), (None, 0.5, None)]
)
def test_a_cluster_of_this_machine_has_a_whole_number_of_cores_and_leaves_no_folder(
    number: int | None, share: float, cores: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ray, far = Pretended(), tmp_path / ("long" * 10)
    far.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(far))
    asked = {"num_cpus": share} if share else {"num_cpus": 0, "num_gpus": 1}
    with cluster_of(ray, None, check_resources(asked), number):
        assert ray.options["num_cpus"] == cores
        place = Path(ray.options["_temp_dir"])
        assert (place / "session").is_dir()
        assert os.name != "posix" or len(str(place)) < 30, "sockets need a short path"
    assert not place.exists()
    with cluster_of(ray, "auto", check_resources({}), number):
        assert not ray.options.keys() & {"num_cpus", "_temp_dir"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "x", "--engine", "ray", "--share", "0/2"), "engine 'ray' shares the parts out itself; leave out"),
        (
            ("--out", "x", "--engine", "ray", "--resource", "foo=1"),
            "--resource foo=1 is none that engine 'ray' takes; use",
        ),
        (
            ("--out", "x", "--engine", "ray", "--resource", "memory=4GB"),
            "memory=4GB should be a number from 0 on; memory",
        ),
        (("--out", "x", "--engine", "ray", "--resource", "num_cpus=-1"), "num_cpus=-1 should be a number from 0 on"),
        (("--out", "x", "--engine", "ray", "--resource", "num_cpus=nan"), "num_cpus=nan should be a number from 0 on"),
        (("--out", "x", "--engine", "ray", "--resource", "num_gpus=1.5"), "num_gpus=1.5 should be a whole number"),
        (("--out", "x", "--engine", "ray", "--resource", "num_cpus=0"), "num_cpus=0 without a GPU would start every"),
        (("--out", "x", "--engine", "slurm"), "engine 'slurm' is unknown; use one of local, ray"),
        (("--out", "x", "--address", "auto"), "--address is that of a Ray cluster; engine 'local' has none, so leave"),
        (("--out", "x", "--resource", "num_gpus=1"), "engine 'local' takes no --resource; start several commands"),
        (("--out", "x", "--processes", "2"), "engine 'local' is this process; leave out --processes"),
        (("--out", "x", "--engine", "ray", "--resource", "gpus"), "--resource gpus is no KEY=VALUE"),
        (("--out", "x", "--engine", "ray"), "pip install 'lamella[ray]'"),
        (("--engine", "ray"), "--engine belongs to --out, which writes images part by part; leave it out"),
        (("--processes", "2"), "--processes belongs to --out"),
    ],
)
def test_an_engine_that_cannot_run_is_refused_in_one_line(
    arguments: Sequence[str], message: str, lamella: Run, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)
    code, _, err = lamella("predict", taught, ".", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not Path("x").exists()


# a real cluster -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_cluster_makes_the_same_parts_also_when_a_worker_is_killed(
    cluster: str, lamella: Run, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="the extra `ray` is not installed")
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "p", 150)
    command = ("predict", taught, "p", "--part", 1, "--out")
    assert lamella(*command, "near")[0] == 1
    out, killed = tmp_path / "far", list[int]()

    def kill_one() -> None:
        while not list(out.glob("part-*.csv")):
            time.sleep(0.01)
        found = subprocess.run(["pgrep", "-f", r"^ray::.*Worker"], capture_output=True, text=True).stdout.split()
        os.kill(int(found[0]), signal.SIGKILL)
        killed.append(len(list(out.glob("part-*.csv"))))

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    code, shown, _ = lamella(*command, "far", "--engine", "ray", "--address", cluster)
    killer.join(10)
    assert (code, shown.splitlines()[-1]) == (1, "wrote 152 parts to far: 151 images")  # Ray tells of the lost one
    assert killed[0] < 152
    assert contents(out) == contents(tmp_path / "near")


@pytest.mark.slow
def test_ray_on_this_machine_ends_with_the_parts(
    lamella: Run, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="the extra `ray` is not installed")  # Ray Data needs it, and Ray does not
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "p")
    command = ("predict", taught, "p", "--json", "--part", 3, "--out")
    assert lamella(*command, "near")[0] == 1
    place = Path(tempfile.mkdtemp(prefix="r", dir="/tmp" if os.name == "posix" else None))  # sockets need a short path
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    far = (*command, "far", "--engine", "ray", "--processes", 1, "--resource")
    code, _, err = lamella(*far, "num_gpus=999")
    assert (code, "num_gpus=999, and no machine of Ray has that" in err) == (2, True)
    code, shown, _ = lamella(*far, "num_cpus=0.5")
    assert (code, shown.splitlines()[-1]) == (1, "wrote 3 parts to far: 8 images")
    place.rmdir()  # nothing is left in it
    assert contents(tmp_path / "far") == contents(tmp_path / "near")
    assert not ray.is_initialized()
