"""Local copies in the usual layouts, torchvision's files, and the hub, on small files written here."""

import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lamella.data.scenario import domain_incremental
from lamella.data.sources.load import load_source
from lamella.data.sources.named import paired


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAMELLA_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def photo(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (level, 0, 0)).save(path)


@pytest.fixture
def tiny_imagenet(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-imagenet-200"
    for wnid in ("n02012849", "n01443537", "n03126707"):
        for i in range(2):
            photo(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("x")
    photo(folder / "val" / "images" / "val_0.JPEG")
    photo(folder / "val" / "images" / "val_1.JPEG", level=255)
    (folder / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn03126707\t0\t32\t44\t62\nval_1.JPEG\tn01443537\t1\t2\t3\t4\n"
    )
    (folder / "words.txt").write_text(
        "n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\nn02012849\tcrane\nn03126707\tcrane\n"
    )
    photo(folder / "test" / "images" / "test_0.JPEG")
    return folder


def test_tiny_imagenet(tiny_imagenet: Path) -> None:
    source = load_source("tiny-imagenet", root=tiny_imagenet.parent)
    assert source.class_names == ("goldfish, Carassius auratus", "crane (n02012849)", "crane (n03126707)")
    assert source.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.test.labels.tolist() == [2, 0]
    assert int(source.test.pixels([1])[0][0].max()) > 200
    assert source.train.keys[0] == "train/n01443537/images/n01443537_0.JPEG"
    assert load_source("tiny-imagenet", root=tiny_imagenet).test.keys == source.test.keys


def test_tiny_imagenet_with_a_wrong_line(tiny_imagenet: Path) -> None:
    (tiny_imagenet / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn99999999\t0\t0\t0\t0\n")
    with pytest.raises(ValueError, match=r"val_annotations\.txt, line 1: class 'n99999999'"):
        load_source("tiny-imagenet", root=tiny_imagenet.parent)
    (tiny_imagenet / "val" / "val_annotations.txt").unlink()
    with pytest.raises(FileNotFoundError, match="not complete"):
        load_source("tiny-imagenet", root=tiny_imagenet.parent)


@pytest.mark.parametrize("name", ["imagenet-r", "imagenet-a"])
def test_wnid_folders_take_their_names_from_the_readme(tmp_path: Path, name: str) -> None:
    for wnid in ("n01443537", "n01484850"):
        for i in range(5):
            photo(tmp_path / name / wnid / f"art_{i}.jpg")
    (tmp_path / name / "README.txt").write_text("The classes:\n\nn01443537 goldfish\nn01484850 great_white_shark\n")
    source = load_source(name, root=tmp_path)
    assert source.class_names == ("goldfish", "great_white_shark")
    assert torch.bincount(source.test.labels).tolist() == [1, 1]
    assert load_source(name, root=tmp_path).test.keys == source.test.keys
    assert len(load_source(name, root=tmp_path, test_fraction=0.4).test) == 4


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    folder = tmp_path / "CUB_200_2011"
    names = {1: "002.Laysan_Albatross", 2: "001.Black_footed_Albatross"}  # the file's numbers decide, not the alphabet
    files = [f"{names[1]}/a.jpg", f"{names[1]}/b.jpg", f"{names[2]}/c.jpg", f"{names[2]}/d.jpg"]
    for file in files:
        photo(folder / "images" / file)
    (folder / "images.txt").write_text("".join(f"{i} {file}\n" for i, file in enumerate(files, 1)))
    (folder / "image_class_labels.txt").write_text("1 1\n2 1\n3 2\n4 2\n")
    (folder / "train_test_split.txt").write_text("1 1\n2 0\n3 0\n4 1\n")
    (folder / "classes.txt").write_text("".join(f"{i} {name}\n" for i, name in names.items()))
    return folder


def test_cub200(cub: Path) -> None:
    source = load_source("cub200", root=cub.parent)
    assert source.class_names == ("002.Laysan_Albatross", "001.Black_footed_Albatross")
    assert source.train.keys == ("images/002.Laysan_Albatross/a.jpg", "images/001.Black_footed_Albatross/d.jpg")
    assert source.test.labels.tolist() == [0, 1]
    assert load_source("cub200", root=cub).train.keys == source.train.keys
    (cub / "train_test_split.txt").write_text("1 1\n2 0\n")
    with pytest.raises(ValueError, match=r"images\.txt, line 3: image 3 lacks"):
        load_source("cub200", root=cub)
    (cub / "classes.txt").write_text("1\n")
    with pytest.raises(ValueError, match=r"classes\.txt, line 1: expected 2 columns"):
        load_source("cub200", root=cub)


def test_domainnet_with_its_lists(tmp_path: Path) -> None:
    folder = tmp_path / "domainnet"
    for domain in ("real", "clipart"):
        lists: dict[str, list[str]] = {"train": [], "test": []}
        for label, name in enumerate(("The_Eiffel_Tower", "ant")):
            for i, part in enumerate(("train", "test", "train")):
                file = f"{domain}/{name}/{domain}_{label}_{i}.jpg"
                photo(folder / file)
                lists[part].append(f"{file} {label}\n")
        for part, lines in lists.items():
            (folder / f"{domain}_{part}.txt").write_text("".join(lines))
    source = load_source("domainnet", root=tmp_path)
    assert source.domain_names == ("clipart", "real")
    assert source.class_names == ("The_Eiffel_Tower", "ant")
    assert (len(source.train), len(source.test)) == (8, 4)
    scenario = domain_incremental(load_source("domainnet", root=tmp_path, domains=["real", "clipart"]))
    assert scenario[0].name == "real"
    assert all(key.startswith("real/") for key in scenario[0].train.keys + scenario.test(0).keys)
    (folder / "real_test.txt").write_text("real/ant/real_1_1.jpg 0\n")
    with pytest.raises(ValueError, match=r"real_test\.txt, line 1: label 0 of .* is not 'ant' but 'The_Eiffel_Tower'"):
        load_source("domainnet", root=tmp_path)
    (folder / "real_test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"real_test\.txt"):
        load_source("domainnet", root=tmp_path)


def test_domainnet_without_lists(tmp_path: Path) -> None:
    for domain in ("real", "clipart"):
        for name in ("ant", "bee"):
            for i in range(3):
                photo(tmp_path / "domainnet" / domain / name / f"{i}.jpg")
    source = load_source("domainnet", root=tmp_path)
    assert source.domain_names == ("clipart", "real")
    assert len(source.test) == 4


@pytest.mark.parametrize(
    ("name", "folder", "first"), [("mnist", "MNIST", "0"), ("fashion-mnist", "FashionMNIST", "T-shirt/top")]
)
def test_torchvision_reads_the_original_files(tmp_path: Path, name: str, folder: str, first: str) -> None:
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    for part, count in (("train", 10), ("t10k", 3)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, count, 28, 28) + pixels[:count].tobytes()
        )
        labels = np.arange(10, dtype=np.uint8)[:count]
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    source = load_source(name, root=tmp_path)
    assert source.class_names[0] == first
    assert (len(source.train), len(source.test)) == (10, 3)
    assert torch.equal(source.train.pixels([7])[0], torch.from_numpy(pixels[7]).expand(3, -1, -1))
    assert source.test.keys == (f"{name}/test/0", f"{name}/test/1", f"{name}/test/2")


def test_pixels_and_labels_as_torchvisions_cifar_holds_them() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    part = SimpleNamespace(data=pixels, targets=[0, 1, 1, 0])
    source = paired("cifar10", part, part, ("airplane", "automobile"))
    assert source.train.labels.tolist() == [0, 1, 1, 0]
    assert torch.equal(source.test.pixels([3])[0], torch.from_numpy(pixels[3]).permute(2, 0, 1))


@pytest.mark.parametrize(("name", "dataset"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100"), ("mnist", "MNIST")])
def test_a_download_that_fails_says_where_to_put_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dataset: str
) -> None:
    import torchvision.datasets

    def no_network(self) -> None:
        raise OSError("<urlopen error no network>")

    monkeypatch.setattr(getattr(torchvision.datasets, dataset), "download", no_network)
    with pytest.raises(RuntimeError, match=f"cannot download {name} .*no network.*put .*gz.* into {tmp_path}"):
        load_source(name, root=tmp_path)


def test_a_hub_data_set_by_type_of_its_columns(tmp_path: Path, hub_folder) -> None:
    folder = hub_folder({"train": [1, 0, 1, 0], "test": [0, 1]})
    source = load_source(f"hf:{folder}")
    assert source.class_names == ("heron", "gull")
    assert source.train.labels.tolist() == [1, 0, 1, 0]
    assert source.test.labels.tolist() == [0, 1]
    assert [int(image[0, 0, 0]) for image in source.train.pixels([3, 1])] == [30, 10]
    assert source.train.keys[2].endswith("/train/2")


def test_a_hub_data_set_without_a_test_split_gets_one(hub_folder) -> None:
    source = load_source(f"hf:{hub_folder({'train': [0, 0, 0, 1, 1, 1]})}")
    assert torch.bincount(source.test.labels).tolist() == [1, 1]


def test_hub_choices_that_do_not_exist_are_refused(hub_folder) -> None:
    folder = hub_folder({"train": [0, 0, 1, 1], "test": [0, -1]})
    with pytest.raises(ValueError, match="did you mean 'train'"):
        load_source(f"hf:{folder}", train="trian")
    with pytest.raises(ValueError, match=r"no column of .* is called 'picture'"):
        load_source(f"hf:{folder}", image="picture")
    with pytest.raises(ValueError, match="hides its labels"):
        load_source(f"hf:{folder}")
    with pytest.raises(RuntimeError, match="cannot load hf:"):
        load_source(f"hf:{folder / 'gone'}")


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write splits as parquet files, the way data sets lie on the hub."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    features = datasets.Features({"photo": datasets.Image(), "bird": datasets.ClassLabel(names=["heron", "gull"])})

    def write(splits: dict[str, list[int]]) -> Path:
        folder = tmp_path / "birds"
        (folder / "data").mkdir(parents=True)
        for split, labels in splits.items():
            photos = [Image.new("RGB", (4, 4), (10 * i, 0, 0)) for i in range(len(labels))]
            rows = datasets.Dataset.from_dict({"photo": photos, "bird": labels}, features=features)
            rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        return folder

    return write
