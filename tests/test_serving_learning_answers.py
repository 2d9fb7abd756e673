"""A server of answers learns others while it answers: what comes of a table, and which are refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from assistants import answers_file, learned_assistant
from colours import BEARER, TOKEN, ended, learn, refused
from fastapi.testclient import TestClient

from lamella.backbones.generating import Generating
from lamella.learner.learner import Learner
from lamella.learner.store.versions import load_manifest
from lamella.serving.app import create_app
from lamella.serving.limits import Limits
from lamella.serving.uploads_kept import ANSWERS, FOLDER, interrupted, take_in
from lamella.serving.worker import teach

LIMITS = Limits(table_mb=0.01, table_lines=100)
ASKED = {"messages": [{"role": "user", "content": "xyz1"}], "max_tokens": 6}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning's own process computes with one thread, as this one does: sums of several round otherwise."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned some answers; not to be changed."""
    return learned_assistant(tmp_path_factory.mktemp("served"), 10, "method.epochs=2")


@pytest.fixture
def model(kept: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(kept, tmp_path / "assistant"))


@pytest.fixture
def client(model: Path) -> Iterator[TestClient]:
    app = create_app(model, token=TOKEN, limits=LIMITS, device="cpu")
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def lines(*rows: Any) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def asked(client: TestClient) -> tuple[str, str]:
    """What is answered, and which version did."""
    answer = client.post("/v1/chat/completions", json=ASKED).json()
    return answer["choices"][0]["message"]["content"], answer["system_fingerprint"]


@pytest.mark.slow
def test_it_learns_answers_while_it_answers(client: TestClient, model: Path, tmp_path: Path) -> None:
    content = answers_file(tmp_path / "new answers.jsonl", "xyz", 12).read_bytes()
    content += lines({"prompt": "p", "response": " "}, {"prompt": "p", "response": "long " * 20})
    before = asked(client)
    started = learn(client, content, "../new answers.jsonl")
    assert started.status_code == 202, started.text
    refused(learn(client, content, "new answers.jsonl"), 429, "job 1 is learning; try again")
    assert asked(client) == before, "it answers as before until the version is stored"
    assert load_manifest(model)["version"] == 1
    job = ended(client, started.json()["id"])
    assert (job["state"], job["error"], job["version"], job["name"]) == ("done", "", 2, "new answers")
    assert (job["images"], job["classes"], job["new"]) == (14, [], [])
    assert job["unreadable"]["new answers.jsonl, line 13"] == "the response is empty"
    assert "does not fit into max_length = 64 tokens" in job["unreadable"]["new answers.jsonl, line 14"]
    assert job["held_back"] > 0
    assert 0 < job["nats_after"] < job["nats_before"]
    assert job["expected_seconds"] > 0
    assert not (model / FOLDER).exists()

    text, version = asked(client)
    assert version != before[1]
    assert text == Learner.load(model, device="cpu").answer(["xyz1"], Generating(max_tokens=6))[0] != before[0]
    assert [row["name"] for row in client.get("/tasks").json()] == ["first", "new answers"]
    rolled = client.post("/rollback?to=1", headers=BEARER)
    assert rolled.status_code == 200, rolled.text
    assert asked(client)[0] == before[0]


def sent(model: Path, content: bytes) -> Path:
    """A table as a server takes it in."""
    made = take_in(model, "answer")
    (made.samples / "new.jsonl").write_bytes(content)
    made.keep("new", 8, [])
    made.leave()
    return made.folder


def test_what_it_learns_is_what_the_learner_learns(model: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(model, tmp_path / "own"))
    file = answers_file(tmp_path / "new.jsonl", "xyz", 8)
    Learner.load(own, device="cpu").learn_from(file, folder=own)
    folder = sent(model, file.read_bytes())
    said: list[dict[str, Any]] = []
    teach(model, folder, "new", said.append, "cpu")
    assert load_manifest(model)["state"] == load_manifest(own)["state"]
    assert {"classes": [], "new": []} in said


def test_an_interrupted_learning_is_found_and_no_link_is_followed(model: Path, tmp_path: Path) -> None:
    folder = sent(model, lines({"prompt": "a", "response": "b"}))
    assert folder.joinpath(ANSWERS).is_dir()
    (left,) = interrupted(model)
    assert (left.folder, left.samples.name) == (folder, ANSWERS)
    left.leave()
    file = folder / ANSWERS / "new.jsonl"
    file.unlink()
    file.symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(ValueError, match="is a symbolic link"):
        interrupted(model)


def conversation(*turns: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x"} for role in turns]}


TABLES: dict[str, tuple[str, bytes, int, str]] = {
    "no response": ("t.csv", b"prompt\na\n", 422, "^t.csv, line 1: no response column beside 'prompt'"),
    "nothing of answers": ("t.csv", b"a,b\n1,2\n", 422, "^t.csv, line 1: no column of answers; rows need prompt and"),
    "labelled texts": (
        "t.csv",
        b"text,label\na,b\n",
        422,
        r"^t.csv, line 1: texts with other columns .*label\) are no",
    ),
    "a broken line": (
        "t.jsonl",
        lines(conversation("user", "assistant")) + b"{\n",
        422,
        "^t.jsonl, line 2, column 2: not JSON",
    ),
    "two kinds": ("t.jsonl", lines(conversation("user", "assistant"), {"prompt": "a", "response": "b"}), 422, "line 2"),
    "an unknown role": ("t.jsonl", lines(conversation("user", "robot")), 422, "line 1: message 2 has the role 'robot'"),
    "no answer": ("t.jsonl", lines(conversation("assistant", "user")), 422, "^t.jsonl, line 1: "),
    "a number": ("t.jsonl", lines({"prompt": 3, "response": "b"}), 422, "line 1: the prompt is a number '3'; write it"),
    "empty answers": ("t.jsonl", lines({"prompt": "a", "response": ""}), 422, "has no answers: the response is empty"),
    "nothing": ("t.jsonl", b"", 422, "t.jsonl"),
    "nested": ("t.jsonl", b"[" * 9000 + b"\n", 422, "^t.jsonl, line 1"),
    "too large": ("t.csv", b"prompt,response\n" + b"a" * 10_001, 413, "larger than the 0.01 MB that a table may"),
    "too many lines": ("t.csv", b"prompt,response\n" + b"a,b\n" * 101, 413, "has 102 lines; a table may have 100"),
    "an archive": (
        "t.zip",
        b"PK",
        415,
        "^this model learns a .csv, .tsv or .jsonl table of prompt and response, messages",
    ),
    "another table": ("t.json", b"[]", 415, "^.json files are not taken; save it as .csv, .tsv or .jsonl$"),
}


@pytest.mark.parametrize("name", TABLES)
def test_bad_tables_are_refused_and_leave_nothing(shared: TestClient, kept: Path, name: str) -> None:
    file, content, status, words = TABLES[name]
    refused(learn(shared, content, file), status, words)
    assert not (kept / FOLDER).exists()


@pytest.fixture(scope="module")
def shared(kept: Path) -> TestClient:
    """Of a server that all refusals share, so that nothing of it is changed."""
    return TestClient(create_app(kept, token=TOKEN, limits=LIMITS, device="cpu"), raise_server_exceptions=False)


def test_columns_of_labelled_texts_and_strangers_are_refused(shared: TestClient) -> None:
    content = lines({"prompt": "a", "response": "b"})
    refused(learn(shared, content, "t.jsonl", text="prompt"), 422, "^text and label name columns of labelled texts")
    refused(shared.post("/learn", files={"archive": ("t.jsonl", content)}), 401, "token")
