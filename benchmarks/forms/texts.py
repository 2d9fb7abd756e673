"""An encoder of texts: what statistics and training cost beside a forward pass, and how much of a batch is padding."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from torch import Tensor

from forms.case import Case, Form
from forms.steps import late_step
from lamella.adapters.adapter import watch
from lamella.backbones import Backbone, by_length
from lamella.backbones.encoders import Encoder, has_class_token
from lamella.common.randomness import generator
from lamella.data.lengths import in_windows, lengths_of, longest_first
from lamella.data.loading import batch_sizes
from lamella.data.samples import Batch
from lamella.data.scenario import Task
from lamella.data.texts import TextSet
from lamella.data.tokens import MASK, TokenTransform
from lamella.memory.subspace import SecondMoment
from lamella.methods import METHODS
from lamella.testing import tiny_bert

FORWARD = "frozen forward"
CLINC150 = (3, 7, 8, 9, 10, 11, 11, 12, 14, 16, 33)
"""Tenths of the texts of CLINC150 by their number of tokens, as all-MiniLM-L6-v2 has them."""
PASS, LIKE_LENGTHS = 64, "of like lengths"


def text_costs(
    model: Annotated[str, typer.Option(help="A folder that transformers loads; by default a tiny BERT.")] = "",
    texts: Annotated[str, typer.Option(help="A file with a text on each line; drawn ones where it is left out.")] = "",
    batch: int = 32,
    tokens: Annotated[int, typer.Option(help="All texts are of so many tokens; 0 for the lengths of CLINC150.")] = 0,
    tasks: Annotated[int, typer.Option(help="The late task, whose training step is timed, too.")] = 2,
) -> Iterator[Case]:
    """What methods cost on an encoder of texts; 1.00 is its frozen forward pass on the same padded batch.

    "Moments" is InfLoRA's pass for statistics: one second moment for keys and values, up to the last adapted layer.
    "Moments, one a layer" sees each layer apart. Steps are those of `ratios.py training-step`. "Tokens" tells beside
    how many computed tokens there are for a real one: in a pass in the order of the set and of like lengths, and in
    training with batches as they are drawn, whole and in parts of like lengths as a CPU computes them, and in windows
    (`fit.like_sizes`).
    """
    new = partial(_backbone, model)
    frozen = new()
    transform: Any = frozen.transform
    data = _read(texts) if texts else _drawn(transform, 1024, tokens)
    x = data.batch(torch.arange(batch), transform.view())
    forms: dict[str, Form] = {FORWARD: without_gradients(partial(frozen.run, x))}
    adapted: Any = METHODS["inflora"](new())
    firsts = [site for site in adapted.sites if adapted.reads_as[site.name] == site.name]
    for name, sites in (("moments", firsts), ("moments, one a layer", adapted.sites)):
        forms[name] = partial(pass_for_moments, adapted.backbone, sites, x)
    for name in ("inflora", "seq-lora"):
        for number in dict.fromkeys((1, tasks)):
            forms[f"{name}, task {number}"] = late_step(METHODS[name](new()), _ten_classes_each(number, data), x)
    forms["inflora, whole batch"] = whole(late_step(METHODS["inflora"](new()), _ten_classes_each(1, data), x))
    forms["tokenising"] = lambda: transform.encode(data.texts[:batch])
    lengths = lengths_of(data, transform)
    assert lengths is not None
    remark = lambda seconds: _padding(lengths, batch, x)  # noqa: E731
    yield Case(frozen.name, forms, FORWARD, batch, remark=remark)


def _backbone(folder: str) -> Backbone:
    if not folder:
        return tiny_bert()
    from tokenizers import Tokenizer
    from transformers import AutoModel

    network = AutoModel.from_pretrained(folder).eval()
    transform = TokenTransform(Tokenizer.from_file(str(Path(folder) / "tokenizer.json")), max_length=128)
    encoder = Encoder(network, "mean", has_class_token=has_class_token(network, transform))
    return Backbone(encoder, name=Path(folder).name, width=network.config.hidden_size, transform=transform)


def _read(path: str) -> TextSet:
    texts = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    return TextSet(texts, torch.arange(len(texts)) % 10)


def _drawn(transform: Any, count: int, tokens: int) -> TextSet:
    """Texts of words from the vocabulary, of the lengths of CLINC150 or of one length."""
    known = sorted(word for word in transform.tokenizer.get_vocab() if word.isalpha() and word.isascii())
    draws = generator(0, "texts")
    tenth = torch.rand(count, generator=draws) * 10
    wanted = [tokens or round(float(torch.lerp(*_around(t), t % 1))) for t in tenth]
    words = [torch.randint(len(known), (max(n - 2, 1),), generator=draws).tolist() for n in wanted]
    return TextSet([" ".join(known[i] for i in row) for row in words], torch.arange(count) % 10)


def _around(tenth: Tensor) -> tuple[Tensor, Tensor]:
    at = int(tenth)
    return torch.tensor(float(CLINC150[at])), torch.tensor(float(CLINC150[at + 1]))


def without_gradients(run: Form) -> Form:
    """Run a form without gradients."""

    def form() -> None:
        with torch.no_grad():
            run()

    return form


def whole(run: Form) -> Form:
    """Run a form that trains on texts without dividing its batch."""

    def form() -> None:
        with patch.object(by_length, "PASS", 10**9):
            run()

    return form


def pass_for_moments(backbone: Backbone, sites: Any, x: Batch) -> None:
    """Take the second moments of what the sites read, with a pass as far as the last of them."""
    with watch(sites, lambda layer: SecondMoment(layer.weight.shape[1])):
        backbone.show(x, sites)


def _ten_classes_each(number: int, data: TextSet) -> list[Task]:
    """So many tasks of ten classes, each of the same few texts."""
    few = data.subset(range(40))
    classes = [tuple(range(10 * i, 10 * i + 10)) for i in range(number)]
    return [
        Task(i, f"task {i}", own, tuple(map(str, own)), few.relabelled(few.labels + own[0]))
        for i, own in enumerate(classes)
    ]


def _padding(lengths: Tensor, batch: int, x: Batch) -> str:
    """How many tokens are computed for a real one, in passes and in training."""
    n, sizes = len(lengths), batch_sizes(len(lengths), batch)
    drawn = torch.randperm(n, generator=generator(0, "order"))
    windows = in_windows(drawn, sizes, lengths, generator(0, "windows"))
    found = {
        "a pass in order": _computed(lengths, [PASS] * (n // PASS) + [n % PASS]),
        f"a pass {LIKE_LENGTHS}": _computed(lengths[longest_first(lengths)], [PASS] * (n // PASS) + [n % PASS]),
        "training, whole batches": _computed(lengths[drawn], sizes),
        "training, batches in parts": sum(_in_parts(part.tolist()) for part in lengths[drawn].split(sizes)),
        f"training {LIKE_LENGTHS}": _computed(lengths[windows], sizes),
    }
    real = int(lengths.sum())
    told = ", ".join(f"{name} {computed / real:.3f}" for name, computed in found.items())
    own = x[MASK].numel() / int(x[MASK].sum())
    return f"Tokens for a real one, {n} texts of {real / n:.1f} tokens: {told}; the timed batch {own:.3f}"


def _in_parts(lengths: list[int]) -> int:
    return sum(len(part) * max(lengths[i] for i in part) for part in by_length.parts_of(lengths))


def _computed(lengths: Tensor, sizes: list[int]) -> int:
    return sum(len(part) * int(part.max()) for part in lengths.split(sizes) if len(part))
