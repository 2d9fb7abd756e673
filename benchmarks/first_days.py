"""`lamella learn` with nothing but data, day after day, beside three lines that train no backbone.

    LAMELLA_DATA=DIR python benchmarks/first_days.py
    LAMELLA_DATA=DIR python benchmarks/first_days.py --stream clothing --validation method.lr=5e-4
    LAMELLA_DATA=DIR python benchmarks/first_days.py --stream handwriting --config handwriting-domains
    LAMELLA_DATA=DIR python benchmarks/first_days.py --stream clinc150 --stream banking77 --per-class 8

DIR holds cifar100_part.npz, caltech101.npz, the unpacked folder clothing/, for texts clinc150.tar.xz and
banking77.tar.xz, and, where the hubs cannot be reached, vit_tiny_patch16_224/ and
sentence-transformers/all-MiniLM-L6-v2/. Every day brings classes that no earlier day had. A fifth of its training
samples is held back, as `lamella learn` does, and the rest is learned. After each day the test samples of all classes
so far are classified by

    learned         the model as `lamella learn` makes it, or with the settings that are given
    nearest means   the nearest class mean of the frozen backbone's features
    LDA             Fisher's discriminant of these features, as the method streaming-lda has it
    regression      scikit-learn's logistic regression on these features, standardised, of all images so far: the only
                    line that needs the images of earlier days
    words           for texts, a linear support vector machine on their words and word pairs, weighed by how rare they
                    are (TF-IDF), of all texts so far: no encoder at all

All see the same training images or texts. With --validation the test images are left alone: a quarter of the training
images takes their place, before --per-class is counted.

Settings are those of `lamella learn`: with a method.name they begin from the defaults of that method, and not from
those of `photos`, unless a --config is given.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from words import words

from lamella import Learner
from lamella.common.files import read_json, write_json
from lamella.data.images import concatenate
from lamella.data.loading import Examples
from lamella.data.scenario import Scenario, Source, class_incremental, domain_incremental
from lamella.data.sources.load import load_source
from lamella.data.sources.parts import keep_per_class
from lamella.data.splits import stratified_split
from lamella.data.texts import TextSet
from lamella.learner.confidence import UNKNOWN
from lamella.learner.config.wanted import Wanted
from lamella.learner.predictions import Prediction
from lamella.memory.gaussians import ClassGaussians
from lamella.methods.shared.heads import cosine_scores

STREAMS: dict[str, tuple[str, int | None, dict[str, Any]]] = {
    "clothing": ("clothing", 40, {"tasks": 5}),
    "caltech101": ("caltech101.npz", None, {"sizes": [11] + 9 * [10]}),
    "cifar100-part": ("cifar100-part", None, {"tasks": 10}),
    "digits": ("digits", None, {"tasks": 5}),
    "handwriting": ("handwriting", 100, {}),
    "clothing-domains": ("clothing", 160, {"changes": ["as-is", "dark", "blurred", "drawn"]}),
    "clinc150": ("clinc150", None, {"tasks": 10}),
    "banking77": ("banking77", None, {"tasks": 7, "order": "seeded"}),
}
"""By name: the data set, how many training images of each class are used, and how its classes are cut into days. Those
behind the first four have to be asked for. Where nothing is said of tasks, every day brings all classes in another
domain."""
LINES = ("learned", "nearest means", "LDA", "regression", "words")
BINS = 10


def main(
    settings: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...")] = None,
    config: Annotated[str | None, typer.Option(help="What the model starts with, instead of `photos`.")] = None,
    stream: Annotated[list[str] | None, typer.Option(help="One of them; repeatable.")] = None,
    seed: int = 0,
    validation: bool = False,
    per_class: Annotated[int | None, typer.Option(help="Training images of each class, instead of the usual.")] = None,
    days: Annotated[int | None, typer.Option(help="Stop after this day.")] = None,
    out: Path = Path("runs/first-days"),
) -> None:
    """Learn, and classify the test images after each day."""
    wanted = Wanted(seed=seed, settings=tuple(settings or ()), start=config)
    for name in stream or tuple(STREAMS)[:4]:
        stream_of_days = days_of(name, per_class, validation, seed)
        parts = (name, per_class and str(per_class), "validation" if validation else None, seed and f"seed-{seed}")
        called = "-".join(part for part in parts if part)
        learner = begun(out / f"{called}-model", Learner(wanted.config(stream_of_days[0].train.noun)))
        rows = follow(stream_of_days, learner, days, out / f"{called}-model", out / f"{called}.json")
        show(called, rows)


def begun(folder: Path, new: Learner) -> Learner:
    """Return the learner that an interrupted call has left in a folder, or the new one."""
    if not folder.exists():
        return new
    left = Learner.load(folder)
    if left.config | {"fit": None} != new.config | {"fit": None}:
        raise ValueError(f"'{folder}' was learned with other settings; choose another --out")
    return left


def days_of(name: str, per_class: int | None, validation: bool, seed: int) -> Scenario:
    """Return the stream, with a fifth of each day's training samples held back; the seed draws which, and the order."""
    data, usual, cut = STREAMS[name]
    cut = dict(cut)
    source = load_source(data, per_class=None if per_class else usual, changes=cut.pop("changes", None))
    source = without_test(source) if validation else source
    source = keep_per_class(source, per_class) if per_class else source
    stream = class_incremental if cut else domain_incremental
    return stream(source, **cut, seed=seed, validation=0.2)


def without_test(source: Source) -> Source:
    """Return a source whose test part is a quarter of the training part."""
    keep, hold = stratified_split(source.train.labels, source.train.keys, fraction=0.25, seed=0, name="selection")
    domains = [None if source.train_domains is None else source.train_domains[part] for part in (keep, hold)]
    train, test = source.train.subset(keep), source.train.subset(hold)
    return replace(source, train=train, test=test, train_domains=domains[0], test_domains=domains[1])


def follow(
    scenario: Scenario, learner: Learner, days: int | None, model: Path, results: Path
) -> list[dict[str, float]]:
    """Learn day by day, and return what is measured after each of them, in per cent.

    The model and the results are stored after each day, so that an interrupted call goes on where it was.
    """
    frozen, fit = Learner(learner.config).backbone, learner.model.fit()
    statistics = ClassGaussians(frozen.width)
    seen: list[tuple[Tensor, Tensor]] = []
    tests: list[tuple[Tensor, Tensor]] = []
    texts: list[Examples] = []
    rows: list[dict[str, float]] = read_json(results) if results.exists() else []
    for day in range(len(scenario) if days is None else days):
        task = scenario[day]
        if len(learner.tasks) == day:
            learner.learn(task, held_back=task.validation)
            learner.save(model, keep=1)
        seen.append((fit.features(task.train, frozen), task.train.labels))
        tests.append((fit.features(scenario.test(day), frozen), scenario.test(day).labels))
        statistics.add(*seen[-1], task.classes)
        texts.append(task.train)
        if day < len(rows):
            continue
        x, y = together(tests)
        guesses = [guess for i in range(day + 1) for guess in learner.predict(scenario.test(i), top=1)]
        names = [learner.class_names[label] for label in y.tolist()]
        right = torch.tensor([guess.classes[0] == name for guess, name in zip(guesses, names, strict=True)])
        lines = [
            right,
            statistics.ids[cosine_scores(x, statistics.means.float()).argmax(1)] == y,
            statistics.ids[statistics.linear_discriminant(x, 0.1).argmax(1)] == y,
            regression(*together(seen), x) == y,
        ]
        if all(isinstance(part, TextSet) for part in texts):
            lines.append(words(concatenate(texts), concatenate([scenario.test(i) for i in range(day + 1)])) == y)
        row = {line: 100 * float(own.float().mean()) for line, own in zip(LINES, lines, strict=False)}
        row |= calibration(torch.tensor([g.confidences[0] for g in guesses]), right)
        if day == len(scenario) // 2 - 1 and not set(task.classes) & set(scenario[-1].classes):
            later = [g for i in range(day + 1, len(scenario)) for g in learner.predict(scenario.test(i), top=1)]
            row |= separation(guesses, later)
        rows.append(row)
        write_json(results, rows)
        print(f"day {day + 1}: " + ", ".join(f"{name} {value:.1f}" for name, value in row.items()), flush=True)
    return rows


def calibration(confidence: Tensor, right: Tensor) -> dict[str, float]:
    """Return the calibration error in per cent and, below 1,000 samples, the bounds of its 95 % bootstrap interval."""
    error = {"calibration error": 100 * calibration_error(confidence, right)}
    if len(right) >= 1000:
        return error
    draws = torch.randint(len(right), (2000, len(right)), generator=torch.Generator().manual_seed(0))
    errors = torch.tensor([100 * calibration_error(confidence[draw], right[draw]) for draw in draws])
    low, high = errors.quantile(torch.tensor([0.025, 0.975])).tolist()
    return error | {"from": low, "to": high}


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Return the expected calibration error, 0..1: over bins of equal count, the mean of |accuracy - confidence|."""
    order = confidence.argsort()
    parts = zip(confidence[order].tensor_split(BINS), right[order].float().tensor_split(BINS), strict=True)
    return sum(len(c) * abs(float(c.mean() - r.mean())) for c, r in parts if len(c)) / len(order)


def separation(known: Sequence[Prediction], never: Sequence[Prediction]) -> dict[str, float]:
    """Return how well familiarity tells images of learned classes from those of classes that come later."""
    own, other = (torch.tensor([g.familiarity for g in part], dtype=torch.float64) for part in (known, never))
    below = (other[:, None] < own).double().mean() + (other[:, None] == own).double().mean() / 2
    flagged = [float((part < UNKNOWN).double().mean()) for part in (own, other)]
    names = ("area under the curve", "known called unknown", "new called unknown")
    return {name: 100 * value for name, value in zip(names, (float(below), *flagged), strict=True)}


def together(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join the features and the labels of several days."""
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def regression(x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """Fit a logistic regression on features and labels, and return the classes of other features."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x.numpy(), y.numpy())
    return torch.from_numpy(model.predict(test.numpy()))


def show(title: str, rows: Sequence[dict[str, float]]) -> None:
    """Print a table with a row for each day."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table("day", *names, title=title)
    for day, row in enumerate(rows, 1):
        table.add_row(str(day), *(f"{row[name]:.1f}" if name in row else "" for name in names))
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
