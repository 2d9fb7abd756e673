"""The parts of `lamella predict --out` on Ray Data: on this machine, or on a cluster.

A data set of Ray has a row for each part that is missing, with the names of its images. It is mapped by actors, each of
which holds the model, reads the images of a part, and writes its file as a process alone does. So the machines of a
cluster see the model, the images and the folder of the parts under the same paths, and nothing but names and counts
passes through Ray. The part of an actor that is lost is made by another one, as often as it takes: Ray Data sets no
limit.
"""

import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lamella.cli.predict_parts import Form, Made, Part, check_model, make_part
from lamella.common.checks import first_line
from lamella.common.on_ray import check_resources, cluster, import_ray
from lamella.data.sources.far_files import FarFiles
from lamella.experiments.sweep.worker import environment

if TYPE_CHECKING:
    from lamella.learner.learner import Learner

__all__ = ["Asked", "RayActors", "Worker"]

BLOCKS = 10_000
"""Most blocks of the data set; up to so many parts each part is a block of its own, which is what an actor takes."""


class Asked(NamedTuple):
    """The model that is asked, as `Learner.load` takes it.

    Attributes:
        model: its folder.
        device: where it computes; None is what a worker has.
        trusted: whether it is the user's own.
    """

    model: str
    device: str | None
    trusted: bool


class Worker:
    """Makes parts of their rows, in a process that sees the same files.

    Args:
        asked: the model.
        files: the systems that have the images of each place; of names there are none.
        form: what parts say of an image.
        place: the directory that relative paths start from.
        environ: variables of the environment, see `environment`.
    """

    def __init__(
        self, asked: Asked, files: Sequence[FarFiles], form: Form, place: str, environ: Mapping[str, str]
    ) -> None:
        self.asked, self.files, self.form = asked, files, form
        self.place, self.environ = place, environ
        self.learner: Learner | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make the part of a row: its number, how many images have a class, how many are broken, and why it failed."""
        part = Part(int(row["part"]), int(row["place"]), tuple(json.loads(row["names"])), Path(row["file"]))
        try:
            learner, files = self._learner(part.file.parent), self.files[part.place]
            files.check_there(part.names)  # else a folder that is mounted elsewhere gives a finished part of errors
            made = make_part(learner, part, files, self.form)
        except Exception as error:  # the reason goes to who started it
            why = f"{socket.gethostname()}: {type(error).__name__}: {first_line(error)}"
            why = why.encode(errors="backslashreplace").decode()  # names of files need not be valid text, and rows must
            return {"part": part.number, "images": 0, "broken": 0, "failure": why}
        return {"part": part.number, "images": made.images, "broken": made.broken, "failure": ""}

    def _learner(self, out: Path) -> "Learner":
        if self.learner is None:
            os.chdir(self.place)
            os.environ.update(self.environ)
            from lamella.learner.learner import Learner

            learner = Learner.load(self.asked.model, device=self.asked.device, trusted=self.asked.trusted)
            check_model(learner, out)
            self.learner = learner
        return self.learner


class RayActors:
    """An engine of `write_parts` that makes parts by the actors of a data set of Ray.

    Args:
        asked: the model.
        address: that of a cluster, such as "auto"; None starts one on this machine, which ends with the parts.
        number: the most actors at a time; None for what the cores of this machine, or the cluster, have room for.
        resources: what an actor asks for, as `ray.remote` takes it: `num_cpus` (1 if left out), `num_gpus`, `memory`.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError: an actor asks for what Ray does not know.
    """

    def __init__(
        self,
        asked: Asked,
        address: str | None = None,
        number: int | None = None,
        resources: Mapping[str, Any] | None = None,
    ) -> None:
        self.resources = check_resources(resources or {})
        self.ray = import_ray("data")
        self.asked, self.address, self.number = asked, address, number
        self.ray.remote(**self.resources)(Worker)  # before a cluster is started, since it checks the resources

    def __call__(self, parts: Sequence[Part], found: Sequence[FarFiles], form: Form) -> Iterator[Made]:
        if not parts:
            return
        data = self.ray.data
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        rows = [_row(part) for part in parts]
        systems = [FarFiles((), files.system) for files in found]
        told = (self.asked, systems, form, str(Path.cwd()), environment())
        with cluster(self.ray, self.address, self.resources, self.number):
            data.DataContext.get_current().enable_progress_bars = False
            made = data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS)).map(
                Worker,
                fn_constructor_args=told,
                compute=data.ActorPoolStrategy(min_size=1, max_size=min(len(parts), self.number or len(parts))),
                **self.resources,
            )
            try:
                for row in made.iter_rows():
                    if row["failure"]:
                        raise RuntimeError(f"part {row['part']} cannot be made: {row['failure']}")
                    yield Made(row["part"], row["images"], row["broken"])
            except self.ray.exceptions.RayError as error:
                raise RuntimeError(f"engine 'ray' has stopped: {first_line(error)}; the same command goes on") from None


def _row(part: Part) -> dict[str, Any]:
    """The row of a part; names are written as ASCII, because those of files need not be valid text."""
    names = json.dumps(part.names).encode()
    return {"part": part.number, "place": part.place, "names": names, "file": str(part.file.absolute())}
