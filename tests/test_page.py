"""The page of `lamella serve` in a browser: what a visitor drops, and then sees."""

import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from colours import LIMITS, NEW, NEW_PHOTOS, TOKEN, picture, taught_model, zipped

from lamella.serving.app import create_app

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DROP = """(zone, {name, type, content}) => {
    const carried = new DataTransfer();
    carried.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name, {type}));
    zone.dispatchEvent(new DragEvent("drop", {dataTransfer: carried, bubbles: true, cancelable: true}));
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server whose model knows dark and bright."""
    app = create_app(taught_model(tmp_path_factory.mktemp("page")), token=TOKEN, limits=LIMITS)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.fixture
def page() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser can be driven")
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome is installed")
    with api.sync_playwright() as playwright:
        # Who runs tests as root, as in a container, can have no sandbox; what is shown is our own page.
        browser = playwright.chromium.launch(executable_path=BROWSER, timeout=180_000, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(180_000)
        api.expect.set_options(timeout=180_000)
        yield page
        browser.close()


def drop(page: Any, zone: str, name: str, content: bytes) -> None:
    from base64 import b64encode

    page.eval_on_selector(zone, DROP, {"name": name, "type": "", "content": b64encode(content).decode()})


def test_a_visitor_asks_teaches_and_asks_again(page: Any, address: str) -> None:
    from playwright.sync_api import expect

    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.goto(f"{address}#token={TOKEN}")
    expect(page.locator("#state")).to_contain_text("version 1, 2 classes from 1 task, nearest-mean on test_vit")
    assert TOKEN not in page.url, "the token does not stay where it can be copied or seen"

    red = picture(NEW[0], 9)
    drop(page, "#drop-images", "sunset.png", red)
    first = page.locator(".result").nth(0)
    expect(first.locator(".guess")).to_have_count(2)
    expect(first).to_contain_text("sunset.png, version 1")
    shares = [float(text.split()[0]) for text in first.locator(".guess span:last-child").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    for i, share in enumerate(shares):
        width = first.locator(".bar i").nth(i).evaluate("(bar) => parseFloat(bar.style.width)")
        assert width == pytest.approx(share, abs=0.1), "a bar is as long as its share"

    drop(page, "#drop-archive", "colours.zip", zipped(NEW_PHOTOS | {f"{NEW[0]}/cut.png": red[:-40]}))
    expect(page.locator("#job")).to_contain_text("colours: 11 images")
    expect(page.locator("#job")).to_contain_text(f"left out, cannot be read: {NEW[0]}/cut.png: ")
    expect(page.locator("#job .bar")).to_have_count(1)
    expect(page.locator("#job")).to_contain_text("version 2; right on 2 of 2 held-back images. Try it.")
    expect(page.locator("#classes li.new")).to_have_text(list(NEW))
    expect(page.locator("#state")).to_contain_text("version 2, 4 classes from 2 tasks")

    drop(page, "#drop-images", "sunset.png", red)
    newest = page.locator(".result").nth(0)
    expect(newest).to_contain_text("version 2")
    expect(newest.locator(".guess span").nth(0)).to_have_text(NEW[0])
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing is wider than a phone"
    assert faults == []


def test_a_visitor_is_told_what_was_wrong(page: Any, address: str) -> None:
    from playwright.sync_api import expect

    page.goto(address)
    drop(page, "#drop-images", "<b>notes</b>.txt", b"hello")
    expect(page.locator(".result .fault")).to_contain_text("'<b>notes</b>.txt' is no image of a known format")
    drop(page, "#drop-archive", "colours.zip", zipped(NEW_PHOTOS))
    expect(page.locator("#job .fault")).to_contain_text("needs the token")
    page.fill("#token", TOKEN)
    drop(
        page,
        "#drop-archive",
        "bad.zip",
        zipped({"red/0.png": picture(NEW[0])[:-40], "red/1.png": picture(NEW[0])[:-40]}),
    )
    expect(page.locator("#job .fault")).to_contain_text("has no image that can be read, of 2")
