"""Finding data sets by name and path, and what goes wrong on the way."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lamella.data.scenario import class_incremental
from lamella.data.sources.load import SOURCES, load_source


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data of this machine takes part."""
    monkeypatch.delenv("LAMELLA_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def photo(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (level, 0, 0)).save(path)


def pixel_archive(path: Path) -> None:
    x = np.arange(20, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    y = np.array([0, 1] * 10, dtype=np.uint8)
    np.savez(path, x_train=x, y_train=y, x_test=x[:4], y_test=y[:4])


def test_digits_are_always_there() -> None:
    source = load_source("digits")
    assert len(source.train) + len(source.test) == 1797
    assert source.class_names == tuple("0123456789")
    assert torch.bincount(source.test.labels).min() >= 34
    images = torch.stack(source.train.pixels(torch.arange(50)))
    assert images.shape == (50, 3, 8, 8)
    assert images.max() == 255
    assert load_source("digits").test.keys == source.test.keys
    assert load_source("digits", split_seed=1).test.keys != source.test.keys


def test_digits_become_the_same_split_on_every_machine() -> None:
    scenario = class_incremental(load_source("digits"), tasks=5)
    assert scenario.split_sha256.startswith("be6e8e133318fe99")


def test_a_name_finds_its_archive_under_root_or_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixel_archive(tmp_path / "mnist.npz")
    pixel_archive(tmp_path / "tiny_imagenet32.npz")
    source = load_source("mnist", root=tmp_path)
    assert source.name == "mnist"
    assert (len(source.train), len(source.test)) == (20, 4)
    assert source.class_names == ("0", "1")
    assert source.train.keys[0] == "mnist/train/0"
    monkeypatch.setenv("LAMELLA_DATA", str(tmp_path))
    assert load_source("tiny-imagenet32").name == "tiny-imagenet32"
    assert load_source("mnist.npz").name == "mnist"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("cifra100", ValueError, "did you mean 'cifar100'"),
        ("zzz", ValueError, "known are digits, handwriting, mnist"),
        ("some/where", FileNotFoundError, "no such file or folder: some/where"),
        ("list.csv", FileNotFoundError, r"no such file or folder: list\.csv"),
        ("cifar100-part", FileNotFoundError, r"cifar100_part\.npz"),
        ("tiny-imagenet", FileNotFoundError, "unpack it as .*tiny-imagenet-200"),
        ("cub200", FileNotFoundError, "unpack it as .*CUB_200_2011"),
        ("imagenet-r", FileNotFoundError, "unpack it as .*imagenet-r"),
        ("domainnet", FileNotFoundError, "unpack it as .*domainnet"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        load_source(name)
    assert "\n" not in str(caught.value)


def test_unknown_options_and_kinds_of_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no option 'test_fractoin'; did you mean 'test_fraction'"):
        load_source("digits", test_fractoin=0.5)
    (tmp_path / "photos.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"photos\.zip is not a data set"):
        load_source(tmp_path / "photos.zip")
    with pytest.raises(ValueError, match="has no domains to choose from"):
        load_source("digits", domains=["real"])


def test_only_some_classes_are_kept_and_counted_anew() -> None:
    whole = load_source("digits")
    three = load_source("digits", classes=3)
    assert three.class_names == ("0", "1", "2")
    assert set(three.train.keys) == {k for k, y in zip(whole.train.keys, whole.train.labels, strict=True) if y < 3}
    chosen = load_source("digits", classes=["7", 0])
    assert chosen.class_names == ("7", "0")
    for part, every in ((chosen.train, whole.train), (chosen.test, whole.test)):
        digit = dict(zip(every.keys, every.labels.tolist(), strict=True))
        assert [digit[key] for key in part.keys] == [(7, 0)[i] for i in part.labels.tolist()]
        assert len(part) == int(((every.labels == 7) | (every.labels == 0)).sum())


def test_classes_of_a_set_with_domains_keep_their_domains(tmp_path: Path) -> None:
    for i, (domain, name) in enumerate((d, n) for d in ("sketch", "photo") for n in ("ant", "bee", "cow")):
        photo(tmp_path / domain / name / "a.png", i)
        photo(tmp_path / domain / name / "b.png", i)
    source = load_source(tmp_path, classes=["cow", "ant"], test_fraction=0.5, layout="domains")
    assert source.train_domains is not None
    for key, label, domain in zip(source.train.keys, source.train.labels, source.train_domains, strict=True):
        assert source.domain_names[domain] in key
        assert ("cow", "ant")[label] in key


def test_a_limit_for_each_class_leaves_the_test_part_whole() -> None:
    whole, few, fewer = (load_source("digits", per_class=n) for n in (1000, 20, 5))
    assert whole.train.keys == load_source("digits").train.keys
    assert torch.bincount(few.train.labels).tolist() == [20] * 10
    assert few.test.keys == whole.test.keys
    assert set(fewer.train.keys) < set(few.train.keys) < set(whole.train.keys)
    first = [k for k, y in zip(whole.train.keys, whole.train.labels, strict=True) if y == 0][:20]
    assert set(first) - set(few.train.keys), "drawn, not the first of the file"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"classes": 0}, "classes = 0 of digits cannot be kept; it has 10"),
        ({"classes": 11}, "classes = 11 of digits cannot be kept; it has 10"),
        ({"classes": ["10"]}, "no class is called '10'"),
        ({"classes": [1, "1"]}, "class '1' comes twice"),
        ({"per_class": 0}, "per_class = 0 leaves digits without training images"),
        ({"per_clas": 3}, "no option 'per_clas'; did you mean 'per_class'"),
    ],
)
def test_what_cannot_be_kept_is_said_in_one_line(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_source("digits", **option)


def test_every_source_has_a_line() -> None:
    assert {"digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "tiny-imagenet", "imagenet-r", "imagenet-a"} <= {
        *SOURCES
    }
    assert all(line and "\n" not in line for line in SOURCES.values())


def test_class_folders(tmp_path: Path) -> None:
    for name in ("dog", "Ant", "cat"):
        for i in range(3):
            photo(tmp_path / "zoo" / name / f"{i}.JPG", level=i)
    (tmp_path / "zoo" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "zoo" / ".cache").mkdir()
    source = load_source(tmp_path / "zoo")
    assert source.name == "zoo"
    assert source.class_names == ("Ant", "cat", "dog")
    assert torch.bincount(source.train.labels).tolist() == [2, 2, 2]
    assert torch.bincount(source.test.labels).tolist() == [1, 1, 1]
    assert sorted(source.train.keys + source.test.keys)[0] == "Ant/0.JPG"
    assert source.train.pixels([0])[0].shape == (3, 5, 6)
    moved = tmp_path / "elsewhere"
    (tmp_path / "zoo").rename(moved)
    assert load_source("elsewhere", root=tmp_path).test.keys == source.test.keys


@pytest.mark.parametrize("test_part", ["test", "val"])
def test_train_and_test_folders(tmp_path: Path, test_part: str) -> None:
    for name in ("a", "b"):
        photo(tmp_path / "train" / name / "deep" / "1.png")
        photo(tmp_path / test_part / name / "2.png")
    source = load_source(tmp_path)
    assert source.train.keys == ("train/a/deep/1.png", "train/b/deep/1.png")
    assert source.test.keys == (f"{test_part}/a/2.png", f"{test_part}/b/2.png")
    photo(tmp_path / test_part / "c" / "2.png")
    with pytest.raises(ValueError, match=r"class 'c' is in .* but not in"):
        load_source(tmp_path)


def test_domain_folders(tmp_path: Path) -> None:
    for domain in ("sketch", "photo", "paint"):
        for name in ("b", "a"):
            for i in range(2):
                photo(tmp_path / domain / name / f"{i}.png")
    with pytest.raises(ValueError, match=r"only folders such as paint/a: give the layout 'classes' if 'paint'"):
        load_source(tmp_path)
    source = load_source(tmp_path, layout="domains")
    assert source.told == ("read as DOMAIN/CLASS/image",)
    assert source.domain_names == ("paint", "photo", "sketch")
    assert source.class_names == ("a", "b")
    assert source.train_domains.tolist() == [0, 0, 1, 1, 2, 2]
    assert load_source(tmp_path, domains=["sketch"], layout="domains").domain_names == ("sketch",)
    flat = load_source(tmp_path, layout="classes")
    assert flat.class_names == ("paint", "photo", "sketch")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no class folders"),
        (["1.png"], "images that lie directly in it"),
        (["a/1.png", "a/2.png", "b/x.heic"], r"class folder .*b has no images \(only \.heic files\)"),
        (["a/1.png", "a/2.png", "b/1.png"], "class 'b' of .* has a single image"),
    ],
)
def test_folders_that_are_no_data_set(tmp_path: Path, files: list[str], message: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        load_source(tmp_path)


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    photo(tmp_path / "full" / "1.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*empty has no images"):
        load_source(tmp_path)


def test_tables(tmp_path: Path) -> None:
    for i in range(4):
        photo(tmp_path / "pictures" / f"{i}.png", level=i * 10)
    table = tmp_path / "birds.csv"
    table.write_text(
        "\ufefflabel, path ,split,domain,remark\n"
        'wren,pictures/0.png,train,day,"a, b"\n'
        "owl,pictures/1.png,train,night,\n"
        f"wren,{tmp_path / 'pictures' / '2.png'},test,night,\n"
        "\n"
        "owl,pictures/3.png,test,day,\n",
        encoding="utf-8",
    )
    source = load_source(table)
    assert source.class_names == ("owl", "wren")
    assert source.train.keys == ("pictures/0.png", "pictures/1.png")
    assert source.train.labels.tolist() == [1, 0]
    assert source.test.keys == ("pictures/2.png", "pictures/3.png")
    assert [source.domain_names[i] for i in source.test_domains] == ["night", "day"]
    assert int(source.test.pixels([1])[0][0, 0, 0]) == 30


def test_a_table_without_split_and_with_tabs(tmp_path: Path) -> None:
    rows = ["path\tlabel"]
    for i in range(6):
        photo(tmp_path / f"{i}.png")
        rows.append(f"{i}.png\t{'ab'[i % 2]}")
    (tmp_path / "t.tsv").write_text("\n".join(rows))
    source = load_source(tmp_path / "t.tsv")
    assert torch.bincount(source.train.labels).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ValueError, "is empty; give a file whose first line names its columns"),
        ("paht,label\n1.png,a\n", ValueError, "no column 'path'; did you mean 'paht'"),
        ("path,label\n1.png,a\n1.png,b\n", ValueError, "line 3: .* already listed in line 2"),
        ("path,label\n1.png,\n", ValueError, "line 2: the label is empty"),
        ("path,label\n1.png\n", ValueError, "line 2: the label is empty"),
        ("path,label\n2.png,a\n", FileNotFoundError, r"line 2: no such image: .*2\.png"),
        ("path,label\n1.doc,a\n", ValueError, r"line 2: '1\.doc' is not a supported image"),
        ("path,label,split\n1.png,a,dev\n", ValueError, "line 2: the split 'dev' is unknown; use one of train, "),
        ("path,label\n", ValueError, "lists no images"),
    ],
)
def test_tables_with_faults(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    photo(tmp_path / "1.png")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(error, match=message):
        load_source(tmp_path / "t.csv")


def test_a_table_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path,label\n\xff\xfe,a\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_source(tmp_path / "t.csv")
