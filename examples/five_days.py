"""Images arrive on five days. Each evening a model learns the new ones, in a process of its own, and is used.

    python examples/five_days.py                                     # digits; a minute or two, no download
    LAMELLA_DATA=DIR python examples/five_days.py --data cifar100-part --classes 20 --per-class 60 \\
        --backbone vit_tiny_patch16_224 method.epochs=2 backbone.size=128

It ends with the proof that five processes learned what one process learns, bit for bit.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from lamella import Learner, load_source
from lamella.data.images import ImageSet
from lamella.data.sources.readable import load_readable
from lamella.learner.next_task import as_next_task
from lamella.learner.store.state import learned_state

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday")
COMMAND = [sys.executable, "-c", "from lamella.cli import main; main()"]


def lamella(*arguments: object) -> str:
    """Run a command in a process of its own; returns what it prints."""
    words = [str(argument) for argument in arguments]
    print("$ lamella", *words, flush=True)
    done = subprocess.run([*COMMAND, *words], text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def write_folders(out: Path, data: str, classes: int, per_class: int) -> None:
    """DAY/CLASS/*.png to learn from, with equally many classes for each day, and test/CLASS/*.png."""
    source = load_source(data, classes=classes, per_class=per_class)
    for part, images in (("train", source.train), ("test", source.test)):
        assert isinstance(images, ImageSet)
        for i, label in enumerate(images.labels.tolist()):
            first = DAYS[label * len(DAYS) // classes] if part == "train" else part
            path = out / first / source.class_names[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.pixels([i])[0].permute(1, 2, 0).numpy()).save(path)


def accuracy(model: Path, test: Path) -> str:
    """Of all classes learned so far, on images that no learning has seen."""
    measured = json.loads(lamella("evaluate", model, test, "--json"))
    return f"{measured['accuracy']:.1%} of {measured['images']} test images right"


def in_one_process(model: Path, out: Path) -> int:
    """Learn the five days in this process; returns how many tensors differ from the model's."""
    alone = Learner(Learner.load(model).config)
    for day in DAYS:
        source = load_readable(str(out / day)).divided()
        task, held_back = as_next_task(source, alone.model)
        alone.learn(task, held_back=held_back)
    one, five = learned_state(alone.method), learned_state(Learner.load(model).method)
    names = one.keys() | five.keys()
    return sum(name not in one or name not in five or not torch.equal(one[name], five[name]) for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--per-class", type=int, default=40)
    parser.add_argument("--backbone", default="fractal-vit-micro")
    parser.add_argument("--method", default="inflora+align")
    parser.add_argument("--export", default="timm", help="format")
    parser.add_argument("--out", type=Path, default=Path("five-days"))
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the model, such as method.epochs=5")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    write_folders(args.out, args.data, args.classes, args.per_class)
    model, test = args.out / "model", args.out / "test"

    new = [*args.settings, "--backbone", args.backbone, "--method", args.method]
    for day in DAYS:
        print(lamella("learn", model, args.out / day, *(() if model.exists() else new)), end="")
        print(f"{day}: {accuracy(model, test)}", flush=True)
    print(lamella("predict", model, next(test.rglob("*.png")), "--top", 3), end="")
    print(lamella("inspect", model), end="")

    print(lamella("rollback", model), end="")
    print(f"without friday: {accuracy(model, test)}")
    print(lamella("learn", model, args.out / "friday"), end="")
    print(f"friday again: {accuracy(model, test)}")
    print(lamella("history", model), end="")
    print(lamella("export", model, "--format", args.export, "--out", args.out / "exported"), end="")

    different = in_one_process(model, args.out)
    print(f"five processes and one: {different} tensors differ")


if __name__ == "__main__":
    main()
