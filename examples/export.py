"""Folders of images: learn two of them, predict, measure, and write a file that others read. Needs no download.

pip install 'lamella[export]'
python examples/export.py
"""

from pathlib import Path

from PIL import Image

from lamella import Learner, load_source
from lamella.data.images import ImageSet
from lamella.learner.inspection.evaluation import evaluate


def write_folder(out: Path, digits: set[int]) -> Path:
    """Scanned digits as out/CLASS/*.png, as photos lie on a disk."""
    data = load_source("digits").train
    assert isinstance(data, ImageSet)
    for i, label in enumerate(data.labels.tolist()):
        if label in digits:
            (out / f"digit {label}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.pixels([i])[0].permute(1, 2, 0).numpy()).save(out / f"digit {label}" / f"{i}.png")
    return out


learner = Learner.create(backbone="fractal-vit-micro")
for day, digits in (("monday", {0, 1}), ("tuesday", {2, 3})):
    record = learner.learn_from(write_folder(Path(day), digits))
    if held := record.held_back:
        print(f"{day}: {held.right} of {held.images} held-back images right")
learner.save("model")  # what `lamella learn` does

file = next(Path("monday/digit 1").glob("*.png"))
(guess,) = learner.predict([file])
print(f"{file.parent.name} is taken for {guess.classes[0]}, {guess.confidences[0]:.0%} sure, learned on {guess.task}")

unseen = load_source("digits").test
measured = evaluate(learner.model, unseen, [f"digit {i}" for i in range(10)])
print(f"test images: {measured.accuracy:.1%} right; calibration error {measured.calibration_error:.3f}")
for digit in measured.strangers:
    print(f"{digit.name}, never learned: {digit.unknown} of {digit.images} called unknown")

for form, out in (("timm", "model-timm"), ("onnx", "model.onnx")):
    print(f"{out}: {learner.export(out, form)[0]}")
