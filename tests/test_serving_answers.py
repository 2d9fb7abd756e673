"""A model of answers over HTTP: the official client of OpenAI's interface gets what the learner writes."""

import dataclasses
import json
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from assistants import answers_file, learned_assistant
from colours import BEARER, TOKEN, refused
from described import all_of_its_description_are_answered
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lamella.backbones.generating import Generating, Written
from lamella.cli import main
from lamella.data.answers import Answer, Turn
from lamella.learner.learner import Learner
from lamella.serving.app import create_app
from lamella.serving.asked import HARMLESS, NEUTRAL, read_chat, read_completion
from lamella.serving.completions import _settled
from lamella.serving.connections import IdleTimeout
from lamella.serving.limits import Limits

openai = pytest.importorskip("openai")
LIMITS = Limits(predict_mb=1, texts=10, characters=500, prompts=3, batch_tokens=256)
LONGEST = 128
"""The tokens that the small Llama takes in all."""
ASKED = [{"role": "user", "content": "ab1"}]
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned some answers; not to be changed."""
    return learned_assistant(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def app(kept: Path) -> FastAPI:
    return create_app(kept, token=TOKEN, limits=LIMITS, device="cpu")


@pytest.fixture(scope="module")
def address(app: FastAPI) -> Iterator[str]:
    """Of a server on loopback."""
    server = uvicorn.Server(uvicorn.Config(app, http=IdleTimeout, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    """The official client."""
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def learner(kept: Path) -> Learner:
    return Learner.load(kept, device="cpu")


@pytest.fixture(scope="module")
def asked(app: FastAPI) -> TestClient:
    """Of a server that all tests share, so that nothing of it is changed."""
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def local(kept: Path) -> Iterator[TestClient]:
    with TestClient(create_app(kept, token=TOKEN, limits=LIMITS, device="cpu"), raise_server_exceptions=False) as local:
        yield local


def fault(answer: Any, status: int, words: str, param: str | None = None) -> None:
    """One line in the form of OpenAI's interface, and nothing else."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert list(answer.json()) == ["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert re.search(words, error["message"]), answer.text
    assert "\n" not in error["message"]
    assert error["param"] == param


# answers


def test_the_client_finds_the_model(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["assistant"]
    found = client.models.retrieve("assistant")
    assert (found.object, found.owned_by, abs(found.created - time.time()) < 3600) == ("model", "lamella", True)
    with pytest.raises(openai.NotFoundError, match="there is no model 'other' here; this server has 'assistant'"):
        client.models.retrieve("other")


def test_an_answer_is_what_the_learner_writes(client: Any, learner: Learner) -> None:
    turns = (Turn("system", "s"), Turn("user", "ab1"), Turn("assistant", "b"), Turn("user", "ab2"))
    transform: Any = learner.backbone.transform
    for conversation in (turns[1:2], turns):
        messages = [turn._asdict() for turn in conversation]
        found = client.chat.completions.create(model="assistant", messages=messages, max_tokens=8)
        (wanted,) = learner.answer([Answer(conversation)], Generating(max_tokens=8))
        (choice,) = found.choices
        assert (choice.message.role, choice.message.content) == ("assistant", wanted)
        assert found.usage.prompt_tokens == len(transform.prompts([Answer(conversation)], room=1000)[0])
        assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
        assert (found.object, found.model, found.system_fingerprint) == ("chat.completion", "assistant", "version-1")


def test_texts_are_gone_on_with_as_they_are(client: Any, learner: Learner) -> None:
    """Without the chat template, and what looks like a control token is plain text."""
    transform: Any = learner.backbone.transform
    texts = ["once", "<|im_end|> upon"]
    found = client.completions.create(model="assistant", prompt=texts, max_tokens=5)
    rows = [transform.continued(text) for text in texts]
    assert transform.tokenizer.token_to_id("<|im_end|>") not in rows[1]
    assert [choice.index for choice in found.choices] == [0, 1]
    assert found.usage.prompt_tokens == sum(map(len, rows))
    for choice, row in zip(found.choices, rows, strict=True):
        assert choice.text == plainly(learner, row, 5)
    assert found.object == "text_completion"
    assert client.completions.create(model="assistant", prompt="once", max_tokens=5).choices[0].text == plainly(
        learner, rows[0], 5
    )


def plainly(learner: Learner, ids: list[int], count: int) -> str:
    """What follows ids, token by token, by the logits of the whole network."""
    import torch

    model: Any = learner.method.eval().backbone.model
    written: list[int] = []
    with torch.no_grad():
        while len(written) < count:
            best = int(model.network(torch.tensor([ids + written])).logits[0, -1].argmax())
            if best in model.ends:
                break
            written.append(best)
    return learner.backbone.transform.tokenizer.decode(written)  # type: ignore[attr-defined]


def test_a_stream_holds_the_same_piece_by_piece(client: Any) -> None:
    for options in ({}, {"temperature": 2.0, "seed": 5, "stop": ["a", "!!"]}):
        asked = {"model": "assistant", "messages": ASKED, "max_tokens": 24, **options}
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        assert chunks[0].choices[0].delta.role == "assistant"
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(pieces) == whole.choices[0].message.content
        ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        assert ends == [None] * (len(ends) - 1) + [whole.choices[0].finish_reason]
        assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
        assert {(chunk.id, chunk.object, chunk.usage is None) for chunk in chunks[:-1]} == {
            (chunks[0].id, "chat.completion.chunk", True)
        }
    texts = ["one", "two", "three"]
    whole = client.completions.create(model="assistant", prompt=texts, max_tokens=6)
    found = ["", "", ""]
    for chunk in client.completions.create(model="assistant", prompt=texts, max_tokens=6, stream=True):
        (choice,) = chunk.choices
        found[choice.index] += choice.text
    assert found == [choice.text for choice in whole.choices]


def test_an_answer_comes_while_it_is_written(client: Any) -> None:
    pieces = [
        chunk.choices[0].delta.content
        for chunk in client.chat.completions.create(
            model="assistant", messages=ASKED, max_tokens=40, temperature=5.0, seed=1, stream=True
        )
    ]
    assert sum(bool(piece) for piece in pieces) > 3


def test_what_ends_an_answer_is_told_and_counted(client: Any, learner: Learner) -> None:
    def ask(**options: Any) -> Any:
        return client.chat.completions.create(model="assistant", messages=ASKED, temperature=1.5, seed=2, **options)

    how = {"temperature": 1.5, "seed": 2}
    (long,) = learner.answer(["ab1"], Generating(60, **how))
    short = ask(max_tokens=3)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)
    assert short.choices[0].message.content == learner.answer(["ab1"], Generating(3, **how))[0]
    sign = next(letter for letter in long[2:] if letter.isascii() and letter not in long[:2])
    stopped = ask(max_tokens=60, stop=sign)
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == long[: long.index(sign)]
    shortest = next(k for k in range(1, 61) if sign in learner.answer(["ab1"], Generating(k, **how))[0])
    assert stopped.usage.completion_tokens == shortest
    assert ask(max_completion_tokens=3).choices[0].message.content == short.choices[0].message.content


def test_an_answer_that_ends_by_itself_counts_the_token_that_ends_it(local: TestClient) -> None:
    learner = local.app.state.service.batcher.loaded.learner  # type: ignore[attr-defined]
    asked = {"messages": ASKED, "max_tokens": 9}
    free = local.post(CHAT, json=asked).json()
    first = learner.backbone.transform.tokenizer.encode(free["choices"][0]["message"]["content"][:1]).ids[1]
    learner.backbone.model.ends = (first,)
    found = local.post(CHAT, json=asked).json()
    assert found["choices"][0]["message"]["content"] == ""
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] == 1


def test_without_a_seed_every_draw_is_another(client: Any) -> None:
    def drawn(**options: Any) -> str:
        asked = {"model": "assistant", "messages": ASKED, "max_tokens": 20, "temperature": 3.0}
        return client.chat.completions.create(**asked, **options).choices[0].message.content

    assert drawn() != drawn()
    assert drawn(seed=-4) == drawn(seed=-4) != drawn(seed=5)


def test_requests_that_draw_nothing_are_written_together() -> None:
    def how(**options: Any) -> Generating:
        return read_chat(json.dumps({"messages": ASKED} | options).encode(), "m", LIMITS).how(5)

    assert how() == how() == how(seed=3) == how(temperature=0)
    assert how(temperature=1) != how(temperature=1)
    assert how(temperature=1, seed=3) == how(temperature=1, seed=3) != how(temperature=1, seed=4)


def test_clients_at_once_get_what_each_alone_would(client: Any) -> None:
    asked: list[dict[str, Any]] = [
        {"max_tokens": 6 + i % 2, "temperature": float(i % 3), "seed": 7, "messages": [{"role": "user", "content": t}]}
        for i, t in enumerate(["a", "ab1", "ab1", "b" * 30, "a", "ab2", "x", "ab1"])
    ]

    def answer(one: dict[str, Any]) -> tuple[str, str, int]:
        found = client.chat.completions.create(model="assistant", **one)
        return found.choices[0].message.content, found.choices[0].finish_reason, found.usage.total_tokens

    alone = [answer(one) for one in asked]
    with ThreadPoolExecutor(8) as clients:
        assert list(clients.map(answer, asked)) == alone


def test_a_short_answer_does_not_wait_for_a_long_one(app: FastAPI) -> None:
    """Both are written in one batch, and the row of the first is done before the batch is."""
    learner = app.state.service.batcher.loaded.learner
    kind = app.state.service.kind
    seen: list[tuple[int, str]] = []
    asked = [read_chat(json.dumps({"messages": [{"role": "user", "content": t}], "max_tokens": 30, "temperature": 2,
                                   "seed": 1, "stop": ["a", "e"]}).encode(), "m", LIMITS) for t in "pqrs"]  # fmt: skip

    def hear(number: int) -> Any:
        def heard(place: int, written: Written) -> bool:
            if written.why:
                seen.append((number, written.why))
            return True

        return heard

    requests = [dataclasses.replace(kind.encode(one, learner), hear=hear(i)) for i, one in enumerate(asked)]
    found = kind.predict(learner, requests, 1)
    lengths = [one.tokens for one in found]
    assert len(set(lengths)) > 1
    assert [number for number, _ in seen] == sorted(range(4), key=lambda i: (lengths[i], i))


def test_an_answer_nobody_waits_for_is_not_written_on(client: Any, app: FastAPI) -> None:
    steps: list[int] = []
    batcher = app.state.service.batcher
    plain = batcher.predict

    def watched(learner: Any, requests: Any, top: int) -> Any:
        found = plain(learner, requests, top)
        steps.append(found[0].tokens)
        return found

    batcher.predict = watched
    try:
        stream = client.chat.completions.create(
            model="assistant", messages=ASKED, max_tokens=100, temperature=9.0, seed=1, stream=True
        )
        next(iter(stream))
        stream.close()
        given_up = time.monotonic() + 60
        while not steps or app.state.service.desk.waiting:
            assert time.monotonic() < given_up
            time.sleep(0.01)
        assert client.chat.completions.create(model="assistant", messages=ASKED, max_tokens=2).usage.completion_tokens
    finally:
        batcher.predict = plain
    assert steps[0] < 100


def test_a_new_version_answers_as_soon_as_it_is_stored(kept: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(kept, tmp_path / "assistant"))
    with TestClient(create_app(model, token=TOKEN, limits=LIMITS, device="cpu")) as local:
        before = local.post(CHAT, json={"messages": ASKED, "max_tokens": 8}).json()
        learner = Learner.load(model, device="cpu")
        learner.learn_from(answers_file(tmp_path / "second.jsonl", "xyz"), folder=model)
        given_up = time.monotonic() + 60
        while local.get("/health").json()["version"] < 2:
            assert time.monotonic() < given_up
            time.sleep(0.05)
        after = local.post(CHAT, json={"messages": ASKED, "max_tokens": 8}).json()
        assert [one["system_fingerprint"] for one in (before, after)] == ["version-1", "version-2"]
        assert after["choices"][0]["message"]["content"] == learner.answer(["ab1"], Generating(8))[0]
        assert local.post("/rollback", params={"to": 1}, headers=BEARER).status_code == 200
        again = local.post(CHAT, json={"messages": ASKED, "max_tokens": 8}).json()
        assert again["choices"] == before["choices"]


def test_what_it_is_is_said(local: TestClient) -> None:
    health = local.get("/health").json()
    assert (health["status"], health["samples"], health["classes"], health["tasks"]) == ("ok", "answer", 0, 1)
    assert [(task["name"], task["held_back"]) for task in local.get("/tasks").json()] == [("first", 3)]
    assert local.get("/classes").json() == []
    assert "base_url" in local.get("/").text
    paths = local.get("/openapi.json").json()["paths"]
    assert {CHAT, COMPLETION, "/v1/models"} <= set(paths)
    body = paths[CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["messages"]["items"]["properties"]["role"]["enum"] == ["system", "user", "assistant"]
    assert local.post(CHAT, json={"messages": ASKED, "max_tokens": 2}).status_code == 200
    given_up = time.monotonic() + 60  # an answer is sent before its batch is counted
    while "lamella_batch_answers_count 1.0" not in (metrics := local.get("/metrics").text):
        assert time.monotonic() < given_up
        time.sleep(0.01)
    assert f'route="{CHAT}",status="200"' in metrics
    assert "lamella_learning 0.0" in metrics
    assert "lamella_drift" not in metrics, "answers have no familiarity that could drift"


def test_the_command_prints_where_clients_find_it(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", ["lamella", "serve", str(kept), "--port", "0", "--token", "t", "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    first, second = capsys.readouterr().out.splitlines()
    assert f"{kept}, version 1, 1 task: http://127.0.0.1:" in first
    assert re.fullmatch(r"clients of OpenAI's interface: base_url http://127\.0\.0\.1:\d+/v1", second)


# strangers


def parameters(of: str) -> set[str]:
    """All fields that the official client knows."""
    from openai.types import completion_create_params as completion
    from openai.types.chat import completion_create_params as chat

    found = chat.CompletionCreateParamsNonStreaming if of == "chat" else completion.CompletionCreateParamsNonStreaming
    return set(found.__annotations__) | {key for base in found.__mro__ for key in vars(base).get("__annotations__", {})}


SUPPORTED = {"model", "max_tokens", "temperature", "top_p", "stop", "seed", "stream", "stream_options"}


@pytest.mark.parametrize(("of", "own"), [("chat", {"messages", "max_completion_tokens"}), ("completion", {"prompt"})])
def test_every_field_of_the_client_is_supported_harmless_or_refused_by_name(
    of: str, own: set[str], asked: TestClient
) -> None:
    path, body = (CHAT, {"messages": ASKED}) if of == "chat" else (COMPLETION, {"prompt": "a"})
    body |= {"max_tokens": 1}
    others = sorted(parameters(of) - SUPPORTED - own)
    assert len(others) >= 8
    assert asked.post(path, json=body | dict.fromkeys(others)).status_code == 200, "null is as if left out"
    value = {"some": "value"}
    assert asked.post(path, json=body | dict.fromkeys(HARMLESS, value)).status_code == 200
    for key in others:
        if key not in HARMLESS:
            answer = asked.post(path, json=body | {key: value})
            fault(answer, 400, f"^{key} is not supported, and could change the answer; leave it out$", key)
            assert answer.json()["error"]["code"] == "unsupported_parameter"


def test_values_that_change_nothing_are_taken_and_others_are_not(asked: TestClient) -> None:
    body = {"messages": ASKED, "max_tokens": 4}
    whole = asked.post(CHAT, json=body).json()["choices"]
    for place in (0, -1):
        answer = asked.post(CHAT, json=body | {key: values[place] for key, values in NEUTRAL.items()})
        assert (answer.status_code, answer.json().get("choices")) == (200, whole)
    for key, value in {"n": 2, "logprobs": 0, "frequency_penalty": 0.1, "echo": True, "logit_bias": {"5": 1}}.items():
        fault(asked.post(CHAT, json={"messages": ASKED, key: value}), 400, f"^{key} is not supported", key)


def said(**fields: Any) -> bytes:
    return json.dumps({"messages": ASKED, **fields}).encode()


def messages(*contents: Any, role: str = "user", **more: Any) -> bytes:
    return json.dumps({"messages": [{"role": role, "content": content, **more} for content in contents]}).encode()


BODIES: dict[str, tuple[bytes, int, str, str | None]] = {
    "no JSON": (b"{", 400, "^the body of the request is not JSON: EOF", None),
    "nothing": (b"", 400, "is not JSON", None),
    "not UTF-8": (b'{"messages": [{"role": "user", "content": "\xff"}]}', 400, "not JSON: invalid unicode", None),
    "half a sign": (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "not JSON: unexpected end", None),
    "nested": (b"[" * 10_000, 400, "is not JSON: recursion", None),
    "a list": (b"[]", 400, "^request: ", None),
    "no messages": (b"{}", 400, "^messages: Field required", "messages"),
    "an empty list": (b'{"messages": []}', 400, "^messages: .*at least 1 item", "messages"),
    "messages that are none": (b'{"messages": ["a"]}', 400, r"^messages\.0: Input should be", "messages"),
    "an unknown role": (messages("a", role="tool"), 400, r"^messages\.0\.role: Input should be 'system', 'user' or",
                        "messages"),
    "no content": (messages(None), 400, r"^messages\.0\.content: ", "messages"),
    "a number": (messages(1), 400, r"^messages\.0\.content: ", "messages"),
    "an image": (messages([{"type": "image_url", "image_url": {}}]), 400, r"^messages\.0\.content", "messages"),
    "a name": (messages("a", name="b"), 400, r"^messages\.0\.name is not supported", "messages.0.name"),
    "many messages": (messages(*["a"] * 11), 413, "^11 messages were sent, and 10 are allowed", "messages"),
    "a long message": (messages("a", "b" * 501), 413, r"^messages\.1\.content has 501 characters", "messages"),
    "a NUL": (messages("a\0b"), 400, r"^messages\.0\.content has a NUL character", "messages"),
    "an answer at the end": (messages("a", role="assistant"), 400, "^the last message is an answer", "messages"),
    "another model": (said(model="gpt"), 404, "^there is no model 'gpt' here; this server has 'assistant'", "model"),
    "no tokens": (said(max_tokens=0), 400, "^max_tokens: .*greater than or equal to 1", "max_tokens"),
    "tokens as text": (said(max_tokens="5"), 400, "^max_tokens: .*valid integer", "max_tokens"),
    "two lengths": (said(max_tokens=5, max_completion_tokens=6), 400, "are two names of one number", "max_tokens"),
    "too many tokens": (said(max_tokens=LONGEST), 400, r"^the prompt has 22 tokens, and max_tokens is 128; to such a "
                        r"prompt this model writes at most 106", "messages"),
    "cold": (said(temperature=-1), 400, "^temperature: .*greater than or equal to 0", "temperature"),
    "no number": (b'{"messages": [], "temperature": NaN}', 400, "^temperature: .*finite", "temperature"),
    "no share": (said(top_p=0, temperature=1), 400, "^top_p: .*greater than or equal to", "top_p"),
    "a share of what is not drawn": (said(top_p=0.5), 400, "^top_p is 0.5, but at temperature 0 nothing is drawn",
                                     "top_p"),
    "an empty stop": (said(stop=["a", ""]), 400, "^stop is .*not empty", "stop"),
    "many stops": (said(stop=["a"] * 17), 400, "^stop may hold 16 texts", "stop"),
    "a name of many lines": (said(model="a\nb"), 404, r"^there is no model 'a\\nb' here", "model"),
    "a field of many lines": (said(**{"a\n" * 99: 1}), 400, r"^'a\\na.* is not supported", ascii("a\n" * 99)[:60]),
    "colder than numbers are": (said(temperature=1e-300), 400, "^temperature is 1e-300; give 0 for the likeliest",
                                "temperature"),
    "a number without end": (said(max_tokens=10**4000), 400, "^max_tokens: .*less than 1000000000", "max_tokens"),
    "a broken seed": (said(seed=0.5), 400, "^seed: ", "seed"),
    "an unknown field": (said(magic=1), 400, "^magic is not supported, and could change the answer", "magic"),
    "many answers": (said(n=2), 400, "^n is not supported", "n"),
    "an option of streams": (said(stream=True, stream_options={"include_usage": 1}), 400, "include_usage: ",
                             "stream_options"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_bad_requests_are_refused(asked: TestClient, name: str) -> None:
    content, status, words, param = BODIES[name]
    answer = asked.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    fault(answer, status, words, param)


def test_bad_texts_to_go_on_with_are_refused(asked: TestClient) -> None:
    for prompt, status, words in [
        ([1, 2], 400, "^prompt"),
        ([[1]], 400, "^prompt"),
        ([], 400, "^prompt: .*at least 1 item"),
        (["a"] * 4, 413, "^4 prompts were sent, and 3 are allowed at once"),
        ("a" * 501, 413, "^prompt has 501 characters"),
        ("a\0", 400, "^prompt has a NUL"),
        (
            "a" * 127,
            400,
            "^the prompt has 128 tokens, and max_tokens is 2; to such a prompt this model writes at most 0",
        ),
    ]:
        fault(asked.post(COMPLETION, json={"prompt": prompt, "max_tokens": 2}), status, words, "prompt")
    fault(asked.post(COMPLETION, json={"max_tokens": 2}), 400, "^prompt: Field required", "prompt")
    assert asked.post(COMPLETION, json={"prompt": "", "max_tokens": 2}).status_code == 200


def test_the_length_of_a_context_is_that_of_the_network(asked: TestClient) -> None:
    """Not the length that the model was taught with, and all that is left where a request names no number."""
    found = asked.post(COMPLETION, json={"prompt": "a" * 119}).json()
    assert found["usage"]["prompt_tokens"] + found["usage"]["completion_tokens"] <= LONGEST
    assert found["usage"]["prompt_tokens"] == 120
    client = openai.OpenAI(base_url="http://localhost/v1", api_key="none", http_client=asked)
    with pytest.raises(openai.BadRequestError) as refusal:
        client.completions.create(model="assistant", prompt="a" * 128)
    assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", "prompt")


def test_a_template_that_refuses_says_so(local: TestClient) -> None:
    tokens = local.app.state.service.batcher.loaded.learner.backbone.transform  # type: ignore[attr-defined]
    tokens.chat.template = "{{ raise_exception('no system here') if messages[0]['role'] == 'system' else 'x' }}"
    bad = {"messages": [{"role": "system", "content": "s"}, *ASKED]}
    fault(local.post(CHAT, json=bad), 400, "the chat template refuses the conversation .no system here", "messages")


def test_each_kind_of_model_says_what_it_takes(asked: TestClient, taught: Path) -> None:
    of_answers = "takes conversations and texts to go on with and nothing else: it writes answers and knows no classes"
    refused(asked.post("/predict", json={"texts": ["a"]}), 415, of_answers)
    refused(asked.post("/predict", files={"images": b"a"}), 415, of_answers)
    archive = {"archive": ("t.zip", b"PK")}
    of_rows = (
        r"^this model learns a .csv, .tsv or .jsonl table of prompt and response, messages, or text, and 't.zip' is"
    )
    refused(asked.post("/learn", files=archive, headers=BEARER), 415, of_rows)
    fault(asked.get("/v1/engines"), 404, "this server has GET /v1/models, POST /v1/chat/completions and POST")
    fault(asked.post("/v1/embeddings", json={}), 401, "needs the token")
    fault(asked.post("/v1/embeddings", json={}, headers=BEARER), 404, "nothing else below /v1")
    with TestClient(create_app(taught, token=TOKEN)) as images:
        for answer in (images.get("/v1/models"), images.post(CHAT, json={}), images.post(COMPLETION, json={})):
            fault(answer, 404, "^this model names classes of images and writes nothing; use POST /predict$")


def test_the_gate_speaks_their_language(asked: TestClient, kept: Path) -> None:
    fault(asked.post(CHAT, content=b"a" * 1_000_001), 413, "larger than the 0.03 MB|larger than the")
    fault(asked.post(CHAT, json={"messages": ASKED}, headers={"Origin": "https://evil.example"}), 403, "another site")
    fault(asked.post(CHAT, content=b"{}", headers={"Content-Type": "text/plain"}), 415, "the body must be JSON")
    fault(asked.get(CHAT), 404, "this server has GET")
    with TestClient(create_app(kept, token=TOKEN, limits=LIMITS, hosts={"localhost"}, device="cpu")) as named:
        fault(named.get("/v1/models"), 421, "does not answer to the name 'testserver'")


def test_too_many_prompts_are_put_off(kept: Path) -> None:
    limits = Limits(waiting_prompts=2, answer_seconds=0.0)
    with TestClient(create_app(kept, token=TOKEN, limits=limits, device="cpu")) as local:
        crowd = local.post(COMPLETION, json={"prompt": ["a"] * 3})
        fault(crowd, 503, "0 answers wait already; try again soon")
        assert crowd.headers["retry-after"] == "1"
        late = local.post(COMPLETION, json={"prompt": "a"})
        fault(late, 503, "no whole answer within 0 s; ask for fewer tokens")
        assert local.get("/health").json()["waiting"] == 0


def test_a_model_that_fails_says_so_before_and_within_a_stream(local: TestClient) -> None:
    batcher = local.app.state.service.batcher  # type: ignore[attr-defined]
    plain = batcher.predict

    def at_once(learner: Any, requests: Any, top: int) -> Any:
        raise ValueError("another model has taken the folder meanwhile; ask again")

    def later(learner: Any, requests: Any, top: int) -> Any:
        requests[0].hear(0, Written("half", 1, ""))
        time.sleep(0.2)
        raise ValueError("it broke")

    asked = {"messages": ASKED, "max_tokens": 3}
    batcher.predict = at_once
    fault(local.post(CHAT, json=asked), 503, "another model has taken the folder")
    fault(local.post(CHAT, json=asked | {"stream": True}), 503, "another model has taken the folder")
    batcher.predict = later
    client = openai.OpenAI(base_url="http://localhost/v1", api_key="none", http_client=local, max_retries=0)
    chunks = client.chat.completions.create(model="assistant", messages=ASKED, stream=True)
    with pytest.raises(openai.APIError, match="it broke"):
        list(chunks)
    batcher.predict = plain
    assert local.post(CHAT, json=asked).status_code == 200


def test_tokens_of_another_tokenizer_are_not_gone_on_with(app: FastAPI) -> None:
    service = app.state.service
    learner = service.batcher.loaded.learner
    prompts = service.kind.encode(read_completion(b'{"prompt": "a"}', "m", LIMITS), learner)
    with pytest.raises(ValueError, match="another model has taken the folder meanwhile"):
        service.kind.predict(learner, [dataclasses.replace(prompts, base="other")], 1)


def test_what_is_done_with_predictions_of_classes_passes_over_answers(app: FastAPI) -> None:
    """What is done after the last token has no say in the answer, which its listener may have had already."""
    service = app.state.service
    prompts = service.kind.encode(read_completion(b'{"prompt": "a"}', "m", LIMITS), service.batcher.loaded.learner)
    assert isinstance(service.batcher.submit(prompts, 1).result(60).predictions[0], Written)
    assert service.drift.state() is None


@pytest.mark.parametrize(
    ("text", "stop", "settled"),
    [("abc", (), "abc"), ("ab\ufffd", (), "ab"), ("ab\n", ("\n\n",), "ab"), ("ab", ("abc", "b!"), ""),
     ("xab", ("abc",), "x"), ("a\nb", ("\n\n",), "a\nb"), ("a\n\ufffd", ("\n\u20ac",), "a")],
)  # fmt: skip
def test_what_may_still_change_is_not_sent(text: str, stop: tuple[str, ...], settled: str) -> None:
    assert _settled(text, stop) == settled


@pytest.mark.slow
def test_no_request_of_its_own_description_is_a_fault_of_the_server(kept: Path) -> None:
    app = create_app(kept, token=TOKEN, limits=LIMITS, device="cpu")
    assert all_of_its_description_are_answered(app, BEARER) == 13
