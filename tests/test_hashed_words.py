"""Hashed words: the vectors are stable, need no packages, and have no layers."""

import os
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import pytest
import torch

from lamella import Learner
from lamella.backbones import BACKBONES, describe_layers, load_backbone
from lamella.backbones.hashed_words import HashedWords
from lamella.data.texts import TextSet
from lamella.experiments.demo import demo
from lamella.experiments.report import load_results
from lamella.experiments.run import run
from lamella.learner.config.document import load_config


def test_a_vector_is_that_of_words_pairs_and_groups_of_letters_by_hand() -> None:
    parts = {"my", "cards", "my cards", *(f"\0{g}" for g in (" my", "my ", " my ", " ca", "car", "ard", "rds", "ds "))}
    parts |= {f"\0{g}" for g in (" car", "card", "ards", "rds ")}
    expected = torch.zeros(512)
    for part in parts:
        found = crc32(part.encode())
        expected[found // 2 % 512] += -1 if found % 2 else 1
    expected = expected.sign() * expected.abs().sqrt()
    found = HashedWords().vectors(["My  CARDS"])[0]
    torch.testing.assert_close(found, expected / expected.norm())


def test_texts_have_vectors_of_length_one_whatever_they_hold() -> None:
    texts = ["?", "a", "word " * 5000, "你好 世界", "Ünïcode\ud800", "x" * 3000, "", " \n"]
    vectors = HashedWords().vectors(texts)
    torch.testing.assert_close(vectors.norm(dim=1), torch.tensor([1.0] * 6 + [0.0] * 2))


def test_what_comes_twice_counts_once() -> None:
    once, twice, other = HashedWords().vectors(["pay pay", "pay pay pay", "play"])
    torch.testing.assert_close(once, twice)
    assert 0.0 < float(once @ other) < 0.8


def test_it_has_no_weights_and_no_layers() -> None:
    backbone = load_backbone("hashed-words")
    assert (backbone.places(), backbone.learned(), backbone.used_weights()) == ([], {}, [])
    assert backbone.example(3).shape == backbone.example(3, torch.Generator().manual_seed(0)).shape == (3, 512)
    assert describe_layers("hashed-words") == []
    with pytest.raises(ValueError, match=r"has no layer with the roles .*; it has no layers\. .*\(--no-train\)"):
        backbone.sites("key+value")
    with pytest.raises(ValueError, match="'hashed-words' has no layer with the roles"):
        Learner.create(backbone="hashed-words", method="inflora")


def test_a_network_without_parameters_is_a_backbone(tmp_path: Path) -> None:
    learner = Learner.create(backbone="hashed-words", method="nearest-mean", fit={"device": "cpu"})
    learner.save(tmp_path / "model")
    again = Learner.load(tmp_path / "model", device="cpu", trusted=False)
    assert again.backbone.weights_sha256 == learner.backbone.weights_sha256
    texts = TextSet(["my card", "a bus"], torch.tensor([0, 1]))
    x = texts.batch([0, 1], again.backbone.transform.view())
    assert torch.equal(again.backbone(x), HashedWords().vectors(["my card", "a bus"]))


def test_it_imports_no_package_of_encoders() -> None:
    code = (
        "import sys; from lamella import Learner; Learner.create(backbone='hashed-words', method='streaming-lda'); "
        "print([m for m in ('transformers', 'tokenizers') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert found.stdout.strip() == "[]", found.stderr


def test_the_list_of_backbones_names_it_and_others_of_texts() -> None:
    kinds = [about.partition(":")[0] for name, about in BACKBONES.items() if "/" in name]
    assert kinds == 3 * ["for texts"] + ["for answers"]
    assert BACKBONES["hashed-words"].startswith("for texts: ")
    assert load_config("answers")["backbone"]["name"] in BACKBONES


def test_the_end_of_a_run_names_its_parameters_though_the_backbone_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(load_config("requests", ["scenario.classes=4", "scenario.tasks=2", "fit.device=cpu"]), tmp_path / "run")
    assert "parameters: " in capsys.readouterr().out


def test_the_demo_of_texts_tells_methods_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamella.experiments.demo._encoder", lambda: "")
    demo(tmp_path, texts=True, quiet=True)
    found = [result.metrics["final_accuracy"] or 0.0 for result in load_results([tmp_path])]
    assert len({*found}) == len(found) == 3
    assert 0.5 < min(found) < max(found) < 0.95
