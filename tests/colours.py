"""Images of four colours, a model that knows two of them, and what tests of a served model say to it."""

import io
import re
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image

from lamella.data.sources.folders import load_folder
from lamella.learner.learner import Learner
from lamella.learner.next_task import as_next_task
from lamella.serving.limits import Limits

COLOURS = {"dark": (20, 20, 20), "bright": (230, 230, 230), "rød": (220, 20, 20), "зелёный": (20, 220, 20)}
OLD, NEW = ("dark", "bright"), ("rød", "зелёный")
TOKEN = "right-token"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
LIMITS = Limits(predict_mb=1, learn_mb=2, unpacked_mb=4, megapixels=0.1, images=8, files=5000)


def picture(colour: str, seed: int = 0, form: str = "PNG", size: int = 16) -> bytes:
    noise = np.random.default_rng([seed, len(colour)]).normal(0, 8, (size, size, 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)).save(file, form)
    return file.getvalue()


def photos(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(5):
            (folder / name / f"{i}.png").write_bytes(picture(name, i))
    return folder


def zipped(entries: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


NEW_PHOTOS = {f"{name}/{i}.png": picture(name, i) for name in NEW for i in range(5)}


def taught_model(folder: Path, method: str | dict[str, Any] = "nearest-mean", **fit: Any) -> Path:
    """A model that knows the old colours, in a new folder below `folder`."""
    learner = Learner.create(
        backbone={"name": "test_vit", "weights": "random", "size": 32}, method=method, fit={"device": "cpu", **fit}
    )
    task, held_back = as_next_task(load_folder(photos(folder / "photos", OLD)), learner.model)
    learner.learn(task, held_back=held_back)
    learner.save(folder / "model")
    return folder / "model"


def predict(client: TestClient, *contents: bytes, top: int = 5) -> Any:
    files = [("images", (f"{i}.png", content)) for i, content in enumerate(contents)]
    return client.post("/predict", params={"top": top}, files=files)


def learn(client: TestClient, archive: bytes, name: str = "colours.zip", **form: str) -> Any:
    return client.post("/learn", files={"archive": (name, archive)}, data=form, headers=BEARER)


def ended(client: TestClient, id: int) -> dict[str, Any]:
    given_up = time.monotonic() + 300  # else a job that hangs would hang the suite
    while (job := client.get(f"/jobs/{id}").json())["state"] == "learning":
        assert time.monotonic() < given_up, job
        time.sleep(0.05)
    return job


def refused(answer: Any, status: int, words: str) -> None:
    """One line with the reason, and nothing else."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["detail"]
    assert re.search(words, answer.json()["detail"]), answer.text
    assert "\n" not in answer.json()["detail"]
