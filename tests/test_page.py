"""The page of `lamella serve` in a browser: what a visitor drops, and then sees."""

import io
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from colours import LIMITS, NEW, NEW_PHOTOS, TOKEN, photos, picture, taught_model, zipped
from PIL import Image

from lamella.learner.learner import Learner
from lamella.serving.app import create_app
from lamella.serving.limits import Limits

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DROP = """(zone, {name, type, content}) => {
    const carried = new DataTransfer();
    carried.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name, {type}));
    zone.dispatchEvent(new DragEvent("drop", {dataTransfer: carried, bubbles: true, cancelable: true}));
}"""


Served = Callable[..., str]


@pytest.fixture(scope="module")
def browser() -> Path:
    """The program; what is taught and served for it comes after, so that nothing is where there is none."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser can be driven")
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome is installed")
    return Path(BROWSER)


@pytest.fixture(scope="module")
def served(browser: Path) -> Iterator[Served]:
    """Serves a model, under limits where they are given, until the end of this file, and returns the address."""
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(serving(*options))


@contextmanager
def serving(model: Path, limits: Limits = LIMITS) -> Iterator[str]:
    app = create_app(model, token=TOKEN, limits=limits)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, served: Served) -> str:
    """Of a server whose model knows dark and bright."""
    return served(taught_model(tmp_path_factory.mktemp("page")))


@pytest.fixture
def page(browser: Path) -> Iterator[Any]:
    from playwright import sync_api as api

    with api.sync_playwright() as playwright:
        # Who runs tests as root, as in a container, can have no sandbox; what is shown is our own page.
        running = playwright.chromium.launch(executable_path=browser, timeout=180_000, args=["--no-sandbox"])
        page = running.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(180_000)
        api.expect.set_options(timeout=180_000)
        yield page
        running.close()


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


@pytest.mark.slow
def test_a_visitor_is_told_what_was_wrong(page: Any, address: str) -> None:
    from playwright.sync_api import expect

    page.goto(address)
    drop(page, "#drop-images", "<b>notes</b>.txt", b"hello")
    expect(page.locator(".result .fault")).to_contain_text("'<b>notes</b>.txt' is no image of a known format")
    drop(page, "#drop-archive", "colours.zip", zipped(NEW_PHOTOS))
    expect(page.locator("#refusal .fault")).to_contain_text("needs the token")
    page.fill("#token", TOKEN)
    drop(
        page,
        "#drop-archive",
        "bad.zip",
        zipped({"red/0.png": picture(NEW[0])[:-40], "red/1.png": picture(NEW[0])[:-40]}),
    )
    expect(page.locator("#job .fault")).to_contain_text("has no image that can be read, of 2")


def picture_of_none(seed: int) -> bytes:
    """Coloured noise, which looks like neither of the taught classes."""
    noise = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def trained(browser: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is trained for so long that a visitor can do other things meanwhile."""
    folder = tmp_path_factory.mktemp("trained")
    return taught_model(folder, {"name": "seq-lora", "epochs": 400, "batch_size": 4})


@pytest.mark.slow
def test_a_refusal_stays_beside_the_status_of_the_job(page: Any, trained: Path, served: Served) -> None:
    from playwright.sync_api import expect

    page.goto(f"{served(trained)}#token={TOKEN}")
    expect(page.locator("#versions li")).to_have_count(1)
    drop(page, "#drop-archive", "colours.zip", zipped(NEW_PHOTOS))
    expect(page.locator("#job")).to_contain_text(" of about ")
    assert re.search(r"\d+ s so far of about \d+ (s|min) in all", page.locator("#job").inner_text())
    drop(page, "#drop-archive", "more.zip", zipped(NEW_PHOTOS))
    expect(page.locator("#refusal .fault")).to_contain_text("job 1 is learning; try again when it is done")
    before = page.locator("#job").inner_text()
    expect(page.locator("#job")).not_to_have_text(before)  # the status was written anew
    expect(page.locator("#refusal .fault")).to_contain_text("job 1 is learning; try again when it is done")
    page.get_by_role("button", name="Stop learning").click()
    expect(page.locator("#job .fault")).to_contain_text("the learning was stopped; the model is unchanged")
    expect(page.locator("#refusal")).to_be_empty()


def test_what_is_unknown_looks_otherwise(page: Any, address: str) -> None:
    from playwright.sync_api import expect

    page.route("**/predict*", unknown_answer)
    page.goto(address)
    drop(page, "#drop-images", "noise.png", picture_of_none(1))
    row = page.locator(".result.unknown")
    expect(row.locator(".strange")).to_have_text("Unknown")
    expect(row.locator(".nearest")).to_have_text("Nearest class: dark")
    expect(row.locator(".guess")).to_have_count(0)  # no bar says how sure it is of a class
    assert row.locator("img").evaluate("(img) => getComputedStyle(img).borderStyle") == "dashed"
    page.unroute("**/predict*")
    drop(page, "#drop-images", "dark.png", picture("dark", 9))
    known = page.locator(".result:not(.unknown)")
    expect(known).to_have_count(1)
    expect(known.locator(".nearest")).to_have_count(0)
    assert known.locator(".guess .bar").count() >= 2
    expect(page.locator(".result.unknown")).to_have_count(1)


def unknown_answer(route: Any) -> None:
    """What a model with enough held-back images says of noise; the tiny one of this test holds back too few."""
    classes = [{"name": "dark", "confidence": 0.9}, {"name": "bright", "confidence": 0.1}]
    row = {"name": "noise.png", "classes": classes, "task": "photos", "familiarity": 0.01, "unknown": True}
    route.fulfill(json={"version": 1, "predictions": [row]})


def test_results_do_not_pile_up(page: Any, address: str) -> None:
    from playwright.sync_api import expect

    page.goto(address)
    expect(page.get_by_role("button", name="Clear the list")).to_be_hidden()
    page.evaluate("""() => {
        const old = document.createElement("div");
        old.className = "answered";
        for (let i = 0; i < 50; i++) old.append(Object.assign(document.createElement("div"), {className: "result"}));
        document.getElementById("results").append(old);
    }""")
    drop(page, "#drop-images", "dark.png", picture("dark", 9))
    expect(page.locator(".result")).to_have_count(1)  # the drop of fifty is gone, the newest one is there
    page.get_by_role("button", name="Clear the list").click()
    expect(page.locator(".result")).to_have_count(0)
    expect(page.get_by_role("button", name="Clear the list")).to_be_hidden()
    drop(page, "#drop-images", "dark.png", picture("dark", 9))
    expect(page.locator(".result")).to_have_count(1)


def test_a_visitor_goes_back_to_a_version(page: Any, tmp_path: Path, served: Served) -> None:
    from playwright.sync_api import expect

    model = taught_model(tmp_path)
    Learner.load(model, device="cpu").learn_from(photos(tmp_path / "new", NEW), folder=model)
    page.goto(served(model))
    rows = page.locator("#versions li")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("2: learned new")
    expect(rows.nth(0)).to_contain_text("in use")
    page.get_by_role("button", name="Go back: version 1").click()
    expect(page.locator("#rolled .fault")).to_contain_text("needs the token")
    page.fill("#token", TOKEN)
    page.get_by_role("button", name="Go back: version 1").click()
    expect(page.locator("#state")).to_contain_text("version 1, 2 classes from 1 task")
    expect(page.locator("#rolled")).to_be_empty()
    expect(rows.nth(1)).to_contain_text("in use")
    expect(page.locator("#classes li")).to_have_text(["bright", "dark"])
    page.get_by_role("button", name="Use again: version 2").click()
    expect(page.locator("#state")).to_contain_text("version 2, 4 classes from 2 tasks")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing is wider than a phone"
