"""`Learner.predict` on image files, as a ratio to a plain timm forward of the same network behind the same loader.

    python benchmarks/predicting.py
    python benchmarks/predicting.py --images 2000 --rounds 3
    python benchmarks/predicting.py --method sdlora --size 224

Both read, decode, resize and normalise the files by the same loader, 64 at a time, in one process, and take turns; what
`predict` adds are its classifier, confidences, familiarity, and names. Printed is the median over the rounds, by the
clock and by processor seconds, which other work on the machine disturbs less. The files are JPEGs of 256 x 224, smooth
enough to be of a photo's size. The weights are random, which changes no time; methods learn two tasks of noise first,
so that there are branches, or weights that they were folded into.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import typer
from PIL import Image

from lamella import Learner
from lamella.common.files import write_json
from lamella.common.randomness import generator
from lamella.data.images import Files, ImageSet, PixelArray
from lamella.data.loading import batches
from lamella.data.scenario import Source, class_incremental
from lamella.experiments.bench.streams import short_method


def main(
    method: str = "inflora+align",
    backbone: str = "vit_tiny_patch16_224",
    size: int = 96,
    images: int = 512,
    classes: int = 20,
    rounds: int = 5,
    out: Path = Path("runs/benchmarks/predicting.json"),
) -> None:
    """Time both."""
    learner = taught(method, backbone, size, classes)
    network = timm.create_model(backbone, num_classes=classes, img_size=size).eval()
    with tempfile.TemporaryDirectory() as folder:
        files = photos(Path(folder), images)
        ratios: list[tuple[float, float]] = []
        for i in range(rounds + 1):
            alone = seconds(lambda: plain(network, learner, files))
            predicted = seconds(lambda: learner.predict(files))
            ratios.append((alone[0] / predicted[0], alone[1] / predicted[1]))
            speeds = f"plain {images / alone[0]:.1f}/s, predict {images / predicted[0]:.1f}/s"
            print(f"round {i}: {speeds}" if i else f"warm-up: {speeds}", flush=True)
    clock, processor = (spread([ratio[k] for ratio in ratios[1:]]) for k in range(2))
    print(f"{learner.name} on {backbone} at {size} pixels, {classes} classes, {images} files: predict / plain")
    print(f"by the clock {clock}; by processor seconds {processor}")
    setting = {"method": learner.name, "backbone": backbone, "size": size, "images": images}
    write_json(out, {**setting, "ratios, clock and processor": ratios[1:]})


def spread(values: list[float]) -> str:
    """The median, and the smallest and the largest."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def taught(method: str, backbone: str, size: int, classes: int) -> Learner:
    """A learner with random weights that knows two tasks of noise, with images held back."""
    table = short_method(method, batch=64)
    learner = Learner.create(backbone={"name": backbone, "weights": "random", "size": size}, method=table)
    train, held_back = (noise(classes, part) for part in ("train", "held back"))
    scenario = class_incremental(Source("noise", train, held_back, tuple(map(str, range(classes)))), tasks=2, seed=0)
    for i in range(2):
        learner.learn(scenario[i], held_back=scenario.test(i))
    return learner


def noise(classes: int, part: str) -> ImageSet:
    """Two images of each class."""
    labels = torch.arange(classes).repeat(2)
    pixels = torch.randint(0, 256, (len(labels), 3, 32, 32), generator=generator(0, part), dtype=torch.uint8)
    return ImageSet(PixelArray(pixels), labels, [f"{part}/{i}" for i in range(len(labels))])


def photos(folder: Path, images: int) -> list[Path]:
    """JPEG files of 256 x 224 pixels."""
    files = [folder / f"{i}.jpg" for i in range(images)]
    for i, file in enumerate(files):
        coarse = torch.randint(0, 256, (14, 14, 3), generator=generator(1, str(i)), dtype=torch.uint8)
        Image.fromarray(coarse.numpy()).resize((256, 224)).save(file)
    return files


@torch.inference_mode()
def plain(network: torch.nn.Module, learner: Learner, files: Sequence[Path]) -> Any:
    """What one would write with timm: load, forward, softmax."""
    data = ImageSet.unlabelled(Files(files))
    loader = batches(data, torch.arange(len(data)), 64, learner.backbone.transform.view())
    return torch.cat([network(x).softmax(1) for x, _, _ in loader])


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """By the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


if __name__ == "__main__":
    typer.run(main)
