"""Export of the prediction for images as one ONNX graph for batches of any size.

One network with a classifier of few tensors becomes a plain graph. Any other method is traced on one image, including
the choices that it makes for an image, and the graph runs image after image in a Scan. That gives the same result,
since a prediction does not depend on the other images of its batch.
"""

import warnings
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lamella.backbones import Backbone
from lamella.data.transform import of_images
from lamella.learner.export.check import compare, random_samples
from lamella.learner.export.describe import description, metadata, needed
from lamella.learner.export.network import Fixed, fixed
from lamella.learner.model import Model
from lamella.methods import Method

__all__ = ["OUTPUT", "converted", "export_onnx"]

INPUT, OUTPUT = "images", "logits"


def export_onnx(model: Model, method: Method, file: Path) -> list[str]:
    """Write one file: input "images" (n, 3, size, size), normalised; output "logits" (n, classes).

    Raises:
        RuntimeError: a package is missing.
    """
    onnx, runtime = needed("onnx", "export"), needed("onnxruntime", "export")
    needed("onnxscript", "export")
    size = of_images(model.backbone.transform, "format onnx").size
    try:
        network = fixed(method)
    except ValueError:
        graph, how = _image_by_image(method), "the graph runs image after image"
    else:
        graph, how = _batches(network), "the graph runs whole batches"
    onnx.helper.set_model_props(graph, metadata(description(model, method, method.classes)))
    onnx.save_model(graph, file)

    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def exported(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])

    found = compare(method.predict, exported, model.backbone)
    return [
        str(found),
        how,
        f"load it: import onnxruntime; session = onnxruntime.InferenceSession('{file}')",
        f"run it: session.run(['{OUTPUT}'], {{'{INPUT}': images}})[0], of float32 images (n, 3, {size}, {size})",
    ]


def _images(backbone: Backbone, count: int) -> Tensor:
    return cast(Tensor, random_samples(backbone, count))


def _batches(network: Fixed) -> Any:
    shapes = {"x": {0: torch.export.Dim("n")}}
    return converted(network, (_images(network.backbone, 2),), [INPUT], OUTPUT, dynamic_shapes=shapes)


def _image_by_image(method: Method) -> Any:
    """Return an ONNX model whose only node is a Scan over the images, with the graph for one image as its body."""
    from onnx import TensorProto, helper

    image = _images(method.backbone, 1)
    model = converted(_traced(method, image), (image,), ["batch_of_one"], "logits_of_one")
    one, axis = model.graph, helper.make_tensor("batch_axis", TensorProto.INT64, [1], [0])
    classes = one.output[0].type.tensor_type.shape.dim[1].dim_value

    def floats(name: str, *shape: int | str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    nodes = [
        helper.make_node("Unsqueeze", ["image", axis.name], ["batch_of_one"]),
        *one.node,
        helper.make_node("Squeeze", ["logits_of_one", axis.name], ["row"]),
    ]
    body = helper.make_graph(nodes, "one_image", [floats("image", *image.shape[1:])], [floats("row", classes)])
    scan = helper.make_node("Scan", [INPUT], [OUTPUT], num_scan_inputs=1, body=body)
    inputs, outputs = [floats(INPUT, "n", *image.shape[1:])], [floats(OUTPUT, "n", classes)]
    graph = helper.make_graph([scan], "prediction", inputs, outputs, [*one.initializer, axis])
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def converted(module: nn.Module, x: tuple[Tensor, ...], inputs: list[str], output: str, **options: Any) -> Any:
    """Return a module as an ONNX model.

    Args:
        module: the module.
        x: examples of its arguments.
        inputs: the names of its arguments in the graph.
        output: the name of its result in the graph.
        options: further ones of `torch.onnx.export`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the exporter about its own code
        program: Any = torch.onnx.export(
            module, x, input_names=inputs, output_names=[output], dynamo=True, verbose=False, **options
        )
    return program.model_proto


def _traced(method: Method, x: Tensor) -> nn.Module:
    """Trace the method's prediction for one image as plain tensor operations; everything learned is constant."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        method.predict(x)  # fills caches, such as solved discriminants, which then are constants in the graph
        with _InPlainOperations():
            return make_fx(lambda x: method.predict(x), tracing_mode="real")(x)


class _InPlainOperations(TorchFunctionMode):
    """Replaces functions that cannot be traced, or that ONNX lacks, by operations that can."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = {F.one_hot: _one_hot, torch.cdist: _distances}.get(func, func)
        return plain(*args, **(kwargs or {}))


def _one_hot(index: Tensor, num_classes: int) -> Tensor:
    return (index[..., None] == torch.arange(num_classes, device=index.device)).long()


def _distances(x1: Tensor, x2: Tensor, **_: Any) -> Tensor:
    return (x1[:, None] - x2[None]).square().sum(2).sqrt()
