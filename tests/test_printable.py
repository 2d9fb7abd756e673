"""Names of files, tasks and classes come from anyone: a terminal shows them, neither obeying nor reading markup."""

import json
from pathlib import Path

import pytest
from conftest import Run
from PIL import Image

from lamella.common.plain_table import plain_table
from lamella.common.printable import printable
from lamella.learner.learner import Learner

EVIL = ("\x1b[2Jcleared", "two\nlines", "over\rwritten", "\u202egpj.turned", "\x9b31mred", "[bold]mark :dog:")
SHOWN = (
    r"\x1b[2Jcleared", r"two\nlines", r"over\rwritten", r"\u202egpj.turned", r"\x9b31mred", "[bold]mark :dog:",
)  # fmt: skip
TINY = ("--backbone", "test_vit", "backbone.weights=random", "backbone.size=32", "--method", "nearest-mean")


def photos(folder: Path, classes: tuple[str, ...], blue: int = 90) -> Path:
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for j in range(6):
            Image.new("RGB", (16, 16), (40 * i, 40 * j, blue)).save(folder / name / f"{j}.png")
    return folder


def harmless(text: str) -> bool:
    return all(sign.isprintable() or sign == "\n" for sign in text)


@pytest.mark.parametrize(("name", "shown"), [*zip(EVIL, SHOWN, strict=True)])
def test_a_cell_of_a_table_is_the_name_itself(name: str, shown: str) -> None:
    page = plain_table(("task", name), [(name, "1")])
    assert harmless(page)
    assert page.count(shown) == 2
    assert page.count("\n") == 5, "the borders, the head and one line"


def test_every_command_shows_names_and_obeys_none(lamella: Run, tmp_path: Path) -> None:
    model = tmp_path / "model \x1b[1m"
    first, second = (photos(tmp_path / f"{EVIL[i]} {i}", EVIL[3 * i : 3 * i + 3], 90 + i) for i in range(2))
    image = first / EVIL[0] / "0.png"
    tasks = [printable(data.name) for data in (first, second)]
    classes = SHOWN[:3]

    def said(*words: object, naming: tuple[str, ...], code: int = 0) -> None:
        left, out, err = lamella(*words)
        assert left == code, err
        assert harmless(out + err), (out, err)
        assert [name for name in naming if name not in out + err] == []

    said("learn", model, first, *TINY, naming=(tasks[0], printable(str(model)), *classes))
    said("learn", model, second, naming=(*tasks, *SHOWN[3:]))
    said("history", model, naming=tuple(f"learned {task}" for task in tasks))
    said("inspect", model, "--verbose", "--html", tmp_path / "\x1b.html", naming=(*tasks, *SHOWN, r"\x1b.html"))
    said("predict", model, image, "--top", 6, naming=(*SHOWN, printable(str(image))))
    said("evaluate", model, first, naming=(printable(str(first)), *classes))
    said("forget", model, "\x1b[0mno such", naming=(r"\x1b[0mno such", tasks[0]), code=2)
    said("forget", model, second.name, naming=(tasks[1], printable(str(model))))
    said("evaluate", model, second, naming=SHOWN[3:], code=2)  # none of them is known any more
    said("rollback", model, "--to", 2, naming=tuple(tasks))
    said("predict", model, tmp_path / "no\x1bne", naming=(r"no\x1bne",), code=2)

    listed = json.loads(lamella("history", model, "--json")[1])
    assert listed[1]["tasks"] == [first.name, second.name], "for programs names stay as they are"
    assert set(Learner.load(model).class_names.values()) == set(EVIL)
