"""Data with several labels a sample, boxes or masks are told, in one line that says what would serve instead."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image
from streams import draw, images

from lamella.data.images import ImageSet, TensorSet
from lamella.data.one_class import check_single_labels
from lamella.data.sources.load import load_source
from lamella.data.texts import TextSet

ONE = "Lamella learns one class a"
WHOLE = "Lamella names whole images"


def picture(path: Path, level: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(path)
    return path


def coco(folder: Path) -> None:
    picture(folder / "train2017" / "1.jpg")
    boxes = {"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": [0, 0, 4, 4]}], "categories": [{"id": 1}]}
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(boxes))


def coco_in_parts(folder: Path) -> None:
    for part in ("train", "valid"):
        picture(folder / part / "1.jpg")
        padding = [
            {"id": i, "file_name": "x" * 40} for i in range(40_000)
        ]  # what is looked at is the begin and the end
        boxes = {"images": padding, "annotations": [{"bbox": [0, 0, 4, 4]}], "categories": []}
        (folder / part / "_annotations.coco.json").write_text(json.dumps(boxes))


def yolo(folder: Path) -> None:
    for part in ("train", "val"):
        picture(folder / "images" / part / "1.jpg")
        (folder / "labels" / part).mkdir(parents=True)
        (folder / "labels" / part / "1.txt").write_text("0 0.5 0.5 0.25 1e-1\n3 0.1 0.2 0.3 0.4\n")


def yolo_in_parts(folder: Path) -> None:
    picture(folder / "train" / "images" / "1.jpg")
    (folder / "train" / "labels").mkdir()
    (folder / "train" / "labels" / "1.txt").write_text("0 0.5 0.5 0.25 0.1 0.2 0.3\n")  # a polygon


def voc(folder: Path) -> None:
    picture(folder / "JPEGImages" / "1.jpg")
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / "1.xml").write_text("<annotation><object><bndbox/></object></annotation>")


def masks(folder: Path) -> None:
    for i in range(3):
        picture(folder / "images" / f"{i}.jpg")
        picture(folder / "masks" / f"{i}_mask.png")


def masks_of_voc(folder: Path) -> None:
    for i in range(3):
        picture(folder / "train" / "JPEGImages" / f"{i}.jpg")
        picture(folder / "train" / "SegmentationClass" / f"{i}.png")


@pytest.mark.parametrize("layout", [coco, coco_in_parts, yolo, yolo_in_parts, voc, masks, masks_of_voc])
def test_layouts_of_boxes_and_masks_are_told(layout: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    layout(tmp_path / "data")
    with pytest.raises(ValueError, match=WHOLE) as refused:
        load_source(tmp_path / "data")
    said = str(refused.value)
    assert "\n" not in said
    assert ("a mask for each picture" in said) == ("mask" in layout.__name__)
    assert "CLASS/NAME.jpg" in said
    assert said.endswith("say --layout classes")


def test_classes_with_such_names_are_classes(tmp_path: Path) -> None:
    for name in ("masks", "no masks"):  # what people wear
        for i in range(3):
            picture(tmp_path / "worn" / name / f"{i}.jpg", 30 * i)
    assert load_source(tmp_path / "worn", test_fraction=0.0).class_names == ("masks", "no masks")
    for name in ("images", "labels"):  # of a museum, with other names of files
        for i in range(3):
            picture(tmp_path / "museum" / name / f"{name}{i}.jpg", 30 * i)
            (tmp_path / "museum" / name / f"{name}{i}.txt").write_text("5 bottles of 1 l")
    (tmp_path / "museum" / "about.json").write_text('{"annotations": []}')
    assert load_source(tmp_path / "museum", samples="images", test_fraction=0.0).class_names == ("images", "labels")
    masks(tmp_path / "both")
    assert load_source(tmp_path / "both", layout="classes", test_fraction=0.0).class_names == ("images", "masks")


TABLES = [
    ("a.csv", "path,label\n1.png,cat\n2.png,dog\n3.png,cat|dog\n", r"line 4: the label 'cat\|dog' in the column "),
    ("a.csv", "path,label\n1.png,cat; dog\n2.png,dog; cat\n3.png,cat\n", "line 2: the label 'cat; dog' .*without ';'"),
    ("a.csv", 'path,label\n1.png,"[""cat"", ""dog""]"\n2.png,dog\n3.png,dog\n', "line 2: .* is a list of labels"),
    ("a.jsonl", '{"path": "1.png", "label": ["cat", "dog"]}\n', r"line 1: the label .* is a list of labels"),
    ("a.csv", "path,label\n1.png,cat\n1.png,dog\n", "line 3: .*already listed in line 2 under another label"),
    ("a.csv", "path,cat,dog\n1.png,1,1\n2.png,0,1\n", "cat, dog are columns of 0 and 1, a label each"),
    ("t.csv", "text,label\na,cat\nb,dog\nc,cat|dog\n", r"line 4: the label 'cat\|dog' in the column 'label' is s"),
    ("t.csv", "text,label\na,\"['cat', 'dog']\"\nb,dog\n", "line 2: .* is a list of labels"),
    ("t.jsonl", '{"text": "a", "label": ["cat"]}\n', r"line 1: the label \"\['cat'\]\" is a list of labels"),
    ("t.csv", "text,cold,wet\na,1,1\nb,0,1\n", "no label column; .*cold, wet are columns of 0 and 1, a label each"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), TABLES)
def test_several_labels_in_tables_are_told(name: str, content: str, said: str, tmp_path: Path) -> None:
    for i in (1, 2, 3):
        picture(tmp_path / f"{i}.png", 50 * i)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said) as refused:
        load_source(tmp_path / name)
    assert ONE in str(refused.value)
    assert "\n" not in str(refused.value)


def test_tables_of_boxes_and_masks_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    for columns, said in (
        ("path,xmin,xmax,class", "xmax, xmin are columns of boxes"),
        ("path,RLE", "rle are columns of"),
    ):
        (tmp_path / "a.csv").write_text(f"{columns}\n1.png,{','.join('1' * columns.count(','))}\n")
        with pytest.raises(ValueError, match=f"{said}.*{WHOLE}"):
            load_source(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("path,label,xmin\n1.png,cat,1\n1.png,cat,3\n")
    with pytest.raises(ValueError, match=f"already listed in line 2; xmin are columns of boxes: {WHOLE}"):
        load_source(tmp_path / "a.csv")
    (tmp_path / "a.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(ValueError, match=f"objects in the form of COCO; {WHOLE}"):
        load_source(tmp_path / "a.json")


def test_names_of_single_classes_may_hold_such_signs() -> None:
    for labels in (
        ["animal|cat", "animal|dog", "animal"],  # a path in a tree of classes
        ["AC;DC", "other"],
        ["[draft]", "final"],
        ["1|2"],
    ):
        check_single_labels(((f"line {i}", label) for i, label in enumerate(labels)), "label", "text")


def test_several_labels_in_arrays_are_told(tmp_path: Path) -> None:
    many = torch.ones(4, 3, dtype=torch.int64)
    data = images(2, 2, "train")
    for make in (
        lambda: ImageSet(data.storage, many, data.keys),
        lambda: TensorSet(draw(4, 2), many),
        lambda: TextSet(["a", "b", "c", "d"], many),
    ):
        with pytest.raises(ValueError, match=rf"labels are \(4, 3\), and should be \(n,\), a class id each; {ONE}"):
            make()
    pixels = np.zeros((4, 8, 8), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=many.numpy(), x_test=pixels, y_test=many.numpy())
    with pytest.raises(ValueError, match=rf"labels must be whole numbers \(n,\), not int64 \(4, 3\); {ONE} image"):
        load_source(tmp_path / "a.npz")


def test_the_command_says_it_in_one_line(lamella: Run, tmp_path: Path) -> None:
    yolo(tmp_path / "boxes")
    code, _, err = lamella("learn", tmp_path / "model", tmp_path / "boxes", "--bundled")
    assert (code, err.count("\n"), f"in the form of YOLO; {WHOLE}" in err) == (2, 1, True)
    assert not (tmp_path / "model" / "lamella.json").exists()
