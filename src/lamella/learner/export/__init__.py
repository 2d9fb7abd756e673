"""Exports of a model that can be used without Lamella: for timm, transformers, PEFT and ONNX, or as plain tensors."""

from lamella.learner.export.formats import FORMATS, export

__all__ = ["FORMATS", "export"]
