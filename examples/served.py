"""A model over HTTP, from a program: ask what is on an image, teach it two more digits, ask again.

Needs `pip install 'lamella[serve]'`, and no download. The client half uses nothing but the standard library.
"""

import io
import json
import re
import subprocess
import sys
import time
import zipfile
from typing import Any
from urllib.request import Request, urlopen

from PIL import Image

from lamella import Learner, class_incremental, load_source

digits = class_incremental(load_source("digits"), tasks=5)  # 0 and 1, 2 and 3, ..


def png(images: Any, position: int) -> bytes:
    """One image as a file."""
    file = io.BytesIO()
    Image.fromarray(images.pixels([position])[0].permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def send(address: str, field: str, name: str, content: bytes, token: str = "") -> Any:
    """Post a file as a form, and read the answer."""
    head = f'--cut\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=cut", "Authorization": f"Bearer {token}"}
    with urlopen(Request(address, head.encode() + content + b"\r\n--cut--\r\n", headers)) as answer:
        return json.load(answer)


def archive(task: Any, images: int) -> bytes:
    """Some of a task's training images as CLASS/number.png."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for i in range(images):
            label = int(task.train.labels[i])
            made.writestr(f"{digits.class_names[label]}/{i}.png", png(task.train, i))
    return file.getvalue()


learner = Learner.create(backbone="fractal-vit-micro", method="nearest-mean")
learner.learn(digits[0])
learner.save("served-model")

command = [sys.executable, "-c", "from lamella.cli import main; main()", "serve", "served-model", "--port", "0"]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    try:
        said = server.stdout.readline() if server.stdout else ""
        address, token = re.findall(r"(http://\S+/)#token=(\S+)", said)[0]
        three = png(digits.test(1), next(i for i, label in enumerate(digits.test(1).labels) if label == 3))
        before = send(f"{address}predict", "images", "three.png", three)["predictions"][0]
        job = send(f"{address}learn", "archive", "two-and-three.zip", archive(digits[1], 60), token)
        while job["state"] == "learning":
            time.sleep(0.2)
            with urlopen(f"{address}jobs/{job['id']}") as answer:
                job = json.load(answer)
        after = send(f"{address}predict", "images", "three.png", three)["predictions"][0]
    finally:
        server.terminate()

print(f"learning: {job['state']}, version {job['version']}, {', '.join(job['new'])} are new")
print(f"an image of 3 was taken for {before['classes'][0]['name']}, and is now {after['classes'][0]['name']}")
