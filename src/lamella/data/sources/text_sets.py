"""Named data sets of texts, read from their archives: CLINC150, banking77, and the sets of O-LoRA's benchmark."""

import json
import lzma
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lamella.common.checks import did_you_mean, first_line
from lamella.common.words import many
from lamella.data.scenario import Source
from lamella.data.sources.labelled_texts import LabelledText, texts_to_source
from lamella.data.sources.places import look_for, places
from lamella.data.sources.rows import parse_rows

__all__ = ["OLORA_SETS", "as_json", "load_banking77", "load_clinc150", "load_olora", "members_of"]

Root = str | Path | None
LARGEST = 1 << 28
"""The largest file that is read from an archive, in bytes."""
OLORA = ("cl_benchmark.tar.xz", "cl_benchmark_part.tar.xz")
"""The archives of O-LoRA's benchmark, the whole one first."""
OLORA_SETS = {
    "agnews": "TC/agnews",
    "amazon": "SC/amazon",
    "boolq": "BoolQA/BoolQA",
    "cb": "NLI/CB",
    "copa": "COPA/COPA",
    "dbpedia": "TC/dbpedia",
    "imdb": "SC/IMDB",
    "mnli": "NLI/MNLI",
    "multirc": "MultiRC/MultiRC",
    "qqp": "QQP/QQP",
    "rte": "NLI/RTE",
    "sst2": "SC/SST-2",
    "wic": "WiC/WiC",
    "yahoo": "TC/yahoo",
    "yelp": "SC/yelp",
}
"""The folder of each data set in O-LoRA's benchmark."""


def load_clinc150(root: Root = None) -> Source:
    """CLINC150: queries of 150 intents, 15 in each of 10 domains. Its classes are in the order of the domains.

    Its queries outside of all intents are not read, and its validation part is left alone.
    """
    data, domains = (
        as_json("clinc150", content)
        for content in members_of("clinc150", root, ("clinc150.tar.xz",), "data/data_full.json", "data/domains.json")
    )
    try:
        samples = [
            LabelledText(text, intent, f"{part}, row {i}", is_test=part == "test")
            for part in ("train", "test")
            for i, (text, intent) in enumerate(data[part], 1)
        ]
        names = [intent for intents in domains.values() for intent in intents]
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise ValueError(f"clinc150.tar.xz is not CLINC150 as it was published: {first_line(fault)}") from fault
    left = f"left alone: its validation part and its queries outside of all {len(names)} intents"
    return texts_to_source("clinc150", samples, class_names=names, told=[left])


def load_banking77(root: Root = None) -> Source:
    """banking77: queries to a bank of 77 intents, with their own test part."""
    members = ("banking_data/train.csv", "banking_data/test.csv", "banking_data/categories.json")
    train, test, names = members_of("banking77", root, ("banking77.tar.xz",), *members)
    samples: list[LabelledText] = []
    for member, content, is_test in zip(members, (train, test), (False, True), strict=False):
        for row in parse_rows(Path(member), content).rows:
            text, label = row.cells.get("text", ""), row.cells.get("category", "")
            samples.append(LabelledText(text, label, f"{Path(member).name}, {row.place}", is_test=is_test))
    return texts_to_source("banking77", samples, class_names=as_json("banking77", names))


def load_olora(which: str, root: Root = None, *, test_fraction: float = 0.2, split_seed: int = 0) -> Source:
    """A data set of O-LoRA's benchmark, whose texts are in the form in which that benchmark shows them to a model.

    Where training and test part are both in the archive, they are the split, and the development part, which equals the
    test part, is left alone. Where only one of them is, a split of it is made.

    Args:
        which: a name of OLORA_SETS.
        root: the folder that holds the archive.
        test_fraction: of each class to hold out where a split is made.
        split_seed: of that split.

    Raises:
        ValueError: there is no such data set, or the archive has no texts of it.
    """
    if which not in OLORA_SETS:
        known = ", ".join(OLORA_SETS)
        raise ValueError(f"no data set is called 'olora/{which}'{did_you_mean(which, OLORA_SETS)}; there are {known}")
    name, folder = f"olora/{which}", f"CL_Benchmark/{OLORA_SETS[which]}"
    files = [f"{folder}/{part}.json" for part in ("labels", "train", "test")]
    labels, train, test = members_of(name, root, OLORA, *files, needed=files[:1])
    names = as_json(name, labels)
    parts = {part: as_json(name, content) for part, content in (("train", train), ("test", test)) if content}
    if not parts:
        raise ValueError(
            f"the archive of {name} has labels of it and no texts; get the whole benchmark, or leave {name} out"
        )
    whole = len(parts) > 1
    try:
        samples = [
            LabelledText(row["sentence"], row["label"], f"{part}, row {i}", is_test=part == "test" if whole else None)
            for part, rows in parts.items()
            for i, row in enumerate(rows, 1)
        ]
    except (KeyError, TypeError) as fault:
        raise ValueError(f"{name} is not as O-LoRA's authors published it: {first_line(fault)}") from fault
    known = [sample for sample in samples if sample.class_name in names]
    told: list[str] = []
    if len(parts) == 1:
        told.append(f"the archive has a {next(iter(parts))} part only: a part of it is held out for testing")
    if others := Counter(sample.class_name for sample in samples if sample.class_name not in names):
        these = ", ".join(map(repr, others))
        told.append(f"left out: {many(others.total(), 'text')} with a label that the set does not name ({these})")
    return texts_to_source(
        which, known, class_names=names, test_fraction=test_fraction, split_seed=split_seed, told=told
    )


def members_of(
    name: str, root: Root, archives: Sequence[str], *members: str, needed: list[str] | None = None
) -> list[bytes]:
    """Return the content of files in an archive; nothing else of it is read, and nothing is unpacked.

    Args:
        name: of the data set.
        root: the folder that holds the archive, or a folder `text` with it.
        archives: the names of the archive, the first of which is taken that is there.
        members: the paths of the files in the archive.
        needed: those that must be there, all where left out. The content of the others is b"" where they are missing.

    Raises:
        FileNotFoundError: there is no such archive.
        ValueError: it is damaged, or lacks a file.
    """
    path = look_for(root, *(file for archive in archives for file in (archive, f"text/{archive}")))
    if path is None:
        looked = " or ".join(str(place) for place in places(root))
        raise FileNotFoundError(
            f"{name} needs the file {' or '.join(archives)} in {looked}; put it there, or name its folder by "
            "$LAMELLA_DATA"
        )
    found = dict.fromkeys(members, b"")
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                inside = str(PurePosixPath(member.name))
                if inside in found and member.isreg() and member.size <= LARGEST and (file := tar.extractfile(member)):
                    found[inside] = file.read()
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as fault:
        raise ValueError(f"{path} cannot be read as an archive: {first_line(fault)}; get it again") from fault
    if missing := [member for member in (members if needed is None else needed) if not found[member]]:
        raise ValueError(f"{path} has no file {missing[0]}; it is not the archive of {name}")
    return list(found.values())


def as_json(name: str, content: bytes) -> Any:
    """Return what a file of a data set says; raise ValueError where it is no JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"a file of {name} is not JSON: {first_line(fault)}; get its archive again") from fault
