"""A model of texts over HTTP: its answers, what it learns while it serves, and what strangers may send."""

import io
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from colours import BEARER, NEW_PHOTOS, TOKEN, ended, learn, picture, refused, zipped
from colours import LIMITS as IMAGE_LIMITS
from colours import predict as predict_images
from described import all_of_its_description_are_answered
from fastapi import FastAPI, UploadFile
from fastapi.testclient import TestClient
from tickets import (
    KNOWN,
    LIMITS,
    NEW,
    ask,
    encoder_folder,
    json_lines,
    own_predictions,
    table,
    taught_model,
    texts_of,
)

from lamella.data.lengths import of_like_length
from lamella.data.sources.rows import parse_rows
from lamella.data.texts import normal_text
from lamella.learner.learner import Learner
from lamella.learner.store.versions import load_manifest
from lamella.serving.app import create_app
from lamella.serving.kind import Columns
from lamella.serving.limits import Limits
from lamella.serving.sent import read_sent
from lamella.serving.texts import TextKind
from lamella.serving.uploads_kept import FOLDER, NOTE, TEXTS, check_places, take_in
from lamella.serving.worker import teach

TEXT = "my laptop does not turn on"


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning's own process computes with one thread, as this one does."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def taught_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_model(tmp_path_factory.mktemp("tickets"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on an encoder, whose texts are padded; not to be changed."""
    folder = tmp_path_factory.mktemp("encoder")
    return taught_model(folder, str(encoder_folder(folder / "tiny")))


@pytest.fixture
def model(taught_texts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught_texts, tmp_path / "model"))


@pytest.fixture
def app(model: Path) -> FastAPI:
    return create_app(model, token=TOKEN, limits=LIMITS)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def close(row: Any, own: Any) -> None:
    """The same classes, and the same confidences but for rounding."""
    assert [c["name"] for c in row["classes"]] == list(own.classes)
    assert [c["confidence"] for c in row["classes"]] == pytest.approx(own.confidences, abs=2e-5)
    assert (row["task"], row["familiarity"]) == (own.task, pytest.approx(own.familiarity, abs=2e-2))


# answers


def test_it_predicts_what_the_learner_predicts(client: TestClient, model: Path) -> None:
    texts = [text for text, _ in texts_of(*KNOWN, test=True)][:8]
    answer = ask(client, *texts, params={"top": 2}).json()
    assert answer["version"] == 1
    assert [row["name"] for row in answer["predictions"]] == [str(i) for i in range(8)]
    for row, own in zip(answer["predictions"], own_predictions(model, texts, top=2), strict=True):
        close(row, own)
    as_form = client.post("/predict", params={"top": 2}, files=[("text", (None, text)) for text in texts])
    assert as_form.json() == answer, "a form says the same as JSON"


def test_texts_are_taken_in_their_usual_form(client: TestClient) -> None:
    texts = ("caf\u00e9 ferm\u00e9", "  cafe\u0301 ferme\u0301\n")
    one, other = ask(client, *texts).json()["predictions"]
    assert one | {"name": ""} == other | {"name": ""}


def test_a_prediction_does_not_depend_on_the_others_of_its_request(encoder: Path) -> None:
    texts = [" ".join(["word", "no", "paid leave"][: 1 + i % 3] * (1 + i)) for i in range(12)]
    with TestClient(create_app(encoder, token=TOKEN, limits=LIMITS)) as client:
        together = ask(client, *texts).json()["predictions"]
        for i, row in enumerate(together):
            (alone,) = ask(client, texts[i]).json()["predictions"]
            assert [c["name"] for c in alone["classes"]] == [c["name"] for c in row["classes"]]
            expected = [c["confidence"] for c in alone["classes"]]
            assert [c["confidence"] for c in row["classes"]] == pytest.approx(expected, abs=2e-5)
    for row, own in zip(together, own_predictions(encoder, texts), strict=True):
        close(row, own)


def test_batches_have_texts_of_like_length_and_a_bound_on_tokens(encoder: Path) -> None:
    learner: Any = Learner.load(encoder, device="cpu")
    seen: list[tuple[int, int]] = []

    class Watched:
        backbone = learner.backbone

        def predict(self, data: Any, *, top: int) -> Any:
            seen.append(tuple(data.x["input_ids"].shape))
            return learner.predict(data, top=top)

    watched: Any = Watched()
    texts = ["a" * (1 + (37 * i) % 60) for i in range(40)]
    found = TextKind(Limits(batch_tokens=128)).predict(watched, [texts[:1], texts[1:]], 1)
    assert sum(n for n, _ in seen) == len(found) == 40
    assert all(n * tokens <= 128 for n, tokens in seen)
    assert sum(n * tokens for n, tokens in seen) <= 1.2 * sum(len(text) + 2 for text in texts), "little is padded"
    for prediction, own in zip(found, own_predictions(encoder, texts, top=1), strict=True):
        assert prediction.classes == own.classes, "they come back in the order of the requests"


def test_a_sample_that_is_too_long_for_a_batch_is_alone() -> None:
    assert of_like_length([100, 1, 2], samples=8, size=10, pass_costs=99) == [[1, 2], [0]]
    assert of_like_length([1] * 5, samples=2, size=100, pass_costs=99) == [[0, 1], [2, 3], [4]]
    assert of_like_length([9, 1, 8, 2], samples=8, size=100, pass_costs=2) == [[1, 3], [2, 0]], "two tokens are padded"
    assert of_like_length([9, 1, 8, 2], samples=8, size=100, pass_costs=99) == [[1, 3, 2, 0]]
    assert of_like_length([], samples=2, size=100, pass_costs=0) == []


def test_eight_clients_at_once_get_the_answers_that_each_alone_would(client: TestClient) -> None:
    texts = [text for text, _ in texts_of(*KNOWN, test=True)]
    alone = [ask(client, text).json()["predictions"][0] for text in texts]
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda text: ask(client, text), texts))
    assert {answer.status_code for answer in answers} == {200}
    for answer, own in zip(answers, alone, strict=True):
        (row,) = answer.json()["predictions"]
        assert [c["name"] for c in row["classes"]] == [c["name"] for c in own["classes"]]
        confidences = [c["confidence"] for c in own["classes"]]
        assert [c["confidence"] for c in row["classes"]] == pytest.approx(confidences, abs=2e-5)


def test_what_it_takes_is_said(client: TestClient) -> None:
    ask(client, TEXT)
    health = client.get("/health").json()
    assert (health["status"], health["samples"], health["classes"]) == ("ok", "text", 3)
    description = client.get("/openapi.json").json()
    assert "A model of texts" in description["info"]["description"]
    content = description["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert content.keys() == {"application/json", "multipart/form-data"}
    assert content["application/json"]["schema"]["properties"]["texts"]["maxItems"] == 40
    assert "lamella_batch_texts_count 1.0" in client.get("/metrics").text
    assert 'data-samples="text"' in client.get("/").text


# learning


def test_it_learns_a_table_while_it_answers(client: TestClient, model: Path) -> None:
    answers: list[Any] = []
    done = threading.Event()

    def keep_asking() -> None:
        while not done.is_set():
            answers.append(ask(client, TEXT))
            time.sleep(0.05)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    rows = [("", NEW[0]), *texts_of(*NEW)]
    content = table(rows, header=("Body", "Team"))
    refused(learn(client, content, "t.csv"), 422, r"^t.csv, line 1: no text column; its columns are Body, Team: say "
            "text=Body label=Team$")  # fmt: skip
    started = learn(client, content, "../new requests.csv", text="Body", label="Team")
    assert started.status_code == 202, started.text
    job = ended(client, started.json()["id"])
    done.set()
    asking.join()
    assert (job["state"], job["error"], job["version"], job["name"]) == ("done", "", 2, "new requests")
    assert (set(job["new"]), job["images"]) == (set(NEW), len(rows))
    assert job["unreadable"] == {"new requests.csv, line 2": "the text is empty"}
    assert job["held_back"] > 0
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["predictions"][0]["classes"][0]["name"] for answer in answers} == {"broken device"}
    after = ask(client, "the heating in room twelve does not work").json()
    assert (after["version"], after["predictions"][0]["classes"][0]["name"]) == (2, "heating")
    assert not (model / FOLDER).exists()


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "zip"])
def test_tables_and_archives_of_the_same_texts_are_one_data_set(form: str, tmp_path: Path) -> None:
    rows = texts_of(*NEW)
    content = {
        "csv": table(rows),
        "tsv": "".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *rows]).encode(),
        "jsonl": json_lines(rows),
        "zip": zipped({f"{label}/{i}.txt": text.encode() for i, (text, label) in enumerate(rows)}),
    }[form]
    (tmp_path / TEXTS).mkdir()
    upload = UploadFile(io.BytesIO(content), filename=f"new.{form}")
    assert TextKind(LIMITS).unpack(upload, tmp_path / TEXTS, Columns()).samples == len(rows)
    note = {"name": "new", "images": len(rows), "ignored": [], "starts": 1, "tasks": 0}
    (tmp_path / NOTE).write_text(json.dumps(note))
    found = read_sent(tmp_path, "new")
    names = found.whole.class_names
    read = {(text, names[label]) for text, label in zip(found.whole.train.texts, found.whole.train.labels, strict=True)}
    assert (found.whole.name, read) == ("new", set(rows))


def test_what_it_learns_is_what_the_learner_learns(model: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(model, tmp_path / "own"))
    (tmp_path / "new.csv").write_bytes(table(texts_of(*NEW)))
    Learner.load(own, device="cpu").learn_from(tmp_path / "new.csv", folder=own)
    sent = take_in(model, "text")
    (sent.samples / "new.csv").write_bytes(table(texts_of(*NEW)))
    sent.keep("new", 48, [])
    teach(model, sent.folder, "new", lambda said: None, "cpu")
    assert load_manifest(model)["state"] == load_manifest(own)["state"]


def test_a_table_of_paths_is_not_followed(client: TestClient, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    refused(learn(client, f"path,label\n{secret},a\n".encode(), "t.csv"), 422, "no text column")
    refused(learn(client, f"path,label\n{secret},a\n".encode(), "t.csv", text="path", again="maybe"), 422, "again")


@pytest.mark.slow
def test_an_interrupted_learning_of_a_table_goes_on(model: Path) -> None:
    sent = take_in(model, "text")
    (sent.samples / "more.csv").write_bytes(table(texts_of(*NEW), ("Body", "Team")))
    sent.keep("more", 48, [], columns=("Body", "Team"))
    sent.leave()
    with TestClient(create_app(model, token=TOKEN, limits=LIMITS)) as client:
        job = ended(client, 1)
        assert (job["state"], job["name"], set(job["new"])) == ("done", "more", set(NEW))


def test_a_link_in_place_of_a_table_is_not_followed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_bytes(table(texts_of(*NEW)))
    sent = take_in(model, "text")
    (sent.samples / "more.csv").symlink_to(tmp_path / "secret.csv")
    sent.keep("more", 48, [])
    sent.leave()
    with pytest.raises(ValueError, match="is a symbolic link"):
        check_places(model)


def test_a_learning_that_fails_names_the_file_without_its_folder(model: Path) -> None:
    sent = take_in(model, "text")
    (sent.samples / "more.csv").write_bytes(b"text,label\na,\n")
    sent.keep("more", 1, [])
    with pytest.raises(ValueError, match=r"^more\.csv, line 2: the label is empty"):
        read_sent(sent.folder, "more")
    with pytest.raises(ValueError, match=r"^more\.csv, line 2: the label is empty"):
        teach(model, sent.folder, "more", lambda said: None)
    assert load_manifest(model)["version"] == 1


# strangers


BODIES: dict[str, tuple[bytes, int, str]] = {
    "no JSON": (b"{", 400, "the body of the request is not JSON: EOF"),
    "nothing": (b"", 400, "is not JSON"),
    "not UTF-8": (b'{"texts": ["\xff"]}', 400, "is not JSON: invalid unicode"),
    "half a sign": (b'{"texts": ["\\ud800"]}', 400, "is not JSON: unexpected end of hex escape"),
    "nested": (b"[" * 100_000, 400, "is not JSON: recursion"),
    "a list": (b'["a"]', 422, "request: .*; send JSON"),
    "no texts": (b'{"text": ["a"]}', 422, "^texts: Field required; send JSON"),
    "one text": (b'{"texts": "a"}', 422, "^texts: Input should be a valid array; send JSON"),
    "a number": (b'{"texts": ["a", 1]}', 422, r"^texts\.1: Input should be a valid string; send JSON"),
    "an empty list": (b'{"texts": []}', 422, "^texts: .*at least 1 item"),
    "many numbers": (b'{"texts": [' + b"1," * 39 + b"1]}", 422, r"^texts\.0: Input should be a valid string; send"),
    "many texts": (json.dumps({"texts": ["a"] * 41}).encode(), 413, "more than 40 texts .*; 40 are allowed"),
    "a long text": (
        json.dumps({"texts": ["a", "a" * 501]}).encode(), 413, "text 1 has more than the 500 characters",
    ),
    "an empty text": (b'{"texts": ["a", ""]}', 422, "^text 1 is empty; send a text, or leave it out$"),
    "a blank text": (b'{"texts": [" \\n\\u00a0"]}', 422, "^text 0 is empty"),
    "a NUL": (b'{"texts": ["a\\u0000b"]}', 422, "^text 0 has a NUL character"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_bad_json_is_refused(client: TestClient, name: str) -> None:
    content, status, words = BODIES[name]
    refused(client.post("/predict", content=content, headers={"Content-Type": "application/json"}), status, words)
    assert ask(client, TEXT).status_code == 200


def test_bad_forms_are_refused(client: TestClient) -> None:
    def post(*fields: Any) -> Any:
        return client.post("/predict", files=list(fields))

    refused(post(*[("text", (None, "a"))] * 41), 413, "more than 40 texts .*; 40 are allowed")
    refused(post(("text", (None, "a" * 501))), 413, "text 0 has more than the 500 characters that are allowed")
    refused(post(("text", (None, "a" * 3000))), 413, "a text has more than the 500 characters that are allowed")
    refused(post(("text", (None, ""))), 422, "text 0 is empty")
    refused(post(("other", (None, "a"))), 422, "^text: Field required; send JSON")
    broken = {"Content-Type": "multipart/form-data"}
    refused(client.post("/predict", content=b"x", headers=broken), 400, "boundary")
    refused(client.post("/predict"), 422, "^texts: Field required")
    refused(client.post("/predict", data={"text": "a"}), 422, "^texts: Field required")
    refused(ask(client, TEXT, params={"top": 0}), 422, "top: .*greater than or equal to 1")


def test_each_kind_of_model_says_what_it_takes(client: TestClient, taught: Path) -> None:
    of_texts = 'this model takes texts and nothing else: send JSON {"texts": '
    refused(predict_images(client, picture("dark")), 415, of_texts)
    refused(predict_images(client, picture("dark"), picture("dark")), 415, of_texts)
    refused(client.post("/predict", content=picture("dark"), headers={"Content-Type": "image/png"}), 415, of_texts)
    refused(learn(client, zipped(NEW_PHOTOS)), 415, "the archive holds no texts but .*; send a zip of CLASS")
    with TestClient(create_app(taught, token=TOKEN, limits=IMAGE_LIMITS)) as images:
        of_images = "this model takes images and nothing else: send each one as a file"
        refused(ask(images, TEXT), 415, of_images)
        refused(images.post("/predict", files=[("text", (None, TEXT))]), 415, of_images)
        refused(learn(images, table(texts_of(*NEW)), "t.csv"), 415, r"no zip .*send a zip of CLASS/\*.jpg")
        refused(learn(images, zipped(NEW_PHOTOS), text="a"), 422, "this model takes images")
        assert images.get("/health").json()["samples"] == "image"


TABLES: dict[str, tuple[str, bytes, int, str]] = {
    "no rows": ("t.csv", b"text,label\n", 422, "^t.csv has no rows below"),
    "nothing": ("t.csv", b"", 422, "^t.csv is empty"),
    "an empty label": ("t.csv", b"text,label\na,\n", 422, "^t.csv, line 2: the label is empty"),
    "Latin-1": ("t.csv", b"text,label\n\xe9,b\n", 422, "^t.csv, line 2: not UTF-8"),
    "a NUL": ("t.csv", b"text,label\na\0,b\n", 422, "^t.csv, line 2: a NUL"),
    "an image": ("t.csv", picture("dark"), 422, "^t.csv, line 1: not text but binary data"),
    "a broken row": ("t.jsonl", b'{"text": "a", "label": "b"}\n{', 422, "^t.jsonl, line 2"),
    "nested": ("t.jsonl", b"[" * 90_000, 422, "^t.jsonl, line 1: lists are nested"),
    "many columns": ("t.csv", b"," * 1001 + b"\na\n", 422, "more than 1,000 columns"),
    "many lines": ("t.csv", b"text,label\n" + b"\n" * 300, 413, "'t.csv' has 301 lines; a table may have 300"),
    "many lines of old": ("t.csv", b"text,label\r" + b"\r" * 300, 413, "'t.csv' has 301 lines"),
    "bytes": ("t.csv", b"text,label\n" + b"a" * 100_000, 413, "'t.csv' is larger than the 0.1 MB"),
    "other endings": ("t.xyz", b"PK", 415, r"the archive is no zip file .*; send a zip of CLASS/\*.txt"),
    "spreadsheets": ("t.xlsx", b"PK", 415, r".xlsx files are not taken; save it as .csv, .tsv or .jsonl"),
    "parquet": ("t.parquet", b"PAR1", 415, r".parquet files are not taken; save it as .csv, .tsv or .jsonl"),
    "a zip": ("t.zip", zipped({"a/t.pdf": b""}), 422, r"the archive has no text; send a zip of CLASS/\*.txt"),
    "upwards": ("t.zip", zipped({"../a/t.txt": b"a"}), 422, "whose name is not allowed"),
    "a bomb of zeros": ("t.zip", zipped({"a/t.txt": bytes(1_900_000)}) * 2, 413, "larger than the 2 MB"),
}


@pytest.mark.parametrize("name", TABLES)
def test_bad_tables_are_refused_and_leave_nothing(client: TestClient, model: Path, name: str) -> None:
    file, content, status, words = TABLES[name]
    before = sorted(model.rglob("*"))
    refused(learn(client, content, file), status, words)
    assert sorted(model.rglob("*")) == before
    assert client.get("/health").json()["learning"] is None


def test_a_text_of_marks_is_no_way_to_stop_the_server() -> None:
    """Sorting 20,000 marks on one letter takes two seconds, in which nothing else runs."""
    marks = "a" + "\u0301" * 30_000 + "\u0316" * 30_000
    began = time.process_time()
    assert len(normal_text(marks)) > 59_000
    assert time.process_time() - began < 2
    assert normal_text("e\u0323\u0302") == "\u1ec7"


def test_small_tables_do_not_become_large_ones() -> None:
    with pytest.raises(ValueError, match=r"t\.csv, line 1: more than 1,000 columns"):
        parse_rows(Path("t.csv"), b"," * 2000 + b"\n" + b"a\n" * 9)
    with pytest.raises(ValueError, match=r"t\.jsonl, line 1: more than 1,000 columns"):
        parse_rows(Path("t.jsonl"), json.dumps({str(i): "" for i in range(1001)}).encode())


def test_too_many_waiting_texts_are_put_off(model: Path) -> None:
    app = create_app(model, token=TOKEN, limits=Limits(waiting_texts=2, predict_mb_together=0.002))
    with TestClient(app) as client:
        crowd = ask(client, *[TEXT] * 3)
        refused(crowd, 503, "0 texts wait already; try again soon")
        assert crowd.headers["retry-after"] == "1"
        refused(ask(client, "a" * 3000), 413, "the request has more than 0.002 MB")
        assert ask(client, TEXT).status_code == 200
        assert app.state.service.desk.waiting == 0


def test_a_request_of_texts_is_not_larger_than_its_texts_may_be() -> None:
    limits = Limits(texts=10, characters=100).of_texts()
    assert limits.predict_mb == pytest.approx(0.008)
    assert Limits().of_texts().predict_mb < 64


def test_a_model_of_images_that_takes_the_folder_is_not_used(
    app: FastAPI, client: TestClient, model: Path, taught: Path
) -> None:
    shutil.rmtree(model)
    shutil.copytree(taught, model)
    while client.get("/health").json()["status"] == "ok":
        time.sleep(0.02)
    assert "holds a model of images by now, and this server is one of texts" in client.get("/health").json()["status"]
    assert ask(client, TEXT).status_code == 200


@pytest.mark.slow
def test_no_request_of_its_own_description_is_a_fault_of_the_server(app: FastAPI) -> None:
    assert all_of_its_description_are_answered(app, BEARER) == 10
