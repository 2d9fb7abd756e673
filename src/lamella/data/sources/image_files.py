"""From labelled image files to a data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lamella.data.images import Files, ImageSet
from lamella.data.scenario import Source
from lamella.data.sources.files import LabelledFile, check_utf8, keys_of_files
from lamella.data.sources.parts import divide

__all__ = ["images_to_source"]


def images_to_source(
    name: str,
    root: Path,
    files: Sequence[LabelledFile],
    *,
    class_names: Sequence[str] | None = None,
    renamed: Mapping[str, str] | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    told: Sequence[str] = (),
) -> Source:
    """A Source of these files; their keys are their paths relative to the root.

    Args:
        name: of the data set.
        root: the folder that keys are relative to.
        files: the images.
        class_names: in the order of the class ids; sorted by name where left out.
        renamed: class name -> the name people should see; ids stay as they are.
        test_fraction: as in `load_folder`.
        split_seed: as in `load_folder`.
        told: how they were found, in lines for people.

    Raises:
        ValueError: as `load_folder`, or a name is not UTF-8.
    """
    names = sorted({file.class_name for file in files}) if class_names is None else class_names
    keys = keys_of_files(root, files)
    check_utf8(names)
    ids = {class_name: i for i, class_name in enumerate(names)}
    domain_names = sorted({file.domain for file in files if file.domain is not None})
    split_given = bool(files) and files[0].is_test is not None
    data = ImageSet(
        Files([file.path for file in files]),
        torch.tensor([ids[file.class_name] for file in files], dtype=torch.int64),
        keys,
    )
    return divide(
        name,
        data,
        [(renamed or {}).get(class_name, class_name) for class_name in names],
        is_test=torch.tensor([bool(file.is_test) for file in files]) if split_given else None,
        domains=torch.tensor([domain_names.index(f.domain) for f in files if f.domain]) if domain_names else None,
        domain_names=domain_names,
        test_fraction=test_fraction,
        split_seed=split_seed,
        told=told,
    )
