"""Export of the prediction for texts as one ONNX graph, with the tokenizer beside it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lamella.data.samples import Batch
from lamella.data.tokens import IDS, MASK
from lamella.learner.export.check import compare, random_samples
from lamella.learner.export.describe import description, metadata, needed
from lamella.learner.export.network import Fixed, fixed
from lamella.learner.export.onnx_graph import OUTPUT, converted
from lamella.learner.export.transformers_files import encoder_of, own_tokenizer, pad_token
from lamella.learner.model import Model
from lamella.methods import Method

__all__ = ["export_onnx_of_texts"]

GRAPH, TOKENIZER = "model.onnx", "tokenizer.json"


class _OfTokens(nn.Module):
    """A network that takes the tensors of a batch, one after the other.

    Args:
        network: the network with its classifier.
    """

    def __init__(self, network: Fixed) -> None:
        super().__init__()
        self.encoder, _ = encoder_of(network.backbone)
        self.classifier = network.of_classes

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.classifier(self.encoder.features(input_ids, attention_mask.bool()))


def export_onnx_of_texts(model: Model, method: Method, folder: Path) -> list[str]:
    """Write a folder with model.onnx and tokenizer.json.

    The inputs are "input_ids" and "attention_mask", int64 (n, tokens); the output is "logits" (n, classes).

    Raises:
        ValueError: the model is not one network of transformers with a classifier of few tensors, or the path is that
            of a file.
        RuntimeError: a package is missing.
    """
    onnx, runtime = needed("onnx", "export"), needed("onnxruntime", "export")
    needed("onnxscript", "export")
    if folder.suffix == ".onnx":
        raise ValueError(
            f"a model of texts becomes a folder with its tokenizer: say --out {folder.stem}, without .onnx"
        )
    _, transform = encoder_of(model.backbone)
    network = _OfTokens(fixed(method))
    graph = _graph(network, random_samples(model.backbone, 2))
    onnx.helper.set_model_props(graph, metadata(description(model, method, method.classes)))
    folder.mkdir()
    onnx.save_model(graph, folder / GRAPH)
    tokenizer = own_tokenizer(transform)
    pad = pad_token(transform)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    tokenizer.save(str(folder / TOKENIZER))

    session = runtime.InferenceSession(str(folder / GRAPH), providers=["CPUExecutionProvider"])

    def exported(x: Batch) -> Tensor:
        inputs = {IDS: x[IDS].numpy(), MASK: x[MASK].long().numpy()}
        return torch.from_numpy(session.run([OUTPUT], inputs)[0])

    found = compare(method.predict, exported, model.backbone)
    return [
        str(found),
        f"load it: import onnxruntime; session = onnxruntime.InferenceSession('{folder / GRAPH}')",
        f"run it: session.run(['{OUTPUT}'], {{'{IDS}': ids, '{MASK}': mask}})[0], of int64 (n, tokens), which "
        f"tokenizers.Tokenizer.from_file('{folder / TOKENIZER}').encode_batch(texts) has as .ids and .attention_mask",
    ]


def _graph(network: nn.Module, example: Any) -> Any:
    axes = {0: torch.export.Dim("n"), 1: torch.export.Dim("tokens")}
    x = example[IDS], example[MASK].long()
    return converted(network, x, [IDS, MASK], OUTPUT, dynamic_shapes={IDS: axes, MASK: axes})
