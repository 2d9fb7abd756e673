"""`lamella predict` on very many small images: seconds and the most memory, part by part and all at once.

    python benchmarks/many_files.py
    python benchmarks/many_files.py --images 1000 --images 100000
    python benchmarks/many_files.py --ray

Every form is a command of its own, start included, on the bundled network and JPEGs of 32 x 32 pixels of noise. With
--ray, one actor of Ray makes the parts as well, and the memory is its own; that
needs lamella[ray] and psutil.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image

from lamella import Learner
from lamella.backbones.bundled import NAME as BUNDLED
from lamella.common.files import write_json
from lamella.common.randomness import generator
from lamella.data.sources.load import load_source
from lamella.learner.next_task import as_next_task


def main(
    images: Annotated[list[int] | None, typer.Option(help="May be given several times.")] = None,
    ray: bool = False,
    out: Path = Path("runs/benchmarks/many-files.json"),
) -> None:
    """Measure each form with each number of images."""
    found: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as place:
        model = taught(Path(place))
        for count in images or [1000, 10_000]:
            folder = noise(Path(place) / str(count), count)
            parts, others = (str(Path(place) / f"{name}-{count}") for name in ("parts", "ray"))
            forms = {"--csv": (["--csv"], most_of_itself), "--out": (["--out", parts], most_of_itself)}
            if ray:
                forms["--engine ray"] = (["--out", others, "--engine", "ray", "--processes", "1"], most_of_actors)
            for form, (options, most) in forms.items():
                seconds, megabytes = measured(most, "predict", str(model), str(folder), *options)
                found.append({"images": count, "form": form, "seconds": seconds, "MB": megabytes})
                print(f"{count:,} images, {form}: {seconds:.1f} s, {megabytes:.0f} MB", flush=True)
    write_json(out, found)


def taught(place: Path) -> Path:
    """A model that knows digits by their class means."""
    learner = Learner.create(backbone=BUNDLED, method="nearest-mean", fit={"device": "cpu"})
    task, held_back = as_next_task(load_source("digits"), learner.model)
    learner.learn(task, held_back=held_back)
    learner.save(place / "model")
    return place / "model"


def noise(folder: Path, count: int) -> Path:
    """A folder of images."""
    folder.mkdir()
    draws = generator(0, "many files")
    for i in range(count):
        pixels = torch.randint(0, 256, (32, 32, 3), generator=draws, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i:07}.jpg")
    return folder


def measured(most: "Callable[[subprocess.Popen[bytes]], int]", *arguments: str) -> tuple[float, float]:
    """Seconds of a command of lamella, and the most memory in MB; `most` waits for it and says how many bytes."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "lamella", *arguments], stdout=subprocess.DEVNULL)
    used = most(process)
    if process.returncode:
        raise RuntimeError(f"lamella {' '.join(arguments)} has failed")
    return time.perf_counter() - started, used / 1e6


def most_of_itself(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a process, and return the most bytes that it has had in memory."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def most_of_actors(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a process, and return the most bytes that an actor of Ray below it has had in memory."""
    psutil = import_module("psutil")  # no dependency of Lamella, and needed here only
    most = 0
    while process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::"):
                    most = max(most, child.memory_info().rss)
            except psutil.Error:  # it has ended meanwhile
                continue
        time.sleep(0.2)
    return most


if __name__ == "__main__":
    typer.run(main)
