"""The page of `lamella serve` with a model of texts in a browser: what a visitor writes or drops, and then sees."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from colours import TOKEN
from test_page import browser, drop, page, served  # noqa: F401
from tickets import LIMITS, NEW, table, taught_model, texts_of


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, served: Any) -> str:  # noqa: F811
    return served(taught_model(tmp_path_factory.mktemp("page")), LIMITS)


@pytest.fixture(autouse=True)
def faults(page: Any) -> Iterator[list[str]]:  # noqa: F811
    """Errors of the page, of which there may be none."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(str(error)))
    yield found
    assert found == []


def test_a_visitor_asks_teaches_and_asks_again(page: Any, address: str, tmp_path: Path) -> None:  # noqa: F811
    from playwright.sync_api import expect

    page.goto(f"{address}#token={TOKEN}")
    expect(page.locator("#state")).to_contain_text("version 1, 3 classes from 1 task, nearest-mean on hashed-words")
    expect(page.locator("#drop-images")).to_be_hidden()
    page.fill("#texts", "my laptop does not turn on\n\n  where do I find the salary statement of March  ")
    page.get_by_role("button", name="Ask").click()
    rows = page.locator("tr.result")
    expect(rows).to_have_count(2)
    expect(rows.nth(0).locator("td.said")).to_have_text("my laptop does not turn on")
    expect(rows.nth(0).locator("td.label")).to_have_text("broken device")
    expect(rows.nth(1).locator("td.label")).to_have_text("pay slip")
    for share in rows.nth(0).locator("td.share").all_inner_texts():
        assert 0 < float(share.split()[-2]) <= 100, share

    page.fill("#text-column", "Body")
    page.fill("#label-column", "Team")
    drop(page, "#drop-archive", "new requests.csv", table(texts_of(*NEW), ("Body", "Team")))
    expect(page.locator("#job")).to_contain_text("new requests: 48 texts")
    expect(page.locator("#job")).to_contain_text("held-back texts. Try it.")
    expect(page.locator("#classes li.new")).to_have_text(list(NEW))

    asked = [(text, "") for text, _ in texts_of(*NEW, test=True)]
    drop(page, "#drop-texts", "asked.csv", b"\xef\xbb\xbf" + table([*asked, ('a "quoted", text\nof two lines', "")]))
    expect(page.locator("#asked")).to_contain_text("asked.csv: 25 texts")
    expect(rows).to_have_count(27)
    expect(rows.nth(0).locator("td.label")).to_contain_text(NEW[0])
    expect(rows.nth(24).locator("td.said")).to_have_text('a "quoted", text\nof two lines')
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing is wider than a phone"
    page.get_by_role("button", name="Clear the list").click()
    expect(rows).to_have_count(0)


def test_a_visitor_is_told_what_was_wrong(page: Any, address: str) -> None:  # noqa: F811
    from playwright.sync_api import expect

    page.goto(address)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#asked .fault")).to_have_text("write a text into the box, one a line")
    page.fill("#texts", f"<b>my laptop</b> is broken\n{'a' * 501}")
    page.get_by_role("button", name="Ask").click()
    rows = page.locator("tr.result")
    expect(rows.nth(0).locator("td.said")).to_have_text("<b>my laptop</b> is broken")
    expect(rows.nth(0).locator("td.label")).to_contain_text("broken device")
    expect(rows.nth(1).locator("td.fault")).to_contain_text("has more than the 500 characters that are allowed")
    drop(page, "#drop-texts", "a.csv", b"Body,Team\na,b\n")
    expect(page.locator("#asked .fault")).to_contain_text("a.csv has no column called text, sentence")
    drop(page, "#drop-archive", "a.csv", table(texts_of(*NEW)))
    expect(page.locator("#refusal .fault")).to_contain_text("needs the token")
    page.fill("#token", TOKEN)
    drop(page, "#drop-archive", "a.csv", b"Body,Team\na,b\n")
    expect(page.locator("#refusal .fault")).to_contain_text("a.csv, line 1: no text column; its columns are Body, Team")
