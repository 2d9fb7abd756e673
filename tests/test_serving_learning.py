"""Learning while serving: what comes of an archive, and of kills at any moment."""

import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from colours import (
    BEARER,
    LIMITS,
    NEW,
    NEW_PHOTOS,
    TOKEN,
    ended,
    learn,
    photos,
    picture,
    predict,
    refused,
    taught_model,
    zipped,
)
from fastapi.testclient import TestClient

from lamella.common.locks import exclusive_lock
from lamella.learner.folder import ModelFolder
from lamella.learner.store.versions import load_manifest, roll_back
from lamella.serving.app import create_app
from lamella.serving.job import Job
from lamella.serving.jobs import Jobs
from lamella.serving.limits import Limits
from lamella.serving.uploads_kept import FOLDER, IMAGES, Upload, interrupted, take_in
from lamella.serving.worker import main, teach


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning's own process computes with one thread, as this one does: sums of several round otherwise."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that is trained, and can go on after every step."""
    return taught_model(
        tmp_path_factory.mktemp("slow"), {"name": "seq-lora", "epochs": 2, "batch_size": 4}, checkpoint_seconds=0
    )


@pytest.fixture
def client(model: Path) -> Iterator[TestClient]:
    with TestClient(create_app(model, token=TOKEN, limits=LIMITS), raise_server_exceptions=False) as client:
        yield client


def sent(model: Path, names: tuple[str, ...], *, again: bool = False) -> Upload:
    """An archive of these colours, as a server takes it in."""
    made = take_in(model)
    made.samples.rmdir()
    photos(made.samples, names)
    made.keep("new", 10, [], again=again)
    return made


def test_it_learns_while_it_serves(client: TestClient, model: Path) -> None:
    answers: list[Any] = []
    done = threading.Event()

    def keep_asking() -> None:
        while not done.is_set():
            answers.append(predict(client, picture("dark", 3)))
            time.sleep(0.1)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    wrapped = {f"цвета/{path}": content for path, content in NEW_PHOTOS.items()} | {"цвета/notes.txt": b"hello"}
    started = learn(client, zipped(wrapped), "photos of mine.zip")
    assert started.status_code == 202, started.text
    refused(learn(client, zipped(NEW_PHOTOS)), 429, "job 1 is learning; try again")
    job = ended(client, started.json()["id"])
    after = predict(client, picture("rød", 9), picture("зелёный", 9), picture("dark", 9)).json()
    done.set()
    asking.join()

    assert (job["state"], job["error"], job["version"]) == ("done", "", 2)
    assert (job["name"], job["images"], job["ignored"]) == ("photos of mine", 10, ["цвета/notes.txt"])
    assert (job["new"], job["held_back"]) == (["rød", "зелёный"], 2)
    assert job["steps"] == job["of"] > 0
    assert job["expected_seconds"] > 0
    assert [row["classes"][0]["name"] for row in after["predictions"]] == ["rød", "зелёный", "dark"]
    assert after["version"] == 2
    assert {a.status_code for a in answers} == {200}, "no request is dropped"
    assert [a.json()["version"] for a in answers] == sorted(a.json()["version"] for a in answers)
    assert {a.json()["predictions"][0]["classes"][0]["name"] for a in answers} == {"dark"}
    assert not (model / FOLDER).exists()

    # The same images learned by hand give the same model.
    roll_back(model, 1)
    teach(model, sent(model, NEW).folder, "by hand", lambda said: None)
    assert load_manifest(model)["state"] == load_manifest(model, 2)["state"]


def test_images_that_cannot_be_read_are_left_out_and_named(client: TestClient, model: Path) -> None:
    archive = NEW_PHOTOS | {"rød/cut.png": picture("rød", 9, size=64)[:-600]}
    job = ended(client, learn(client, zipped(archive)).json()["id"])
    assert (job["state"], job["error"], job["images"]) == ("done", "", 11)
    assert job["unreadable"].keys() == {"rød/cut.png"}
    assert "truncated" in job["unreadable"]["rød/cut.png"]
    left_out = load_manifest(model)["tasks"][1]
    ModelFolder(model).roll_back()
    teach(model, sent(model, NEW).folder, "without it", lambda said: None)
    without = load_manifest(model)["tasks"][1]
    assert left_out["unreadable"] == {"images": 1, "first": ["rød/cut.png"]}
    assert left_out["data_sha256"] == without["data_sha256"]


def test_a_learning_that_fails_says_why_and_changes_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sent(model, NEW).folder
    for image in (folder / IMAGES / "rød").iterdir():
        image.write_bytes(b"")
    said = io.StringIO()
    monkeypatch.setattr("lamella.serving.worker._only_channel", lambda: said)
    monkeypatch.setattr("os.nice", lambda step: None)
    monkeypatch.setattr(sys, "argv", ["teach", str(model), str(folder), "new", "cpu", ""])
    with pytest.raises(SystemExit):
        main()
    error = json.loads(said.getvalue().splitlines()[-1])["error"]
    assert error == (
        "class 'rød' of new has no image that can be read, of 5: replace them or remove the class "
        "(rød/0.png: the file is empty)"
    )
    assert load_manifest(model)["version"] == 1


def test_a_learning_may_not_take_for_ever(model: Path) -> None:
    with TestClient(create_app(model, token=TOKEN, limits=Limits(learn_seconds=0.01))) as client:
        job = ended(client, learn(client, zipped(NEW_PHOTOS)).json()["id"])
        assert (job["state"], job["version"]) == ("failed", None)
        assert job["error"] == "the learning took longer than 0.01 s; the model is unchanged"
        assert client.get("/health").json()["learning"] is None
    assert not (model / FOLDER).exists()


def test_a_learning_waits_for_another_process_that_learns(model: Path) -> None:
    said: list[dict[str, Any]] = []
    with exclusive_lock(model, ""):
        learning = threading.Thread(target=teach, args=(model, sent(model, NEW).folder, "new", said.append))
        learning.start()
        while not said and learning.is_alive():
            time.sleep(0.01)
        assert said[0] == {"step": f"waiting: another process is changing '{model}'; wait for it to end"}
        assert load_manifest(model)["version"] == 1
    learning.join()
    assert [task["name"] for task in load_manifest(model)["tasks"]] == ["photos", "new"]


def versions(client: TestClient) -> list[tuple[int, bool, int]]:
    """The number of each version, whether it is the current one, and how many tasks it has."""
    rows = client.get("/versions").json()
    return [(row["number"], row["current"], len(row["tasks"])) for row in rows]


def go_to(client: TestClient, version: int) -> Any:
    return client.post("/rollback", params={"to": version}, headers=BEARER)


def test_it_goes_back_to_a_version_and_forwards_again(client: TestClient, model: Path) -> None:
    assert versions(client) == [(1, True, 1)]
    teach(model, sent(model, NEW).folder, "new", lambda said: None)
    assert versions(client) == [(1, False, 1), (2, True, 2)]
    second = client.get("/versions").json()[1]
    assert (second["what"], second["tasks"], second["parent"]) == ("learned new", ["photos", "new"], 1)

    back = go_to(client, 1)
    assert (back.status_code, back.json()["number"], back.json()["current"]) == (200, 1, True)
    assert versions(client) == [(1, True, 1), (2, False, 2)]
    answer = predict(client, picture("rød", 9)).json()  # at once, not only when the folder is looked at again
    assert (answer["version"], len(answer["predictions"][0]["classes"])) == (1, 2)
    assert go_to(client, 2).json()["number"] == 2
    answer = predict(client, picture("rød", 9)).json()
    assert (answer["version"], answer["predictions"][0]["classes"][0]["name"]) == (2, "rød")


def test_each_answer_is_wholly_of_the_version_it_names(client: TestClient, model: Path) -> None:
    teach(model, sent(model, NEW).folder, "new", lambda said: None)
    answers: list[Any] = []
    done = threading.Event()

    def keep_asking() -> None:
        while not done.is_set():
            answers.append(predict(client, *[picture("dark", i) for i in range(3)]).json())

    asking = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in asking:
        thread.start()
    for turn in range(12):
        assert go_to(client, 1 + turn % 2).status_code == 200
    done.set()
    for thread in asking:
        thread.join()
    classes = {1: 2, 2: 4}
    assert {answer["version"] for answer in answers} == {1, 2}
    for answer in answers:
        assert [len(row["classes"]) for row in answer["predictions"]] == 3 * [classes[answer["version"]]]


def test_a_version_that_cannot_be_had_is_refused_and_nothing_changes(client: TestClient, model: Path) -> None:
    teach(model, sent(model, NEW).folder, "new", lambda said: None)
    refused(go_to(client, 3), 404, "there is no version 3; there are 1, 2$")
    refused(go_to(client, 0), 422, "to: .*greater than or equal to 1")
    refused(client.post("/rollback", headers=BEARER), 422, "to: Field required")
    assert client.app.state.service.jobs.claim()  # type: ignore[attr-defined]
    refused(go_to(client, 1), 429, "an archive is being read; stop it or try again when it is done")
    client.app.state.service.jobs.release()  # type: ignore[attr-defined]
    with exclusive_lock(model, ""):
        refused(go_to(client, 1), 429, "another process is changing '.*'; wait for it to end")
    state = model / load_manifest(model, 1)["state"]["file"]
    state.write_bytes(state.read_bytes()[:-1])
    refused(go_to(client, 1), 503, "is damaged")
    assert versions(client) == [(1, False, 1), (2, True, 2)]
    assert client.app.state.service.jobs.claim(), "each refusal gives its claim back"  # type: ignore[attr-defined]
    client.app.state.service.jobs.release()  # type: ignore[attr-defined]
    shutil.rmtree(model)
    refused(go_to(client, 1), 503, "holds no model")
    refused(client.get("/versions"), 503, "holds no model")


def test_no_version_is_chosen_while_it_learns(slow: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(slow, tmp_path / "model"))
    with TestClient(create_app(model, token=TOKEN, limits=LIMITS)) as client:
        id = learn(client, zipped(NEW_PHOTOS)).json()["id"]
        refused(go_to(client, 1), 429, f"job {id} is learning; stop it or try again when it is done")
        client.delete(f"/jobs/{id}", headers=BEARER)
        ended(client, id)
        assert go_to(client, 1).status_code == 200


def test_a_job_tells_how_long_it_will_take(model: Path) -> None:
    job = Job(1, "new", 10, [], seconds=3.0)
    assert job.expected_seconds is None
    job.hear({"still": 4.5})
    assert job.expected_seconds == 7.5, "what has passed, and what it still takes"
    said: list[dict[str, Any]] = []
    teach(model, sent(model, NEW).folder, "new", said.append)
    assert [entry["still"] > 0 for entry in said if "still" in entry] == [True]
    first_step = next(i for i, entry in enumerate(said) if "steps" in entry)
    assert next(i for i, entry in enumerate(said) if "still" in entry) < first_step, "before it learns"


class Killed(BaseException):
    """Ends a learning in this process where a kill would."""


def test_an_interrupted_learning_goes_on_where_it_stood(
    slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamella.serving.worker.SECONDS_BETWEEN", -1)  # it tells of every step
    whole, cut = (Path(shutil.copytree(slow, tmp_path / name)) for name in ("whole", "cut"))
    archive, every, before, after = sent(cut, NEW), set[int](), set[int](), set[int]()

    def trained(said: dict[str, Any], steps: set[int], kill_after: int = 99) -> None:
        if said.get("step", "").endswith("train"):
            steps.add(said["steps"])
            if said["steps"] >= kill_after:
                raise Killed

    teach(whole, sent(whole, NEW).folder, "new", lambda said: trained(said, every))
    with pytest.raises(Killed):
        teach(cut, archive.folder, "new", lambda said: trained(said, before, kill_after=3))
    assert load_manifest(cut)["version"] == 1
    resumed: list[dict[str, Any]] = []
    teach(cut, archive.folder, "new", lambda said: (trained(said, after), resumed.append(said))[1])
    assert not [said for said in resumed if "still" in said], "the costs of what is left are not tried"
    assert every == {0, 1, 2, 3, 4}
    assert before == {0, 1, 2, 3}
    assert 1 not in after, "what was done is not done again"
    assert 4 in after
    assert load_manifest(cut)["state"] == load_manifest(whole)["state"], "to the same bits"


def test_a_learning_that_began_with_another_version_begins_anew(slow: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(slow, tmp_path / "model"))
    archive = sent(model, NEW)

    def kill(said: dict[str, Any]) -> None:
        if said.get("steps", 0) > 0:
            raise Killed

    with pytest.raises(Killed):
        teach(model, archive.folder, "new", kill)
    teach(model, sent(model, ("rød",)).folder, "in between", lambda said: None)
    firsts: list[int] = []
    teach(model, archive.folder, "new", lambda said: firsts.append(said["steps"]) if "steps" in said else None)
    assert firsts[0] == 0
    assert [task["name"] for task in load_manifest(model)["tasks"]] == ["photos", "in between", "new"]


def test_a_killed_learning_is_begun_again_and_is_not_learned_twice(model: Path) -> None:
    with TestClient(create_app(model, token=TOKEN, limits=LIMITS)) as client:
        jobs = client.app.state.service.jobs  # type: ignore[attr-defined]
        started = learn(client, zipped(NEW_PHOTOS)).json()
        while jobs._process is None:
            time.sleep(0.001)
        jobs._process.kill()
        job = ended(client, started["id"])
        assert (job["state"], job["starts"], job["version"]) == ("done", 2, 2), job
    assert not (model / FOLDER).exists()


@pytest.mark.slow
def test_what_a_server_could_not_finish_the_next_one_does(model: Path) -> None:
    with TestClient(create_app(model, token=TOKEN, limits=LIMITS)) as client:
        app = client.app
        learn(client, zipped(NEW_PHOTOS), name="first colours")
    job = app.state.service.jobs.known[1]  # type: ignore[attr-defined]
    assert job.error == "the learning is interrupted; it resumes when the model is served again"
    assert load_manifest(model)["version"] == 1
    half = take_in(model)
    (half.samples / "cut off.png").write_bytes(b"")
    half.leave()
    with TestClient(create_app(model, token=TOKEN, limits=LIMITS)) as client:
        assert client.get("/health").json()["learning"] == 1
        job = ended(client, 1)
        assert (job["name"], job["state"], job["version"], job["images"]) == ("first colours", "done", 2, 10)
    assert not (model / FOLDER).exists()
    assert len(load_manifest(model)["tasks"]) == 2


@pytest.mark.slow
def test_a_job_keeps_its_number_and_new_ones_get_others(model: Path) -> None:
    """Of four uploads that were left, two had the same number, of two servers, and one has none that is valid."""
    left = [sent(model, NEW, again=True) for _ in range(4)]
    for upload, number in zip(left, (7, 3, 3, "x"), strict=True):
        upload.number(number)  # type: ignore[arg-type]
        for _ in range(3):
            upload.begin()  # killed so often that it is given up at once
        upload.leave()
    with TestClient(create_app(model, token=TOKEN, limits=LIMITS)) as client:
        for number in (7, 3, 8, 9):
            assert "killed 3 times" in ended(client, number)["error"]
        assert client.get("/jobs/1").status_code == 404
        started = learn(client, zipped(NEW_PHOTOS)).json()
        assert started["id"] == 10
        assert ended(client, 10)["state"] == "done"


def test_the_number_of_a_job_is_stored_with_its_upload(model: Path) -> None:
    upload = sent(model, NEW)
    upload.leave()
    (upload,) = interrupted(model)
    assert upload.job is None
    jobs = Jobs(model, lambda: 1, seconds=0)
    jobs.close()
    jobs._count = 4
    assert jobs._noted(upload).id == 5
    upload.leave()
    (again,) = interrupted(model)
    assert (again.job, again.note["name"]) == (5, "new")


def test_a_job_whose_version_cannot_be_loaded_lets_others_learn(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def catch_up() -> int:
        raise RuntimeError("out of memory\nTraceback")

    def begin(job: Job, upload: Upload) -> "subprocess.Popen[str]":
        return subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE, encoding="utf-8")

    jobs = Jobs(model, catch_up, seconds=60)
    monkeypatch.setattr(jobs, "_begin", begin)
    assert jobs.claim()
    job = jobs.start([sent(model, NEW)])
    jobs.close()
    assert (job.state, job.error) == ("failed", "RuntimeError: out of memory")
    assert jobs.claim(), "the next upload can be learned"


def test_a_message_that_cannot_be_read_leaves_no_timer(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer of a job, which runs for a day, would keep the server from ending."""
    jobs = Jobs(model, lambda: 1, seconds=3600)
    command = [sys.executable, "-c", "print('{')"]
    with pytest.raises(ValueError, match="Expecting"):
        jobs._follow(Job(1, "new", 5, []), subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8"))
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert all(timer.finished.is_set() for timer in timers)


def test_what_was_stored_just_before_a_kill_is_not_learned_again(model: Path) -> None:
    archive = sent(model, NEW)
    first = teach(model, archive.folder, "new", lambda said: None)
    assert teach(model, archive.folder, "new", lambda said: None) == first
    assert load_manifest(model)["version"] == 2
    with pytest.raises(ValueError, match="all 10 images of once more were learned before, the newest as task 'new'"):
        teach(model, sent(model, NEW).folder, "once more", lambda said: None)
    teach(model, sent(model, NEW, again=True).folder, "once more", lambda said: None)
    assert len(load_manifest(model)["tasks"]) == 3, "what is sent again on purpose is learned again"


def test_what_another_server_holds_is_left_alone(model: Path) -> None:
    held = sent(model, NEW)
    assert interrupted(model) == []
    held.leave()
    (found,) = interrupted(model)
    assert found.note["name"] == "new"


def test_a_learning_that_is_killed_again_and_again_is_given_up(model: Path) -> None:
    often = sent(model, NEW)
    for _ in range(3):
        often.begin()
    often.leave()
    with TestClient(create_app(model, token=TOKEN, limits=LIMITS)) as client:
        job = ended(client, 1)
        assert job["error"] == "the learning was killed 3 times, perhaps because memory ran out; the model is unchanged"
        assert client.get("/health").json()["learning"] is None
    assert not (model / FOLDER).exists()


def test_a_learning_can_be_stopped_by_who_knows_the_token(client: TestClient, model: Path) -> None:
    id = learn(client, zipped(NEW_PHOTOS)).json()["id"]
    refused(client.delete(f"/jobs/{id}"), 401, "Bearer TOKEN")
    assert client.delete(f"/jobs/{id}", headers=BEARER).status_code == 202
    job = ended(client, id)
    assert (job["state"], job["error"]) == ("failed", "the learning was stopped; the model is unchanged")
    refused(client.delete("/jobs/7", headers=BEARER), 404, "there is no job 7")
    assert not (model / FOLDER).exists()
    assert load_manifest(model)["version"] == 1


def test_a_model_that_is_removed_while_it_is_served(client: TestClient, model: Path) -> None:
    shutil.rmtree(model)
    refused(learn(client, zipped(NEW_PHOTOS)), 503, "holds no model")
    assert not model.exists(), "nothing is written where it was"
    assert predict(client, picture("dark")).status_code == 200
    while client.get("/health").json()["status"] == "ok":
        time.sleep(0.05)
    assert "holds no model" in client.get("/health").json()["status"]


def test_weights_that_were_tampered_with_are_not_learned_on(client: TestClient, model: Path) -> None:
    (state,) = model.glob("state-*.safetensors")
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    archive = sent(model, NEW)
    with pytest.raises(ValueError, match="is damaged: its checksum is not the recorded one"):
        teach(model, archive.folder, "new", lambda said: None)
    assert predict(client, picture("dark")).json()["version"] == 1


@pytest.mark.slow
def test_the_example_asks_teaches_and_asks_again(tmp_path: Path) -> None:
    example = Path(__file__).parents[1] / "examples" / "served.py"
    done = subprocess.run([sys.executable, example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "learning: done, version 2, 2, 3 are new" in done.stdout
    assert re.search("an image of 3 was taken for [01], and is now 3", done.stdout), done.stdout
