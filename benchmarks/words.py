"""The line without an encoder that every table of texts has: words, and the texts of all tasks at once.

    LAMELLA_DATA=DIR python benchmarks/words.py clinc150 scenario.validation=0
    LAMELLA_DATA=DIR python benchmarks/words.py banking77 scenario.validation=0 scenario.per_class=8

scikit-learn's linear support vector machine on words and word pairs, weighed by how rare they are (TF-IDF), is fitted
on the training texts of all tasks of a configuration's stream, and names the test texts of all tasks. Nothing in it is
drawn, so it has one seed.
"""

from typing import Annotated, Any

import torch
import typer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from torch import Tensor

from lamella.data.images import concatenate
from lamella.learner.config.document import build_scenario, load_config


def main(config: str, settings: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...")] = None) -> None:
    """Fit, and print the accuracy in per cent."""
    scenario = build_scenario(load_config(config, settings or []))
    train = concatenate([task.train for task in scenario])
    test = concatenate([scenario.test(i) for i in range(len(scenario))])
    right = (words(train, test) == test.labels).float()
    print(f"words, all texts at once: {100 * float(right.mean()):.1f}")


def words(train: Any, test: Any) -> Tensor:
    """Fit a linear classifier on the words of texts, and return the classes of other texts."""
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC())
    return torch.from_numpy(model.fit(train.texts, train.labels.numpy()).predict(test.texts))


if __name__ == "__main__":
    typer.run(main)
