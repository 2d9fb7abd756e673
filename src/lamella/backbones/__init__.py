"""Backbones: pre-trained feature extractors and the places where branches attach."""

from lamella.backbones.backbone import Backbone
from lamella.backbones.describe import LayerRow, describe_layers
from lamella.backbones.load import BACKBONES, backbone_options, load_backbone

__all__ = ["BACKBONES", "Backbone", "LayerRow", "backbone_options", "describe_layers", "load_backbone"]
