"""`lamella serve` under several clients at once, as a ratio to `Learner.predict` on the same image files.

    python benchmarks/serving.py
    python benchmarks/serving.py --backbone vit_base_patch16_224 --clients 16 --per-request 4

Both take turns: in each round the learner predicts all files, then the clients ask the server for all of them. The
server is a process of its own, the clients threads of a third one. Printed is the median over the rounds. A second core
is of use to the server, which reads images and speaks HTTP while the model computes.
"""

import http.client
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import torch
import typer
from PIL import Image

from lamella import Learner
from lamella.common.files import write_json
from lamella.common.randomness import generator
from lamella.data.images import ImageSet, PixelArray
from lamella.data.scenario import Task

FORM = "multipart/form-data; boundary=cut"


def main(
    backbone: str = "vit_tiny_patch16_224",
    size: int = 224,
    images: int = 96,
    clients: int = 8,
    per_request: int = 1,
    rounds: int = 5,
    out: Path = Path("runs/benchmarks/serving.json"),
) -> None:
    """Time both."""
    with tempfile.TemporaryDirectory() as name:
        learner = taught(backbone, size)
        learner.save(Path(name) / "model")
        files = photos(Path(name), images, size)
        bodies = multipart_bodies(files, per_request)
        with server(Path(name) / "model") as port, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as crowd:
            ratios: list[float] = []
            for i in range(rounds + 1):
                started = time.perf_counter()
                learner.predict(files)
                alone = time.perf_counter() - started
                served = crowd.submit(ask_for_all, port, bodies, FORM, clients).result()
                ratios.append(alone / served)
                speeds = f"alone {images / alone:.1f}/s, served {images / served:.1f}/s"
                print(f"round {i}: {speeds}" if i else f"warm-up: {speeds}", flush=True)
    told = f"{statistics.median(ratios[1:]):.2f} ({min(ratios[1:]):.2f} to {max(ratios[1:]):.2f})"
    print(f"{backbone}, {images} files, {clients} clients, {per_request} images a request: served / alone {told}")
    setting = {"backbone": backbone, "images": images, "clients": clients, "images a request": per_request}
    write_json(out, {**setting, "served / alone": ratios[1:]})


@contextmanager
def server(model: Path) -> Iterator[int]:
    """The port at which a server of its own process answers."""
    command = [sys.executable, "-m", "lamella", "serve", str(model), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(re.findall(r":(\d+)/", process.stdout.readline())[0])
    finally:
        process.terminate()
        process.wait()


def taught(backbone: str, size: int) -> Learner:
    """A learner with random weights that knows ten classes of noise."""
    learner = Learner.create(backbone={"name": backbone, "weights": "random", "size": size}, method="nearest-mean")
    pixels = torch.randint(0, 256, (10, 3, 32, 32), generator=generator(0, "noise"), dtype=torch.uint8)
    train = ImageSet(PixelArray(pixels), torch.arange(10), [str(i) for i in range(10)])
    learner.learn(Task(0, "noise", tuple(range(10)), tuple(map(str, range(10))), train))
    return learner


def photos(folder: Path, images: int, size: int) -> list[Path]:
    """JPEG files, smooth enough to be of a photo's size."""
    files = [folder / f"{i}.jpg" for i in range(images)]
    for i, file in enumerate(files):
        coarse = torch.randint(0, 256, (size // 16, size // 16, 3), generator=generator(1, str(i)), dtype=torch.uint8)
        Image.fromarray(coarse.numpy()).resize((size + 32, size)).save(file)
    return files


def ask_for_all(port: int, bodies: Sequence[bytes], content_type: str, clients: int) -> float:
    """Seconds until every request is answered; each client keeps its connection and asks when it has its answer.

    Args:
        port: of the server on this machine.
        bodies: of the requests.
        content_type: of the bodies.
        clients: how many ask at the same time.

    Raises:
        RuntimeError: a request was not answered with 200.
    """

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for body in bodies[number::clients]:
            connection.request("POST", "/predict", body, {"Content-Type": content_type})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"status {answer.status}: {text.decode()}")
        connection.close()

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(client, range(clients)))
    return time.perf_counter() - started


def multipart_bodies(files: Sequence[Path], per_request: int) -> list[bytes]:
    """Requests of so many files each."""
    return [multipart(files[i : i + per_request]) for i in range(0, len(files), per_request)]


def multipart(files: Sequence[Path]) -> bytes:
    """The files as the body of a form."""
    head = '--cut\r\nContent-Disposition: form-data; name="images"; filename="{}"\r\nContent-Type: image/jpeg\r\n\r\n'
    return b"".join(head.format(f.name).encode() + f.read_bytes() + b"\r\n" for f in files) + b"--cut--\r\n"


if __name__ == "__main__":
    typer.run(main)
