"""A model over HTTP: its answers, learning while it serves, and what strangers may send."""

import asyncio
import copy
import errno
import io
import json
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from colours import (
    BEARER,
    LIMITS,
    NEW_PHOTOS,
    OLD,
    TOKEN,
    learn,
    picture,
    predict,
    refused,
    zipped,
)  # fmt: skip
from described import all_of_its_description_are_answered
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from PIL import Image

from lamella.cli.serve import listen, serve
from lamella.learner.learner import Learner, Prediction
from lamella.learner.store.versions import load_manifest
from lamella.serving.app import create_app
from lamella.serving.batching import Batcher, Loaded
from lamella.serving.connections import IdleTimeout
from lamella.serving.gate import RequestGate
from lamella.serving.images import ImageKind, packed_images
from lamella.serving.limits import Limits
from lamella.serving.uploads import unpack


@pytest.fixture
def app(model: Path) -> FastAPI:
    return create_app(model, token=TOKEN, limits=LIMITS)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def spooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that temporary files go to."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


# answers


def test_it_predicts_what_the_learner_predicts(client: TestClient, model: Path, tmp_path: Path) -> None:
    contents = [picture("dark", 11), picture("bright", 12, "JPEG", 40), picture("rød", 13)]
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    answer = predict(client, *contents, top=2).json()
    assert answer["version"] == 1
    for row, own in zip(answer["predictions"], Learner.load(model).predict(files, top=2), strict=True):
        assert [c["name"] for c in row["classes"]] == list(own.classes)
        assert [c["confidence"] for c in row["classes"]] == pytest.approx(own.confidences, abs=1e-5)
        assert (row["task"], row["familiarity"]) == (own.task, pytest.approx(own.familiarity, abs=1e-5))
        assert row["unknown"] == (own.familiarity is not None and own.familiarity < 0.05)
    assert [row["classes"][0]["name"] for row in answer["predictions"][:2]] == ["dark", "bright"]
    assert [row["name"] for row in answer["predictions"]] == ["0.png", "1.png", "2.png"]
    assert len(predict(client, contents[0], top=1).json()["predictions"][0]["classes"]) == 1


def test_many_clients_get_the_answers_that_each_alone_would(client: TestClient) -> None:
    contents = [picture(OLD[i % 2], i) for i in range(24)]
    alone_ = [predict(client, content).json()["predictions"][0] for content in contents]
    with ThreadPoolExecutor(8) as clients:
        together = [a.json()["predictions"][0] for a in clients.map(lambda content: predict(client, content), contents)]
    for one, other in zip(alone_, together, strict=True):
        assert [c["name"] for c in one["classes"]] == [c["name"] for c in other["classes"]]
        assert [c["confidence"] for c in one["classes"]] == pytest.approx(
            [c["confidence"] for c in other["classes"]], abs=1e-5
        )


class Slow:
    """A learner that waits to be let go, and remembers how many images came together."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.go = threading.Event()

    def predict(self, images: Any, *, top: int) -> list[Any]:
        assert self.go.wait(10)
        self.sizes.append(len(images))
        return [Prediction(("a", "b"), (0.7, 0.3), "t")] * len(images)


def test_what_arrives_while_a_batch_is_computed_is_the_next_batch() -> None:
    slow: Any = Slow()
    batcher = Batcher(Loaded(slow, 1), ImageKind(LIMITS).predict, together=6, patience=0)
    first = batcher.submit(torch.zeros(1, 3, 4, 4), 1)
    while not first.running():
        time.sleep(0.001)
    rest = [batcher.submit(torch.zeros(n, 3, 4, 4), 2) for n in (2, 2, 3, 1)]
    batcher.loaded = Loaded(slow, 2)
    slow.go.set()
    assert [len(r.result(10).predictions) for r in rest] == [2, 2, 3, 1]
    assert slow.sizes == [1, 7, 1]  # 2 + 2 + 3 reach the 6 that end a batch
    assert (first.result().version, rest[0].result().version) == (1, 2), "a batch under way is the old version's"
    assert first.result().predictions[0].classes == ("a",)
    assert rest[0].result().predictions[0].classes == ("a", "b")
    batcher.close()


def test_a_batch_waits_for_the_clients_that_were_there_and_for_no_other() -> None:
    slow: Any = Slow()
    x = torch.zeros(1, 3, 4, 4)
    batcher = Batcher(Loaded(slow, 1), ImageKind(LIMITS).predict, patience=60)
    first = batcher.submit(x, 1)  # alone: it does not wait
    while not first.running():
        time.sleep(0.001)
    second = batcher.submit(x, 1)
    time.sleep(1)  # a quarter of it is how long the next batch may wait
    slow.go.set()
    first.result(10)
    again = batcher.submit(x, 1)  # the second client has waited for the first one to ask again
    assert second.result(10).version == again.result(10).version
    assert slow.sizes == [1, 2]
    batcher.close()


def test_a_fault_of_one_batch_reaches_those_who_asked_and_no_one_else() -> None:
    class Faulty:
        def predict(self, images: Any, *, top: int) -> list[Any]:
            raise MemoryError("too much")

    faulty, good = Faulty(), Slow()
    good.go.set()
    batcher = Batcher(Loaded(faulty, 1), ImageKind(LIMITS).predict)  # type: ignore[arg-type]
    with pytest.raises(MemoryError):
        batcher.submit(torch.zeros(1, 3, 4, 4), 1).result(10)
    batcher.loaded = Loaded(good, 2)  # type: ignore[arg-type]
    assert batcher.submit(torch.zeros(1, 3, 4, 4), 1).result(10).version == 2
    batcher.close()


def test_what_it_knows_and_how_it_is(client: TestClient) -> None:
    predict(client, picture("dark"))
    assert client.get("/classes").json() == [
        {"id": 0, "name": "bright", "tasks": ["photos"]}, {"id": 1, "name": "dark", "tasks": ["photos"]},
    ]  # fmt: skip
    (task,) = client.get("/tasks").json()
    assert (task["name"], task["classes"], task["images"], task["held_back"]) == ("photos", ["bright", "dark"], 8, 2)
    health = client.get("/health").json()
    assert (health["status"], health["version"], health["classes"], health["learning"]) == ("ok", 1, 2, None)
    metrics = client.get("/metrics").text
    assert 'lamella_requests_total{route="/predict",status="200"} 1.0' in metrics
    assert "lamella_version 1.0" in metrics
    assert "lamella_batch_images_count 1.0" in metrics
    paths = client.get("/openapi.json").json()["paths"]
    assert paths.keys() == {
        "/predict", "/classes", "/tasks", "/learn", "/jobs/{id}", "/versions", "/rollback", "/health", "/metrics",
    }  # fmt: skip
    for changing in ("/learn", "/rollback"):
        assert paths[changing]["post"]["security"] == [{"HTTPBearer": []}]
    assert "HTTPValidationError" not in client.get("/openapi.json").text, "every fault is described as it is sent"


def test_the_page_is_all_there_is_to_it(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "What is on these images?" in page.text
    assert re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", page.text) == [], "it loads nothing else"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "innerHTML" not in page.text, "names of strangers' classes are text"


# versions


def test_a_version_made_elsewhere_is_followed(app: FastAPI, client: TestClient, model: Path) -> None:
    learner = Learner.load(model)
    learner.save(model, what="by another process")
    assert app.state.service.follower.catch_up() == 2
    assert predict(client, picture("dark")).json()["version"] == 2

    # Another model takes the folder; its version has the same number.
    shutil.rmtree(model)
    learner.tasks[0].name = "pictures"
    learner.save(model)
    learner.save(model)
    while client.get("/tasks").json()[0]["name"] != "pictures":
        time.sleep(0.05)
    assert client.get("/health").json()["version"] == 2

    newer = json.loads((model / "lamella.json").read_text()) | {"lamella": 99}
    (model / "lamella.json").write_text(json.dumps(newer))
    while "has format 99" not in client.get("/health").json()["status"]:
        time.sleep(0.05)
    (model / "lamella.json").write_text("{}")
    while "was not written by lamella" not in client.get("/health").json()["status"]:
        time.sleep(0.05)
    assert predict(client, picture("dark")).json()["version"] == 2


def test_nothing_that_is_wrong_with_the_folder_ends_the_watch(
    client: TestClient, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path) -> None:
        raise KeyError("config")

    with monkeypatch.context() as patched:
        patched.setattr("lamella.serving.model_watcher.load_manifest", broken)
        while "KeyError: 'config'" not in client.get("/health").json()["status"]:
            time.sleep(0.05)
    Learner.load(model).save(model, what="an honest version")
    while client.get("/health").json()["version"] != 2:
        time.sleep(0.05)
    assert client.get("/health").json()["status"] == "ok"


# strangers


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (picture("dark", size=64)[:-600], 422, "cannot read image '0.png': .*; replace or remove it"),
        (b"hello, I am a text", 415, "'0.png' is no image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "is no image of a known format"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', 415, "no image of a known format"),
        (b"<!doctype html><script>alert(1)</script>", 415, "is no image of a known format"),
        (zipped({"a/0.png": picture("dark")}), 415, "is no image of a known format"),
        (b"", 422, "'0.png' is empty"),
        (picture("dark", size=320), 413, "'0.png' has 320 x 320 pixels; 0.1 megapixels are allowed"),
        (b"P6 40000 40000 255\n", 413, "'0.png' has too many pixels"),
        (bytes(1_100_000), 413, "larger than the 1 MB that are allowed"),
    ],
    ids=["truncated", "text", "postscript", "svg", "html", "zip", "empty", "large", "bomb", "bytes"],
)
def test_bad_images_are_refused(client: TestClient, content: bytes, status: int, words: str) -> None:
    refused(predict(client, content), status, words)
    assert predict(client, picture("dark")).status_code == 200


def test_bad_requests_are_refused(client: TestClient) -> None:
    refused(predict(client, *[picture("dark")] * 9), 413, "9 images were sent at once; 8 are allowed")
    refused(client.post("/predict"), 422, "images: Field required")
    refused(predict(client, picture("dark"), top=0), 422, "top: .*greater than or equal to 1")
    refused(client.post("/predict", content=b"x", headers={"Content-Type": "multipart/form-data"}), 400, "boundary")
    refused(client.get("/jobs/7"), 404, "there is no job 7")
    refused(client.get("/jobs/seven"), 422, "id: ")
    refused(client.get("/predict"), 405, "Method Not Allowed")
    refused(client.options("/predict"), 405, "Method Not Allowed")
    assert client.head("/health").status_code == 405
    refused(client.get("/nothing"), 404, "Not Found")
    for path, part in (("/predict", "images"), ("/learn", "archive")):
        refused(client.post(path, content=zipped(NEW_PHOTOS), headers=BEARER), 422, f"{part}: Field required")
    refused(client.post("/learn", json={"archive": "x"}, headers=BEARER), 422, "archive: Field required")
    refused(client.post("/learn", data={"archive": "a text"}, headers=BEARER), 422, "archive.*UploadFile")
    as_text = {"images": (None, "a text")}
    refused(client.post("/predict", files=as_text), 422, "images: a text stands where a file should be; send each one")
    refused(client.post("/predict", data={"images": "x"}), 422, "images: Field required")
    refused(client.put("/classes"), 401, "needs the token")
    refused(client.get(f"/jobs/{'9' * 5000}"), 422, "id: ")


def test_a_file_name_in_no_known_script_is_told_back_as_it_can_be(client: TestClient) -> None:
    head = b'--cut\r\nContent-Disposition: form-data; name="images"; filename="\xff\xfe\x9b.png"\r\n\r\n'
    for content, status in ((picture("dark"), 200), (b"hello", 415)):
        answer = client.post(
            "/predict", content=head + content + b"\r\n--cut--\r\n",
            headers={"Content-Type": "multipart/form-data; boundary=cut"},
        )  # fmt: skip
        assert answer.status_code == status, answer.text


def test_names_of_any_script_are_taken_in_one_form(tmp_path: Path) -> None:
    names = ["é/ú.png", "зелёный/猫.png", "می‌خواهم/👩‍🔬.png"]  # é as two signs
    content = zipped({unicodedata.normalize("NFD", name): picture("dark") for name in names})
    assert unpack(io.BytesIO(content), tmp_path, packed_images(LIMITS), LIMITS).samples == 3
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert found == {unicodedata.normalize("NFC", name) for name in names}


@pytest.fixture
def named(model: Path) -> Iterator[TestClient]:
    """A client of a server that goes by two names only."""
    app = create_app(model, token=TOKEN, limits=LIMITS, hosts={"127.0.0.1", "lamella.example"})
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


def test_a_page_that_takes_the_servers_address_for_its_own_name_learns_nothing(named: TestClient) -> None:
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[", ""):
        refused(named.get("/classes", headers={"Host": host}), 421, "does not answer to the name")
    for host in ("127.0.0.1", "127.0.0.1:8000", "Lamella.Example"):
        assert named.get("/classes", headers={"Host": host}).status_code == 200


def test_pages_of_other_sites_cannot_send_anything(named: TestClient) -> None:
    def status(**headers: str) -> int:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return named.post("/predict", files={"images": picture("dark")}, headers=sent).status_code

    assert status(Sec_Fetch_Site="cross-site") == status(Sec_Fetch_Site="same-site") == 403
    assert status(Origin="https://evil.example") == status(Origin="null") == 403
    assert status(Sec_Fetch_Site="same-origin", Origin="https://lamella.example") == 200, "behind a proxy"
    assert status(Origin="http://127.0.0.1:8000") == 200
    assert status() == 200, "a program"
    foreign = {"Origin": "https://evil.example", **BEARER}
    refused(named.post("/learn", files={"archive": zipped(NEW_PHOTOS)}, headers=foreign), 403, "page of another site")
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert not [h for h in named.options("/learn", headers=asked).headers if h.startswith("access-control")]


def with_link() -> bytes:
    link = zipfile.ZipInfo("rød/0.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    return file.getvalue()


def with_pipe() -> bytes:
    pipe = zipfile.ZipInfo("rød/0.png")
    pipe.external_attr = (stat.S_IFIFO | 0o666) << 16
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(pipe, b"")
    return file.getvalue()


def with_a_compression_of_its_own() -> bytes:
    archive = bytearray(zipped({"rød/0.png": picture("rød")}))
    for mark, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        start = archive.index(mark) + place
        archive[start : start + 2] = (77).to_bytes(2, "little")
    return bytes(archive)


def with_another_name_inside() -> bytes:
    archive = zipped({"red/0.png": picture("rød")})
    return archive.replace(
        b"red/0.png", b"../../0.p", 1
    )  # the first one stands before the file, the second in the list


def larger_than_it_is() -> bytes:
    archive = bytearray(zipped({"rød/0.png": picture("rød")}))
    for mark, place in ((b"PK\3\4", 18), (b"PK\1\2", 20)):
        start = archive.index(mark) + place
        archive[start : start + 8] = 2 * (1_000_000).to_bytes(4, "little")
    return bytes(archive)


def twice() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("rød/0.png", picture("rød"))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("rød/0.png", picture("rød"))
    return file.getvalue()


def changed(archive: bytes, old: bytes, new: bytes) -> bytes:
    assert old in archive
    return archive.replace(old, new)


def zeros() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rød/0.png", bytes(5_000_000))
    return file.getvalue()


def encrypted() -> bytes:
    archive = bytearray(zipped({"rød/0.png": picture("rød")}))
    archive[archive.index(b"PK\1\2") + 8] |= 1
    return bytes(archive)


def under_two_names() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("rød/0.png", picture("rød"))
        (entry,) = archive.filelist
        other = copy.copy(entry)
        other.filename = "rød/1.png"
        archive.filelist.append(other)
    return file.getvalue()


def smaller_than_it_is() -> bytes:
    """A zip whose list says that its file has 50 bytes; a naive reader would take what is there."""
    archive = bytearray(zeros())
    place = archive.index(b"PK\1\2") + 24
    archive[place : place + 4] = (50).to_bytes(4, "little")
    return bytes(archive)


def with_other_bytes_inside(compression: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("rød/0.png", random.Random(0).randbytes(2000))
    content = bytearray(file.getvalue())
    content[50:70] = bytes(20)
    return bytes(content)


ONE = {"rød/0.png": picture("rød")}
ARCHIVES: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "no zip": (lambda: b"hello", 415, "the archive is no zip"),
    "an empty zip": (lambda: zipped({}), 422, "the archive has no image"),
    "upwards": (lambda: zipped({**ONE, "../evil.png": picture("dark")}), 422, r"'\.\./evil\.png', whose name"),
    "deep upwards": (lambda: zipped({**ONE, "a/b/../../../evil.png": picture("dark")}), 422, "name is not allowed"),
    "absolute": (lambda: zipped({**ONE, "/outside/evil.png": picture("dark")}), 422, "whose name is not allowed"),
    "backwards": (lambda: zipped({**ONE, "a\\..\\..\\evil.png": picture("dark")}), 422, "whose name is not allowed"),
    "a drive": (lambda: zipped({**ONE, "C:/evil.png": picture("dark")}), 422, "whose name is not allowed"),
    "a long name": (lambda: zipped({f"{'x' * 300}/0.png": picture("dark")}), 422, "cannot be unpacked"),
    "a link": (with_link, 422, "is a link or a device"),
    "a pipe": (with_pipe, 422, "is a link or a device"),
    "a compression of its own": (with_a_compression_of_its_own, 422, "the archive cannot be read"),
    "another name inside": (with_another_name_inside, 422, "the archive is damaged"),
    "larger than it is": (larger_than_it_is, 422, "the archive (is damaged|cannot be read)"),
    "a page named as an image": (lambda: zipped({"rød/0.png": b"<html></html>"}), 415, "'rød/0.png' is no image"),
    "the same twice": (twice, 422, "has the name of another entry"),
    "a file as a folder": (
        lambda: zipped({"a/0.png": picture("dark"), "a/0.png/1.png": picture("dark")}), 422, "name of another entry",
    ),
    "a zip in a zip": (lambda: zipped({"rød/more.zip": zipped(ONE)}), 422, "the archive has no image"),
    "a zip as an image": (lambda: zipped({"rød/0.png": zipped(ONE)}), 415, "'rød/0.png' is no image"),
    "a control sign": (lambda: zipped({"rød/\x9b2J.png": picture("rød")}), 422, "whose name is not allowed"),
    "a line in a name": (lambda: zipped({"rød/a\u2028b.png": picture("rød")}), 422, "whose name is not allowed"),
    "one file under two names": (under_two_names, 422, "the archive is damaged"),
    "smaller than it is": (smaller_than_it_is, 422, "the archive is damaged"),
    "encrypted": (encrypted, 422, "encrypted"),
    "damaged": (lambda: changed(zipped(ONE), picture("rød")[20:40], bytes(20)), 422, "the archive is damaged"),
    "damaged, of LZMA": (lambda: with_other_bytes_inside(zipfile.ZIP_LZMA), 422, "in the archive is damaged"),
    "damaged, of bzip2": (lambda: with_other_bytes_inside(zipfile.ZIP_BZIP2), 422, "in the archive is damaged"),
    "cut off": (lambda: zipped(NEW_PHOTOS)[:-30], 415, "the archive is no zip"),
    "no class folder": (lambda: zipped({"0.png": picture("dark")}), 422, "is in no class folder"),
    "text": (lambda: zipped({"rød/0.png": b"hello"}), 415, "'rød/0.png' is no image"),
    "a bomb of pixels": (lambda: zipped({"rød/0.png": b"P6 40000 40000 255\n"}), 413, "has too many pixels"),
    "a bomb of zeros": (zeros, 413, "more than the 4 MB that are allowed"),
    "tiny files": (lambda: zipped({f"a/{i}": b"" for i in range(10_000)}), 413, "10000 entries; 5000 are allowed"),
    "bytes": (lambda: bytes(2_100_000), 413, "larger than the 2 MB that are allowed"),
}  # fmt: skip


def test_bad_archives_are_refused_and_leave_nothing(
    client: TestClient, model: Path, spooled: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    for make, status, words in ARCHIVES.values():
        refused(learn(client, make()), status, words)
    refused(client.post("/learn", headers=BEARER), 422, "archive: Field required")
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written anywhere"
    assert not Path("/outside/evil.png").exists()
    assert load_manifest(model)["version"] == 1
    assert client.get("/health").json()["learning"] is None


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": TOKEN},
     {"Authorization": "Bearer "}],
)  # fmt: skip
def test_only_who_knows_the_token_changes_the_model(client: TestClient, headers: dict[str, str]) -> None:
    refused(client.post("/rollback", params={"to": 1}, headers=headers), 401, "Authorization: Bearer TOKEN")
    answer = client.post("/learn", files={"archive": ("new.zip", zipped(NEW_PHOTOS))}, headers=headers)
    refused(answer, 401, "Authorization: Bearer TOKEN")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/jobs/1").status_code == 404


def through_the_gate(headers: list[tuple[bytes, bytes]], body: Iterator[bytes], limits: Limits) -> int:
    """The status of a post to /learn by one who sends these pieces; an application behind it reads them all."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        piece = next(body)
        if not piece:
            await asyncio.sleep(10)
        return {"type": "http.request", "body": piece, "more_body": True}

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    async def reader(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass

    scope = {"type": "http", "method": "POST", "path": "/learn", "headers": headers}
    try:
        asyncio.run(RequestGate(reader, token=TOKEN, limits=limits)(scope, receive, send))  # type: ignore[arg-type]
    except HTTPException as refusal:
        return refusal.status_code
    return statuses[0]


def test_a_body_is_not_read_before_it_may_come_in() -> None:
    key = (b"authorization", f"Bearer {TOKEN}".encode())

    def unread() -> Iterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    assert through_the_gate([], unread(), LIMITS) == 401
    assert through_the_gate([key, (b"content-length", b"2000001")], unread(), LIMITS) == 413


def test_a_body_of_unknown_length_or_without_end_is_cut_off() -> None:
    key = (b"authorization", f"Bearer {TOKEN}".encode())
    assert through_the_gate([key], iter([bytes(1_000_000)] * 2 + [b"x"]), LIMITS) == 413
    assert through_the_gate([key], iter([b"x", b""]), Limits(upload_seconds=0.05)) == 408


@pytest.fixture
def server(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[uvicorn.Server]:
    """A server in a thread, which waits 0.3 s for a request to begin."""
    monkeypatch.setattr("lamella.serving.connections.SECONDS", 0.3)
    config = uvicorn.Config(create_app(model, token=TOKEN, limits=LIMITS), http=IdleTimeout, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listen("127.0.0.1", 0)],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server
    server.should_exit = True
    thread.join()


@pytest.fixture
def port(server: uvicorn.Server) -> int:
    """The port of this server."""
    return server.servers[0].sockets[0].getsockname()[1]


def test_no_part_of_an_answer_is_kept_back_until_the_part_before_is_acknowledged(
    server: uvicorn.Server, port: int
) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET /classes HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        (connection,) = server.server_state.connections
        there = connection.transport.get_extra_info("socket")
        assert there.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_clients_that_dawdle_or_leave_cost_nothing(
    port: int, model: Path, spooled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = f"POST /learn HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
    form = b"Content-Type: multipart/form-data; boundary=cut\r\nContent-Length: 100000\r\n\r\n--cut\r\n"

    def talk(*pieces: bytes, leave: bool = False) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            for piece in pieces:
                client.sendall(piece)
            return b"" if leave else client.recv(1000)

    assert talk() == b"", "nothing is asked: the connection ends"
    assert talk(begun) == b"", "nor is it for half a question"
    assert talk(begun + form, b"x" * 1000, leave=True) == b""
    assert talk(begun + b"Transfer-Encoding: chunked\r\n\r\n", b"4\r\nPK\3\4\r\n", leave=True) == b""
    assert talk(b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert talk(begun + b"Content-Length: 99999999\r\n\r\n").startswith(b"HTTP/1.1 413"), "before it is sent"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
        assert json.load(answer)["learning"] is None
    assert list(spooled.iterdir()) == []
    assert not (model / "sent").exists()
    assert "Traceback" not in caplog.text


ODD: dict[str, tuple[bytes, int]] = {
    "a slash behind": (b"POST /learn/ HTTP/1.1\r\nHost: x\r\n\r\n", 401),
    "two slashes": (b"POST //learn HTTP/1.1\r\nHost: x\r\n\r\n", 401),
    "a letter as a number": (b"POST /%6cearn HTTP/1.1\r\nHost: x\r\n\r\n", 401),
    "by a detour": (b"POST /predict/../learn HTTP/1.1\r\nHost: x\r\n\r\n", 401),
    "in capitals": (b"POST /Predict HTTP/1.1\r\nHost: x\r\n\r\n", 401),
    "to another version": (b"POST /rollback?to=1 HTTP/1.1\r\nHost: x\r\n\r\n", 401),
    "two lengths": (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabc", 400),
    "a length below nothing": (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", 400),
    "a length in Arabic digits": (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: \xd9\xa3\r\n\r\n", 400),
    "a length and pieces": (
        b"POST /learn HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 401,
    ),
    "another protocol": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 401),
    "noise": (bytes(range(128, 256)) + b"\r\n\r\n", 400),
    "a header of 200 kB": (b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + 200_000 * b"a" + b"\r\n\r\n", 400),
}  # fmt: skip


def test_odd_requests_get_one_answer_and_no_one_gets_round_the_token(port: int) -> None:
    for name, (request, status) in ODD.items():
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            try:
                client.sendall(request)
                answer = client.recv(1000)
            except ConnectionError:  # it was refused while it was sent
                answer = b"HTTP/1.1 400"
        assert answer.startswith(b"HTTP/1.1 %d" % status), (name, answer)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
        assert json.load(answer)["status"] == "ok"


def test_a_full_temporary_folder_is_called_that(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(tempfile.SpooledTemporaryFile, "write", full)
        refused(predict(client, picture("dark")), 507, "the disk of the server is full; free some space")
        refused(learn(client, zipped(NEW_PHOTOS)), 507, "the disk of the server is full; free some space")
    assert predict(client, picture("dark")).status_code == 200


def test_a_model_of_numbers_that_are_not_finite_says_so(model: Path) -> None:
    learner = Learner.load(model, device="cpu")
    statistics: Any = learner.method.get_submodule("statistics")
    statistics.means.fill_(float("nan"))
    learner.save(model)
    with TestClient(create_app(model, token=TOKEN, limits=LIMITS), raise_server_exceptions=False) as client:
        refused(
            predict(client, picture("dark")), 503, "some of its learned numbers are not finite; go back to an earlier"
        )
        assert client.post("/rollback", params={"to": 1}, headers=BEARER).status_code == 200
        assert predict(client, picture("dark")).status_code == 200, "the version before can be used again"


def test_no_request_of_its_own_description_is_a_fault_of_the_server(app: FastAPI) -> None:
    assert all_of_its_description_are_answered(app, BEARER) == 10


def test_too_much_at_once_is_put_off(model: Path) -> None:
    slow: Any = Slow()
    app = create_app(model, token=TOKEN, limits=Limits(waiting=2, predict_seconds=0.2))
    with TestClient(app) as client:
        batcher = app.state.service.batcher
        learner = batcher.loaded.learner
        slow.tasks, slow.backbone = learner.tasks, learner.backbone
        batcher.loaded = batcher.loaded._replace(learner=slow)
        crowd = predict(client, *[picture("dark")] * 3)
        refused(crowd, 503, "0 images wait already")
        assert crowd.headers["retry-after"] == "1"
        refused(predict(client, picture("dark")), 503, "no answer within 0.2 s")
        slow.go.set()
        assert predict(client, picture("dark")).status_code == 200
        assert app.state.service.desk.waiting == 0


def test_all_clients_together_have_a_bound_on_bytes_and_pixels(model: Path) -> None:
    limits = Limits(megapixels_together=0.001, predict_mb_together=0.05)
    app = create_app(model, token=TOKEN, limits=limits)
    with TestClient(app) as client:
        kind = app.state.service.kind
        assert predict(client, picture("dark")).status_code == 200
        assert kind.pixels.used == 0
        large = picture("dark", size=64)
        refused(predict(client, large), 413, "the request has more than 0.001 megapixels, which no request may have")
        with kind.pixels.share() as others:
            others.take(0.0009)
            late = predict(client, picture("dark"))
            refused(late, 503, "the requests under way have 0.001 megapixels together already; try again soon")
            assert late.headers["retry-after"] == "2"
        assert predict(client, picture("dark")).status_code == 200
        refused(predict(client, b"x" * 60_000), 413, "the request has more than 0.05 MB")
        assert predict(client, picture("dark")).status_code == 200, "what was refused is given back"
        assert kind.pixels.used == 0


@pytest.mark.slow
def test_a_flood_of_large_images_leaves_the_memory_bounded(model: Path) -> None:
    """64 black images of 49 megapixels in each request, from 12 clients at once; the attack that was measured."""
    from concurrent.futures import ThreadPoolExecutor

    from lamella.training.footprint import peak_bytes

    page = io.BytesIO()
    Image.new("L", (7000, 7000)).save(page, format="PNG")
    app = create_app(model, token=TOKEN)
    with TestClient(app) as client:
        before = peak_bytes(torch.device("cpu"))
        with ThreadPoolExecutor(12) as pool:
            codes = set(pool.map(lambda _: predict(client, *[page.getvalue()] * 64).status_code, range(24)))
        assert codes == {413}, "such a request is beyond what one may have"
        with ThreadPoolExecutor(12) as pool:
            codes = set(pool.map(lambda _: predict(client, *[page.getvalue()] * 8).status_code, range(24)))
        assert codes <= {200, 503}
        assert peak_bytes(torch.device("cpu")) - before < 2e9
        assert predict(client, picture("dark")).status_code == 200


def test_a_model_that_knows_nothing_says_so(tmp_path: Path) -> None:
    Learner.create(backbone={"name": "test_vit", "weights": "random", "size": 32}, method="nearest-mean").save(tmp_path)
    with TestClient(create_app(tmp_path, token=TOKEN)) as client:
        refused(predict(client, picture("dark")), 503, "has learned nothing yet")
        assert client.get("/classes").json() == []


# the command


def test_other_machines_need_a_token(taught: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(ValueError, match="can be reached from other machines, so a token is needed"):
            serve(taught, host=host, token=None)
    for token in ("", "two words", "tökén", "line\n"):
        with pytest.raises(ValueError, match="a token must be one or more printable"):
            serve(taught, token=token)


def test_the_command_serves_until_it_is_ended(taught: Path) -> None:
    command = [sys.executable, "-c", "from lamella.cli import main; main()", "serve", str(taught), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        address, token = re.findall(r"version 1, 2 classes: (http://127\.0\.0\.1:\d+/)#token=(\S+)$", said)[0]
        with urllib.request.urlopen(f"{address}health") as answer:
            assert json.load(answer)["status"] == "ok"
        for key, status in ((token, 422), (token[::-1], 401)):
            headers = {"Authorization": f"Bearer {key}"}
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(urllib.request.Request(f"{address}learn", b"", headers))
            assert error.value.code == status
        taken = address.split(":")[2].strip("/")
        with pytest.raises(ValueError, match=rf"cannot listen on 127.0.0.1, port {taken} \(address already in use\)"):
            serve(taught, port=int(taken))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
