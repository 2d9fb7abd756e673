"""Export as a folder that transformers and sentence-transformers load, with the classifier and a program."""

from pathlib import Path

from lamella.learner.export.check import compare
from lamella.learner.export.describe import description, metadata
from lamella.learner.export.network import fixed
from lamella.learner.export.predict_program import CLASSIFIER, PROGRAM, logits_of, program
from lamella.learner.export.transformers_files import (
    encoder_of,
    loading,
    save_labels,
    save_network,
    save_pooling,
    save_tokenizer,
)
from lamella.learner.model import Model
from lamella.methods import Method

__all__ = ["export_hf"]


def export_hf(model: Model, method: Method, folder: Path) -> list[str]:
    """Write the files of transformers and of sentence-transformers, classifier.safetensors and predict.py.

    Raises:
        ValueError: the model is not one network of transformers with a classifier of few tensors.
        RuntimeError: the export does not make the tokens or the logits that the model makes.
    """
    from safetensors.torch import save_file

    encoder_of(model.backbone)
    network = fixed(method)
    encoder, transform = encoder_of(network.backbone)
    described = description(model, method, method.classes)
    save_network(encoder, folder)
    save_labels(folder, described)
    save_tokenizer(transform, folder)
    save_pooling(encoder, transform, network.backbone.width, folder)
    state = network.of_classes.state_dict()
    save_file(state, folder / CLASSIFIER, metadata={"format": "pt"} | metadata(described))
    (folder / PROGRAM).write_text(program(encoder, network.of_classes, described["temperature"]), encoding="utf-8")

    found = compare(method.predict, logits_of(folder / PROGRAM), model.backbone)
    return [
        str(found),
        f"run it: python {folder / PROGRAM} 'a text'",
        f"load it: import transformers; model = transformers.{loading(encoder, repr(str(folder)))[1]}",
    ]
