"""A learned model in forms that others read without Lamella: timm, PEFT, ONNX, plain tensors. Each is checked."""

from lamella.learner.export.formats import FORMATS, export

__all__ = ["FORMATS", "export"]
