"""Named data sets that people keep as a local copy in the usual layout of the original download."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lamella.data.scenario import Source
from lamella.data.sources.files import LabelledFile, folder_names, list_images
from lamella.data.sources.folders import load_folder
from lamella.data.sources.image_files import images_to_source
from lamella.data.sources.parts import keep_domains
from lamella.data.sources.places import look_for, places

__all__ = ["load_cub200", "load_domainnet", "load_imagenet_a", "load_imagenet_r", "load_tiny_imagenet"]

Root = str | Path | None


def load_tiny_imagenet(root: Root = None) -> Source:
    """Tiny-ImageNet: `train/<wnid>/images/*.JPEG`, `val/val_annotations.txt`, `words.txt`; `val` is the test part."""
    folder = _folder("tiny-imagenet", root, "train", "tiny-imagenet-200", "tiny-imagenet")
    wnids = folder_names(folder / "train")
    train = folder / "train"
    photos = [LabelledFile(image, wnid, None, False) for wnid in wnids for image in list_images(train / wnid)]
    annotations = folder / "val" / "val_annotations.txt"
    for line, (file, wnid) in _columns(annotations, 2):
        if wnid not in wnids:
            raise ValueError(f"{annotations}, line {line}: class {wnid!r} has no folder in {folder / 'train'}")
        photos.append(LabelledFile(folder / "val" / "images" / file, wnid, None, True))
    words = folder / "words.txt"
    names = dict(re.findall(r"^(n\d{8})\t(.+)$", _text(words), re.MULTILINE)) if words.exists() else {}
    return images_to_source("tiny-imagenet", folder, photos, class_names=wnids, renamed=_readable(wnids, names))


def load_imagenet_r(root: Root = None, *, test_fraction: float = 0.2, split_seed: int = 0) -> Source:
    """ImageNet-R: `<wnid>/*.jpg` and the names in `README.txt`; it has no split of its own, so one is made."""
    return _wnid_folders("imagenet-r", root, test_fraction, split_seed)


def load_imagenet_a(root: Root = None, *, test_fraction: float = 0.2, split_seed: int = 0) -> Source:
    """ImageNet-A: `<wnid>/*.jpg` and the names in `README.txt`; it has no split of its own, so one is made."""
    return _wnid_folders("imagenet-a", root, test_fraction, split_seed)


def load_cub200(root: Root = None) -> Source:
    """CUB-200-2011: `images.txt`, `image_class_labels.txt`, `train_test_split.txt`, `classes.txt`, `images/`."""
    folder = _folder("cub200", root, "images.txt", "CUB_200_2011", "cub200", "cub-200-2011")
    classes = {number: name for _, (number, name) in _columns(folder / "classes.txt", 2)}
    label = {image: number for _, (image, number) in _columns(folder / "image_class_labels.txt", 2)}
    in_train = {image: flag == "1" for _, (image, flag) in _columns(folder / "train_test_split.txt", 2)}
    photos = []
    for line, (image, file) in _columns(folder / "images.txt", 2):
        if image not in label or image not in in_train or label[image] not in classes:
            raise ValueError(f"{folder / 'images.txt'}, line {line}: image {image} lacks its class or its split")
        photos.append(LabelledFile(folder / "images" / file, classes[label[image]], None, not in_train[image]))
    return images_to_source("cub200", folder, photos, class_names=list(classes.values()))


def load_domainnet(
    root: Root = None, *, domains: Sequence[str] | None = None, test_fraction: float = 0.2, split_seed: int = 0
) -> Source:
    """DomainNet: `<domain>/<class>/*.jpg` with `<domain>_train.txt` and `<domain>_test.txt`.

    Without the lists a split is made.

    Args:
        root: where the copy lies.
        domains: only these, in this order.
        test_fraction: of each class in each domain to hold out where there are no lists.
        split_seed: of that split.
    """
    folder = _folder("domainnet", root, "", "domainnet", "DomainNet")
    lists = sorted(folder.glob("*_train.txt"))
    if not lists:
        source = load_folder(
            folder, name="domainnet", layout="domains", test_fraction=test_fraction, split_seed=split_seed
        )
    else:
        source = _listed_domains(folder, [path.name.removesuffix("_train.txt") for path in lists])
    return source if domains is None else keep_domains(source, domains)


def _listed_domains(folder: Path, domains: Sequence[str]) -> Source:
    photos: list[LabelledFile] = []
    names: dict[int, str] = {}
    for domain in domains:
        for part in ("train", "test"):
            listing = folder / f"{domain}_{part}.txt"
            for line, (file, label) in _columns(listing, 2):
                name = Path(file).parent.name
                if not label.isdigit() or names.setdefault(int(label), name) != name:
                    known = names.get(int(label)) if label.isdigit() else "a number"
                    raise ValueError(f"{listing}, line {line}: label {label} of {file} is not {name!r} but {known!r}")
                photos.append(LabelledFile(folder / file, name, domain, part == "test"))
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"the lists in {folder} skip a label between 0 and {max(names)}")
    return images_to_source("domainnet", folder, photos, class_names=[names[i] for i in range(len(names))])


def _wnid_folders(name: str, root: Root, test_fraction: float, split_seed: int) -> Source:
    folder = _folder(name, root, "", name)
    readme = folder / "README.txt"
    names = dict(re.findall(r"^(n\d{8})\s+(\S.*?)\s*$", _text(readme), re.MULTILINE)) if readme.exists() else {}
    renamed = _readable(list(names), names)
    return load_folder(
        folder, name=name, layout="classes", renamed=renamed, test_fraction=test_fraction, split_seed=split_seed
    )


def _readable(wnids: Sequence[str], names: dict[str, str]) -> dict[str, str]:
    """Each wnid's name; names that several wnids share (crane, the bird and the machine) carry their wnid too."""
    found = {wnid: names.get(wnid, wnid).strip() for wnid in wnids}
    counts = Counter(found.values())
    return {wnid: f"{name} ({wnid})" if counts[name] > 1 else name for wnid, name in found.items()}


def _folder(name: str, root: Root, marker: str, *folders: str) -> Path:
    """The folder of a local copy: one of `folders` in one of the places, or the root itself where it holds `marker`."""
    found = look_for(root, *folders)
    if found is None and root is not None and (Path(root) / (marker or "?")).exists():
        found = Path(root)
    if found is None:
        looked = " or ".join(str(place / folders[0]) for place in places(root))
        raise FileNotFoundError(
            f"{name} is read from a local copy, and there is none: unpack it as {looked}, "
            "or give root= (or $LAMELLA_DATA), the folder that holds it"
        )
    return found


def _columns(path: Path, count: int) -> list[tuple[int, list[str]]]:
    """The first columns of every line that is not empty, with the number of the line."""
    rows = []
    for line, text in enumerate(_text(path).splitlines(), start=1):
        if fields := text.split("\t" if "\t" in text else None, maxsplit=count - 1 if "\t" not in text else -1):
            if len(fields) < count:
                raise ValueError(f"{path}, line {line}: expected {count} columns, got {text!r}")
            rows.append((line, [field.strip() for field in fields[:count]]))
    return rows


def _text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}; the copy of the data set is not complete")
    return path.read_text(encoding="utf-8", errors="replace")
