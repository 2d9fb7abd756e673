"""`lamella serve` with a model of texts under several clients, as a ratio to `Learner.predict` on these texts.

    python benchmarks/serving_texts.py sentence-transformers/all-MiniLM-L6-v2
    python benchmarks/serving_texts.py FOLDER --source banking77 --clients 8 --per-request 16

The argument is a backbone of texts: a name, or the folder of an encoder. Both take turns: in each round the learner
predicts all texts, in batches of like length, then the clients ask the server for all of them. The server is a process
of its own, the clients threads of a third one. Printed is the median over the rounds. A second core is of use to the
server, which speaks HTTP while the model computes.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import typer
from serving import ask_for_all, server

from lamella import Learner, load_source
from lamella.common.files import write_json
from lamella.data.sources.parts import keep_per_class
from lamella.data.texts import TextSet
from lamella.learner.next_task import as_next_task


def main(
    backbone: str,
    source: str = "requests",
    texts: int = 512,
    clients: int = 8,
    per_request: int = 1,
    rounds: int = 5,
    out: Path = Path("runs/benchmarks/serving_texts.json"),
) -> None:
    """Time both."""
    learner, asked = taught(backbone, source, texts)
    bodies = json_bodies(asked, per_request)
    with tempfile.TemporaryDirectory() as name:
        learner.save(Path(name) / "model")
        with server(Path(name) / "model") as port, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as crowd:
            ratios: list[float] = []
            for i in range(rounds + 1):
                started = time.perf_counter()
                learner.predict(TextSet.unlabelled(asked))
                alone = time.perf_counter() - started
                served = crowd.submit(ask_for_all, port, bodies, "application/json", clients).result()
                ratios.append(alone / served)
                speeds = f"alone {texts / alone:.1f}/s, served {texts / served:.1f}/s"
                print(f"round {i}: {speeds}" if i else f"warm-up: {speeds}", flush=True)
    told = f"{statistics.median(ratios[1:]):.2f} ({min(ratios[1:]):.2f} to {max(ratios[1:]):.2f})"
    print(f"{backbone}, {texts} texts, {clients} clients, {per_request} texts a request: served / alone {told}")
    setting = {"backbone": backbone, "texts": texts, "clients": clients, "texts a request": per_request}
    write_json(out, {**setting, "source": source, "served / alone": ratios[1:]})


def taught(backbone: str, source: str, texts: int) -> tuple[Learner, list[str]]:
    """A learner that knows four texts of each class of a source, and the texts to ask for."""
    learner = Learner.create(backbone=backbone, method="nearest-mean")
    found = load_source(source)
    task, _ = as_next_task(keep_per_class(found, 4), learner.model)
    learner.learn(task)
    if not isinstance(found.test, TextSet):
        raise ValueError(f"{source} holds {found.test.noun}s; give a source of texts")
    known = found.test.texts
    return learner, [known[i % len(known)] for i in range(texts)]


def json_bodies(texts: Sequence[str], per_request: int) -> list[bytes]:
    """Requests of so many texts each."""
    chunks = (texts[i : i + per_request] for i in range(0, len(texts), per_request))
    return [json.dumps({"texts": chunk}).encode() for chunk in chunks]


if __name__ == "__main__":
    typer.run(main)
