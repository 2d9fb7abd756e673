"""Answers: rows of files, conversations as a model's template writes them, and which of their tokens are targets."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamella.data.answer_tokens import TARGET, AnswerTokens, fitting
from lamella.data.answers import ASSISTANT, PLAIN_TEXT, USER, Answer, AnswerSet, Turn
from lamella.data.chat import ChatTemplate
from lamella.data.lengths import lengths_of
from lamella.data.loading import Examples, batches
from lamella.data.samples import Batch
from lamella.data.scenario import Source
from lamella.data.sources.answer_rows import answers_of_rows, holds_answers, load_answers
from lamella.data.sources.rows import read_rows
from lamella.data.tokens import IDS, MASK
from lamella.testing.answers import CHAT_SPECIAL, CHATML, answer_tokens, chat_tokenizer
from lamella.testing.texts import CLS, PAD, SEP

SHIFT = len(CHAT_SPECIAL)  # the id of a byte is the byte and this


def ids(text: str) -> list[int]:
    """The ids of bytes."""
    return [byte + SHIFT for byte in text.encode()]


def write(path: Path, content: str | list[dict[str, Any]]) -> Path:
    text = content if isinstance(content, str) else "\n".join(map(json.dumps, content)) + "\n"
    path.write_text(text, encoding="utf-8")
    return path


def load(path: Path, **options: Any) -> Source:
    return load_answers(read_rows(path), **options)


def turns(source: Source) -> dict[tuple[Turn, ...], str]:
    """The key of each answer of both parts, by its turns."""
    found: dict[tuple[Turn, ...], str] = {}
    for part in (source.train, source.test):
        assert isinstance(part, AnswerSet)
        found |= {answer.turns: key for answer, key in zip(part.items, part.keys, strict=True)}
    return found


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


PAIRS = [{"prompt": f"what is {i}?", "response": f"It is {i}."} for i in range(10)]


# rows


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_form_of_rows_gives_the_same_answers_and_the_same_split(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"answers.{form}"
    if form == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(PAIRS), path)
    elif form in ("csv", "tsv"):
        sign = "," if form == "csv" else "\t"
        write(path, "\n".join([f"Prompt{sign}Response", *(f"{p['prompt']}{sign}{p['response']}" for p in PAIRS)]))
    else:
        write(path, json.dumps(PAIRS) if form == "json" else PAIRS)
    source = load(path)
    assert (source.name, source.class_names, source.train.noun) == ("answers", (), "answer")
    assert (len(source.train), len(source.test)) == (8, 2)
    assert set(turns(source)) == {(Turn(USER, p["prompt"]), Turn(ASSISTANT, p["response"])) for p in PAIRS}
    reference = load(write(tmp_path / "reference.jsonl", list(reversed(PAIRS))))
    assert set(source.test.keys) == set(reference.test.keys), "neither form nor order of rows decides the split"


def test_conversations_and_texts_are_rows_too(tmp_path: Path) -> None:
    talk = [message("system", "Be brief."), message("user", "2+2?"), message("assistant", "4")]
    rows = [{"messages": talk, "references": ["four"]}, {"messages": talk[1:], "id": 7}]
    found, _ = answers_of_rows(read_rows(write(tmp_path / "chat.jsonl", rows)))
    assert found[0].answer.turns == (Turn("system", "Be brief."), Turn(USER, "2+2?"), Turn(ASSISTANT, "4"))
    assert found[0].answer.references == ("four",)
    assert (found[1].answer.response, found[1].answer.prompt) == ("4", (Turn(USER, "2+2?"),))

    source = load(write(tmp_path / "plain.csv", "text\nonce upon a time\nthere was a fox\n"))
    assert set(turns(source)) == {(Turn(PLAIN_TEXT, "once upon a time"),), (Turn(PLAIN_TEXT, "there was a fox"),)}


def test_columns_say_what_rows_are(tmp_path: Path) -> None:
    held = {"prompt,response": True, "text": True, "id,text,split": True, "text,label": False, "text,Team": False}
    for header, expected in held.items():
        path = write(tmp_path / "rows.csv", f"{header}\n{','.join('a' * len(header.split(',')))}\n")
        assert holds_answers(read_rows(path)) is expected, header


def test_ids_decide_the_split_where_there_are_some(tmp_path: Path) -> None:
    rows = [pair | {"id": f"row {i}"} for i, pair in enumerate(PAIRS)]
    source = load(write(tmp_path / "rows.jsonl", rows))
    assert {*source.train.keys, *source.test.keys} == {f"row {i}" for i in range(10)}


def test_an_answer_counts_once_and_a_prompt_is_in_one_part(tmp_path: Path) -> None:
    rows = [pair | {"split": "test" if i < 2 else "train"} for i, pair in enumerate(PAIRS)]
    again = [PAIRS[0] | {"split": "train", "response": "Nothing."}, PAIRS[5] | {"split": "train"}]
    source = load(write(tmp_path / "rows.jsonl", rows + again))
    assert (len(source.train), len(source.test)) == (8, 2)
    assert "counted once: 1 answer that came again" in source.told
    assert "left out of training, because the test part asks the same: 1 answer" in source.told


def test_a_made_split_keeps_the_answers_to_a_prompt_together(tmp_path: Path) -> None:
    rows = [{"prompt": f"say {i % 5}", "response": f"so {i}"} for i in range(20)]
    source = load(write(tmp_path / "rows.jsonl", rows))
    assert isinstance(source.train, AnswerSet)
    assert isinstance(source.test, AnswerSet)
    assert (len(source.train), len(source.test)) == (16, 4)
    assert not {a.prompt for a in source.train.items} & {a.prompt for a in source.test.items}


def test_empty_answers_are_left_out_and_listed(tmp_path: Path) -> None:
    rows = [*PAIRS, {"prompt": "why?", "response": "  "}, {"prompt": None, "response": "so"}]
    source = load(write(tmp_path / "rows.jsonl", rows))
    assert len(source.train) + len(source.test) == 10
    assert [tuple(one) for one in source.unreadable] == [
        ("rows.jsonl, line 11", "the response is empty"),
        ("rows.jsonl, line 12", "the prompt is empty"),
    ]


GOOD = '{"prompt": "a", "response": "b"}'
BAD = {
    "line 2, column 1: not JSON: Expecting value": f"{GOOD}\nnonsense\n",
    "line 2: no prompt; the rows of a file are all of one kind": f'{GOOD}\n{{"text": "a"}}\n',
    "line 2: rows of messages and rows of prompts in one file": f'{GOOD}\n{{"messages": []}}\n',
    "line 1: message 2 has the role 'bot'; roles are system, user, assistant": json.dumps(
        {"messages": [message("user", "a"), message("bot", "b")]}
    ),
    "line 1: messages is an empty list; write": json.dumps({"messages": []}),
    "line 1: the last message is of the user; end with an answer": json.dumps({"messages": [message("user", "a")]}),
    "line 1: the content of message 1 is nothing; write it as a text": json.dumps(
        {"messages": [message("user", None)]}
    ),
    "line 1: message 1 is no object with a role and a content": json.dumps({"messages": ["a"]}),
    "line 1: messages is a text, not a list": json.dumps({"messages": "a"}),
    "line 1: the response is a number '4'; write it as a text": json.dumps({"prompt": "2+2?", "response": 4}),
    "line 1: a NUL character in the prompt": json.dumps({"prompt": "a\0b", "response": "b"}),
    "line 1: half a character (\\ud800) in the response": json.dumps({"prompt": "a", "response": "\ud800"}),
    "line 1: the references are a text, not a list of texts": json.dumps({"text": "a", "references": "b"}),
    "line 2: the split 'dev' is unknown": '{"text": "a", "split": "train"}\n{"text": "b", "split": "dev"}',
    "no response column beside 'prompt'": json.dumps({"prompt": "a"}),
    "beside 'prompt'; did you mean 'reponse'?; its columns are": json.dumps({"prompt": "a", "reponse": "b"}),
    "no prompt column beside 'response'": json.dumps({"response": "a"}),
    "no column of answers; rows need prompt and response, messages, or text, and its columns are a": '{"a": "b"}',
    "line 2: the id '1' is already that of bad.jsonl, line 1": '{"text": "a", "id": 1}\n{"text": "b", "id": 1}',
    "bad has answers to a single prompt": GOOD,
    "has no answers: the response is empty": '{"prompt": "a", "response": ""}',
}


@pytest.mark.parametrize(("said", "content"), BAD.items())
def test_bad_rows_are_refused_in_one_line_that_names_them(tmp_path: Path, said: str, content: str) -> None:
    path = write(tmp_path / "bad.jsonl", content)
    with pytest.raises(ValueError, match="bad") as refused:
        load(path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_column_that_comes_twice_hides_no_answers(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "two.csv", "prompt,response,response,x,x\na,b,c,d,e\n"))
    with pytest.raises(ValueError, match=r"two\.csv, line 1: two columns are called 'response'; rename or remove one"):
        answers_of_rows(rows)


def test_prompts_alone_are_rows_to_be_answered(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "asked.jsonl", [{"prompt": "a"}, {"prompt": "b", "response": "c"}]))
    found, _ = answers_of_rows(rows, answered=False)
    assert [(f.answer.response, f.answer.prompt) for f in found] == [
        ("", (Turn(USER, "a"),)),
        ("c", (Turn(USER, "b"),)),
    ]


# sets


def test_a_set_of_answers_is_a_set_of_samples() -> None:
    whole = AnswerSet([Answer.to(str(i), str(-i)) for i in range(4)])
    assert isinstance(whole, Examples)
    assert whole.subset([2, 0]).keys == (whole.keys[2], whole.keys[0])
    assert whole.subset([2, 0]).items == (whole.items[2], whole.items[0])
    joined = whole.subset([1]).concatenate([whole.subset([3])])
    assert joined.items == (whole.items[1], whole.items[3])
    assert whole.labels.tolist() == [-1] * 4
    assert whole.relabelled(whole.labels, ["a", "b", "c", "d"]).keys == ("a", "b", "c", "d")
    with pytest.raises(ValueError, match="two answers share the key"):
        whole.concatenate([whole])


def test_a_key_is_of_the_content_alone() -> None:
    one = AnswerSet([Answer.to(" caf\u0065\u0301", "b\n")._replace(place="x, line 1", references=("c",))])
    other = AnswerSet([Answer.to("caf\u00e9", "b")])
    assert one.keys == other.keys
    assert one.keys != AnswerSet([Answer((Turn(USER, "caf\u00e9"), Turn("system", "b")))]).keys
    assert one.identity(0) != other.identity(0), "references are part of what a row holds"


# tokens and targets


def test_targets_of_a_response_are_its_tokens_and_the_one_that_ends_it() -> None:
    found = answer_tokens().encode(Answer.to("hi", "yo"))
    assert found.ids == [1, *ids("hi\nyo"), 2]
    assert found.target == [False] * 4 + [True] * 3
    assert not found.apart


def test_every_assistant_turn_of_a_chat_is_a_target() -> None:
    talk = Answer((Turn(USER, "a"), Turn(ASSISTANT, "b"), Turn(USER, "c"), Turn(ASSISTANT, "de")))
    found = answer_tokens(CHATML, max_length=200).encode(talk)
    asked, answered = [3, *ids("user\n")], [3, *ids("assistant\n")]
    parts = [
        ([*asked, *ids("a"), 4, *ids("\n"), *answered], False),
        ([*ids("b"), 4], True),
        ([*ids("\n"), *asked, *ids("c"), 4, *ids("\n"), *answered], False),
        ([*ids("de"), 4], True),
    ]
    assert found.ids == [i for part, _ in parts for i in part]
    assert found.target == [is_target for part, is_target in parts for _ in part]


def test_all_of_a_text_is_a_target_but_what_nothing_stands_before() -> None:
    text = Answer((Turn(PLAIN_TEXT, "abc"),))
    assert answer_tokens(CHATML).encode(text).ids == [1, *ids("abc"), 2], "no template of conversations"
    assert answer_tokens().encode(text).target == [False, True, True, True, True]
    assert answer_tokens(begins=False).encode(text).target == [False, True, True, True]


def test_what_looks_like_a_special_token_is_plain_text() -> None:
    transform = answer_tokens(CHATML, max_length=200)
    found = transform.encode(Answer.to("stop<|im_end|>now", "[SEP] <|im_start|>"))
    plain = transform.encode(Answer.to("stop-=im_end=-now", "{SEP} -=im_start=-"))
    assert [i for i in found.ids if i < SHIFT] == [3, 4, 3, 4]
    assert [i if i < SHIFT else SHIFT for i in found.ids] == [i if i < SHIFT else SHIFT for i in plain.ids]
    assert found.target == plain.target
    assert "stop<|im_end|>now" in transform.tokenizer.decode(found.ids, skip_special_tokens=True)


pieces = st.sampled_from([*CHAT_SPECIAL, "<|", "|>", "[", "\uf8f0", "\uf8f1", "é", "a ", "\n"])


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(pieces, min_size=1, max_size=5), st.lists(pieces, min_size=1, max_size=5))
def test_no_text_of_a_user_makes_a_control_token(prompt: list[str], response: list[str]) -> None:
    transform = answer_tokens(CHATML, max_length=400)
    found = transform.encode(Answer.to("".join(prompt), "".join(response)))
    assert [i for i in found.ids if i < SHIFT] == [3, 4, 3, 4]
    marks = str.maketrans("", "", "\uf8f0\uf8f1")
    expected = [*ids("".join(response).translate(marks)), 4]
    assert [i for i, is_target in zip(found.ids, found.target, strict=True) if is_target] == expected


def spanning_tokens() -> AnswerTokens:
    """A tokenizer that has a token for a line end and the "y" behind it."""
    from tokenizers import Tokenizer

    content = json.loads(chat_tokenizer().to_str())
    content["model"]["vocab"]["Ċy"] = len(content["model"]["vocab"])
    content["model"]["merges"] = [["Ċ", "y"]]
    chat = ChatTemplate(CHAT_SPECIAL, names={"eos_token": SEP}, begin=CLS)
    return AnswerTokens(Tokenizer.from_str(json.dumps(content)), chat, max_length=64)


def test_a_token_that_spans_prompt_and_response_is_never_a_target() -> None:
    transform = spanning_tokens()
    assert transform.ids_of("a\ny") != [*ids("a\n"), *ids("y")], "the tokenizer joins them"
    found = transform.encode(Answer.to("hi", "yo\nyes"))
    joined = transform.ids_of("\ny")
    assert found.apart
    assert found.ids == [1, *ids("hi\n"), *ids("yo"), *joined, *ids("es"), 2]
    assert found.target == [False] * 4 + [True] * 6
    told = fitting(AnswerSet([Answer.to("hi", "yo"), Answer.to("hi", "so")]), transform).told
    assert told == ["1 answer whose first token would span the end of the prompt: encoded apart from it"]


def test_the_beginning_of_a_prompt_is_cut_and_never_a_response() -> None:
    transform = answer_tokens(max_length=8)
    found = transform.encode(Answer.to("abcdefgh", "xyz"))
    assert found.ids == [1, *ids("gh\nxyz"), 2], "the token that begins every text stays"
    assert found.target == [False] * 4 + [True] * 4
    assert found.cut == 6
    longest = transform.encode(Answer.to("ab", "uvwxy"))
    assert longest.ids == [1, *ids("\nuvwxy"), 2]
    assert longest.target == [False, False] + [True] * 6
    assert not any(transform.encode(Answer.to("ab", "uvwxyz")).target), "nothing of the prompt would be left before it"


def test_a_text_loses_its_end() -> None:
    found = answer_tokens(max_length=6).encode(Answer((Turn(PLAIN_TEXT, "abcdefgh"),)))
    assert found.ids == [1, *ids("abcde")]
    assert (found.target, found.cut) == ([False] + [True] * 5, 4)


def test_an_earlier_answer_that_does_not_fit_whole_is_no_target() -> None:
    talk = Answer((Turn(USER, "a"), Turn(ASSISTANT, "bcd"), Turn(USER, "e"), Turn(ASSISTANT, "f")))
    whole = answer_tokens().encode(talk)
    assert whole.ids == [1, *ids("a\nbcd"), 2, *ids("e\nf"), 2]
    cut = answer_tokens(max_length=9).encode(talk)
    assert cut.ids == [1, *ids("bcd"), 2, *ids("e\nf"), 2]
    assert cut.target == [False] * 7 + [True] * 2
    kept = answer_tokens(max_length=10).encode(talk)
    assert kept.target == [False, False] + [True] * 4 + [False] * 2 + [True] * 2


def test_answers_that_do_not_fit_are_left_out_and_counted() -> None:
    transform = answer_tokens(max_length=8)
    answers = [
        Answer.to("a", "b"),
        Answer.to("a", "far too long")._replace(place="x.csv, line 3"),
        Answer.to("ab" * 9, "b"),
    ]
    data, too_long, told = fitting(AnswerSet(answers), transform)
    assert data.items == (answers[0], answers[2])
    assert too_long[0].key == "x.csv, line 3"
    assert "does not fit into max_length = 8 tokens" in too_long[0].reason
    assert told == ["1 answer with more than 8 tokens: the first of the prompt are cut"]
    with pytest.raises(ValueError, match=r"x.csv, line 3: its answer does not fit"):
        AnswerSet(answers).batch([1], transform.view())


def test_what_a_tokenizer_does_not_know_is_counted() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transform = AnswerTokens(tokenizer, ChatTemplate([]), max_length=8)
    told = fitting(AnswerSet([Answer.to("a", "b"), Answer.to("привет мир", "b")]), transform).told
    assert told == ["this model's tokenizer does not know the script of 1 answer"]


def test_a_batch_is_padded_and_its_samples_are_counted() -> None:
    transform = answer_tokens()
    data = AnswerSet([Answer.to("hello", "you"), Answer.to("a", "b")])
    x, y, _ = next(batches(data, torch.tensor([0, 1]), 2, transform.view()))
    assert isinstance(x, Batch)
    assert (len(x), y.tolist()) == (2, [-1, -1])
    assert x[IDS][1].tolist() == [1, *ids("a\nb"), 2, *[0] * 6]
    assert x[MASK].sum(1).tolist() == [11, 5]
    assert x[TARGET].sum(1).tolist() == [4, 2]
    assert not (x[TARGET] & ~x[MASK]).any()
    assert (lengths_of(data, transform) == torch.tensor([11, 5])).all()


def test_examples_have_several_lengths_and_targets() -> None:
    transform = answer_tokens()
    drawn = transform.example(6, torch.Generator().manual_seed(0))
    assert len(set(drawn[MASK].sum(1).tolist())) > 1
    assert drawn[TARGET].any(1).all()
    assert not drawn[TARGET][:, 0].any()
    assert transform.example(2)[TARGET].any(1).all()
    assert transform.describe().keys() == {"max_length", "tokenizer_sha256", "chat_template_sha256"}


# templates


def test_templates_that_end_answers_in_other_ways() -> None:
    turn = "'[INST] ' + m['content'] + ' [/INST]' if m['role'] == 'user' else ' ' + m['content'] + ' [SEP]'"
    llama = "{% for m in messages %}{{ " + turn + " }}{% endfor %}"
    chat = ChatTemplate(CHAT_SPECIAL, template=llama, names={"eos_token": SEP})
    assert [tuple(p) for p in chat.pieces(Answer.to("a", "b").turns)] == [
        ("[INST] a [/INST]", False),
        (" b [SEP]", True),
    ]
    assert chat.end == SEP
    thinking = CHATML.replace(
        "message['content'] +", "('<t></t>' if message['role'] == 'assistant' else '') + message['content'] +"
    )
    chat = ChatTemplate(CHAT_SPECIAL, template=thinking)
    assert chat.pieces(Answer.to("a", "b").turns)[-1].text == "<t></t>b<|im_end|>", "all that the model has to write"
    bare = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | trim + '\n' }}{% endfor %}"
    chat = ChatTemplate(CHAT_SPECIAL, template=bare, names={"eos_token": SEP})
    assert chat.pieces(Answer.to("a", " b ").turns)[-1].text == "assistant: b[SEP]", (
        "an end where the template has none"
    )


def test_a_template_that_refuses_is_named_with_the_row() -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    talk = Answer((Turn("system", "x"), Turn(USER, "a"), Turn(ASSISTANT, "b")), place="chat.jsonl, line 4")
    with pytest.raises(ValueError, match=r"chat.jsonl, line 4: the chat template refuses .*no system role"):
        answer_tokens(strict).encode(talk)
    changing = "{{ messages | length }}" + CHATML
    with pytest.raises(ValueError, match="shows the beginning of a conversation otherwise"):
        answer_tokens(changing).encode(talk)


def test_a_template_that_names_the_day_names_the_same_one() -> None:
    today = "{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}{% endif %}{{ date_string }}"
    assert ChatTemplate([], template=today).prompt([Turn(USER, "a")]) == "26 Jul 2024"


def test_an_answer_needs_room() -> None:
    with pytest.raises(ValueError, match="leaves no room for an answer"):
        answer_tokens(max_length=2)
    with pytest.raises(ValueError, match=r"^\[augment\] is for images, and this backbone takes answers; leave it out$"):
        answer_tokens().view(augmentation=object())
    assert PAD == CHAT_SPECIAL[0]
