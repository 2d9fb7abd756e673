"""Exports of models of texts: others load them without Lamella, and they compute what the model computes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from encoders import tiny_text_backbone
from streams import stream
from torch import Tensor

from lamella import Learner
from lamella.backbones.encoder_network import quiet
from lamella.backbones.load import load_backbone
from lamella.backbones.pooling import POOLS, pooled
from lamella.common.options import options_of
from lamella.data.samples import Batch
from lamella.data.scenario import class_incremental
from lamella.data.tasks import Source
from lamella.data.tokens import IDS, MASK, TokenTransform
from lamella.learner.export import export, predict_program
from lamella.learner.export.check import BATCHES, random_samples
from lamella.learner.export.predict_program import logits_of
from lamella.learner.export.transformers_files import save_network, save_tokenizer
from lamella.memory.low_rank import Curves
from lamella.methods import METHODS
from lamella.methods.shared.plain_classifier import PlainClassifier
from lamella.testing.texts import byte_tokenizer, pattern_texts

FOLDERS = TemporaryDirectory(prefix="lamella-tests-")
"""Of the encoders that models are made of."""
TEXTS = ["one", "  some words of a text\n", "[SEP] is no token here", "x" * 90]
SETTINGS: dict[str, Any] = {
    "epochs": 2, "batch_size": 8, "rank": 2, "optimizer": "adam", "lr": 1e-2,
    "projections": 64, "adapt": "none", "unit": True, "ridge": 1.0,
}  # fmt: skip


@cache
def encoder(name: str) -> Path:
    """A folder of transformers with a tiny network of an architecture."""
    backbone: Any = tiny_text_backbone(name)
    folder = Path(FOLDERS.name, name)
    save_network(backbone.model, folder)
    save_tokenizer(backbone.transform, folder)
    return folder


@cache
def learned(method: str, architecture: str = "bert") -> Learner:
    """A learner of two tasks of two classes."""
    known = options_of(METHODS[method.partition("+")[0]])
    table = {"name": method, **{key: value for key, value in SETTINGS.items() if key in known}}
    backbone = {"name": str(encoder(architecture)), "pool": "mean", "normalise": "unit"}
    learner = Learner.create(backbone=backbone, method=table, fit={"device": "cpu"})
    scenario = class_incremental(source(), tasks=2)
    for i in range(2):
        learner.learn(scenario[i], held_back=scenario.test(i))
    return learner


def source() -> Source:
    train, test = pattern_texts(4, 8, "train"), pattern_texts(4, 2, "test")
    return Source("patterns", train, test, tuple(f"kind {i}" for i in range(4)))


def batch(learner: Learner, texts: Sequence[str] = TEXTS) -> Batch:
    transform: Any = learner.backbone.transform
    return transform.view()([text.strip() for text in texts], torch.arange(len(texts)))


def close(found: Any, wanted: Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found), wanted.float(), rtol=0, atol=1e-4 * float(wanted.abs().max()))


def printed(programs: Sequence[Path], texts: Sequence[str]) -> list[list[str]]:
    """What programs print about texts: label, confidence, text. They may not import Lamella."""
    code = (
        "import runpy, sys; sys.modules['lamella'] = None; programs = sys.argv[1].split(';'); del sys.argv[1]\n"
        "for program in programs: runpy.run_path(program, run_name='__main__')"
    )
    start = [sys.executable, "-c", code, ";".join(map(str, programs)), *texts]
    done = subprocess.run(start, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def assert_says_the_same(rows: list[list[str]], learner: Learner) -> None:
    logits = learner.logits(batch(learner, TEXTS[:3]))
    confidences, best = (logits / learner.confidence.temperature).softmax(1).max(1)
    assert [row[0] for row in rows] == [learner.class_names[learner.method.classes[i]] for i in best.tolist()]
    assert [float(row[1]) for row in rows] == pytest.approx(confidences.tolist(), abs=6e-4)
    assert [row[2] for row in rows] == [text.strip() for text in TEXTS[:3]]


def computed(pool: str, normalise: bool, classifier: PlainClassifier) -> Any:
    """The function of a program whose network gives each token the vector that it is given as its id."""
    encoder: Any = SimpleNamespace(pool=pool, unit=normalise, network=tiny_text_backbone().model.network)
    text = predict_program.program(encoder, classifier, 1.0)
    _, _, function = text.partition("@torch.no_grad()\n")
    names: dict[str, Any] = {
        "torch": torch,
        "normalize": torch.nn.functional.normalize,
        "model": lambda input_ids, attention_mask: SimpleNamespace(last_hidden_state=input_ids),
        "classifier": classifier.state_dict(),
    }
    exec(function.partition("\n\n\n")[0], names)
    return names["logits"]


def test_the_samples_of_a_check_have_three_lengths_in_one_padded_batch() -> None:
    found: Any = random_samples(learned("ranpac").backbone, max(BATCHES))
    lengths = found[MASK].sum(1)
    assert len(lengths.unique()) >= 3
    assert not found[MASK].all()


# transformers --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_its_programs_print_labels_and_confidences_without_lamella(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    exports = {"hf": learned("ranpac"), "peft": learned("inflora")}
    for form, learner in exports.items():
        assert learner.confidence.temperature != 1.0
        assert "random texts" in export(learner.model, form, tmp_path / form)[0]
    rows = printed([tmp_path / form / "predict.py" for form in exports], TEXTS[:3])
    assert_says_the_same(rows[:3], exports["hf"])
    assert_says_the_same(rows[3:], exports["peft"])


OFTEN = [("ranpac", "bert"), ("inflora+align", "gpt2"), ("nearest-mean", "deberta-v3")]
SELDOM = [("seq-lora", "t5"), ("sdlora", "modernbert"), ("streaming-lda", "mpnet"), ("seq-finetune", "distilbert"),
          ("seq-finetune", "albert"), ("olora", "llama"), ("linear-probe", "roberta")]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "architecture"), [*OFTEN, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SELDOM)]
)
def test_transformers_loads_it_and_computes_the_same_features(method: str, architecture: str, tmp_path: Path) -> None:
    import transformers

    learner = learned(method, architecture)
    lines = export(learner.model, "hf", tmp_path / "model")
    kind = transformers.T5EncoderModel if architecture == "t5" else transformers.AutoModel
    assert f"transformers.{kind.__name__}.from_pretrained" in lines[-1]
    with quiet():
        network: Any = kind.from_pretrained(tmp_path / "model").eval()
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert network.config.id2label == {i: learner.class_names[c] for i, c in enumerate(learner.method.classes)}
    x = batch(learner)
    found = tokenizer([text.strip() for text in TEXTS], padding=True, truncation=True, return_tensors="pt")
    assert [ids[mask].tolist() for ids, mask in zip(found[IDS], found[MASK].bool(), strict=True)] == [
        ids[mask].tolist() for ids, mask in zip(x[IDS], x[MASK], strict=True)
    ]
    with torch.no_grad():
        tokens, mask = network(**found).last_hidden_state, found[MASK][..., None]
        features = torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1)
        close(features, learner.method.eval().features(x))


def test_sentence_transformers_finds_its_layout(tmp_path: Path) -> None:
    export(learned("ranpac").model, "hf", tmp_path / "model")
    modules = json.loads((tmp_path / "model" / "modules.json").read_text())
    assert [(m["path"], m["type"].rpartition(".")[2]) for m in modules] == [
        ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")
    ]  # fmt: skip
    pooling = json.loads((tmp_path / "model" / "1_Pooling" / "config.json").read_text())
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens"]
    assert pooling["word_embedding_dimension"] == 32
    assert json.loads((tmp_path / "model" / "sentence_bert_config.json").read_text())["max_seq_length"] == 32


def test_every_way_to_pool_and_classify_is_in_the_program() -> None:
    """The text of the program is run on the tensors of a network that gives what it is given."""
    draw = torch.Generator().manual_seed(0)
    ids, mask = torch.randn(3, 5, 4, generator=draw), torch.arange(5) < torch.tensor([[5], [2], [3]])
    for pool in POOLS:
        for normalise, unit, wide in [(False, False, False), (True, False, True), (False, True, True)]:
            projection = torch.randn(6, 4, generator=draw).double() if wide else None
            weight = torch.randn(2, 6 if wide else 4, generator=draw, dtype=torch.float64 if wide else torch.float32)
            classifier = PlainClassifier(weight, torch.ones(2).to(weight), projection=projection, unit=unit)
            names = computed(pool, normalise, classifier)
            features = pooled(ids, mask, pool)
            features = torch.nn.functional.normalize(features, dim=1) if normalise else features
            torch.testing.assert_close(names(ids, mask.long()).float(), classifier(features))
        shapes = [(4, 4), (2, 4), (2, 3, 4), (2, 3)]
        curves = Curves(*(torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes))
        classifier = PlainClassifier(torch.randn(2, 4, generator=draw).double(), curves=curves)
        torch.testing.assert_close(
            computed(pool, False, classifier)(ids, mask.long()).float(), classifier(pooled(ids, mask, pool))
        )


def test_an_export_is_a_start_for_a_new_model(tmp_path: Path) -> None:
    learner = learned("inflora+align", "gpt2")
    export(learner.model, "hf", tmp_path / "model")
    again = load_backbone(str(tmp_path / "model"), normalise="unit")
    x = batch(learner)
    with torch.no_grad():
        torch.testing.assert_close(again(x), learner.method.eval().features(x), rtol=0, atol=1e-5)


# PEFT ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_peft_adds_it_to_the_weights_that_it_belongs_to(architecture: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import transformers

    learner = learned("inflora", architecture)
    lines = export(learner.model, "peft", tmp_path / "lora")
    assert any(line.startswith("rank ") for line in lines)
    assert (tmp_path / "lora" / "base").is_dir(), "nobody else has these weights"
    with quiet():
        network: Any = transformers.AutoModel.from_pretrained(encoder(architecture))
        network = peft.PeftModel.from_pretrained(network, str(tmp_path / "lora")).eval()
    x = batch(learner)
    with torch.no_grad():
        tokens, mask = network(x[IDS], attention_mask=x[MASK].long()).last_hidden_state, x[MASK][..., None]
        features = torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1)
        close(features, learner.method.eval().features(x))


def test_an_adapter_of_weights_with_a_name_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    learner = learned("seq-lora")
    monkeypatch.setattr(learner.backbone, "name", "someone/tiny")
    lines = export(learner.model, "peft", tmp_path / "lora")
    assert "from_pretrained('someone/tiny', add_pooling_layer=False)" in lines[-1]
    assert not (tmp_path / "lora" / "base").exists()
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["task_type"]) == ("someone/tiny", "FEATURE_EXTRACTION")
    text = (tmp_path / "lora" / "predict.py").read_text()
    assert "AutoModel.from_pretrained('someone/tiny', add_pooling_layer=False), HERE)" in text


def test_tasks_kept_apart_become_a_folder_each(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    learner = learned("color")
    export(learner.model, "peft", tmp_path / "tasks", per_task=True)
    for t in range(2):
        own = [learner.method.classes.index(c) for c in learner.tasks[t].classes]
        x = batch(learner)
        close(logits_of(tmp_path / "tasks" / f"task{t}" / "predict.py")(x), learner.logits(x, task=t)[:, own])


@pytest.mark.parametrize("per_task", [False, True], ids=["whole", "per task"])
def test_a_truncated_adapter_computes_what_the_truncated_network_does_and_says_what_that_costs(
    per_task: bool, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    learner = learned("color" if per_task else "seq-lora")
    lines = export(learner.model, "peft", tmp_path / "small", per_task=per_task, rank=1)
    folder = tmp_path / "small" / "task0" if per_task else tmp_path / "small"
    assert set(json.loads((folder / "adapter_config.json").read_text())["rank_pattern"].values()) == {1}
    assert sum("random texts" in line and "differs from the model" in line for line in lines) == 1 + per_task


# ONNX ----------------------------------------------------------------------------------------------------------------


def test_onnx_takes_any_number_of_texts_of_any_length(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    from tokenizers import Tokenizer

    learner = learned("ranpac")
    export(learner.model, "onnx", tmp_path / "model")
    session = runtime.InferenceSession(str(tmp_path / "model" / "model.onnx"), providers=["CPUExecutionProvider"])
    ends = [(end.name, end.shape) for end in (*session.get_inputs(), *session.get_outputs())]
    assert ends == [(IDS, ["n", "tokens"]), (MASK, ["n", "tokens"]), ("logits", ["n", 4])]
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == [
        learner.class_names[c] for c in learner.method.classes
    ]
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    for texts in (TEXTS[:1], TEXTS[:3], TEXTS):
        encoded = tokenizer.encode_batch([text.strip() for text in texts])
        inputs = {IDS: torch.tensor([e.ids for e in encoded]), MASK: torch.tensor([e.attention_mask for e in encoded])}
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        close(found, learner.logits(batch(learner, texts)))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "modernbert", "deberta-v3", "t5"])
def test_graphs_of_other_architectures(architecture: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    lines = export(learned("seq-lora", architecture).model, "onnx", tmp_path / "model")
    assert "random texts" in lines[0]


# what cannot be ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "method", "message"),
    [
        ("timm", "ranpac", "format timm is for images, and this backbone takes texts; use --format hf, peft, onnx or"),
        ("hf", "color", "weighs its adapters anew for each text.*--format adapters"),
        ("onnx", "color", "weighs its adapters anew for each text.*--format adapters.*--format peft --per-task"),
        ("peft", "ranpac", "no weight of the backbone changed, so there is no adapter; use --format hf"),
        ("peft", "seq-finetune", "changed 'network.* too.*use --format hf"),
    ],
)
def test_what_cannot_be_says_why_and_what_else(form: str, method: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        export(learned(method).model, form, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_model_of_images_is_no_model_of_transformers(tmp_path: Path) -> None:
    learner = Learner.create(backbone="fractal-vit-micro", method="nearest-mean", fit={"device": "cpu"})
    learner.learn(stream(classes=2, tasks=1, per_class=2)[0])
    with pytest.raises(ValueError, match="is for texts and answers, and this backbone takes images; use --format timm"):
        export(learner.model, "hf", tmp_path / "out")


@pytest.mark.parametrize("form", ["hf", "peft", "onnx"])
def test_hashed_words_are_no_network(form: str, tmp_path: Path) -> None:
    learner = Learner.create(backbone="hashed-words", method="nearest-mean", fit={"device": "cpu"})
    learner.learn(class_incremental(source(), tasks=2)[0])
    with pytest.raises(ValueError, match=r"'hashed-words' are made by code of Lamella.*--format adapters"):
        export(learner.model, form, tmp_path / "out")
    assert export(learner.model, "adapters", tmp_path / "tensors")


def test_a_graph_of_texts_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a folder with its tokenizer: say --out model, without \.onnx"):
        export(learned("ranpac").model, "onnx", tmp_path / "model.onnx")


def test_a_tokenizer_without_special_tokens_pads_with_one_of_a_text_and_keeps_that_in_texts(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate("!Ġabcdefghijklmnopqrstuvwxyz")}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    save_tokenizer(TokenTransform(tokenizer, max_length=8), tmp_path)  # compares the tokens of texts with "!" in them


def test_a_tokenizer_that_makes_other_tokens_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = byte_tokenizer(first=False)
    monkeypatch.setattr("lamella.learner.export.transformers_files.own_tokenizer", lambda transform: other)
    with pytest.raises(RuntimeError, match="makes other tokens than the model's, so it was not kept"):
        export(learned("ranpac").model, "hf", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_program_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(predict_program.POOLED, "mean", "tokens[:, 0]")
    with pytest.raises(RuntimeError, match="does not compute what the model computes, so it was not kept"):
        export(learned("ranpac").model, "hf", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_export_with_unit_features_is_a_start_with_unit_features(tmp_path: Path) -> None:
    """Whether a model of it is learned, loaded, moved or exported once more."""
    export(learned("ranpac").model, "hf", tmp_path / "export")
    again = Learner.create(backbone=str(tmp_path / "export"), method="nearest-mean", fit={"device": "cpu"})
    close(again.backbone(batch(again)), learned("ranpac").backbone(batch(learned("ranpac"))))
    again.learn(class_incremental(source(), tasks=2)[0])
    again.save(tmp_path / "model")
    kept = again.backbone(batch(again))
    shutil.rmtree(tmp_path / "export")
    close(Learner.load(tmp_path / "model", device="cpu").backbone(batch(again)), kept)
    export(again.model, "hf", tmp_path / "second")
    assert "Normalize" in (tmp_path / "second" / "modules.json").read_text()
