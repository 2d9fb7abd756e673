"""Checks for methods of one's own: whether they keep the contract of `lamella.Method`."""

from lamella.testing.check import check_method
from lamella.testing.texts import tiny_bert
from lamella.testing.tiny import MethodCheckError, tiny_resnet, tiny_vit

__all__ = ["MethodCheckError", "check_method", "tiny_bert", "tiny_resnet", "tiny_vit"]
